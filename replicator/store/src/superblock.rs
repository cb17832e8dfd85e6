//! The superblock pair: what the pool is, and which metadata area counts.
//!
//! An update writes copy A, durably, then copy B, durably, and nothing depends on it before both
//! are done. So at most one copy is torn by a crash, and a damaged copy can always be replaced by
//! the other one without going back in time.

use bytemuck::{Pod, Zeroable};
use types::{BLOCK, Buf, BufMut, ClusterId, PoolId, crc32c};

use crate::OpenError;
use crate::layout::{Area, FORMAT_VERSION, Generation, Layout};

pub(crate) const MAGIC: [u8; 8] = *b"HOLDFAST";

/// Magic and version first: a later version may move everything but these and the CRC.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: u32,
    /// CRC32C of the block with this field zero.
    crc: u32,
    sequence: u64,
    cluster: [u8; 16],
    pool: [u8; 16],
    size: u64,
    slot_size: u64,
    slots: u32,
    area: u32,
    generation: u64,
    reserved: u64,
    failed: i32,
    zero: u32,
}

const _: () = assert!(size_of::<Raw>() == 104 && cfg!(target_endian = "little"));
pub(crate) const CRC_AT: usize = 12;

/// A valid superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Higher is newer.
    pub(crate) sequence: u64,
    pub(crate) cluster: ClusterId,
    pub(crate) pool: PoolId,
    pub(crate) layout: Layout,
    /// The area that counts…
    pub(crate) area: Area,
    /// …and what its blocks must carry.
    pub(crate) generation: Generation,
    /// Highest generation that any block in either area may carry: raised before a checkpoint
    /// writes its first block, so that a generation is never used twice.
    pub(crate) reserved: Generation,
    /// Errno of the write or sync that failed the pool for good (R13), or 0.
    pub(crate) failed: i32,
}

/// What a superblock's place holds.
#[derive(Debug)]
pub(crate) enum Found {
    Valid(Superblock),
    /// Has our magic, but not our checksum.
    Damaged,
    /// Does not have our magic.
    Other,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Buf {
        let mut raw = Raw::zeroed();
        raw.magic = MAGIC;
        raw.version = FORMAT_VERSION;
        raw.sequence = self.sequence;
        raw.cluster = *self.cluster.as_bytes();
        raw.pool = *self.pool.as_bytes();
        raw.size = self.layout.size;
        raw.slot_size = self.layout.slot_size;
        raw.slots = self.layout.slots;
        raw.area = self.area.0;
        raw.generation = self.generation.0;
        raw.reserved = self.reserved.0;
        raw.failed = self.failed;
        let mut block = BufMut::zeroed(BLOCK as usize);
        block.as_mut_slice()[..size_of::<Raw>()].copy_from_slice(bytemuck::bytes_of(&raw));
        seal_block(block.as_mut_slice(), CRC_AT);
        block.freeze()
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Found, OpenError> {
        let raw: Raw = bytemuck::pod_read_unaligned(&block[..size_of::<Raw>()]);
        if raw.magic != MAGIC {
            return Ok(Found::Other);
        }
        if !block_is_intact(block, CRC_AT) {
            return Ok(Found::Damaged);
        }
        if raw.version > FORMAT_VERSION {
            return Err(OpenError::NewerFormat { found: raw.version, supported: FORMAT_VERSION });
        }
        if raw.version < FORMAT_VERSION {
            return Err(OpenError::OlderFormat { found: raw.version, supported: FORMAT_VERSION });
        }
        let invalid = |field, value| Err(OpenError::SuperblockInvalid { field, value });
        let layout = Layout::new(raw.size, raw.slot_size)?;
        if layout.slots != raw.slots {
            return invalid("slots", raw.slots.into());
        }
        if raw.area > 1 {
            return invalid("area", raw.area.into());
        }
        if raw.generation > raw.reserved {
            return invalid("generation", raw.generation);
        }
        Ok(Found::Valid(Self {
            sequence: raw.sequence,
            cluster: ClusterId::from_bytes(raw.cluster),
            pool: PoolId::from_bytes(raw.pool),
            layout,
            area: Area(raw.area),
            generation: Generation(raw.generation),
            reserved: Generation(raw.reserved),
            failed: raw.failed,
        }))
    }
}

/// Puts the CRC32C of `block`, computed with four zero bytes there, at `at`.
pub(crate) fn seal_block(block: &mut [u8], at: usize) {
    block[at..at + 4].fill(0);
    let crc = crc32c(block);
    block[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the CRC32C at `at` is that of `block`.
pub(crate) fn block_is_intact(block: &[u8], at: usize) -> bool {
    let crc =
        types::crc32c_append(types::crc32c_append(crc32c(&block[..at]), &[0; 4]), &block[at + 4..]);
    block[at..at + 4] == crc.to_le_bytes()
}
