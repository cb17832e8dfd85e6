//! Which of the writes that power may take are on the media: all subsets of sectors if they are
//! few, chosen ones otherwise.
//!
//! Only sectors in which the possible versions differ count. So a log block whose first sector alone
//! has bytes is one uncertain sector, not eight, and "all subsets" reaches far.

use kit::Rng;
use kit::content::{SECTOR, SECTORS};
use types::{BLOCK, BufMut};

use crate::disk::{Pending, Piece};

/// All subsets are tried up to this many.
pub const EXHAUSTIVE: u64 = 1 << 8;

/// A sector of which it is open what it holds.
struct Sector {
    at: usize,
    /// For the media (0) and each version (from 1 on), the first of those with the same bytes.
    same: Vec<u8>,
    /// The different ones.
    options: Vec<u8>,
}

/// A block with uncertain sectors.
struct Uncertain {
    block: u32,
    /// The media, then the versions; with the write of each.
    versions: Vec<(u64, Piece)>,
    sectors: Vec<Sector>,
}

/// A moment at which power is lost.
pub struct Cut {
    blocks: Vec<Uncertain>,
    /// Writes of which something is uncertain, in the order in which they were submitted.
    writes: Vec<u64>,
    sectors: usize,
    images: u64,
    /// First block of the data.
    data: u32,
}

/// For each uncertain sector, which version it holds.
pub type Choice = Vec<u8>;

const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

fn bytes(piece: &Piece) -> &[u8] {
    piece.as_ref().map_or(&ZEROS, |piece| piece.as_slice())
}

fn sector(piece: &Piece, at: usize) -> &[u8] {
    &bytes(piece)[at * SECTOR..(at + 1) * SECTOR]
}

impl Cut {
    /// A cut while `pending` is uncertain; `media` says what is certain.
    #[must_use]
    pub fn new(pending: &Pending, data: u32, media: impl Fn(u32) -> Piece) -> Self {
        let (mut blocks, mut writes) = (Vec::new(), Vec::new());
        let (mut count, mut images) = (0, 1u64);
        for (block, versions) in pending {
            let mut all = vec![(0, media(*block))];
            all.extend(versions.iter().map(|version| (version.write, version.piece.clone())));
            let sectors: Vec<Sector> = (0..SECTORS)
                .filter_map(|at| {
                    let mut same: Vec<u8> = Vec::with_capacity(all.len());
                    for (index, (_, piece)) in all.iter().enumerate() {
                        let bytes = sector(piece, at);
                        let first = all[..index].iter().position(|(_, p)| sector(p, at) == bytes);
                        same.push(first.map_or(index, |first| usize::from(same[first])) as u8);
                    }
                    let mut options = same.clone();
                    options.sort_unstable();
                    options.dedup();
                    (options.len() > 1).then_some(Sector { at, same, options })
                })
                .collect();
            if sectors.is_empty() {
                continue;
            }
            count += sectors.len();
            for sector in &sectors {
                images = images.saturating_mul(sector.options.len() as u64);
            }
            writes.extend(versions.iter().map(|version| version.write));
            blocks.push(Uncertain { block: *block, versions: all, sectors });
        }
        writes.sort_unstable();
        writes.dedup();
        Self { blocks, writes, sectors: count, images, data }
    }

    /// How many images there are at most.
    #[must_use]
    pub const fn images(&self) -> u64 {
        self.images
    }

    fn choose(&self, mut version: impl FnMut(&Uncertain, usize) -> usize) -> Choice {
        let mut choice = Choice::with_capacity(self.sectors);
        for block in &self.blocks {
            for (index, sector) in block.sectors.iter().enumerate() {
                choice.push(sector.same[version(block, index)]);
            }
        }
        choice
    }

    /// The newest version that `kept` says to be there.
    fn newest(block: &Uncertain, mut kept: impl FnMut(u64) -> bool) -> usize {
        (1..block.versions.len()).rev().find(|at| kept(block.versions[*at].0)).unwrap_or(0)
    }

    /// Image `number` of all.
    fn nth(&self, mut number: u64) -> Choice {
        let mut choice = Choice::with_capacity(self.sectors);
        for sector in self.blocks.iter().flat_map(|block| &block.sectors) {
            let options = sector.options.len() as u64;
            choice.push(sector.options[(number % options) as usize]);
            number /= options;
        }
        choice
    }

    /// The images to try: all of them if they are few (up to [`EXHAUSTIVE`] at one moment in eight,
    /// else up to eight times `samples`), or nothing kept, everything kept, and `samples` others.
    #[must_use]
    pub fn choices(&self, rng: &mut Rng, samples: usize) -> Vec<Choice> {
        let few = if rng.one_in(8) { EXHAUSTIVE } else { EXHAUSTIVE.min(samples as u64 * 8) };
        if self.images <= few {
            return (0..self.images).map(|number| self.nth(number)).collect();
        }
        let none = self.choose(|_, _| 0);
        let all = self.choose(|block, _| block.versions.len() - 1);
        let mut choices = vec![none, all];
        choices.extend((0..samples).map(|_| self.sample(rng)));
        choices
    }

