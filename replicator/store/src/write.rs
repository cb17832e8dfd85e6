//! Writes: tag first, then data and map record together.
//!
//! An overwrite in a region that was tagged in this era is one disk write and nothing else; the first
//! one of a piece that a snapshot uses copies that piece before ([`crate::copy`]).

use types::plant::{Bug, planted};
use types::{BLOCK, Buf, MAX_IO, REGION, Tag, crc32c, in_bounds};
use wire::{Reply, WireError};

use crate::api::{Event, Output, SessionId};
use crate::layout::{RecordSeq, Region, ReplicaIndex, Slot, VSlot, Version, regions};
use crate::op::{Io, OpKind, Wake};
use crate::record::Change;
use crate::slab::Key;
use crate::store::Store;

/// Regions tagged ahead of a sequential stream (R17)…
const AHEAD: u32 = 16;
/// …when it comes this near to the last tagged one.
const NEAR: u32 = 4;

impl Store {
    pub(crate) fn write(
        &mut self,
        id: SessionId,
        seq: u64,
        (offset, data, crc): (u64, Buf, u32),
        tag: Tag,
        out: &mut Vec<Output>,
    ) {
        let index = self.sessions[&id].replica;
        let len = data.len() as u64;
        if !in_bounds(offset, len, self.state.replicas[&index].size) || len > MAX_IO {
            return self.invalid(id, seq, "offset or length of a write", out);
        }
        if tag <= self.state.replicas[&index].last_sealed {
            return self.invalid(id, seq, "a write of a sealed era", out);
        }
        if crc32c(data.as_slice()) != crc {
            return self.reply(id, seq, Reply::Failed(WireError::Checksum { offset }), out);
        }
        let kind = OpKind::Write { offset, data, crc, tag };
        if let Some(key) = self.op(id, seq, kind) {
            self.start_write(key, out);
        }
    }

    /// Goes as far as possible: waits for the tag, then for slots, then submits.
    pub(crate) fn start_write(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        let OpKind::Write { offset, ref data, crc, tag } = op.kind else { return };
        let (index, data) = (op.replica, data.clone());
        let end = offset + data.len() as u64;
        let gate = self.tag_write(index, offset, end, tag);
        if gate > self.log.durable() && !planted(Bug::TagAfterData) {
            return self.when_durable(gate, Wake::Op(key));
        }
        let (first, last) =
            (self.state.layout.vslot_at(offset).0.0, self.state.layout.vslot_at(end - 1).0.0);
        if self.unshare(key, index, (first..=last).map(VSlot), out) {
            return;
        }
        let Some(state) = self.state.replicas.get(&index) else { return };
        let missing = (first..=last).filter(|v| state.slot(VSlot(*v)).is_none()).count() as u32;
        if missing > 0 {
            if !self.reserve(key, missing, out) {
                return;
            }
            self.allocate(index, first, last);
        }
        self.submitted(key);
        let mut record = self.unwritten_map(index, first, last);
        if planted(Bug::AckBeforeMap) {
            record = RecordSeq(0);
        }
        self.answer_after(key, record);
        self.write_pieces(key, index, offset, &data, Some(crc), out);
    }

    /// Makes sure that the replica is marked in use (R9) and the regions of `offset..end` are
    /// tagged; returns the record that must be durable before the data may be written.
    fn tag_write(&mut self, index: ReplicaIndex, offset: u64, end: u64, tag: Tag) -> RecordSeq {
        let (first, last) = ((offset / REGION) as u32, ((end - 1) / REGION) as u32);
        let gate = self.mark_in_use(index).max(self.tag_regions(index, first, last + 1, tag));
        let Some(replica) = self.replicas.get_mut(&index) else { return gate };
        let Some(stream) = replica.streams.iter().position(|at| *at == offset && offset > 0) else {
            replica.streams[replica.next_stream] = end;
            replica.next_stream = (replica.next_stream + 1) % replica.streams.len();
            return gate;
        };
        replica.streams[stream] = end;
        let state = &self.state.replicas[&index];
        let count = regions(state.size) as u32;
        if last + NEAR < count && state.tag(Region(last + NEAR)) < tag {
            let ahead = self.tag_regions(index, last + 1, (last + 1 + AHEAD).min(count), tag);
            self.log.want(ahead);
        }
        gate
    }

