//! What a node's pool must hold according to the applied state.
//!
//! Only explicit records lead to a deletion: a replica that the state does not mention may belong
//! to a state that this node has not applied yet, and is left alone.

#[cfg(test)]
mod tests;

use metadata::{Lifecycle, ReplicaState, State};
use store::{Admin, ReplicaInfo};
use types::{Incarnation, NodeId, ReplicaId, VolumeId};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Task {
    Create { volume: VolumeId, replica: ReplicaId, incarnation: Incarnation, size: u64 },
    Resize { replica: ReplicaId, size: u64 },
    Delete { replica: ReplicaId },
    Fail { replica: ReplicaId, reason: String },
}

impl Task {
    /// The replica concerned.
    #[must_use]
    pub const fn replica(&self) -> ReplicaId {
        match self {
            Self::Create { replica, .. }
            | Self::Resize { replica, .. }
            | Self::Delete { replica }
            | Self::Fail { replica, .. } => *replica,
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
            Self::Delete { replica } => Some(Admin::DeleteReplica { replica }),
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
            (Ok(()), Self::Delete { .. }) => Command::ReplicaDeleted { replica },
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
    state.replicas_on(here).filter_map(task).collect()
}
