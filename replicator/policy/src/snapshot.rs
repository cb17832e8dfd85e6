//! What the leader must see to about snapshots (R26) and volumes that begin with one: a pure function of the
//! applied state and of what this leader itself is about.

#[cfg(test)]
mod tests;

use metadata::{
    Attachment, Command, Lifecycle, NodeStatus, Replica, ReplicaState, Snapshot, SnapshotState,
    State, Volume,
};
use std::collections::BTreeSet;
use types::{NodeId, SnapshotId, VolumeId};

/// One step; repeating one that was done changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have `node` copy into the volume what it begins with.
    Fill {
        /// The volume, which nobody holds.
        volume: VolumeId,
        /// Has a replica of it.
        node: NodeId,
    },
    /// End an attempt that nobody waits for: its leader is gone.
    Abort {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Delete the snapshot of a clone that is filled, or was never made.
    Drop {
        /// The snapshot.
        snapshot: SnapshotId,
    },
}

impl Action {
    /// The command that carries it out; `None` for what a node is to be asked for.
    #[must_use]
    pub const fn command(self) -> Option<Command> {
        match self {
            Self::Fill { .. } => None,
            // Refused if the attempt succeeded meanwhile: whoever asked for it may have been told.
            Self::Abort { snapshot } => Some(Command::AbortSnapshot { snapshot }),
            Self::Drop { snapshot } => Some(Command::DeleteSnapshot { snapshot }),
        }
    }
}

/// The next steps; this leader takes the snapshots `own` itself, or clones from them.
#[must_use]
pub fn plan(state: &State, own: &BTreeSet<SnapshotId>) -> Vec<Action> {
    let others = state.snapshots.values().filter(|s| !own.contains(&s.snapshot));
    let snapshots = others.filter_map(|record| {
        let snapshot = record.snapshot;
        match record.state {
            SnapshotState::Creating => Some(Action::Abort { snapshot }),
            SnapshotState::Ready if record.hidden && state.filled_from(snapshot).is_none() => {
                Some(Action::Drop { snapshot })
            }
            SnapshotState::Ready | SnapshotState::Deleting => None,
        }
    });
    snapshots.chain(state.volumes.values().filter_map(|volume| fill(state, volume))).collect()
}

fn fill(state: &State, volume: &Volume) -> Option<Action> {
    let free = matches!(
        volume.attachment,
        Attachment::Detached | Attachment::Fenced { sealed: Some(_), .. }
    );
    if volume.lifecycle != Lifecycle::Filling || !free {
        return None;
    }
    let source = source(state, volume)?;
    let holders: Vec<NodeId> = holders(state, source).map(|holder| holder.node).collect();
    holders.first()?;
    // Where the source is read from its own disk, if there is such a node.
    let nodes: Vec<NodeId> = in_sync(state, volume).map(|replica| replica.node).collect();
    let node = nodes.iter().find(|node| holders.contains(node)).or(nodes.first())?;
    Some(Action::Fill { volume: volume.volume, node: *node })
}

/// The snapshot that `volume` begins with.
#[must_use]
pub fn source<'s>(state: &'s State, volume: &Volume) -> Option<&'s Snapshot> {
    let source = volume.source?;
    state.snapshots.get(&source.snapshot()).filter(|s| s.state == SnapshotState::Ready)
}

/// The replicas that `snapshot` can be read from now.
pub fn holders<'s>(state: &'s State, snapshot: &'s Snapshot) -> impl Iterator<Item = &'s Replica> {
    let volume = state.volumes.get(&snapshot.volume);
    let replicas = volume.into_iter().flat_map(|volume| volume.replicas.values());
    replicas.filter(|r| snapshot.holders.contains(&r.replica) && usable(state, r))
}

/// Who is to take a snapshot of `volume`: the node where it is attached, or one with an in-sync replica if
/// nobody has it; `None` if that has to wait.
#[must_use]
pub fn taker(state: &State, volume: &Volume) -> Option<NodeId> {
    let up = |node: &NodeId| state.nodes.get(node).is_some_and(|n| n.status == NodeStatus::Up);
    match volume.attachment {
        Attachment::Attached { node, .. } if !volume.internal => Some(node).filter(up),
        Attachment::Detached => in_sync(state, volume).map(|replica| replica.node).next(),
        Attachment::Attached { .. } | Attachment::Attaching { .. } | Attachment::Fenced { .. } => {
            None
        }
    }
}

fn in_sync<'s>(state: &'s State, volume: &'s Volume) -> impl Iterator<Item = &'s Replica> {
    let replicas = volume.replicas.values();
    replicas.filter(|r| volume.isr.contains(&r.replica) && usable(state, r))
}

fn usable(state: &State, replica: &Replica) -> bool {
    let node = state.nodes.get(&replica.node);
    replica.state == ReplicaState::Ready && node.is_some_and(|n| n.status == NodeStatus::Up)
}
