//! The decoders of a pool, fed with damaged bytes; see the `fuzz` crate.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use ::fuzz::{Target, no_repair, run};
use types::{
    BLOCK, BootId, Buf, BufMut, ClusterId, EngineInstance, Epoch, Era, Incarnation, PoolId,
    ReplicaId, SnapshotId, Tag, VolumeId, crc32c,
};

use crate::disk::PoolDisk;
use crate::layout::{
    Area, Generation, Layout, Lsn, MIN_POOL, PAGE_HEADER, Region, ReplicaIndex, Slot, VSlot,
};
use crate::record::{self, Change, Reader, Writer};
use crate::state::PoolState;
use crate::sums::Sums;
use crate::superblock::{Found, Superblock, seal_block};
use crate::{checkpoint, log_block, sums, superblock};

const SIZE: usize = BLOCK as usize;
const GENERATION: Generation = Generation(5);
const FIRST: Lsn = Lsn(40);

/// A disk that holds some bytes at one place and zeros elsewhere.
struct Bytes<'a> {
    at: u64,
    bytes: &'a [u8],
}

impl PoolDisk for Bytes<'_> {
    fn size(&self) -> u64 {
        MIN_POOL
    }

    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        // The buffer comes as zeros.
        let from = self.at.max(offset);
        let to = (self.at + self.bytes.len() as u64).min(offset + buf.len() as u64);
        if from < to {
            let source = &self.bytes[(from - self.at) as usize..(to - self.at) as usize];
            buf.as_mut_slice()[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(source);
        }
        Ok(())
    }

    fn write_at(&mut self, _: u64, _: &Buf) -> Result<(), i32> {
        Err(30)
    }

    fn sync(&mut self) -> Result<(), i32> {
        Err(30)
    }
}

fn layout() -> Layout {
    Layout::new(MIN_POOL, 64 << 10).unwrap()
}

const TAG: Tag = Tag { epoch: Epoch(3), era: Era(2) };

/// One of every kind of change, in an order that makes sense.
fn changes() -> Vec<Change> {
    vec![
        Change::Create {
            volume: VolumeId::from_bytes([1; 16]),
            replica: ReplicaId::from_bytes([2; 16]),
            incarnation: Incarnation::from_bytes([3; 16]),
            size: 5 << 20,
        },
        Change::Resize { size: 6 << 20 },
        Change::Seal { epoch: Epoch(3), instance: EngineInstance::from_bytes([4; 16]) },
        Change::InUse { boot: BootId::from_bytes([5; 16]) },
        Change::Tag { tag: TAG, first: Region(1), count: 3 },
        Change::Map { vslot: VSlot(7), slot: Slot(9) },
        Change::Map { vslot: VSlot(8), slot: Slot(10) },
        Change::SealEra { tag: TAG },
        Change::Snapshot { snapshot: SnapshotId::from_bytes([6; 16]), size: 5 << 20 },
        Change::Copied { vslot: VSlot(7), slot: Slot(11) },
        Change::Unmap { first: VSlot(8), count: 1 },
        Change::Snapshot { snapshot: SnapshotId::from_bytes([7; 16]), size: 6 << 20 },
        Change::DropSnapshot { snapshot: SnapshotId::from_bytes([6; 16]) },
        Change::Retired,
        Change::Clean,
        Change::Failed { errno: 5 },
        Change::Leased { process: kit::ids::process(1) },
        Change::Delete,
    ]
}

/// A state after the first `count` changes to two replicas.
fn state(count: usize) -> PoolState {
    let mut state = PoolState::new(layout());
    for change in &changes()[..count] {
        state.apply(ReplicaIndex(0), change, &mut Vec::new()).unwrap();
        let other = match *change {
            Change::Map { vslot, slot } => Change::Map { vslot, slot: Slot(slot.0 + 50) },
            Change::Copied { vslot, slot } => Change::Copied { vslot, slot: Slot(slot.0 + 50) },
            other => other,
        };
        state.apply(ReplicaIndex(7), &other, &mut Vec::new()).unwrap();
    }
    state
}

#[test]
fn superblocks() {
    let superblock = Superblock {
        sequence: 9,
        cluster: ClusterId::from_bytes([1; 16]),
        pool: PoolId::from_bytes([2; 16]),
        layout: layout(),
        area: Area(1),
        generation: GENERATION,
        reserved: Generation(6),
        failed: 0,
    };
    let whole = superblock.encode();
    let valid = whole.as_slice()[..104].to_vec();
    let padded = |bytes: &[u8]| {
        let mut block = [0; SIZE];
        block[..bytes.len()].copy_from_slice(bytes);
        block
    };
    run(&Target {
        name: "superblocks",
        corpus: vec![valid],
        words: &[b"HOLDFAST"],
        longest: 120,
        repair: &|bytes| {
            bytes.resize(bytes.len().max(104), 0);
            bytes[..8].copy_from_slice(b"HOLDFAST");
            let mut block = padded(bytes);
            seal_block(&mut block, superblock::CRC_AT);
            let len = bytes.len();
            bytes.copy_from_slice(&block[..len]);
        },
        decode: &|bytes| matches!(Superblock::decode(&padded(bytes)), Ok(Found::Valid(_))),
    });
}

fn records(count: usize) -> Vec<u8> {
    let mut records = Writer::default();
    for change in &changes()[..count] {
        record::encode(ReplicaIndex(0), change, &mut records);
    }
    records.0
}

