//! A checkpoint: the whole durable state at one moment, at the start of a metadata area.
//!
//! ```text
//! header block: magic, CRC of the block, generation, first LSN of the log behind it, CRC and length of the body
//! body:         replicas, each with its tags in runs of equal ones, its snapshots, its map and what only they use
//! ```
//!
//! The blocks are written in any order and synced before the superblock names them, so a damaged
//! checkpoint under a valid superblock is damage, never a crash.

use bytemuck::{Pod, Zeroable};
use types::{
    BLOCK, BootId, Buf, BufMut, EngineInstance, Epoch, Incarnation, ReplicaId, SnapshotId,
    VolumeId, crc32c,
};

use crate::OpenError;
use crate::disk::{self, PoolDisk};
use crate::layout::{Area, Generation, Layout, Lsn, Region, ReplicaIndex, Slot, VSlot, Version};
use crate::record::{Change, Reader, Writer};
use crate::state::{Contradiction, PoolState};
use crate::superblock::{block_is_intact, seal_block};
use crate::versions::{Retained, Snapshot};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    /// CRC32C of the block with this field zero.
    crc: u32,
    body_crc: u32,
    generation: u64,
    first_lsn: u64,
    body_len: u64,
}

const _: () = assert!(size_of::<Header>() == 40);
const MAGIC: [u8; 8] = *b"HFCHECKP";
pub(crate) const CRC_AT: usize = 8;

/// The blocks of a checkpoint, header first, as one buffer.
pub(crate) fn encode(state: &PoolState, generation: Generation, first_lsn: Lsn) -> Buf {
    let mut body = Writer::default();
    body.u32(state.replicas.len() as u32);
    for (index, replica) in &state.replicas {
        body.u32(index.0);
        body.id(replica.volume.as_bytes());
        body.id(replica.replica.as_bytes());
        body.id(replica.incarnation.as_bytes());
        body.u64(replica.size);
        body.u64(replica.sealed.0);
        body.id(replica.instance.as_bytes());
        body.u8(u8::from(replica.leased.is_some()));
        body.process(&replica.leased.unwrap_or_default());
        body.tag(replica.last_sealed);
        body.u8(u8::from(replica.in_use.is_some()));
        body.id(replica.in_use.unwrap_or_default().as_bytes());
        body.u8(u8::from(replica.failed.is_some()));
        body.u32(replica.failed.unwrap_or_default().cast_unsigned());
        let mut runs = Writer::default();
        let mut first = 0;
        for run in replica.tags().chunk_by(|a, b| a == b) {
            if run[0] != Default::default() {
                runs.u32(first);
                runs.u32(run.len() as u32);
                runs.tag(run[0]);
            }
            first += run.len() as u32;
        }
        body.u32(runs.0.len() as u32 / crate::layout::TAG_RUN_BYTES as u32);
        body.0.extend_from_slice(&runs.0);
        let versions = &replica.versions;
        body.u8(u8::from(replica.retired));
        body.u32(versions.now.0);
        body.u32(versions.snapshots().len() as u32);
        for found in versions.snapshots() {
            body.id(found.snapshot.as_bytes());
            body.u32(found.version.0);
            body.u64(found.size);
        }
        body.u32(versions.allocated);
        for (vslot, slot, born) in versions.head() {
            body.u32(vslot.0);
            body.u32(slot.0);
            body.u32(born.0);
        }
        body.u32(versions.retained().len() as u32);
        for (vslot, born, found) in versions.retained() {
            body.u32(vslot.0);
            body.u32(found.slot.0);
            body.u32(born.0);
            body.u32(found.died.0);
        }
    }
    let body = body.0;
    let mut header = Header::zeroed();
    header.magic = MAGIC;
    header.body_crc = crc32c(&body);
    header.generation = generation.0;
    header.first_lsn = first_lsn.0;
    header.body_len = body.len() as u64;
    let block = BLOCK as usize;
    let mut buf = BufMut::zeroed(block + body.len().next_multiple_of(block));
    let bytes = buf.as_mut_slice();
    bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
    seal_block(&mut bytes[..block], CRC_AT);
    bytes[block..block + body.len()].copy_from_slice(&body);
    buf.freeze()
}