    /// R9: returns the record that must be durable before the first data.
    pub(crate) fn mark_in_use(&mut self, index: ReplicaIndex) -> RecordSeq {
        let boot = self.boot;
        if self.state.replicas[&index].in_use != Some(boot) && !planted(Bug::NoInUseMark) {
            let record = self.commit(index, &Change::InUse { boot });
            if let Some(replica) = self.replicas.get_mut(&index) {
                replica.gate = record;
            }
        }
        self.replicas.get(&index).map(|replica| replica.gate).unwrap_or_default()
    }

    /// R17: tags the regions `first..end` that have a lower tag; returns the record that must be
    /// durable before data is written to any of them.
    pub(crate) fn tag_regions(
        &mut self,
        index: ReplicaIndex,
        first: u32,
        end: u32,
        tag: Tag,
    ) -> RecordSeq {
        let mut at = first;
        while at < end {
            let state = &self.state.replicas[&index];
            if state.tag(Region(at)) >= tag {
                at += 1;
                continue;
            }
            let run = (at..end).take_while(|at| state.tag(Region(*at)) < tag).count() as u32;
            let change = Change::Tag { tag, first: Region(at), count: run };
            let record = self.commit(index, &change);
            if let Some(replica) = self.replicas.get_mut(&index) {
                replica.undurable_tags.insert(at..at + run, record);
            }
            at += run;
        }
        let durable = self.log.durable();
        let Some(replica) = self.replicas.get_mut(&index) else { return RecordSeq(0) };
        replica.undurable_tags.last(first..end, durable)
    }

    /// Why a change without data is refused: the first reason for its bounds, the second for its tag.
    pub(crate) fn refuses(
        &self,
        id: SessionId,
        (offset, len): (u64, u64),
        tag: Tag,
        [bounds, sealed]: [&'static str; 2],
    ) -> Option<&'static str> {
        let state = &self.state.replicas[&self.sessions[&id].replica];
        if !in_bounds(offset, len, state.size) {
            return Some(bounds);
        }
        (tag <= state.last_sealed).then_some(sealed)
    }

    /// Tags what a resync found to need no copy.
    pub(crate) fn mark(
        &mut self,
        id: SessionId,
        seq: u64,
        (offset, len): (u64, u64),
        tag: Tag,
        out: &mut Vec<Output>,
    ) {
        let why = ["offset or length of a mark", "a mark of a sealed era"];
        if let Some(reason) = self.refuses(id, (offset, len), tag, why) {
            return self.invalid(id, seq, reason, out);
        }
        if let Some(key) = self.op(id, seq, OpKind::Mark { offset, len, tag }) {
            self.start_mark(key, out);
        }
    }

    pub(crate) fn start_mark(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        let OpKind::Mark { offset, len, tag } = op.kind else { return };
        let (first, last) = ((offset / REGION) as u32, ((offset + len - 1) / REGION) as u32);
        let gate = self.tag_regions(op.replica, first, last + 1, tag);
        if gate > self.log.durable() {
            return self.when_durable(gate, Wake::Op(key));
        }
        self.finish(key, Reply::Done, out);
    }

    /// Whether `missing` slots may be taken now. If not, the write waits for zeroed ones, or is
    /// refused because there are none left at all.
    pub(crate) fn reserve(&mut self, key: Key, missing: u32, out: &mut Vec<Output>) -> bool {
        let queued = self.ops.get(key).is_some_and(|op| op.queued);
        if self.alloc.ready() >= missing && (queued || self.slot_waiters.is_empty()) {
            return true;
        }
        let waiting = self.slot_waiters.iter().filter(|(key, _)| self.ops.get(*key).is_some());
        let ahead: u32 = waiting.map(|(_, slots)| slots).sum();
        if self.alloc.free() < ahead + missing {
            self.no_space(key, out);
            return false;
        }
        self.alloc.starved();
        self.slot_waiters.push_back((key, missing));
        if let Some(op) = self.ops.get_mut(key) {
            op.queued = true;
        }
        false
    }

    fn no_space(&mut self, key: Key, out: &mut Vec<Output>) {
        if !std::mem::replace(&mut self.full_told, true) {
            self.event(Event::PoolFull, out);
        }
        self.finish(key, Reply::Failed(WireError::NoSpace), out);
    }

    /// Lets writes that waited for slots go on, in their order.
    pub(crate) fn serve_slot_waiters(&mut self, out: &mut Vec<Output>) {
        while let Some((key, missing)) = self.slot_waiters.front().copied() {
            let alive = self.ops.get(key).is_some();
            if alive && self.alloc.ready() < missing && self.alloc.free() >= missing {
                return;
            }
            self.slot_waiters.pop_front();
            if alive && self.alloc.ready() < missing {
                self.no_space(key, out);
            } else if alive {
                self.advance(key, out);
            }
        }
    }

