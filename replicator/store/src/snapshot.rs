//! Making, dropping and listing snapshots of a replica (R26), and retiring it.
//!
//! A snapshot is made like an era is sealed: the checksums so far are settled and everything is synced
//! before the record that makes it. So what a snapshot uses is on stable storage, and its checksums are
//! known for good, when the request is answered.

use types::plant::{Bug, planted};
use types::{ReplicaId, SnapshotId};
use wire::{HeldSnapshot, Reply, WireError};

use crate::StoreError;
use crate::api::{Output, SessionId};
use crate::layout::{MAX_SNAPSHOTS, RecordSeq, ReplicaIndex};
use crate::op::OpKind;
use crate::record::Change;
use crate::slab::Key;
use crate::store::Store;
use crate::versions::Snapshot;

impl Store {
    pub(crate) fn snapshot(
        &mut self,
        id: SessionId,
        seq: u64,
        snapshot: SnapshotId,
        size: u64,
        out: &mut Vec<Output>,
    ) {
        let index = self.sessions[&id].replica;
        if size == 0 || size > self.state.replicas[&index].size {
            return self.invalid(id, seq, "size of a snapshot", out);
        }
        if self.state.snapshots() >= MAX_SNAPSHOTS {
            return self.reply(id, seq, Reply::Failed(WireError::NoSpace), out);
        }
        if self.is_being_written(index) && !planted(Bug::SnapshotWithoutHold) {
            return self.invalid(id, seq, "a snapshot while writes are in flight", out);
        }
        let mutations = self.mutations(index);
        if let Some(key) = self.op(id, seq, OpKind::Snapshot { snapshot, size, mutations }) {
            self.settle.enqueue(key);
        }
    }

    /// After the sync, and again after the record.
    pub(crate) fn finish_snapshot(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        let OpKind::Snapshot { snapshot, size, mutations } = op.kind else { return };
        let index = op.replica;
        if !self.has_to_record(key) {
            return self.finish(key, Reply::Done, out);
        }
        // Also one that has ended: its checksums are not settled, and those that are would be believed.
        if self.mutations(index) != mutations && !planted(Bug::SnapshotWithoutHold) {
            let reason = "a write came while a snapshot was made".to_owned();
            return self.finish(key, Reply::Failed(WireError::Invalid { reason }), out);
        }
        let news = self.find_snapshot(index, snapshot).is_none();
        self.record_and_finish(key, news.then_some(Change::Snapshot { snapshot, size }), out);
    }

    fn mutations(&self, index: ReplicaIndex) -> u64 {
        self.replicas.get(&index).map_or(0, |replica| replica.mutations)
    }

    pub(crate) fn find_snapshot(
        &self,
        index: ReplicaIndex,
        snapshot: SnapshotId,
    ) -> Option<Snapshot> {
        self.state.replicas.get(&index)?.versions.find(snapshot).copied()
    }

    pub(crate) fn list_snapshots(&self, id: SessionId) -> Reply {
        let state = &self.state.replicas[&self.sessions[&id].replica];
        let held = |found: &Snapshot| HeldSnapshot { snapshot: found.snapshot, size: found.size };
        Reply::Snapshots(state.versions.snapshots().iter().map(held).collect())
    }

    /// Returns the record to wait for; of a repeated operation perhaps a later one.
    pub(crate) fn drop_snapshot(&mut self, replica: ReplicaId, snapshot: SnapshotId) -> RecordSeq {
        match self.by_id.get(&replica).copied() {
            Some(index) if self.find_snapshot(index, snapshot).is_some() => {
                let record = self.commit(index, &Change::DropSnapshot { snapshot });
                // What it shared with the head may be written in place from here on: if the record were
                // lost the snapshot would be there again, and wrong.
                if let Some(replica) = self.replicas.get_mut(&index) {
                    replica.gate = record;
                }
                record
            }
            _ => self.log.appended(),
        }
    }

    /// Likewise.
    pub(crate) fn retire(
        &mut self,
        replica: ReplicaId,
        out: &mut Vec<Output>,
    ) -> Result<RecordSeq, StoreError> {
        let Some(index) = self.by_id.get(&replica).copied() else {
            return Err(StoreError::Unknown { replica });
        };
        if self.state.replicas[&index].retired {
            return Ok(self.log.appended());
        }
        self.close_sessions(index, out);
        Ok(self.commit(index, &Change::Retired))
    }
}
