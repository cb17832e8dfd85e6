//! A disk with a volatile write cache: what was written since the last flush may be lost with the
//! power, whole, in sectors, or not at all.

use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use types::{BLOCK, BlockOp, BlockResult, BufMut, IoError};

/// Bytes that a disk never tears; the store's own unit is [`BLOCK`].
const SECTOR: usize = 512;
const BLOCK_LEN: usize = BLOCK as usize;

/// How the disk behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// As it should.
    #[default]
    Fine,
    /// Every request fails with EIO.
    Errors,
    /// No request is answered until the mode changes.
    Hangs,
}

/// What a loss of power did to what was not flushed, in blocks of 4096 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// On the disk all the same.
    pub kept: usize,
    /// Some sectors new, some old.
    pub torn: usize,
    /// As before the write.
    pub lost: usize,
}

/// The medium, and what is not on it yet.
#[derive(Debug)]
pub struct Cache {
    medium: File,
    volatile: BTreeMap<u64, Box<[u8]>>,
    limit: usize,
}

impl Cache {
    /// On `medium`, with at most `limit` volatile blocks: above that all are written, as a disk
    /// does with a full cache.
    #[must_use]
    pub fn new(medium: File, limit: usize) -> Self {
        Self { medium, volatile: BTreeMap::new(), limit }
    }

    /// Carries out one request; ranges are within the medium.
    ///
    /// # Errors
    /// [`IoError::Io`] if the medium's file cannot be used.
    pub fn execute(&mut self, op: BlockOp) -> BlockResult {
        let done = match op {
            BlockOp::Read { offset, len } => return self.read(offset, len).map(Some).map_err(io),
            BlockOp::Write { offset, data, fua } => {
                self.write(offset, data.as_slice()).and_then(|()| self.flush_if(fua))
            }
            BlockOp::Flush => self.flush(),
            BlockOp::Discard { offset, len } => self.zero(offset, len),
            BlockOp::WriteZeroes { offset, len, fua } => {
                self.zero(offset, len).and_then(|()| self.flush_if(fua))
            }
        };
        done.map(|()| None).map_err(io)
    }

    fn read(&self, offset: u64, len: u32) -> std::io::Result<types::Buf> {
        let mut buffer = BufMut::with_len(len as usize);
        self.medium.read_exact_at(buffer.as_mut_slice(), offset)?;
        let blocks = offset / BLOCK..(offset + u64::from(len)).div_ceil(BLOCK);
        for (block, content) in self.volatile.range(blocks) {
            // Requests need not begin or end with a block.
            let start = (block * BLOCK).max(offset);
            let end = ((block + 1) * BLOCK).min(offset + u64::from(len));
            let (from, to) = ((start - offset) as usize, (end - offset) as usize);
            let inner = (start - block * BLOCK) as usize;
            buffer.as_mut_slice()[from..to].copy_from_slice(&content[inner..inner + to - from]);
        }
        Ok(buffer.freeze())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let (block, inner) = (position / BLOCK, (position % BLOCK) as usize);
            let len = (BLOCK_LEN - inner).min(data.len() - at);
            if !self.volatile.contains_key(&block) {
                let mut content = vec![0; BLOCK_LEN].into_boxed_slice();
                if len < BLOCK_LEN {
                    self.medium.read_exact_at(&mut content, block * BLOCK)?;
                }
                self.volatile.insert(block, content);
            }
            if let Some(content) = self.volatile.get_mut(&block) {
                content[inner..inner + len].copy_from_slice(&data[at..at + len]);
            }
            at += len;
        }
        if self.volatile.len() > self.limit { self.flush() } else { Ok(()) }
    }

    /// Zeros are on the medium at once: a disk may write when it likes.
    fn zero(&mut self, offset: u64, len: u64) -> std::io::Result<()> {
        let first = offset.div_ceil(BLOCK);
        let inside = first..first.max((offset + len) / BLOCK);
        let covered: Vec<u64> = self.volatile.range(inside).map(|(block, _)| *block).collect();
        for block in covered {
            self.volatile.remove(&block);
        }
        for edge in [offset / BLOCK, (offset + len) / BLOCK] {
            let Some(content) = self.volatile.get_mut(&edge) else { continue };
            let start = (edge * BLOCK).max(offset);
            let end = ((edge + 1) * BLOCK).min(offset + len);
            if start < end {
                content[(start - edge * BLOCK) as usize..(end - edge * BLOCK) as usize].fill(0);
            }
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.medium, flags, i64(offset)?, i64(len)?)?)
    }

    fn flush_if(&mut self, now: bool) -> std::io::Result<()> {
        if now { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        for (block, content) in core::mem::take(&mut self.volatile) {
            self.medium.write_all_at(&content, block * BLOCK)?;
        }
        Ok(())
    }

    /// The power is gone: `seed` chooses what becomes of each block that was not flushed.
    ///
    /// # Errors
    /// If the medium's file cannot be written.
    pub fn lose_power(&mut self, seed: u64) -> std::io::Result<Loss> {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut loss = Loss::default();
        for (block, content) in core::mem::take(&mut self.volatile) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Which of the block's eight sectors are new.
            let sectors = match random % 3 {
                0 => 0,
                1 => 0xff,
                _ => (random >> 8) as u8,
            };
            match sectors {
                0 => loss.lost += 1,
                0xff => loss.kept += 1,
                _ => loss.torn += 1,
            }
            for (index, sector) in content.chunks_exact(SECTOR).enumerate() {
                if sectors & (1 << index) != 0 {
                    self.medium.write_all_at(sector, block * BLOCK + (index * SECTOR) as u64)?;
                }
            }
        }
        Ok(loss)
    }
}

