//! Reads, hashes and tags: nothing here changes anything, but that checksums are learnt.
//!
//! A read error of the disk fails the request and is reported, but the replica stays: R13 is about
//! writes and syncs, after which nobody knows what the disk holds. After a failed read the data may
//! still be readable, and the engine has another copy.

use types::{Buf, BufMut, HASH_BLOCK, MAX_IO, REGION, SnapshotId, Tag, crc32c, in_bounds};
use wire::{Reply, WireError};

use crate::api::{Event, Output, SessionId};
use crate::layout::{Region, ReplicaIndex, Version, regions};
use crate::op::{Hashes, Io, OpKind, ReadData};
use crate::slab::Key;
use crate::store::Store;

/// Longest range hashed by one request, in bytes.
const MAX_HASH: u64 = 64 << 20;
/// Disk reads in flight for one hash request.
const HASH_READS: u32 = 16;
/// Regions looked at for one answer about what is allocated.
const ALLOCATED_REGIONS: u32 = 1 << 16;
/// Most regions in one answer.
const MAX_REGIONS: usize = (MAX_IO / 4) as usize;

impl Store {
    pub(crate) fn read(
        &mut self,
        id: SessionId,
        seq: u64,
        snapshot: Option<SnapshotId>,
        offset: u64,
        len: u32,
        out: &mut Vec<Output>,
    ) {
        let index = self.sessions[&id].replica;
        let bytes = u64::from(len);
        let Some((version, size)) = self.version(index, snapshot) else {
            return self.reply(id, seq, Reply::Failed(WireError::NoSnapshot), out);
        };
        if !in_bounds(offset, bytes, size) || bytes > MAX_IO {
            return self.invalid(id, seq, "offset or length of a read", out);
        }
        let whole = self.extent(index, version, offset, bytes);
        let whole = whole.is_some_and(|(_, have)| have == bytes);
        let data = if whole {
            ReadData::Whole(None)
        } else {
            ReadData::Pieces(BufMut::zeroed(len as usize))
        };
        let Some(key) = self.op(id, seq, OpKind::Read { offset, data }) else { return };
        let began = self.sums.clock();
        let slot_size = self.state.layout.slot_size;
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let Some((from, have)) = self.extent(index, version, at, bytes - done) else {
                done += slot_size - at % slot_size;
                continue;
            };
            self.submitted(key);
            self.pin(from, have);
            if let Some(op) = self.ops.get_mut(key) {
                op.io += 1;
            }
            let io = Io::Read { op: key, at: done as u32, offset: from, len: have, began };
            let io = self.io(io);
            out.push(Output::Read { id: io, offset: from, len: have as u32 });
            done += have;
        }
        self.finish_read(key, out);
    }

    /// The version that a request is about, and the size in it; `None` if there is no such snapshot.
    fn version(
        &self,
        index: ReplicaIndex,
        snapshot: Option<SnapshotId>,
    ) -> Option<(Option<Version>, u64)> {
        let state = self.state.replicas.get(&index)?;
        match snapshot {
            None => Some((None, state.size)),
            Some(id) => state.versions.find(id).map(|found| (Some(found.version), found.size)),
        }
    }

    fn has_version(&self, index: ReplicaIndex, version: Version) -> bool {
        let state = self.state.replicas.get(&index);
        state.is_some_and(|state| state.versions.at(version).is_some())
    }

    pub(crate) fn read_ended(
        &mut self,
        key: Key,
        at: u32,
        offset: u64,
        (len, began): (u64, u64),
        done: Result<Option<Buf>, i32>,
        out: &mut Vec<Output>,
    ) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.io -= 1;
        let OpKind::Read { offset: start, .. } = op.kind else { return };
        let from = start + u64::from(at);
        if let Some((buf, crc)) = self.check_read(key, from, (offset, len, began), done, out)
            && let Some(OpKind::Read { data, .. }) = self.ops.get_mut(key).map(|op| &mut op.kind)
        {
            match data {
                ReadData::Whole(whole) => *whole = Some((buf, crc)),
                ReadData::Pieces(bytes) => bytes.as_mut_slice()
                    [at as usize..at as usize + buf.len()]
                    .copy_from_slice(buf.as_slice()),
            }
        }
        self.finish_read(key, out);
    }

    /// The bytes of an ended disk read and their CRC32C, if they are what was written; `from` is
    /// their volume offset. Otherwise the request learns why not.
    fn check_read(
        &mut self,
        key: Key,
        from: u64,
        (at, len, began): (u64, u64, u64),
        done: Result<Option<Buf>, i32>,
        out: &mut Vec<Output>,
    ) -> Option<(Buf, u32)> {
        let index = self.ops.get(key)?.replica;
        let replica = self.state.replicas.get(&index).map(|state| state.replica)?;
        // A short or missing buffer breaks the contract of `IoResult`.
        let done = done.and_then(|buf| buf.filter(|buf| buf.len() as u64 == len).ok_or(EIO));
        let (error, event) = match done {
            Err(errno) => {
                let event = Event::ReadError { replica, offset: from, errno };
                (WireError::Disk { errno }, event)
            }
            Ok(buf) => {
                let crc = crc32c(buf.as_slice());
                match self.sums.verify(at, buf.as_slice(), began, Some(crc)) {
                    Ok(all_known) => {
                        if !all_known && let Some(replica) = self.replicas.get_mut(&index) {
                            let unsettled = &mut replica.unsettled;
                            self.sums.learn(at, buf.as_slice(), began, Some(crc), unsettled);
                        }
                        return Some((buf, crc));
                    }
                    Err(within) => {
                        let offset = from + within as u64;
                        let event = Event::ChecksumMismatch { replica, offset };
                        (WireError::Checksum { offset }, event)
                    }
                }
            }
        };
        if let Some(op) = self.ops.get_mut(key) {
            op.error.get_or_insert(error);
        }
        self.event(event, out);
        None
    }

    pub(crate) fn finish_read(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get_mut(key).filter(|op| op.io == 0) else { return };
        let OpKind::Read { data, .. } = &mut op.kind else { return };
        let (data, crc) = match std::mem::replace(data, ReadData::Whole(None)) {
            ReadData::Whole(Some(whole)) => whole,
            // It failed: the error is the answer.
            ReadData::Whole(None) => (Buf::zeroed(0), 0),
            ReadData::Pieces(bytes) => {
                let data = bytes.freeze();
                let crc = crc32c(data.as_slice());
                (data, crc)
            }
        };
        self.finish(key, Reply::Data { data, crc }, out);
    }

    pub(crate) fn hash(
        &mut self,
        id: SessionId,
        seq: u64,
        snapshot: Option<SnapshotId>,
        offset: u64,
        len: u64,
        out: &mut Vec<Output>,
    ) {
        let session = &self.sessions[&id];
        let engine = session.instance;
        let Some((version, size)) = self.version(session.replica, snapshot) else {
            return self.reply(id, seq, Reply::Failed(WireError::NoSnapshot), out);
        };
        let end = offset.saturating_add(len);
        let aligned = offset.is_multiple_of(HASH_BLOCK)
            && (end.is_multiple_of(HASH_BLOCK) || end == size)
            && in_bounds(offset, len, size);
        if !aligned || len > MAX_HASH {
            return self.invalid(id, seq, "offset or length of a hash", out);
        }
        let hashes = Hashes::new(engine, len.div_ceil(HASH_BLOCK) as usize);
        let kind = OpKind::Hash { offset, len, next: 0, hashes, version };
        if let Some(key) = self.op(id, seq, kind) {
            self.continue_hash(key, out);
        }
    }

    /// Submits the next reads, or answers.
    pub(crate) fn continue_hash(&mut self, key: Key, out: &mut Vec<Output>) {
        let slots = self.state.layout;
        loop {
            let Some(op) = self.ops.get_mut(key) else { return };
            let (index, error, io) = (op.replica, op.error.is_some(), op.io);
            let OpKind::Hash { offset, len, next, hashes, version } = &mut op.kind else { return };
            let version = *version;
            if *next as usize == hashes.blocks.len() || error {
                if io == 0 {
                    let hashes = std::mem::take(&mut hashes.blocks);
                    self.finish(key, Reply::Hashes(hashes), out);
                }
                return;
            }
            if io >= HASH_READS {
                return;
            }
            let block = *next;
            *next += 1;
            let at = *offset + u64::from(block) * HASH_BLOCK;
            let bytes = HASH_BLOCK.min(*offset + *len - at);
            if version.is_some_and(|version| !self.has_version(index, version)) {
                // It was dropped meanwhile.
                if let Some(op) = self.ops.get_mut(key) {
                    op.error = Some(WireError::NoSnapshot);
                }
                continue;
            }
            // A hash block lies within one slot.
            debug_assert!(at % slots.slot_size + bytes <= slots.slot_size);
            let Some((from, _)) = self.extent(index, version, at, bytes) else {
                if let Some(hashes) = self.hashes(key) {
                    hashes.set_zeros(block, bytes);
                }
                continue;
            };
            self.submitted(key);
            self.pin(from, bytes);
            if let Some(op) = self.ops.get_mut(key) {
                op.io += 1;
            }
            let began = self.sums.clock();
            let id = self.io(Io::Hash { op: key, block, offset: from, len: bytes, began });
            out.push(Output::Read { id, offset: from, len: bytes as u32 });
        }
    }

    fn hashes(&mut self, key: Key) -> Option<&mut Hashes> {
        match self.ops.get_mut(key).map(|op| &mut op.kind) {
            Some(OpKind::Hash { hashes, .. }) => Some(hashes),
            _ => None,
        }
    }

    pub(crate) fn hash_ended(
        &mut self,
        key: Key,
        block: u32,
        at: u64,
        (len, began): (u64, u64),
        done: Result<Option<Buf>, i32>,
        out: &mut Vec<Output>,
    ) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.io -= 1;
        let OpKind::Hash { offset, .. } = op.kind else { return };
        let from = offset + u64::from(block) * HASH_BLOCK;
        if let Some((data, _)) = self.check_read(key, from, (at, len, began), done, out)
            && let Some(hashes) = self.hashes(key)
        {
            hashes.set(block, data.as_slice());
        }
        self.continue_hash(key, out);
    }

    /// R19: regions with a tag above `above`, from `first` on, as many as an answer holds.
    pub(crate) fn tags(
        &mut self,
        id: SessionId,
        seq: u64,
        above: Tag,
        first: u32,
        out: &mut Vec<Output>,
    ) {
        let state = &self.state.replicas[&self.sessions[&id].replica];
        let count = state.tags().len() as u32;
        let mut regions = Vec::new();
        let mut next = None;
        for region in first.min(count)..count {
            if state.tag(Region(region)) <= above {
                continue;
            }
            if regions.len() == MAX_REGIONS {
                next = Some(region);
                break;
            }
            regions.push(region);
        }
        self.reply(id, seq, Reply::Regions { regions, next }, out);
    }

    /// Regions of a snapshot with a slot of their own, from `first` on.
    pub(crate) fn allocated(
        &mut self,
        id: SessionId,
        seq: u64,
        snapshot: SnapshotId,
        first: u32,
        out: &mut Vec<Output>,
    ) {
        let index = self.sessions[&id].replica;
        let Some((version, size)) = self.version(index, Some(snapshot)) else {
            return self.reply(id, seq, Reply::Failed(WireError::NoSnapshot), out);
        };
        let count = regions(size) as u32;
        let end = first.saturating_add(ALLOCATED_REGIONS).min(count);
        let slot = self.state.layout.slot_size;
        let holds = |region: &u32| {
            let start = u64::from(*region) * REGION;
            (start..(start + REGION).min(size))
                .step_by(slot as usize)
                .any(|at| self.extent(index, version, at, 1).is_some())
        };
        let regions = (first..end).filter(holds).collect();
        let next = (end < count).then_some(end);
        self.reply(id, seq, Reply::Regions { regions, next }, out);
    }
}

/// What a disk answers that broke the contract of [`crate::IoResult`].
pub(crate) const EIO: i32 = 5;
