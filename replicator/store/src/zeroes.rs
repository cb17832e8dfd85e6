//! Discard and write-zeroes (R24): whole pieces lose their slot, parts are overwritten with zeros,
//! and what was never allocated costs nothing, not even a tag, since nothing changes there.

use types::{Buf, Tag};
use wire::Reply;

use crate::api::{Output, SessionId};
use crate::layout::{RecordSeq, Region, ReplicaIndex, VSlot};
use crate::op::{OpKind, Wake};
use crate::record::Change;
use crate::slab::Key;
use crate::store::Store;

impl Store {
    pub(crate) fn zeroes(
        &mut self,
        id: SessionId,
        seq: u64,
        (offset, len): (u64, u64),
        tag: Tag,
        out: &mut Vec<Output>,
    ) {
        let why = ["offset or length of a discard", "a discard of a sealed era"];
        if let Some(reason) = self.refuses(id, (offset, len), tag, why) {
            return self.invalid(id, seq, reason, out);
        }
        if let Some(key) = self.op(id, seq, OpKind::Zeroes { offset, len, tag }) {
            self.start_zeroes(key, out);
        }
    }

    pub(crate) fn start_zeroes(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        let OpKind::Zeroes { offset, len, tag } = op.kind else { return };
        let index = op.replica;
        let end = offset + len;
        let layout = self.state.layout;
        let vend = layout.vslot_at(end - 1).0.0 + 1;
        let Some(state) = self.state.replicas.get(&index) else { return };
        let size = state.size;
        let mut touched: Vec<Region> = state
            .mapped(layout.vslot_at(offset).0.0, vend)
            .map(|(vslot, _)| layout.region_of(vslot))
            .collect();
        touched.dedup();
        if touched.is_empty() {
            return self.finish(key, Reply::Done, out);
        }
        let mut gate = self.mark_in_use(index);
        for run in touched.chunk_by(|a, b| a.0 + 1 == b.0) {
            let (first, last) = (run[0].0, run[run.len() - 1].0);
            gate = gate.max(self.tag_regions(index, first, last + 1, tag));
        }
        if gate > self.log.durable() {
            return self.when_durable(gate, Wake::Op(key));
        }
        let slot_size = layout.slot_size;
        // Pieces of which only a part is zeroed are written like any other.
        let parts = [(offset, offset), (end, end - 1)];
        let parts = parts.into_iter().filter(|(bound, _)| {
            !bound.is_multiple_of(slot_size) && (*bound != end || end != size)
        });
        if self.unshare(key, index, parts.map(|(_, at)| layout.vslot_at(at).0), out) {
            return;
        }
        self.submitted(key);
        let whole_first = offset.div_ceil(slot_size);
        // The last piece may reach beyond the end of the volume; what is there was never written.
        let whole_end = if end == size { u64::from(vend) } else { end / slot_size };
        // A piece that was just copied must be known to be there.
        let mut record = self.unwritten_map(index, layout.vslot_at(offset).0.0, vend - 1);
        if whole_first < whole_end {
            record = record.max(self.unmap(index, whole_first as u32, whole_end as u32));
        }
        self.answer_after(key, record);
        if whole_first >= whole_end {
            // One or two parts of pieces.
            let middle = (whole_first * slot_size).clamp(offset, end);
            self.zero_part(key, index, offset, middle, out);
            self.zero_part(key, index, middle, end, out);
        } else {
            self.zero_part(key, index, offset, whole_first * slot_size, out);
            self.zero_part(key, index, whole_end * slot_size, end, out);
        }
        // Perhaps nothing was left to wait for.
        self.advance(key, out);
    }

    /// Takes the slots of the pieces `first..end` away.
    fn unmap(&mut self, index: ReplicaIndex, first: u32, end: u32) -> RecordSeq {
        self.outdate_copies(index, first, end);
        let Some(state) = self.state.replicas.get(&index) else { return RecordSeq(0) };
        let mut mapped = state.mapped(first, end).map(|(vslot, _)| vslot.0);
        let Some(first) = mapped.next() else { return RecordSeq(0) };
        let last = mapped.last().unwrap_or(first);
        self.commit(index, &Change::Unmap { first: VSlot(first), count: last - first + 1 })
    }

    /// Overwrites `offset..end`, which lies within one piece, if that piece is allocated.
    fn zero_part(
        &mut self,
        key: Key,
        index: ReplicaIndex,
        offset: u64,
        end: u64,
        out: &mut Vec<Output>,
    ) {
        if offset < end && self.extent(index, None, offset, end - offset).is_some() {
            let zeros = Buf::zeroed((end - offset) as usize);
            self.write_pieces(key, index, offset, &zeros, None, out);
        }
    }
}