fn i64(number: u64) -> std::io::Result<i64> {
    i64::try_from(number).map_err(|_| std::io::ErrorKind::InvalidInput.into())
}

fn io(error: std::io::Error) -> IoError {
    tracing::error!(%error, "the medium of a disk");
    IoError::Io
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BLOCKS: u64 = 64;

    fn disk(limit: usize) -> Cache {
        let medium = tempfile::tempfile().unwrap();
        medium.set_len(BLOCKS * BLOCK).unwrap();
        Cache::new(medium, limit)
    }

    fn write(disk: &mut Cache, block: u64, byte: u8) {
        let data = BufMut::copy_of(&[byte; BLOCK_LEN]).freeze();
        disk.execute(BlockOp::Write { offset: block * BLOCK, data, fua: false }).unwrap();
    }

    fn read(disk: &mut Cache, block: u64) -> Vec<u8> {
        let op = BlockOp::Read { offset: block * BLOCK, len: BLOCK as u32 };
        disk.execute(op).unwrap().unwrap().as_slice().to_vec()
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_is_lost_torn_or_kept() {
        let mut disk = disk(1000);
        for block in 0..BLOCKS {
            write(&mut disk, block, 1);
        }
        disk.execute(BlockOp::Flush).unwrap();
        for block in 0..BLOCKS / 2 {
            write(&mut disk, block, 2);
            assert_eq!(read(&mut disk, block), [2; BLOCK_LEN]);
        }
        let loss = disk.lose_power(7).unwrap();
        assert_eq!(loss.kept + loss.torn + loss.lost, 32);
        let mut seen = Loss::default();
        for block in 0..BLOCKS {
            let content = read(&mut disk, block);
            let new = content.chunks(SECTOR).filter(|s| s == &[2; SECTOR]).count();
            let old = content.chunks(SECTOR).filter(|s| s == &[1; SECTOR]).count();
            assert_eq!(new + old, 8);
            match new {
                0 => seen.lost += 1,
                8 => seen.kept += 1,
                _ => seen.torn += 1,
            }
        }
        let untouched = 32;
        assert_eq!(seen, Loss { lost: loss.lost + untouched, ..loss });
        assert!(loss.kept > 0 && loss.torn > 0 && loss.lost > 0);
    }

    #[test]
    fn zeros_replace_what_is_cached_and_a_full_cache_is_written() {
        let mut disk = disk(4);
        write(&mut disk, 1, 1);
        write(&mut disk, 2, 1);
        let half = BLOCK / 2;
        disk.execute(BlockOp::Discard { offset: BLOCK + half, len: BLOCK }).unwrap();
        let (first, second) = (read(&mut disk, 1), read(&mut disk, 2));
        assert_eq!((first[0], first[2048], second[0], second[2048]), (1, 0, 0, 1));
        for block in 10..15 {
            write(&mut disk, block, 9);
        }
        assert!(disk.volatile.len() <= 4, "a full cache is written");
        disk.execute(BlockOp::Flush).unwrap();
        assert!(disk.volatile.is_empty());
        assert_eq!(disk.lose_power(1).unwrap(), Loss::default());
        assert_eq!(read(&mut disk, 14), [9; BLOCK_LEN]);
    }
}
