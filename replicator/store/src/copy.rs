//! Copying a piece that snapshots use before it is written (R26).
//!
//! ```text
//! read the old slot ──▶ write the new one, durably ──▶ record: the piece is in the new one ──▶ write
//! ```
//!
//! Durable before the record, because recovery that finds the record shows the new slot: it must hold
//! all that was flushed to the old one. The writes that wait for the copy then go into the new slot in
//! place, like any other. A copy belongs to the piece, not to the request that began it, and is of use as long
//! as some request waits for it.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use types::Buf;
use wire::WireError;

use crate::api::Output;
use crate::layout::{ReplicaIndex, Slot, VSlot};
use crate::op::Io;
use crate::record::Change;
use crate::slab::Key;
use crate::store::Store;

/// A piece of a replica's head.
pub(crate) type Piece = (ReplicaIndex, VSlot);

/// A copy under way.
#[derive(Debug)]
pub(crate) struct Copying {
    from: Slot,
    to: Slot,
    /// The piece has been written or discarded since, when no snapshot used it for a while.
    stale: bool,
    /// Requests that go on when it has ended.
    waiters: Vec<Key>,
}

fn outdate(copying: &mut BTreeMap<Piece, Copying>, pieces: impl RangeBounds<Piece>) {
    copying.range_mut(pieces).for_each(|(_, copying)| copying.stale = true);
}

impl Store {
    /// Whether the request must wait because `pieces` (ascending) of its replica have to be copied first,
    /// or because there is no slot for that (then it may have failed).
    pub(crate) fn unshare(
        &mut self,
        key: Key,
        index: ReplicaIndex,
        pieces: impl Iterator<Item = VSlot>,
        out: &mut Vec<Output>,
    ) -> bool {
        let Self { state, copying, .. } = self;
        let Some(state) = state.replicas.get(&index) else { return false };
        // Without snapshots nothing is put in it: a write of its own pieces costs no allocation.
        let mut shared: Vec<VSlot> = Vec::new();
        for vslot in pieces {
            if !state.versions.is_shared(vslot) {
                outdate(copying, (index, vslot)..=(index, vslot));
            } else if shared.last() != Some(&vslot) {
                shared.push(vslot);
            }
        }
        if shared.is_empty() {
            return false;
        }
        let begun = |vslot: &&VSlot| !self.copying.contains_key(&(index, **vslot));
        let new: Vec<VSlot> = shared.iter().filter(begun).copied().collect();
        if !new.is_empty() && !self.reserve(key, new.len() as u32, out) {
            return true;
        }
        for vslot in new {
            self.begin_copy((index, vslot), out);
        }
        for vslot in shared {
            if let Some(copying) = self.copying.get_mut(&(index, vslot))
                && !copying.waiters.contains(&key)
            {
                copying.waiters.push(key);
            }
        }
        true
    }

    /// The pieces `first..end` change: copies of them that are under way are of no use.
    pub(crate) fn outdate_copies(&mut self, index: ReplicaIndex, first: u32, end: u32) {
        outdate(&mut self.copying, (index, VSlot(first))..(index, VSlot(end)));
    }

    fn begin_copy(&mut self, piece: Piece, out: &mut Vec<Output>) {
        let Some(state) = self.state.replicas.get(&piece.0) else { return };
        let Some(from) = state.slot(piece.1) else { return };
        let Some(to) = self.alloc.take() else { return };
        self.copying.insert(piece, Copying { from, to, stale: false, waiters: Vec::new() });
        let layout = &self.state.layout;
        let (offset, len) = (layout.slot(from), layout.slot_size);
        self.pin(offset, len);
        let id = self.io(Io::CopyRead { piece });
        out.push(Output::Read { id, offset, len: len as u32 });
    }

    pub(crate) fn copy_read(
        &mut self,
        piece: Piece,
        done: Result<Option<Buf>, i32>,
        out: &mut Vec<Output>,
    ) {
        let Some(Copying { from, to, .. }) = self.copying.get(&piece) else { return };
        let (layout, from, to) = (self.state.layout, *from, *to);
        self.unpin(layout.slot(from), layout.slot_size);
        if self.failed.is_some() {
            self.copying.remove(&piece);
            return;
        }
        match done {
            // Not verified here: what is wrong in it is wrong in the copy too, and noticed when read, like anything
            // else that the region holds: unless it has an unsealed tag and power is lost (see `Sums`).
            Ok(Some(data)) if data.len() as u64 == layout.slot_size => {
                let offset = layout.slot(to);
                self.pin(offset, layout.slot_size);
                let id = self.io(Io::CopyWrite { piece });
                out.push(Output::Write { id, offset, data, durable: true });
            }
            Ok(_) => self.copy_failed(piece, crate::read::EIO, out),
            Err(errno) => self.copy_failed(piece, errno, out),
        }
    }

    pub(crate) fn copy_written(
        &mut self,
        piece: Piece,
        done: Result<(), i32>,
        out: &mut Vec<Output>,
    ) {
        let Some(Copying { from, to, stale, .. }) = self.copying.get(&piece) else { return };
        let (layout, from, to, stale) = (self.state.layout, *from, *to, *stale);
        self.unpin(layout.slot(to), layout.slot_size);
        if self.failed.is_some() {
            self.copying.remove(&piece);
            return;
        }
        if let Err(errno) = done {
            return self.copy_failed(piece, errno, out);
        }
        let (index, vslot) = piece;
        let waits = self.copying[&piece].waiters.iter().any(|key| self.ops.get(*key).is_some());
        // Meanwhile the piece may have been discarded, its replica deleted or its snapshots dropped; or the
        // write went away with its session: then an era or a snapshot may be on its way that has settled its
        // checksums already, and would be believed without those of the copy (R18, R26).
        let wanted = !stale
            && waits
            && self.state.replicas.get(&index).is_some_and(|state| {
                state.versions.slot(vslot) == Some(from) && state.versions.is_shared(vslot)
            });
        if wanted {
            self.sums.copy(from, to);
            let record = self.commit(index, &Change::Copied { vslot, slot: to });
            if let Some(replica) = self.replicas.get_mut(&index) {
                replica.unwritten_maps.insert(vslot.0..vslot.0 + 1, record);
                replica.unsettled.push(to);
            }
        }
        self.end_copy(piece, !wanted, out);
    }

    /// Forgets a copy, gives an unused slot back and lets its waiters go on.
    fn end_copy(&mut self, piece: Piece, unused: bool, out: &mut Vec<Output>) {
        let Some(copying) = self.copying.remove(&piece) else { return };
        if unused {
            self.alloc.releasing_more(1);
            self.alloc.release(copying.to);
        }
        for key in copying.waiters {
            self.advance(key, out);
        }
    }

    /// What cannot be copied cannot be written: that is a failed write (R13).
    fn copy_failed(&mut self, piece: Piece, errno: i32, out: &mut Vec<Output>) {
        if let Some(copying) = self.copying.get(&piece) {
            for key in copying.waiters.clone() {
                if let Some(op) = self.ops.get_mut(key) {
                    op.error.get_or_insert(WireError::Disk { errno });
                }
            }
        }
        self.fail_replica(piece.0, errno, out);
        self.end_copy(piece, true, out);
    }

    /// Whether writes of the replica are under way or waiting.
    pub(crate) fn is_being_written(&self, index: ReplicaIndex) -> bool {
        self.ops.iter().any(|(_, op)| op.replica == index && op.kind.mutates())
    }
}
