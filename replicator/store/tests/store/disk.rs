//! A disk with a volatile cache that forgets, and tears, what was not synced.

use std::collections::BTreeMap;

pub use kit::Rng;
use types::{Buf, BufMut};

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// What a write left in the cache for one block; `None` is zeros.
type Version = (u64, Option<Buf>);

/// `media` survives a crash; `view` is what reads see.
pub struct SimDisk {
    media: Vec<u8>,
    view: Vec<u8>,
    /// Completed, not synced, oldest first; by block.
    cache: BTreeMap<u64, Vec<Version>>,
    clock: u64,
    /// Fail synchronous writes and syncs from now on.
    pub errno: Option<i32>,
}

impl SimDisk {
    pub fn new(size: u64) -> Self {
        let zeros = vec![0; size as usize];
        Self { media: zeros.clone(), view: zeros, cache: BTreeMap::new(), clock: 0, errno: None }
    }

    /// The present content, for tests that damage it.
    pub fn bytes(&mut self, offset: u64, len: usize) -> &mut [u8] {
        &mut self.view[offset as usize..offset as usize + len]
    }

    /// Makes the present content the durable one.
    pub fn persist(&mut self) {
        self.media.copy_from_slice(&self.view);
        self.cache.clear();
    }

    pub fn read(&self, offset: u64, len: u32) -> Buf {
        Buf::copy_of(&self.view[offset as usize..offset as usize + len as usize])
    }

    /// A write (or zeroing of `len` bytes, without data) completes.
    pub fn write(&mut self, offset: u64, len: u64, data: Option<&Buf>, durable: bool) {
        self.clock += 1;
        for block in 0..len / BLOCK as u64 {
            let at = (block as usize) * BLOCK;
            let piece = data.map(|data| data.slice(at..at + BLOCK));
            let start = offset as usize + at;
            put(&mut self.view[start..start + BLOCK], piece.as_ref(), 0..BLOCK);
            let index = offset / BLOCK as u64 + block;
            if durable {
                put(&mut self.media[start..start + BLOCK], piece.as_ref(), 0..BLOCK);
                self.cache.remove(&index);
            } else {
                self.cache.entry(index).or_default().push((self.clock, piece));
            }
        }
    }

    /// What a sync that begins now will cover.
    pub fn mark(&self) -> u64 {
        self.clock
    }

    /// A sync that began at `mark` completes.
    pub fn synced(&mut self, mark: u64) {
        let media = &mut self.media;
        self.cache.retain(|block, versions| {
            let covered = versions.iter().take_while(|(at, _)| *at <= mark).count();
            if let Some((_, piece)) = covered.checked_sub(1).and_then(|last| versions.get(last)) {
                let start = *block as usize * BLOCK;
                put(&mut media[start..start + BLOCK], piece.as_ref(), 0..BLOCK);
            }
            versions.drain(..covered);
            !versions.is_empty()
        });
    }

    /// Power is lost while `in_flight` writes are on their way: of every sector any version that
    /// was not synced, or the last synced one, is what remains. Often all that is below `data`
    /// (bytes), or all that is above, has the same luck: that is what careless ordering dies of.
    pub fn crash(&mut self, rng: &mut Rng, in_flight: &[(u64, u64, Option<Buf>)], data: u64) {
        for (offset, len, piece) in in_flight {
            self.write(*offset, *len, piece.as_ref(), false);
        }
        let luck = [Luck::pick(rng), Luck::pick(rng)];
        for (block, versions) in std::mem::take(&mut self.cache) {
            let start = block as usize * BLOCK;
            let luck = luck[usize::from(start as u64 >= data)];
            let torn = rng.one_in(4);
            let all = versions.len() as u64;
            let whole = rng.below(all + 1);
            for sector in 0..BLOCK / SECTOR {
                let pick = match luck {
                    Luck::Lost => 0,
                    Luck::Kept => all,
                    Luck::Any if torn => rng.below(all + 1),
                    Luck::Any => whole,
                };
                if let Some((_, piece)) =
                    pick.checked_sub(1).and_then(|pick| versions.get(pick as usize))
                {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    put(&mut self.media[start..start + BLOCK], piece.as_ref(), range);
                }
            }
        }
        self.view.copy_from_slice(&self.media);
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

fn put(block: &mut [u8], piece: Option<&Buf>, range: std::ops::Range<usize>) {
    match piece {
        Some(piece) => block[range.clone()].copy_from_slice(&piece.as_slice()[range]),
        None => block[range].fill(0),
    }
}

impl store::PoolDisk for SimDisk {
    fn size(&self) -> u64 {
        self.view.len() as u64
    }

    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        let len = buf.len();
        buf.as_mut_slice().copy_from_slice(&self.view[offset as usize..offset as usize + len]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &Buf) -> Result<(), i32> {
        self.errno.map_or(Ok(()), Err)?;
        self.write(offset, data.len() as u64, Some(data), false);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), i32> {
        self.errno.map_or(Ok(()), Err)?;
        self.synced(self.mark());
        Ok(())
    }
}
