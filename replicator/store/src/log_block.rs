//! One block of the metadata log, and reading a log back.
//!
//! A block is written once per generation of its area, its place follows from its LSN, and its
//! header repeats both: so an old block can never be taken for a new one. Each block also says up
//! to which LSN the log was known to be durable when it was made. Without that, a damaged durable
//! block would look like the end of the log; with it, recovery tells a crash (later blocks may
//! exist, none of them believed the missing one durable) from damage (one did) and refuses the
//! latter.

use bytemuck::{Pod, Zeroable};
use types::{BLOCK, BufMut};

use crate::OpenError;
use crate::disk::{self, PoolDisk};
use crate::layout::{Area, Generation, Layout, Lsn};
use crate::record::{self, Reader};
use crate::state::{Contradiction, PoolState};
use crate::superblock::{block_is_intact, seal_block};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    /// CRC32C of the block with this field zero.
    crc: u32,
    generation: u64,
    lsn: u64,
    /// Blocks up to this LSN were durable.
    durable: u64,
    /// Bytes of records behind the header.
    len: u32,
    zero: u32,
}

const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 40);
const MAGIC: [u8; 4] = *b"HFLG";
pub(crate) const CRC_AT: usize = 4;
/// Bytes of records in a block.
pub(crate) const PAYLOAD: usize = BLOCK as usize - HEADER;
const _: () = assert!(record::MAX_RECORD <= PAYLOAD);

/// Blocks read at once by recovery.
const SCAN: u64 = 256;

/// Fills `block` (4096 bytes) with `records`.
pub(crate) fn encode(
    block: &mut [u8],
    generation: Generation,
    lsn: Lsn,
    durable: Lsn,
    records: &[u8],
) {
    let mut header = Header::zeroed();
    header.magic = MAGIC;
    header.generation = generation.0;
    header.lsn = lsn.0;
    header.durable = durable.0;
    header.len = records.len() as u32;
    block.fill(0);
    block[..HEADER].copy_from_slice(bytemuck::bytes_of(&header));
    block[HEADER..HEADER + records.len()].copy_from_slice(records);
    seal_block(block, CRC_AT);
}

fn decode(block: &[u8], generation: Generation) -> Option<(Lsn, Lsn, &[u8])> {
    let header: Header = bytemuck::pod_read_unaligned(&block[..HEADER]);
    let end = HEADER.checked_add(header.len as usize)?;
    (header.magic == MAGIC
        && header.generation == generation.0
        && end <= block.len()
        && block_is_intact(block, CRC_AT))
    .then(|| (Lsn(header.lsn), Lsn(header.durable), &block[HEADER..end]))
}

/// Applies the log of `area` to `state`; returns the LSN after the last believed block.
pub(crate) fn replay(
    disk: &mut dyn PoolDisk,
    layout: &Layout,
    area: Area,
    generation: Generation,
    first: Lsn,
    state: &mut PoolState,
) -> Result<Lsn, OpenError> {
    let mut next = first;
    let mut ended = false;
    let mut buf = BufMut::zeroed(0);
    for index in 0..layout.log_blocks {
        let within = index % SCAN;
        if within == 0 {
            let count = SCAN.min(layout.log_blocks - index);
            buf = disk::read(disk, layout.log(area, index), count * BLOCK)?;
        }
        let at = (within * BLOCK) as usize;
        let block = &buf.as_slice()[at..at + BLOCK as usize];
        let found = decode(block, generation).filter(|(lsn, ..)| lsn.0 == first.0 + index);
        match found {
            Some((_, durable, _)) if ended && durable >= next => {
                let reason = format!("block {index} knew it to be durable");
                return Err(OpenError::LogCorrupt { block: next.0 - first.0, reason });
            }
            Some((_, _, records)) if !ended => {
                replay_block(records, state)
                    .map_err(|reason| OpenError::LogCorrupt { block: index, reason })?;
                next = Lsn(next.0 + 1);
            }
            _ => ended = true,
        }
    }
    Ok(next)
}

fn replay_block(records: &[u8], state: &mut PoolState) -> Result<(), String> {
    let mut from = Reader(records);
    let mut freed = Vec::new();
    while !from.0.is_empty() {
        let (index, change) = record::decode(&mut from).ok_or("a record is malformed")?;
        state.apply(index, &change, &mut freed).map_err(|Contradiction(what)| what.to_owned())?;
        freed.clear();
    }
    Ok(())
}
