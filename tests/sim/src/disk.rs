//! A disk with a volatile cache: it forgets, tears, fails, rots and slows down.
//!
//! Writes count when they complete; what was completed and not synced, and what was under way, may
//! or may not be there after a power loss, 512-byte sector by sector. A sync makes durable what had
//! completed before the sync began.

use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use types::{BLOCK, Buf, BufMut};

const SECTOR: usize = 512;
const EIO: i32 = 5;

/// What a write left in the cache for one block; `None` is zeros.
pub type Piece = Option<Buf>;

/// One operation that was submitted.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum DiskOp {
    /// Read.
    Read { offset: u64, len: u32 },
    /// Write, `durable` before it completes.
    Write { offset: u64, data: Buf, durable: bool },
    /// Write zeros.
    Zero { offset: u64, len: u64 },
    /// Sync of all that completed before `mark`.
    Sync { mark: u64 },
}

/// See the module's text. Everything in it is indexed by 4 KiB block.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    media: Vec<Piece>,
    /// Completed and not synced, oldest first.
    cache: BTreeMap<u32, Vec<(u64, Piece)>>,
    clock: u64,
    /// Blocks that cannot be read until they are written.
    unreadable: BTreeSet<u32>,
    /// Errors of the next writes.
    pub write_errors: u32,
    /// Errors of the next syncs.
    pub sync_errors: u32,
    /// Operations under way, by the store's number.
    pub under_way: BTreeMap<u64, DiskOp>,
}

fn index(offset: u64) -> usize {
    (offset / BLOCK) as usize
}

