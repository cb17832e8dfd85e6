//! Making, deleting, emptying and growing replicas: idempotent, answered once durable.

use types::{Incarnation, MAX_VOLUME, REGION, ReplicaId, VolumeId};

use crate::StoreError;
use crate::api::{Admin, Output, SessionId};
use crate::layout::{MAX_REPLICAS, RecordSeq, ReplicaIndex, regions};
use crate::op::Wake;
use crate::record::Change;
use crate::state::size_is_valid;
use crate::store::{Replica, Session, Store};

impl Store {
    pub(crate) fn admin(&mut self, op: u64, admin: Admin, out: &mut Vec<Output>) {
        if let Some(errno) = self.failed {
            let result = Err(StoreError::PoolFailed { errno });
            return out.push(Output::AdminDone { op, result });
        }
        let record = match admin {
            Admin::CreateReplica { volume, replica, incarnation, size } => {
                self.create(volume, replica, incarnation, size)
            }
            Admin::DeleteReplica { replica } => Ok(self.delete(replica, out)),
            Admin::ResizeReplica { replica, size } => self.resize(replica, size),
            Admin::DropSnapshot { replica, snapshot } => Ok(self.drop_snapshot(replica, snapshot)),
            Admin::RetireReplica { replica } => self.retire(replica, out),
        };
        match record {
            Ok(record) if record > self.log.durable() => {
                self.when_durable(record, Wake::Admin(op));
            }
            done => out.push(Output::AdminDone { op, result: done.map(|_| ()) }),
        }
    }

    fn check_room(&self, size: u64, more: u64) -> Result<(), StoreError> {
        if !size_is_valid(size) {
            return Err(StoreError::BadSize { size, max: MAX_VOLUME });
        }
        let provisioned = self.state.regions();
        let limit = self.state.layout.max_regions;
        if provisioned + more > limit {
            return Err(StoreError::OverProvisioned {
                wanted: more * REGION,
                provisioned: provisioned * REGION,
                limit: limit * REGION,
            });
        }
        Ok(())
    }

    /// Returns the record to wait for; of a repeated operation perhaps a later one.
    fn create(
        &mut self,
        volume: VolumeId,
        replica: ReplicaId,
        incarnation: Incarnation,
        size: u64,
    ) -> Result<RecordSeq, StoreError> {
        if let Some(index) = self.by_id.get(&replica) {
            let state = &self.state.replicas[index];
            let differs = [
                (state.volume != volume, "volume"),
                (state.incarnation != incarnation, "incarnation"),
                // It may have grown since: a node that begins with an old state repeats what it finds there.
                (state.size < size, "size"),
            ];
            return match differs.iter().find(|(differs, _)| *differs) {
                Some((_, field)) => Err(StoreError::Exists { replica, field }),
                None => Ok(self.log.appended()),
            };
        }
        self.check_room(size, regions(size) as u64)?;
        if self.by_id.len() as u32 >= MAX_REPLICAS {
            return Err(StoreError::TooManyReplicas { limit: MAX_REPLICAS });
        }
        // Counts up while the pool is open: requests of a deleted replica may still be in flight.
        let index = ReplicaIndex(self.next_index);
        self.next_index += 1;
        let record = self.commit(index, &Change::Create { volume, replica, incarnation, size });
        self.replicas.insert(index, Replica::default());
        self.by_id.insert(replica, index);
        Ok(record)
    }

    fn delete(&mut self, replica: ReplicaId, out: &mut Vec<Output>) -> RecordSeq {
        let Some(index) = self.by_id.remove(&replica) else { return self.log.appended() };
        self.close_sessions(index, out);
        self.replicas.remove(&index);
        self.commit(index, &Change::Delete)
    }

    /// Ends all sessions of a replica.
    pub(crate) fn close_sessions(&mut self, index: ReplicaIndex, out: &mut Vec<Output>) {
        let of_replica = |(_, session): &(&SessionId, &Session)| session.replica == index;
        let sessions: Vec<SessionId> =
            self.sessions.iter().filter(of_replica).map(|(id, _)| *id).collect();
        for session in sessions {
            self.close_session(session, out);
        }
    }

    fn resize(&mut self, replica: ReplicaId, size: u64) -> Result<RecordSeq, StoreError> {
        let Some(index) = self.by_id.get(&replica).copied() else {
            return Err(StoreError::Unknown { replica });
        };
        let present = self.state.replicas[&index].size;
        if size < present {
            return Err(StoreError::Shrink { replica, size: present, wanted: size });
        }
        self.check_room(size, (regions(size) - regions(present)) as u64)?;
        if size == present {
            return Ok(self.log.appended());
        }
        Ok(self.commit(index, &Change::Resize { size }))
    }
}
