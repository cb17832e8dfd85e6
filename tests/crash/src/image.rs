//! One possible content of a disk after a loss of power, as a few changed blocks over the media,
//! and what a recovery does to it.

use std::collections::BTreeMap;

use types::{BLOCK, Buf, BufMut};

use crate::disk::{Pending, Piece, Version, fill};

/// A synchronous operation of a recovery.
#[derive(Clone, Debug)]
pub enum Step {
    /// It wrote these blocks.
    Write(u32, Vec<Piece>),
    /// It synced.
    Sync,
}

/// The image: cheap to make, and to write to.
#[derive(Clone)]
pub struct Image<'a> {
    media: &'a [Piece],
    over: BTreeMap<u32, Piece>,
    /// What was done through [`store::PoolDisk`].
    pub steps: Vec<Step>,
}

impl<'a> Image<'a> {
    /// `over` in place of the blocks of `media`.
    #[must_use]
    pub const fn new(media: &'a [Piece], over: BTreeMap<u32, Piece>) -> Self {
        Self { media, over, steps: Vec::new() }
    }

    /// A block.
    #[must_use]
    pub fn get(&self, block: u32) -> Option<&Buf> {
        self.over.get(&block).unwrap_or(&self.media[block as usize]).as_ref()
    }

    /// Puts a block in place.
    pub fn put(&mut self, block: u32, piece: Piece) {
        self.over.insert(block, piece);
    }

    /// Bytes.
    #[must_use]
    pub fn read(&self, offset: u64, len: u64) -> Buf {
        let mut buf = BufMut::with_len(len as usize);
        fill(&mut buf, offset, |block| self.get(block));
        buf.freeze()
    }

    /// Writes `data`, or zeros.
    pub fn write(&mut self, offset: u64, len: u64, data: Option<&Buf>) {
        let first = (offset / BLOCK) as u32;
        for index in 0..(len / BLOCK) as u32 {
            let at = index as usize * BLOCK as usize;
            self.put(first + index, data.map(|data| data.slice(at..at + BLOCK as usize)));
        }
    }

    /// All blocks.
    #[must_use]
    pub fn flatten(&self) -> Vec<Piece> {
        (0..self.media.len() as u32).map(|block| self.get(block).cloned()).collect()
    }

    /// Does the first `count` of `steps` to this image; returns those that no sync covers.
    #[must_use]
    pub fn replay(&mut self, steps: &[Step], count: usize) -> Pending {
        let mut pending = Pending::new();
        for (step, at) in steps[..count].iter().zip(1..) {
            match step {
                Step::Write(first, pieces) => {
                    for (piece, block) in pieces.iter().zip(*first..) {
                        let version = Version { write: at, done: Some(at), piece: piece.clone() };
                        pending.entry(block).or_default().push(version);
                    }
                }
                Step::Sync => {
                    for (block, versions) in std::mem::take(&mut pending) {
                        if let Some(last) = versions.into_iter().next_back() {
                            self.put(block, last.piece);
                        }
                    }
                }
            }
        }
        pending
    }
}

impl store::PoolDisk for Image<'_> {
    fn size(&self) -> u64 {
        self.media.len() as u64 * BLOCK
    }

    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        fill(buf, offset, |block| self.get(block));
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &Buf) -> Result<(), i32> {
        let block = BLOCK as usize;
        let pieces = (0..data.len() / block)
            .map(|index| Some(data.slice(index * block..(index + 1) * block)))
            .collect();
        self.steps.push(Step::Write((offset / BLOCK) as u32, pieces));
        self.write(offset, data.len() as u64, Some(data));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), i32> {
        self.steps.push(Step::Sync);
        Ok(())
    }
}
