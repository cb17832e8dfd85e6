//! A disk with a volatile cache, as the pool of a running store sees it and as a loss of power
//! finds it.

use std::collections::{BTreeMap, BTreeSet};

use types::{BLOCK, Buf, BufMut};

/// The 4096 bytes of a block; `None` is zeros.
pub type Piece = Option<Buf>;

/// What a write that is not durable yet has for one block.
#[derive(Clone, Debug)]
pub struct Version {
    /// Which write.
    pub write: u64,
    /// When it completed, in completions; `None` while it is in flight.
    pub done: Option<u64>,
    /// Its bytes.
    pub piece: Piece,
}

/// The writes that power may still take, oldest first, by block.
pub type Pending = BTreeMap<u32, Vec<Version>>;

/// Ways to break a promise on which the store relies, to prove that the harness would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// None.
    Honest,
    /// A sync makes nothing durable.
    Syncs,
    /// A durable write is a plain one.
    DurableWrites,
    /// A sync covers what was in flight, but not what had completed in the data area.
    DataSyncs,
    /// A sync does not cover zeroing.
    Zeroing,
}

/// The blocks of a write on its way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    first: u32,
    count: u32,
}

/// The disk.
#[derive(Clone)]
pub struct Disk {
    /// What is on the media for sure.
    pub media: Vec<Piece>,
    /// What reads see.
    view: Vec<Piece>,
    /// What may or may not be on the media.
    pub pending: Pending,
    flights: BTreeMap<u64, Flight>,
    /// Zeroing writes of which something is pending.
    zeroing: BTreeSet<u64>,
    writes: u64,
    clock: u64,
    lie: Lie,
    data: u32,
}

const SIZE: usize = BLOCK as usize;

/// The piece of `data` for its block `index`.
fn piece(data: Option<&Buf>, index: u32) -> Piece {
    let at = index as usize * SIZE;
    let piece = data?.slice(at..at + SIZE);
    (!types::is_zeros(piece.as_slice())).then_some(piece)
}

/// Fills `buf` from blocks of `get`, beginning at `offset`.
pub fn fill<'a>(buf: &mut BufMut, offset: u64, get: impl Fn(u32) -> Option<&'a Buf>) {
    let first = (offset / BLOCK) as u32;
    for (out, block) in buf.as_mut_slice().chunks_mut(SIZE).zip(first..) {
        match get(block) {
            Some(bytes) => out.copy_from_slice(&bytes.as_slice()[..out.len()]),
            None => out.fill(0),
        }
    }
}

impl Disk {
    /// A blank disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64, lie: Lie) -> Self {
        Self::of(vec![None; (size / BLOCK) as usize], lie)
    }

    /// A disk with this on its media.
    #[must_use]
    pub fn of(media: Vec<Piece>, lie: Lie) -> Self {
        let view = media.clone();
        Self {
            media,
            view,
            pending: Pending::new(),
            flights: BTreeMap::new(),
            zeroing: BTreeSet::new(),
            writes: 0,
            clock: 0,
            lie,
            data: u32::MAX,
        }
    }

    /// The first block of the data, for [`Lie::DataSyncs`] and for the luck of a cut.
    pub fn data_begins(&mut self, offset: u64) {
        self.data = self.data.min((offset / BLOCK) as u32);
    }

    /// The first block of the data, as far as it is known.
    #[must_use]
    pub const fn data(&self) -> u32 {
        self.data
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.media.len() as u64 * BLOCK
    }

    /// What reads see.
    #[must_use]
    pub fn view(&self) -> &[Piece] {
        &self.view
    }

    /// The bytes that reads see.
    #[must_use]
    pub fn read(&self, offset: u64, len: u64) -> Buf {
        let mut buf = BufMut::with_len(len as usize);
        fill(&mut buf, offset, |block| self.view[block as usize].as_ref());
        buf.freeze()
    }

    /// A write of `data`, or zeroing, begins.
    pub fn submit(&mut self, offset: u64, len: u64, data: Option<&Buf>) -> u64 {
        self.writes += 1;
        let (first, count) = ((offset / BLOCK) as u32, (len / BLOCK) as u32);
        self.flights.insert(self.writes, Flight { first, count });
        for index in 0..count {
            let (block, piece) = (first + index, piece(data, index));
            let nothing = piece.is_none() && self.media[block as usize].is_none();
            if nothing && !self.pending.contains_key(&block) {
                continue;
            }
            let version = Version { write: self.writes, done: None, piece };
            self.pending.entry(block).or_default().push(version);
        }
        if data.is_none() {
            self.zeroing.insert(self.writes);
        }
        self.writes
    }

    /// Writes that have not completed.
    #[must_use]
    pub fn in_flight(&self) -> Vec<u64> {
        self.flights.keys().copied().collect()
    }

    /// A write completes.
    pub fn complete(&mut self, write: u64, durable: bool) {
        let Some(Flight { first, count }) = self.flights.remove(&write) else { return };
        let durable = durable && self.lie != Lie::DurableWrites;
        self.clock += 1;
        for block in first..first + count {
            let Some(versions) = self.pending.get_mut(&block) else { continue };
            let Some(at) = versions.iter().position(|version| version.write == write) else {
                continue;
            };
            let mut version = versions.remove(at);
            self.view[block as usize].clone_from(&version.piece);
            if durable {
                self.media[block as usize] = version.piece;
                versions.retain(|version| version.done.is_none());
                if versions.is_empty() {
                    self.pending.remove(&block);
                }
            } else {
                // Those that are done are in the order in which they were done.
                version.done = Some(self.clock);
                let done = versions.iter().take_while(|version| version.done.is_some()).count();
                versions.insert(done, version);
            }
        }
    }

    /// What a sync that begins now will cover.
    #[must_use]
    pub const fn mark(&self) -> u64 {
        self.clock
    }

    /// A sync that began at `mark` completes.
    pub fn synced(&mut self, mark: u64) {
        if self.lie == Lie::Syncs {
            return;
        }
        let (media, lie, data, zeroing) = (&mut self.media, self.lie, self.data, &self.zeroing);
        self.pending.retain(|block, versions| {
            let covered = versions
                .iter()
                .rposition(|version| version.done.is_some_and(|done| done <= mark))
                .map_or(0, |last| last + 1);
            if lie == Lie::DataSyncs && *block >= data {
                return true;
            }
            let Some(last) = covered.checked_sub(1).and_then(|last| versions.get(last)) else {
                return true;
            };
            if lie == Lie::Zeroing && zeroing.contains(&last.write) {
                return true;
            }
            media[*block as usize].clone_from(&last.piece);
            versions.drain(..covered);
            !versions.is_empty()
        });
    }

    /// The process is gone; what it had submitted completes (R12).
    pub fn complete_all(&mut self) {
        for write in self.in_flight() {
            self.complete(write, false);
        }
    }
}