/// Reads the checkpoint of `area`: the state, and the first LSN of its log.
pub(crate) fn read(
    disk: &mut dyn PoolDisk,
    layout: &Layout,
    area: Area,
    generation: Generation,
) -> Result<(PoolState, Lsn), OpenError> {
    let corrupt = |reason: &str| OpenError::CheckpointCorrupt { reason: reason.to_owned() };
    let start = layout.area(area);
    let block = disk::read(disk, start, BLOCK)?;
    let block = block.as_slice();
    let header: Header = bytemuck::pod_read_unaligned(&block[..size_of::<Header>()]);
    if header.magic != MAGIC || !block_is_intact(block, CRC_AT) {
        return Err(corrupt("the header is damaged"));
    }
    if header.generation != generation.0 {
        return Err(corrupt("the header is of another generation"));
    }
    if header.body_len > (layout.checkpoint_blocks - 1) * BLOCK {
        return Err(corrupt("the body is longer than its place"));
    }
    let body = disk::read(disk, start + BLOCK, header.body_len.next_multiple_of(BLOCK))?;
    let body = &body.as_slice()[..header.body_len as usize];
    if crc32c(body) != header.body_crc {
        return Err(corrupt("the body is damaged"));
    }
    let mut state = PoolState::new(*layout);
    match decode(&mut Reader(body), &mut state) {
        Some(Ok(())) => Ok((state, Lsn(header.first_lsn))),
        Some(Err(Contradiction(what))) => Err(corrupt(what)),
        None => Err(corrupt("the body ends early")),
    }
}

fn decode(from: &mut Reader<'_>, state: &mut PoolState) -> Option<Result<(), Contradiction>> {
    let count = from.u32()?;
    for _ in 0..count {
        let index = ReplicaIndex(from.u32()?);
        let create = Change::Create {
            volume: VolumeId::from_bytes(from.id()?),
            replica: ReplicaId::from_bytes(from.id()?),
            incarnation: Incarnation::from_bytes(from.id()?),
            size: from.u64()?,
        };
        let seal = Change::Seal {
            epoch: Epoch(from.u64()?),
            instance: EngineInstance::from_bytes(from.id()?),
        };
        let leased = from.u8()? != 0;
        let process = from.process()?;
        let era = Change::SealEra { tag: from.tag()? };
        let used = from.u8()? != 0;
        let boot = BootId::from_bytes(from.id()?);
        let failed = from.u8()? != 0;
        let errno = from.u32()?.cast_signed();
        let mut apply = |change| state.apply(index, &change, &mut Vec::new());
        let changes = [create, seal, era];
        let marks = [
            leased.then_some(Change::Leased { process }),
            used.then_some(Change::InUse { boot }),
            failed.then_some(Change::Failed { errno }),
        ];
        for change in changes.into_iter().chain(marks.into_iter().flatten()) {
            if let Err(error) = apply(change) {
                return Some(Err(error));
            }
        }
        for _ in 0..from.u32()? {
            let (first, count) = (Region(from.u32()?), from.u32()?);
            if let Err(error) = apply(Change::Tag { tag: from.tag()?, first, count }) {
                return Some(Err(error));
            }
        }
        if let Err(error) = decode_versions(from, state, index)? {
            return Some(Err(error));
        }
    }
    from.0.is_empty().then_some(Ok(()))
}

fn decode_versions(
    from: &mut Reader<'_>,
    state: &mut PoolState,
    index: ReplicaIndex,
) -> Option<Result<(), Contradiction>> {
    let retired = from.u8()? != 0;
    let now = Version(from.u32()?);
    let mut snapshots = Vec::new();
    for _ in 0..from.u32()? {
        snapshots.push(Snapshot {
            snapshot: SnapshotId::from_bytes(from.id()?),
            version: Version(from.u32()?),
            size: from.u64()?,
        });
    }
    if let Err(error) = state.restore_snapshots(index, now, &snapshots, retired) {
        return Some(Err(error));
    }
    for _ in 0..from.u32()? {
        let (vslot, slot, born) = (VSlot(from.u32()?), Slot(from.u32()?), Version(from.u32()?));
        if let Err(error) = state.restore_piece(index, vslot, slot, born) {
            return Some(Err(error));
        }
    }
    for _ in 0..from.u32()? {
        let (vslot, slot, born) = (VSlot(from.u32()?), Slot(from.u32()?), Version(from.u32()?));
        let retained = Retained { died: Version(from.u32()?), slot };
        if let Err(error) = state.restore_retained(index, vslot, born, retained) {
            return Some(Err(error));
        }
    }
    Some(Ok(()))
}
