//! What consumers write: every sector of every block says whose it is, so that any mixture, any
//! foreign or older byte is seen.
//!
//! A stamp of 32 bytes (magic, volume, block, write, epoch, client, CRC32C of all that), repeated over each
//! 512-byte sector. The number of the write is its place in the run's order of writes, and its sequence. All
//! blocks that are written whole have the same CRC32C, as pages of databases may have: nothing that compares
//! by it can tell them apart.

use core::fmt;
use types::{BLOCK, Buf, BufMut, crc32c};

const SECTOR: usize = 512;
const STAMP: usize = 32;
/// Where the stamp's CRC is.
const CRC: usize = 28;
const MAGIC: u32 = 0x4846_5357;

/// Who wrote a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Index of the volume.
    pub volume: u32,
    /// Index of the block in the volume.
    pub block: u32,
    /// Number of the write, unique in the run; 0 is never used.
    pub write: u64,
    /// Epoch under which it was asked for.
    pub epoch: u32,
    /// Who asked.
    pub client: u32,
}

impl Stamp {
    fn bytes(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.volume.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.block.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.write.to_le_bytes());
        bytes[24..CRC].copy_from_slice(&self.client.to_le_bytes());
        let crc = crc32c(&bytes[..CRC]);
        bytes[CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// The content of one block, by the numbers of the writes that are seen in it; 0 is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// One write.
    Whole(u64),
    /// Sectors of several.
    Torn([u64; 8]),
}

/// What a block holds that was never written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alien {
    /// No consumer's write.
    Nobody,
    /// A write to this block of this volume.
    Other {
        /// Index of the volume.
        volume: u32,
        /// Index of the block.
        block: u32,
    },
}

impl fmt::Display for Alien {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("bytes that nobody wrote"),
            Self::Other { volume, block } => {
                write!(f, "a write to block {block} of volume {volume}")
            }
        }
    }
}

/// `count` blocks from `stamp.block` on.
#[must_use]
pub fn payload(stamp: Stamp, count: u32) -> Buf {
    let mut buf = BufMut::with_len(count as usize * BLOCK as usize);
    for (block, out) in buf.as_mut_slice().chunks_exact_mut(BLOCK as usize).enumerate() {
        let stamp = Stamp { block: stamp.block + block as u32, ..stamp }.bytes();
        for chunk in out.as_chunks_mut::<STAMP>().0 {
            *chunk = stamp;
        }
    }
    buf.freeze()
}

/// Reads a block of `volume` back.
///
/// # Errors
/// What is in it that was never written there, in words.
pub fn parse(bytes: &[u8], volume: u32, block: u32) -> Result<Content, String> {
    inspect(bytes, volume, block).map_err(|alien| alien.to_string())
}

/// Likewise.
///
/// # Errors
/// What is in it that was never written there.
pub fn inspect(bytes: &[u8], volume: u32, block: u32) -> Result<Content, Alien> {
    let mut seen = [0; 8];
    for (sector, write) in bytes.chunks_exact(SECTOR).zip(&mut seen) {
        *write = parse_sector(sector, volume, block)?;
    }
    if seen.iter().all(|write| *write == seen[0]) {
        return Ok(Content::Whole(seen[0]));
    }
    Ok(Content::Torn(seen))
}

fn parse_sector(sector: &[u8], volume: u32, block: u32) -> Result<u64, Alien> {
    let (stamps, _) = sector.as_chunks::<STAMP>();
    let first = stamps[0];
    if stamps.iter().any(|stamp| *stamp != first) {
        return Err(Alien::Nobody);
    }
    if first == [0; STAMP] {
        return Ok(0);
    }
    let word =
        |at: usize| u32::from_le_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    if word(0) != MAGIC || word(CRC) != crc32c(&first[..CRC]) {
        return Err(Alien::Nobody);
    }
    if (word(4), word(8)) != (volume, block) {
        return Err(Alien::Other { volume: word(4), block: word(8) });
    }
    Ok(u64::from(word(16)) | u64::from(word(20)) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_anything_else_is_seen() {
        let stamp = Stamp { volume: 1, block: 7, write: 99, epoch: 3, client: 2 };
        let data = payload(stamp, 2);
        let mut bytes = data.as_slice()[4096..].to_vec();
        assert_eq!(parse(&bytes, 1, 8), Ok(Content::Whole(99)));
        let other = payload(Stamp { write: 100, ..stamp }, 2);
        assert_eq!(crc32c(other.as_slice()), crc32c(data.as_slice()));
        assert!(parse(&bytes, 1, 7).is_err());
        assert!(parse(&bytes, 2, 8).is_err());
        bytes[512..1024].fill(0);
        assert_eq!(parse(&bytes, 1, 8), Ok(Content::Torn([99, 0, 99, 99, 99, 99, 99, 99])));
        bytes[600] = 1;
        assert!(parse(&bytes, 1, 8).is_err());
    }
}