impl SimDisk {
    /// A blank disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { media: vec![None; index(size)], ..Self::default() }
    }

    fn view(&self, block: u32) -> Option<&Buf> {
        match self.cache.get(&block).and_then(|versions| versions.last()) {
            Some((_, piece)) => piece.as_ref(),
            None => self.media[block as usize].as_ref(),
        }
    }

    /// A copy of what a reader would find now, on a disk without errors.
    #[must_use]
    pub fn image(&self) -> Self {
        let media = (0..).zip(&self.media).map(|(block, _)| self.view(block).cloned()).collect();
        Self { media, ..Self::default() }
    }

    /// What a read of the block at `offset` would find; `None` is zeros.
    #[must_use]
    pub fn block(&self, offset: u64) -> Option<&Buf> {
        self.view(index(offset) as u32)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Buf, i32> {
        let first = index(offset) as u32;
        let blocks = (len as u64 / BLOCK) as u32;
        if self.unreadable.range(first..first + blocks).next().is_some() {
            return Err(EIO);
        }
        if blocks == 1
            && let Some(buf) = self.view(first)
        {
            return Ok(buf.clone());
        }
        let mut out = BufMut::with_len(len);
        for (chunk, block) in out.as_mut_slice().chunks_exact_mut(BLOCK as usize).zip(first..) {
            match self.view(block) {
                Some(buf) => chunk.copy_from_slice(buf.as_slice()),
                None => chunk.fill(0),
            }
        }
        Ok(out.freeze())
    }

    fn write(&mut self, offset: u64, len: u64, data: Option<&Buf>, durable: bool) {
        self.clock += 1;
        let clock = self.clock;
        for block in 0..(len / BLOCK) as u32 {
            let at = block as usize * BLOCK as usize;
            let piece = data.map(|data| data.slice(at..at + BLOCK as usize));
            let block = index(offset) as u32 + block;
            if !self.unreadable.is_empty() {
                self.unreadable.remove(&block);
            }
            if durable {
                self.cache.remove(&block);
                self.media[block as usize] = piece;
            } else if piece.is_some()
                || self.media[block as usize].is_some()
                || self.cache.contains_key(&block)
            {
                // Zeros on zeros change nothing, whatever becomes of them.
                self.cache.entry(block).or_default().push((clock, piece));
            }
        }
    }

    fn synced(&mut self, mark: u64) {
        let media = &mut self.media;
        self.cache.retain(|block, versions| {
            let covered = versions.iter().take_while(|(at, _)| *at <= mark).count();
            if let Some((_, piece)) = versions.drain(..covered).next_back() {
                media[*block as usize] = piece;
            }
            !versions.is_empty()
        });
    }

    /// What a sync that begins now will cover.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.clock
    }

    /// The operation `id` completes.
    pub fn complete(&mut self, id: u64) -> Option<store::IoResult> {
        use store::IoResult;
        let done = |result| Some(IoResult::Done(result));
        match self.under_way.remove(&id)? {
            DiskOp::Read { offset, len } => Some(IoResult::Read(self.read(offset, len as usize))),
            DiskOp::Write { .. } | DiskOp::Zero { .. } if self.write_errors > 0 => {
                self.write_errors -= 1;
                done(Err(EIO))
            }
            DiskOp::Write { offset, data, durable } => {
                self.write(offset, data.len() as u64, Some(&data), durable);
                done(Ok(()))
            }
            DiskOp::Zero { offset, len } => {
                self.write(offset, len, None, false);
                done(Ok(()))
            }
            DiskOp::Sync { .. } if self.sync_errors > 0 => {
                self.sync_errors -= 1;
                // What a failed sync leaves in the cache is gone and marked clean: the lie of R13.
                self.cache.clear();
                done(Err(EIO))
            }
            DiskOp::Sync { mark } => {
                self.synced(mark);
                done(Ok(()))
            }
        }
    }

    /// The process that submitted what is under way is gone, the kernel is not: each operation still
    /// happens, or was cancelled before it began.
    pub fn abandoned(&mut self, rng: &mut Rng) {
        let ids: Vec<u64> = self.under_way.keys().copied().collect();
        for id in ids {
            if rng.chance(70) {
                self.complete(id);
            }
        }
        self.under_way.clear();
    }

    /// Power is lost. Often all that is below `data` (bytes), or all that is above, has the same
    /// luck: that is what careless ordering dies of.
    pub fn power_loss(&mut self, rng: &mut Rng, data: u64) {
        for op in std::mem::take(&mut self.under_way).into_values() {
            match op {
                DiskOp::Write { offset, data, .. } if rng.chance(70) => {
                    self.write(offset, data.len() as u64, Some(&data), false);
                }
                DiskOp::Zero { offset, len } if rng.chance(70) => {
                    self.write(offset, len, None, false);
                }
                _ => {}
            }
        }
        let luck = [Luck::pick(rng), Luck::pick(rng)];
        for (block, versions) in std::mem::take(&mut self.cache) {
            let all = versions.len() as u64;
            let luck = luck[usize::from(u64::from(block) * BLOCK >= data)];
            let whole = match luck {
                Luck::Lost => 0,
                Luck::Kept => all,
                Luck::Any => rng.below(all + 1),
            };
            if matches!(luck, Luck::Any) && rng.one_in(4) {
                self.tear(block, &versions, rng);
            } else if let Some(pick) = whole.checked_sub(1) {
                self.media[block as usize] = versions[pick as usize].1.clone();
            }
        }
    }

    fn tear(&mut self, block: u32, versions: &[(u64, Piece)], rng: &mut Rng) {
        let mut torn = BufMut::zeroed(BLOCK as usize);
        for (sector, out) in torn.as_mut_slice().chunks_exact_mut(SECTOR).enumerate() {
            let from = match rng.below(versions.len() as u64 + 1).checked_sub(1) {
                Some(pick) => versions[pick as usize].1.as_ref(),
                None => self.media[block as usize].as_ref(),
            };
            if let Some(from) = from {
                out.copy_from_slice(&from.as_slice()[sector * SECTOR..(sector + 1) * SECTOR]);
            }
        }
        self.media[block as usize] = Some(torn.freeze());
    }

    /// A latent error: the block at `offset` cannot be read until it is written.
    pub fn make_unreadable(&mut self, offset: u64) {
        self.unreadable.insert(index(offset) as u32);
    }

    /// A latent error nobody notices: a bit of the block at `offset` flips on the platter. What the
    /// cache holds is not touched; returns false if that hides it.
    pub fn rot(&mut self, offset: u64, bit: u64) -> bool {
        let block = index(offset) as u32;
        if self.cache.contains_key(&block) {
            return false;
        }
        let mut copy = match &self.media[block as usize] {
            Some(buf) => BufMut::copy_of(buf.as_slice()),
            None => BufMut::zeroed(BLOCK as usize),
        };
        let at = (bit / 8 % BLOCK) as usize;
        copy.as_mut_slice()[at] ^= 1 << (bit % 8);
        self.media[block as usize] = Some(copy.freeze());
        true
    }

    /// Blocks that hold `bad` get their good content back, wherever the store has copied it to, if `which`
    /// (of a pool offset) says so.
    pub fn replace(&mut self, bad: &Buf, good: &Piece, which: impl Fn(u64) -> bool) {
        for (number, media) in (0..).zip(&mut self.media) {
            if media.as_ref() == Some(bad) && which(number * BLOCK) {
                media.clone_from(good);
            }
        }
    }

    /// Unreadable blocks are remapped by the disk's own spares, with their content.
    pub fn heal(&mut self) {
        self.unreadable.clear();
        self.write_errors = 0;
        self.sync_errors = 0;
    }
}

#[derive(Clone, Copy)]
enum Luck {
    Lost,
    Kept,
    Any,
}

impl Luck {
    fn pick(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self::Lost,
            1 => Self::Kept,
            _ => Self::Any,
        }
    }
}

impl store::PoolDisk for SimDisk {
    fn size(&self) -> u64 {
        self.media.len() as u64 * BLOCK
    }

    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        let data = self.read(offset, buf.len())?;
        buf.as_mut_slice().copy_from_slice(data.as_slice());
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &Buf) -> Result<(), i32> {
        self.write(offset, data.len() as u64, Some(data), false);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), i32> {
        self.synced(self.clock);
        Ok(())
    }
}
