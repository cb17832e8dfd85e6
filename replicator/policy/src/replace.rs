//! Which replicas are replaced on other nodes (R27): pure functions of the applied state and of how
//! long each node has been lost.
//!
//! Grow before shrink: a replacement is added outside the ISR, the volume's engine copies it whole
//! and grows the ISR (R5), and only when as many sound replicas are in sync as the volume wants is
//! the rest given up. So a replica is never removed for one that is not complete, and whichever is
//! in sync first is kept: the replacement, or the old one that came back.
//!
//! Only an attached volume gets a replacement: nobody else reads its data, so nobody could fill it
//! (see docs/decisions/0011-replacing-replicas.md).

#[cfg(test)]
mod tests;

use crate::liveness::STALL;
use core::time::Duration;
use metadata::placement::{Request, place};
use metadata::{Attachment, Lifecycle, NodeStatus, Replica, ReplicaState, State, Volume};
use std::collections::BTreeMap;
use types::{Instant, IsrVersion, NodeId, ReplicaId, VolumeId};

/// For how long the nodes that Raft has as lost have been so, as far as one leadership saw it (R6).
#[derive(Debug)]
pub struct Absence {
    lost: BTreeMap<NodeId, Duration>,
    looked: Instant,
}

impl Absence {
    /// A new leadership: nobody has been lost for any time.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { lost: BTreeMap::new(), looked: now }
    }

    /// `lost` are lost now. Time in which the leader did not look counts as [`STALL`] at most: the
    /// others could not be heard in it. To be called several times a second.
    pub fn look(&mut self, lost: impl IntoIterator<Item = NodeId>, now: Instant) {
        let passed = now.since(self.looked).min(STALL);
        self.looked = now;
        let before = core::mem::take(&mut self.lost);
        let longer = |node| (node, before.get(&node).map_or(Duration::ZERO, |time| *time + passed));
        self.lost = lost.into_iter().map(longer).collect();
    }

    /// The nodes that have been lost for `time` or longer.
    #[must_use]
    pub fn at_least(&self, time: Duration) -> Vec<NodeId> {
        self.lost.iter().filter(|(_, lost)| **lost >= time).map(|(node, _)| *node).collect()
    }
}

/// One step towards a volume's wanted number of copies; repeating one that was done changes
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Add a replica on `node`.
    Add {
        /// The volume.
        volume: VolumeId,
        /// Where there is most room.
        node: NodeId,
    },
    /// Give up a replica that is outside a full ISR.
    Remove {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        replica: ReplicaId,
        /// The ISR that does without it.
        isr_version: IsrVersion,
    },
}

impl Action {
    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        match self {
            Self::Add { volume, .. } | Self::Remove { volume, .. } => *volume,
        }
    }
}

/// The next step for every volume that needs one and can have one; the nodes `gone` have been lost
/// for so long that their replicas are to be replaced.
#[must_use]
pub fn plan(state: &State, gone: &[NodeId]) -> Vec<Action> {
    state.volumes.values().filter_map(|volume| step(state, volume, gone)).collect()
}

fn step(state: &State, volume: &Volume, gone: &[NodeId]) -> Option<Action> {
    if volume.lifecycle != Lifecycle::Live {
        return None;
    }
    let replicas = || volume.replicas.values();
    let in_isr = |replica: &Replica| volume.isr.contains(&replica.replica);
    let up = |node: NodeId| state.nodes.get(&node).is_some_and(|n| n.status == NodeStatus::Up);
    let sound = |r: &&Replica| in_isr(r) && r.state == ReplicaState::Ready && up(r.node);
    let wanted = volume.repl as usize;
    let in_sync = replicas().filter(sound).count();
    if in_sync >= wanted {
        let surplus = |r: &&Replica| !in_isr(r) && r.state != ReplicaState::Deleting;
        return replicas().find(surplus).map(|replica| Action::Remove {
            volume: volume.volume,
            replica: replica.replica,
            isr_version: volume.isr_version,
        });
    }
    let Attachment::Attached { node, .. } = volume.attachment else { return None };
    if in_sync == 0 || !up(node) {
        return None;
    }
    let hopeful = |r: &&Replica| match r.state {
        ReplicaState::Creating | ReplicaState::Ready => !gone.contains(&r.node),
        ReplicaState::Failed | ReplicaState::Deleting => false,
    };
    if replicas().filter(hopeful).count() >= wanted {
        return None;
    }
    let request = Request {
        size: volume.reserved(),
        repl: 1,
        class: volume.class,
        exclude: replicas().map(|replica| replica.node).collect(),
        ..Request::default()
    };
    let node = *place(state, &request).ok()?.first()?;
    Some(Action::Add { volume: volume.volume, node })
}