    fn allocate(&mut self, index: ReplicaIndex, first: u32, last: u32) {
        for vslot in first..=last {
            if self.state.replicas[&index].slot(VSlot(vslot)).is_some() {
                continue;
            }
            let Some(slot) = self.alloc.take() else { return };
            self.sums.allocate(slot);
            let record = self.commit(index, &Change::Map { vslot: VSlot(vslot), slot });
            if let Some(replica) = self.replicas.get_mut(&index) {
                replica.unwritten_maps.insert(vslot..vslot + 1, record);
                replica.unsettled.push(slot);
            }
        }
    }

    /// The request is not answered before `record` is written.
    pub(crate) fn answer_after(&mut self, key: Key, record: RecordSeq) {
        if record > self.log.written() {
            self.waits.written.entry(record).or_default().push(Wake::Op(key));
        }
        if let Some(op) = self.ops.get_mut(key) {
            op.record = record;
        }
    }

    /// The last record that maps one of these pieces and is perhaps not written yet.
    pub(crate) fn unwritten_map(
        &mut self,
        index: ReplicaIndex,
        first: u32,
        last: u32,
    ) -> RecordSeq {
        let written = self.log.written();
        let Some(replica) = self.replicas.get_mut(&index) else { return RecordSeq(0) };
        replica.unwritten_maps.last(first..last + 1, written)
    }

    /// Submits `data` for `offset`, whose pieces are all allocated; neighbouring slots in one
    /// write.
    pub(crate) fn write_pieces(
        &mut self,
        key: Key,
        index: ReplicaIndex,
        offset: u64,
        data: &Buf,
        crc: Option<u32>,
        out: &mut Vec<Output>,
    ) {
        let mut done = 0;
        while done < data.len() as u64 {
            let rest = data.len() as u64 - done;
            let Some((at, len)) = self.extent(index, None, offset + done, rest) else { return };
            let piece = data.slice(done as usize..(done + len) as usize);
            self.pin(at, len);
            self.sums.write_begins(at, len);
            if let Some(op) = self.ops.get_mut(key) {
                op.io += 1;
            }
            let crc = crc.filter(|_| len == data.len() as u64);
            let id = self.io(Io::Write { op: key, offset: at, data: piece.clone(), crc });
            out.push(Output::Write { id, offset: at, data: piece, durable: false });
            done += len;
        }
    }

    /// Where volume offset `offset` is in the pool, of the head or of a snapshot's version, and how many
    /// bytes follow it there, at most `len`. `None` if it is not allocated.
    pub(crate) fn extent(
        &self,
        index: ReplicaIndex,
        version: Option<Version>,
        offset: u64,
        len: u64,
    ) -> Option<(u64, u64)> {
        let layout = &self.state.layout;
        let versions = &self.state.replicas.get(&index)?.versions;
        let slot_of = |vslot| match version {
            None => versions.slot(vslot),
            Some(version) => versions.slot_in(version, vslot),
        };
        let (VSlot(vslot), within) = layout.vslot_at(offset);
        let slot = slot_of(VSlot(vslot))?;
        let mut have = layout.slot_size - within;
        let mut next = 1;
        while have < len && slot_of(VSlot(vslot + next)) == Some(Slot(slot.0 + next)) {
            have += layout.slot_size;
            next += 1;
        }
        Some((layout.slot(slot) + within, have.min(len)))
    }

    pub(crate) fn write_ended(
        &mut self,
        key: Key,
        offset: u64,
        data: &Buf,
        crc: Option<u32>,
        done: Result<(), i32>,
        out: &mut Vec<Output>,
    ) {
        debug_assert!(data.len() as u64 >= BLOCK);
        self.unpin(offset, data.len() as u64);
        let Some(op) = self.ops.get_mut(key) else { return };
        op.io -= 1;
        let index = op.replica;
        match done {
            Ok(()) => {
                if let Some(replica) = self.replicas.get_mut(&index) {
                    let unsettled = &mut replica.unsettled;
                    self.sums.write_ended(offset, data.as_slice(), crc, unsettled);
                }
            }
            Err(errno) => {
                op.error.get_or_insert(WireError::Disk { errno });
                self.fail_replica(index, errno, out);
            }
        }
        self.advance(key, out);
    }
}
