//! What a node's pool must hold according to the applied state.
//!
//! A replica with data is deleted only where the record says so (`deleting`): one that the state does
//! not mention may belong to a state that this node has not applied yet, or to metadata that were
//! lost, and is left alone. Such an orphan that is empty and was never sealed (made from a state that
//! was behind) is deleted once the leader has answered that there is no such replica.

#[cfg(test)]
mod tests;

use metadata::{Lifecycle, ReplicaState, State};
use store::{Admin, ReplicaInfo};
use types::{Epoch, Incarnation, NodeId, ReplicaId, VolumeId};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Task {
    Create {
        volume: VolumeId,
        replica: ReplicaId,
        incarnation: Incarnation,
        size: u64,
    },
    Resize {
        replica: ReplicaId,
        size: u64,
    },
    Delete {
        replica: ReplicaId,
    },
    Fail {
        replica: ReplicaId,
        reason: String,
    },
    /// Only after [`Task::question`].
    Forget {
        replica: ReplicaId,
    },
}

impl Task {
    /// The replica concerned.
    #[must_use]
    pub const fn replica(&self) -> ReplicaId {
        match self {
            Self::Create { replica, .. }
            | Self::Resize { replica, .. }
            | Self::Delete { replica }
            | Self::Forget { replica }
            | Self::Fail { replica, .. } => *replica,
        }
    }

    /// What Raft must have refused with `NoReplica` before the pool is asked: ids are never reused and
    /// a record comes before its replica, so what has no record then will never have one.
    #[must_use]
    pub const fn question(&self) -> Option<metadata::Command> {
        match *self {
            Self::Forget { replica } => Some(metadata::Command::ReplicaReady { replica }),
            _ => None,
        }
    }

    /// What the pool is asked for; nothing to report a failure.
    #[must_use]
    pub fn admin(&self) -> Option<Admin> {
        match *self {
            Self::Create { volume, replica, incarnation, size } => {
                Some(Admin::CreateReplica { volume, replica, incarnation, size })
            }
            Self::Resize { replica, size } => Some(Admin::ResizeReplica { replica, size }),
            Self::Delete { replica } | Self::Forget { replica } => {
                Some(Admin::DeleteReplica { replica })
            }
            Self::Fail { .. } => None,
        }
    }

    /// What the state is told when the pool answered; `None` if it could not be done now.
    #[must_use]
    pub fn report(&self, done: &Result<(), store::StoreError>) -> Option<metadata::Command> {
        use metadata::Command;
        let replica = self.replica();
        Some(match (done, self) {
            (Ok(()), Self::Create { .. }) => Command::ReplicaReady { replica },
            (Ok(()), Self::Resize { size, .. }) => Command::ReplicaResized { replica, size: *size },
            (Ok(()), Self::Delete { .. } | Self::Forget { .. }) => {
                Command::ReplicaDeleted { replica }
            }
            (Ok(()), Self::Fail { reason, .. }) => {
                Command::ReplicaFailed { replica, reason: reason.clone() }
            }
            // The store decides once and for all; the volume's creation must not wait for ever.
            (Err(error), Self::Create { .. }) => {
                Command::ReplicaFailed { replica, reason: error.to_string() }
            }
            (Err(_), _) => return None,
        })
    }
}

/// What node `here`, whose pool holds `present`, has to do.
#[must_use]
pub fn plan(state: &State, here: NodeId, present: &[ReplicaInfo]) -> Vec<Task> {
    let task = |(volume, record): (&metadata::Volume, &metadata::Replica)| {
        let replica = record.replica;
        if volume.lifecycle == Lifecycle::Deleting || record.state == ReplicaState::Deleting {
            return Some(Task::Delete { replica });
        }
        let size = volume.reserved();
        let fail = |reason: &str| Some(Task::Fail { replica, reason: reason.to_owned() });
        let found = present.iter().find(|found| found.replica == replica);
        match (record.state, found) {
            (ReplicaState::Creating, _) => Some(Task::Create {
                volume: volume.volume,
                replica,
                incarnation: record.incarnation,
                size: record.size,
            }),
            (ReplicaState::Ready, None) => fail("it is not in the pool"),
            (ReplicaState::Ready, Some(found)) if found.incarnation != record.incarnation => {
                fail("the pool holds another incarnation")
            }
            (ReplicaState::Ready, Some(ReplicaInfo { failed: Some(reason), .. })) => fail(reason),
            (ReplicaState::Ready, Some(_)) => {
                (record.size < size).then_some(Task::Resize { replica, size })
            }
            // It may be all that is left of the data: kept until the volume or it is removed.
            (ReplicaState::Failed | ReplicaState::Deleting, _) => None,
        }
    };
    let empty = |found: &&ReplicaInfo| found.allocated == 0 && found.sealed == Epoch(0);
    let forget = |found: &ReplicaInfo| Task::Forget { replica: found.replica };
    let recorded = state.replicas_on(here).filter_map(task);
    recorded.chain(orphans(state, present).filter(empty).map(forget)).collect()
}

/// Replicas of a pool that the state does not mention.
pub fn orphans<'a>(
    state: &'a State,
    present: &'a [ReplicaInfo],
) -> impl Iterator<Item = &'a ReplicaInfo> {
    present.iter().filter(|found| state.replica(found.replica).is_none())
}
