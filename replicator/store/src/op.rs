//! Requests in progress, disk operations in flight, and what waits for records.

use std::collections::{BTreeMap, VecDeque};

use types::{Buf, BufMut, EngineInstance, HASH_BLOCK, SnapshotId, Tag, content_hash};
use wire::WireError;

use crate::api::SessionId;
use crate::copy::Piece;
use crate::layout::{RecordSeq, ReplicaIndex, Slot, Version};
use crate::slab::Key;

/// A request that could not be answered at once.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) session: SessionId,
    pub(crate) seq: u64,
    pub(crate) replica: ReplicaIndex,
    pub(crate) kind: OpKind,
    /// Whether it has submitted something to the disk.
    pub(crate) submitted: bool,
    /// Disk operations in flight.
    pub(crate) io: u32,
    /// Not answered before this record is written (or durable, for some kinds).
    pub(crate) record: RecordSeq,
    /// What the answer will be instead of success.
    pub(crate) error: Option<WireError>,
    /// It waits for slots and keeps its place in that queue.
    pub(crate) queued: bool,
}

#[derive(Debug)]
pub(crate) enum OpKind {
    Write {
        offset: u64,
        data: Buf,
        crc: u32,
        tag: Tag,
    },
    /// Discard and write-zeroes.
    Zeroes {
        offset: u64,
        len: u64,
        tag: Tag,
    },
    /// Tags that wait for their record.
    Mark {
        offset: u64,
        len: u64,
        tag: Tag,
    },
    Read {
        offset: u64,
        data: ReadData,
    },
    Hash {
        offset: u64,
        len: u64,
        next: u32,
        hashes: Hashes,
        /// Of this version; `None` is the head.
        version: Option<Version>,
    },
    Snapshot {
        snapshot: SnapshotId,
        size: u64,
        /// [`crate::store::Replica::mutations`] when it came.
        mutations: u64,
    },
    Flush,
    SealEra {
        tag: Tag,
    },
    Close,
}

impl OpKind {
    /// Whether it may change what the head holds.
    pub(crate) fn mutates(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zeroes { .. })
    }
}

/// Hashes of blocks, as they come.
#[derive(Debug)]
pub(crate) struct Hashes {
    /// Of the engine that compares.
    key: EngineInstance,
    /// Of a whole block of zeros, once there was one: most of a thin volume is not allocated.
    zeros: Option<u128>,
    pub(crate) blocks: Vec<u128>,
}

impl Hashes {
    pub(crate) fn new(key: EngineInstance, blocks: usize) -> Self {
        Self { key, zeros: None, blocks: vec![0; blocks] }
    }

    pub(crate) fn set(&mut self, block: u32, data: &[u8]) {
        self.put(block, content_hash(self.key, data));
    }

    /// `block`, of `bytes`, reads as zeros.
    pub(crate) fn set_zeros(&mut self, block: u32, bytes: u64) {
        static ZEROS: [u8; HASH_BLOCK as usize] = [0; HASH_BLOCK as usize];
        if bytes < HASH_BLOCK {
            return self.set(block, &ZEROS[..bytes as usize]);
        }
        let hash = *self.zeros.get_or_insert_with(|| content_hash(self.key, &ZEROS));
        self.put(block, hash);
    }

    fn put(&mut self, block: u32, hash: u128) {
        if let Some(entry) = self.blocks.get_mut(block as usize) {
            *entry = hash;
        }
    }
}

/// The bytes of a read.
#[derive(Debug)]
pub(crate) enum ReadData {
    /// The disk's buffer, with its CRC32C, will be the answer.
    Whole(Option<(Buf, u32)>),
    /// Pieces are copied together.
    Pieces(BufMut),
}

/// A disk operation in flight.
#[derive(Debug)]
pub(crate) enum Io {
    Write {
        op: Key,
        offset: u64,
        data: Buf,
        crc: Option<u32>,
    },
    /// `at` is the place within the request, `began` is [`crate::sums::Sums::clock`].
    Read {
        op: Key,
        at: u32,
        offset: u64,
        len: u64,
        began: u64,
    },
    Hash {
        op: Key,
        block: u32,
        offset: u64,
        len: u64,
        began: u64,
    },
    /// A piece that snapshots use is copied.
    CopyRead {
        piece: Piece,
    },
    CopyWrite {
        piece: Piece,
    },
    Log,
    Sync,
    Zero {
        first: Slot,
        count: u32,
        by_write: bool,
    },
    Page,
    Checkpoint,
    Superblock,
}

/// What to do when a record got far enough.
#[derive(Debug)]
pub(crate) enum Wake {
    Op(Key),
    Admin(u64),
    Seal(ReplicaIndex),
    Release(Vec<Slot>),
}

/// Who waits for which record; in order of the records, then of arrival.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    pub(crate) written: BTreeMap<RecordSeq, Vec<Wake>>,
    pub(crate) durable: BTreeMap<RecordSeq, Vec<Wake>>,
    woken: VecDeque<Wake>,
}

impl Waits {
    /// The next one that need not wait any more.
    pub(crate) fn next(&mut self, written: RecordSeq, durable: RecordSeq) -> Option<Wake> {
        if self.woken.is_empty() {
            for (map, reached) in [(&mut self.durable, durable), (&mut self.written, written)] {
                while let Some(entry) = map.first_entry().filter(|entry| *entry.key() <= reached) {
                    self.woken.extend(entry.remove());
                }
            }
        }
        self.woken.pop_front()
    }

    /// Everybody, when nothing will get any further.
    pub(crate) fn drain(&mut self) -> Vec<Wake> {
        let mut all: Vec<Wake> = self.woken.drain(..).collect();
        for map in [&mut self.durable, &mut self.written] {
            all.extend(std::mem::take(map).into_values().flatten());
        }
        all
    }
}

/// Parts of a replica whose last record may not have got far enough yet.
#[derive(Debug, Default)]
pub(crate) struct Unreached {
    parts: BTreeMap<u32, RecordSeq>,
    newest: RecordSeq,
}

impl Unreached {
    pub(crate) fn insert(&mut self, parts: std::ops::Range<u32>, record: RecordSeq) {
        self.parts.extend(parts.map(|part| (part, record)));
        self.newest = self.newest.max(record);
    }

    /// The last record of any of `parts`, unless all records up to `reached` include it.
    pub(crate) fn last(&mut self, parts: std::ops::Range<u32>, reached: RecordSeq) -> RecordSeq {
        if self.newest <= reached {
            self.parts.clear();
        }
        if self.parts.is_empty() {
            return RecordSeq(0);
        }
        self.parts.range(parts).map(|(_, record)| *record).max().unwrap_or_default()
    }
}