    /// One image. Careless ordering dies of different ones, so the kinds are mixed.
    #[must_use]
    pub fn sample(&self, rng: &mut Rng) -> Choice {
        match rng.below(8) {
            // Whole writes, in any order.
            0 | 1 => {
                let one_in = [2, 8][rng.index(2)];
                let lucky = rng.one_in(2);
                let kept: Vec<bool> =
                    self.writes.iter().map(|_| rng.one_in(one_in) != lucky).collect();
                self.choose(|block, _| {
                    Self::newest(block, |write| {
                        self.writes.binary_search(&write).is_ok_and(|at| kept[at])
                    })
                })
            }
            // Writes in their order up to one that is torn.
            2 => {
                let Some(last) = self.pick(rng) else { return self.nth(0) };
                let mut tear = rng.fork();
                self.choose(|block, _| {
                    Self::newest(block, |write| write < last || (write == last && tear.one_in(2)))
                })
            }
            // All but one write, or only that one; whole or torn.
            3 => {
                let Some(odd) = self.pick(rng) else { return self.nth(0) };
                let (alone, torn) = (rng.one_in(2), rng.one_in(2));
                let mut tear = rng.fork();
                self.choose(|block, _| {
                    Self::newest(block, |write| {
                        ((write == odd) == alone) != (torn && write == odd && tear.one_in(2))
                    })
                })
            }
            // Metadata and data of different luck.
            4 | 5 => {
                let luck = [rng.below(3), rng.below(3)];
                let mut any = rng.fork();
                self.choose(|block, _| match luck[usize::from(block.block >= self.data)] {
                    0 => 0,
                    1 => block.versions.len() - 1,
                    _ => any.index(block.versions.len()),
                })
            }
            // Every sector for itself.
            6 => self.choose(|block, _| rng.index(block.versions.len())),
            // All but one sector, or only that one.
            _ => {
                let (odd, alone) = (rng.index(self.sectors.max(1)), rng.one_in(2));
                let mut at = 0;
                self.choose(|block, _| {
                    at += 1;
                    if ((at - 1) == odd) == alone { block.versions.len() - 1 } else { 0 }
                })
            }
        }
    }

    fn pick(&self, rng: &mut Rng) -> Option<u64> {
        (!self.writes.is_empty()).then(|| self.writes[rng.index(self.writes.len())])
    }

    /// The blocks of the image that `choice` describes.
    pub fn apply(&self, choice: &[u8], mut put: impl FnMut(u32, Piece)) {
        let mut rest = choice;
        for block in &self.blocks {
            let (now, later) = rest.split_at(block.sectors.len());
            rest = later;
            let first = usize::from(now[0]);
            let like = |version: usize| {
                block.sectors.iter().zip(now).all(|(sector, now)| sector.same[version] == *now)
            };
            if let Some(whole) = (0..block.versions.len()).find(|version| like(*version)) {
                if whole > 0 {
                    put(block.block, block.versions[whole].1.clone());
                }
                continue;
            }
            let mut torn = BufMut::copy_of(bytes(&block.versions[first].1));
            for (sector, now) in block.sectors.iter().zip(now) {
                let range = sector.at * SECTOR..(sector.at + 1) * SECTOR;
                let from = bytes(&block.versions[usize::from(*now)].1);
                torn.as_mut_slice()[range.clone()].copy_from_slice(&from[range]);
            }
            put(block.block, Some(torn.freeze()));
        }
    }

    /// Sectors that hold something that was not on the media for sure.
    #[must_use]
    pub fn kept(choice: &[u8]) -> usize {
        choice.iter().filter(|version| **version > 0).count()
    }

    /// A choice with fewer kept sectors for which `fails` holds still.
    #[must_use]
    pub fn shrink(&self, choice: &Choice, mut fails: impl FnMut(&Choice) -> bool) -> Choice {
        let mut best = choice.clone();
        let mut step = best.len().next_power_of_two();
        while step > 0 {
            let mut at = 0;
            while at < best.len() {
                let end = (at + step).min(best.len());
                let mut less = best.clone();
                less[at..end].fill(0);
                if less != best && fails(&less) {
                    best = less;
                }
                at = end;
            }
            step /= 2;
        }
        best
    }

    /// The kept sectors, for people.
    #[must_use]
    pub fn describe(&self, choice: &[u8]) -> String {
        let mut said = Vec::new();
        let sectors =
            self.blocks.iter().flat_map(|block| block.sectors.iter().map(move |s| (block, s)));
        for ((block, sector), version) in sectors.zip(choice) {
            if *version > 0 {
                let write = block.versions[usize::from(*version)].0;
                said.push(format!("{}.{}=w{write}", block.block, sector.at));
            }
        }
        let more = said.len().saturating_sub(24);
        said.truncate(24);
        format!("[{}{}]", said.join(" "), if more > 0 { " …" } else { "" })
    }
}