#[test]
fn log_records() {
    run(&Target {
        name: "log records",
        corpus: (1..=changes().len()).map(records).collect(),
        words: &[],
        longest: 1000,
        repair: &no_repair,
        decode: &|bytes| {
            let mut from = Reader(bytes);
            let mut state = PoolState::new(layout());
            let mut freed = Vec::new();
            while !from.0.is_empty() {
                let Some((index, change)) = record::decode(&mut from) else { return false };
                if state.apply(index, &change, &mut freed).is_err() {
                    return false;
                }
            }
            true
        },
    });
}

#[test]
fn log_blocks() {
    let block = |lsn: u64, durable: u64, records: &[u8]| {
        let mut block = vec![0; SIZE];
        log_block::encode(&mut block, GENERATION, Lsn(lsn), Lsn(durable), records);
        block.truncate(400);
        block
    };
    let layout = layout();
    let cell = RefCell::new(vec![0; 3 * SIZE]);
    // Three blocks of 400 bytes and zeros stand for whole ones.
    let whole = |bytes: &[u8]| {
        let mut blocks = cell.borrow_mut();
        for (out, bytes) in blocks.chunks_exact_mut(SIZE).zip(bytes.chunks(400)) {
            out.fill(0);
            out[..bytes.len()].copy_from_slice(bytes);
        }
    };
    let (one, two) = (records(6), {
        let mut more = Writer::default();
        record::encode(ReplicaIndex(0), &changes()[6], &mut more);
        more.0
    });
    let three = [block(40, 39, &one), block(41, 40, &two), block(42, 40, &[])].concat();
    run(&Target {
        name: "log blocks",
        corpus: vec![block(40, 39, &one), three],
        words: &[b"HFLG", &40u64.to_le_bytes(), &41u64.to_le_bytes(), &5u64.to_le_bytes()],
        longest: 1200,
        repair: &|bytes| {
            whole(bytes);
            let mut blocks = cell.borrow_mut();
            let ours = bytes.chunks_mut(400).zip(blocks.chunks_exact_mut(SIZE));
            for (bytes, block) in ours.filter(|(bytes, _)| bytes.len() > 40) {
                seal_block(block, log_block::CRC_AT);
                bytes.copy_from_slice(&block[..bytes.len()]);
            }
        },
        decode: &|bytes| {
            whole(bytes);
            let blocks = cell.borrow();
            let mut disk = Bytes { at: layout.log(Area(0), 0), bytes: &blocks };
            let mut state = PoolState::new(layout);
            let next =
                log_block::replay(&mut disk, &layout, Area(0), GENERATION, FIRST, &mut state);
            next.is_ok_and(|next| next > FIRST)
        },
    });
}

#[test]
fn checkpoints() {
    let layout = layout();
    let corpus = [0, 1, 5, 8, 12].map(|count| {
        let whole = checkpoint::encode(&state(count), GENERATION, FIRST);
        let body = u64::from_le_bytes(*whole.as_slice()[32..].first_chunk().unwrap()) as usize;
        [&whole.as_slice()[..40], &whole.as_slice()[SIZE..SIZE + body]].concat()
    });
    run(&Target {
        name: "checkpoints",
        corpus: corpus.to_vec(),
        words: &[b"HFCHECKP"],
        longest: 2000,
        repair: &|bytes| {
            bytes.resize(bytes.len().max(40), 0);
            let (header, body) = bytes.split_at_mut(40);
            header[..8].copy_from_slice(b"HFCHECKP");
            header[12..16].copy_from_slice(&crc32c(body).to_le_bytes());
            header[16..24].copy_from_slice(&GENERATION.0.to_le_bytes());
            header[32..40].copy_from_slice(&(body.len() as u64).to_le_bytes());
            let mut block = [0; SIZE];
            block[..40].copy_from_slice(header);
            seal_block(&mut block, checkpoint::CRC_AT);
            header.copy_from_slice(&block[..40]);
        },
        decode: &|bytes| {
            let (header, body) = bytes.split_at(bytes.len().min(40));
            let mut image = vec![0; SIZE + body.len()];
            image[..header.len()].copy_from_slice(header);
            image[SIZE..].copy_from_slice(body);
            let mut disk = Bytes { at: layout.area(Area(0)), bytes: &image };
            checkpoint::read(&mut disk, &layout, Area(0), GENERATION).is_ok()
        },
    });
}

#[test]
fn pages_of_checksums() {
    let state = state(7);
    let mut table = Sums::new(layout());
    table.allocate(Slot(9));
    let (_, page) = table.settle_page(0);
    let used = PAGE_HEADER as usize + 12 * layout().slot_blocks() * 4;
    let corpus = vec![page.as_slice()[..used].to_vec()];
    let cell = RefCell::new([0; SIZE]);
    run(&Target {
        name: "pages of checksums",
        corpus,
        words: &[b"HFC2", b"HFCS"],
        longest: used,
        repair: &|bytes| {
            bytes.resize(bytes.len().max(PAGE_HEADER as usize), 0);
            if !bytes.starts_with(b"HFCS") {
                bytes[..4].copy_from_slice(b"HFC2");
            }
            let mut block = cell.borrow_mut();
            block.fill(0);
            block[..bytes.len()].copy_from_slice(bytes);
            seal_block(&mut *block, sums::CRC_AT);
            let len = bytes.len();
            bytes.copy_from_slice(&block[..len]);
        },
        decode: &|bytes| {
            let mut block = cell.borrow_mut();
            block.fill(0);
            block[..bytes.len()].copy_from_slice(bytes);
            let mut disk = Bytes { at: state.layout.page(0, 0), bytes: &*block };
            let (sums, _) = Sums::load(&mut disk, &state).unwrap();
            // A page that is believed knows that the slot does not hold ones.
            let at = state.layout.slot(Slot(9));
            sums.verify(at, &[1; SIZE], u64::MAX, None).is_err()
        },
    });
}
