//! What a node's pool must hold according to the applied state.
//!
//! A replica with data is deleted only where the record says so (`deleting`): one that the state does
//! not mention may belong to a state that this node has not applied yet, or to metadata that were
//! lost, and is left alone. Such an orphan that is empty and was never sealed (made from a state that
//! was behind) is deleted once the leader has answered that there is no such replica.
//!
//! Nothing is done in another pool than the one that the replicas were meant for (R11). A daemon that starts
//! with a state that is behind may open such a pool: what it made there would be a second copy under an id and
//! incarnation that the right pool has, too, and when that came back it would be taken for the first.
//!
//! The same for snapshots of a replica: dropped where the record says so, and also where there is no
//! record (of an attempt that was aborted, or of one that was deleted while this copy was made), once the
//! leader has answered that there is none. One whose record is ready although this replica is no holder
//! is kept: it is what the replica has to have before it joins the ISR.

#[cfg(test)]
mod tests;

use metadata::{
    Command, Lifecycle, Refused, Replica, ReplicaState, Snapshot, SnapshotState, State,
};
use std::collections::BTreeMap;
use store::{Admin, ReplicaInfo};
use types::plant::{Bug, planted};
use types::{Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, SnapshotId, VolumeId};

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
    DropSnapshot {
        replica: ReplicaId,
        snapshot: SnapshotId,
        /// Its record says so; else only after [`Task::question`].
        recorded: bool,
    },
    /// Its volume is deleted but for its snapshots.
    Retire {
        replica: ReplicaId,
    },
}

/// What is to be told to Raft about a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// This.
    Propose(Command),
    /// Nothing: the pool itself shows that it is done.
    Nothing,
    /// It could not be done now.
    NotDone,
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
            | Self::Fail { replica, .. }
            | Self::DropSnapshot { replica, .. }
            | Self::Retire { replica } => *replica,
        }
    }

    /// What Raft must have [refused](Self::is_confirmed_by) before the pool is asked: ids are never
    /// reused and a record comes before its replica or snapshot, so what has no record then will never
    /// have one.
    #[must_use]
    pub const fn question(&self) -> Option<Command> {
        match *self {
            Self::Forget { replica } => Some(Command::ReplicaReady { replica }),
            // No engine has epoch 0: it changes nothing, whatever the record says.
            Self::DropSnapshot { snapshot, recorded: false, .. } => Some(Command::SnapshotTaken {
                snapshot,
                epoch: Epoch(0),
                isr_version: IsrVersion(0),
                holders: Vec::new(),
            }),
            _ => None,
        }
    }

    /// Whether this answer to the question says that there is no such thing.
    #[must_use]
    pub const fn is_confirmed_by(&self, refused: &Refused) -> bool {
        match self {
            Self::Forget { .. } => matches!(refused, Refused::NoReplica { .. }),
            Self::DropSnapshot { .. } => matches!(refused, Refused::NoSnapshot { .. }),
            _ => false,
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
            Self::DropSnapshot { replica, snapshot, .. } => {
                Some(Admin::DropSnapshot { replica, snapshot })
            }
            Self::Retire { replica } => Some(Admin::RetireReplica { replica }),
            Self::Fail { .. } => None,
        }
    }

    /// What the state is told when the pool answered.
    #[must_use]
    pub fn report(&self, done: &Result<(), store::StoreError>) -> Report {
        let replica = self.replica();
        Report::Propose(match (done, self) {
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
            (Ok(()), Self::DropSnapshot { snapshot, recorded: true, .. }) => {
                Command::SnapshotDropped { snapshot: *snapshot, replica }
            }
            (Ok(()), Self::DropSnapshot { .. } | Self::Retire { .. }) => return Report::Nothing,
            (Err(_), _) => return Report::NotDone,
        })
    }
}

/// The pool that node `here` must have: the one that holds its replicas (R11). Nothing if it has none;
/// then its pool may be another one than before.
#[must_use]
pub fn expected(state: &State, here: NodeId) -> Option<PoolId> {
    state.replicas_on(here).next()?;
    Some(state.nodes.get(&here)?.pool?.id)
}

/// The pool that node `here` must have, if that is not `pool`.
#[must_use]
pub fn swapped(state: &State, here: NodeId, pool: PoolId) -> Option<PoolId> {
    expected(state, here).filter(|expected| *expected != pool)
}

/// What node `here`, whose pool is `pool` and holds `present`, has to do. `present` is at least as new as
/// `state`.
#[must_use]
pub fn plan(state: &State, here: NodeId, pool: PoolId, present: &[ReplicaInfo]) -> Vec<Task> {
    if swapped(state, here, pool).is_some() {
        return Vec::new();
    }
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
            (ReplicaState::Ready, Some(found))
                if found.sealed < record.sealed && !planted(Bug::TrustOlderImage) =>
            {
                let (known, sealed) = (record.sealed, found.sealed);
                fail(&format!(
                    "the pool holds an older image of it: it has sealed epoch {known}, that one {sealed}"
                ))
            }
            (ReplicaState::Ready, Some(found)) if volume.lifecycle == Lifecycle::Retired => {
                (!found.retired).then_some(Task::Retire { replica })
            }
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
    recorded
        .chain(drops(state, here, present))
        .chain(orphans(state, present).filter(empty).map(forget))
        .collect()
}

/// The snapshots that replicas on `here` are to drop; a replica that is deleted takes its own with it.
fn drops<'a>(
    state: &'a State,
    here: NodeId,
    present: &'a [ReplicaInfo],
) -> impl Iterator<Item = Task> + 'a {
    let mut deleting = BTreeMap::<VolumeId, Vec<&Snapshot>>::new();
    for snapshot in state.snapshots.values().filter(|s| s.state == SnapshotState::Deleting) {
        deleting.entry(snapshot.volume).or_default().push(snapshot);
    }
    let of = move |(volume, record): (&'a metadata::Volume, &'a Replica)| {
        let replica = record.replica;
        let found = present.iter().find(|found| found.replica == replica);
        let there: &[SnapshotId] = found.map_or(&[], |found| &found.snapshots);
        let named = deleting.get(&volume.volume).map_or(&[][..], Vec::as_slice).iter();
        let named = named
            .filter(|s| s.holders.contains(&replica) || there.contains(&s.snapshot))
            .map(|s| Task::DropSnapshot { replica, snapshot: s.snapshot, recorded: true });
        let unknown = there
            .iter()
            .filter(|snapshot| !state.snapshots.contains_key(*snapshot))
            .map(|s| Task::DropSnapshot { replica, snapshot: *s, recorded: false });
        named.chain(unknown).collect::<Vec<_>>()
    };
    let stays = |(volume, record): &(&metadata::Volume, &Replica)| {
        volume.lifecycle != Lifecycle::Deleting && record.state != ReplicaState::Deleting
    };
    state.replicas_on(here).filter(stays).flat_map(of)
}

/// Replicas of a pool that the state does not mention.
pub fn orphans<'a>(
    state: &'a State,
    present: &'a [ReplicaInfo],
) -> impl Iterator<Item = &'a ReplicaInfo> {
    present.iter().filter(|found| state.replica(found.replica).is_none())
}
