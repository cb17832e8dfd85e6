//! Permanent failures (R13): after a failed write or sync nobody knows what the disk holds, so
//! nothing is tried again.

use wire::{Reply, WireError};

use crate::StoreError;
use crate::api::{Event, Output};
use crate::layout::{Layout, ReplicaIndex};
use crate::op::{Io, Wake};
use crate::record::Change;
use crate::slab::Key;
use crate::store::{Store, failure_text};

impl Store {
    /// A data write of the replica failed.
    pub(crate) fn fail_replica(&mut self, index: ReplicaIndex, errno: i32, out: &mut Vec<Output>) {
        let Some(state) = self.state.replicas.get(&index) else { return };
        if self.failure(state).is_some() {
            return;
        }
        let (volume, replica, reason) = (state.volume, state.replica, failure_text(errno));
        let record = self.commit(index, &Change::Failed { errno });
        self.log.want(record);
        self.event(Event::ReplicaFailed { volume, replica, reason: reason.clone() }, out);
        let queued: Vec<Key> = self
            .ops
            .iter()
            .filter(|(_, op)| op.replica == index && !op.submitted)
            .map(|(key, _)| key)
            .collect();
        for key in queued {
            if let Some(op) = self.ops.get_mut(key) {
                op.error = Some(WireError::ReplicaFailed { reason: reason.clone() });
            }
            self.finish(key, Reply::Done, out);
        }
        self.fail_seal(index, &reason, out);
    }

    /// A sync, or a write of the pool's own metadata, failed: all replicas are lost to this pool.
    /// The superblock is marked so that the next start knows, if the disk still takes that.
    pub(crate) fn fail_pool(&mut self, errno: i32, out: &mut Vec<Output>) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(errno);
        self.event(Event::PoolFailed { errno }, out);
        let reason = failure_text(errno);
        let indices: Vec<ReplicaIndex> = self.state.replicas.keys().copied().collect();
        for index in &indices {
            let state = &self.state.replicas[index];
            let (volume, replica) = (state.volume, state.replica);
            self.event(Event::ReplicaFailed { volume, replica, reason: reason.clone() }, out);
        }
        let keys: Vec<Key> = self.ops.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(op) = self.ops.get_mut(key) {
                op.error = Some(WireError::Disk { errno });
            }
            self.finish(key, Reply::Done, out);
        }
        for index in indices {
            self.fail_seal(index, &reason, out);
        }
        for wake in self.waits.drain() {
            if let Wake::Admin(op) = wake {
                out.push(Output::AdminDone { op, result: Err(StoreError::PoolFailed { errno }) });
            }
        }
        self.superblock.failed = errno;
        self.superblock.sequence += 1;
        let data = self.superblock.encode();
        for copy in 0..2 {
            let (id, data) = (self.io(Io::Superblock), data.clone());
            out.push(Output::Write { id, offset: Layout::superblock(copy), data, durable: true });
        }
    }

    fn fail_seal(&mut self, index: ReplicaIndex, reason: &str, out: &mut Vec<Output>) {
        let Some(wait) = self.replicas.get_mut(&index).and_then(|replica| replica.seal.take())
        else {
            return;
        };
        let (session, seq) = wait.request();
        let reason = reason.to_owned();
        self.reply(session, seq, Reply::Failed(WireError::ReplicaFailed { reason }), out);
    }
}
