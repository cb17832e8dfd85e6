//! What a leader must do about volumes of lost nodes (R7): a pure function of the applied state,
//! so that a new leader finishes what a former one began.

#[cfg(test)]
mod tests;

use core::net::SocketAddr;
use metadata::{Attachment, NodeStatus, ReplicaState, State, Volume};
use types::{EngineInstance, Epoch, Incarnation, NodeId, ReplicaId, VolumeId};
use uuid::Uuid;

/// One step of fencing a volume; repeating one that was done changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Commit the fence.
    Fence {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        expected_epoch: Epoch,
        /// The lost holder.
        holder: NodeId,
    },
    /// Seal one of these ISR members at `epoch`, then commit FenceSealed.
    Seal {
        /// The volume.
        volume: VolumeId,
        /// The fence's epoch.
        epoch: Epoch,
        /// Never empty.
        candidates: Vec<Candidate>,
    },
}

impl Action {
    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        match self {
            Self::Fence { volume, .. } | Self::Seal { volume, .. } => *volume,
        }
    }
}

/// An ISR member that may be sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The replica.
    pub replica: ReplicaId,
    /// Its life (R11).
    pub incarnation: Incarnation,
    /// What it has sealed (R11).
    pub sealed: Epoch,
    /// Its node.
    pub node: NodeId,
    /// Data address; `None` if it is on this node.
    pub address: Option<SocketAddr>,
}

/// The next step for every volume that needs one, seen from node `here`.
#[must_use]
pub fn plan(state: &State, here: NodeId) -> Vec<Action> {
    state.volumes.values().filter_map(|volume| step(state, volume, here)).collect()
}

fn step(state: &State, volume: &Volume, here: NodeId) -> Option<Action> {
    match &volume.attachment {
        Attachment::Attaching { node, .. } | Attachment::Attached { node, .. } => {
            state.is_lost(*node).then_some(Action::Fence {
                volume: volume.volume,
                expected_epoch: volume.epoch,
                holder: *node,
            })
        }
        Attachment::Fenced { sealed: None, .. } => {
            let candidates = candidates(state, volume, here);
            (!candidates.is_empty()).then_some(Action::Seal {
                volume: volume.volume,
                epoch: volume.epoch,
                candidates,
            })
        }
        Attachment::Fenced { sealed: Some(_), .. } | Attachment::Detached => None,
    }
}

/// ISR members on nodes that are up; on any node if there is none (a node that is lost to the
/// leader may still serve its replica, and a seal there counts as much).
fn candidates(state: &State, volume: &Volume, here: NodeId) -> Vec<Candidate> {
    let members =
        volume.isr.iter().filter_map(|id| volume.replicas.get(id)).filter_map(|replica| {
            let node = state.nodes.get(&replica.node)?;
            let address =
                if replica.node == here { None } else { Some(node.data_address.parse().ok()?) };
            let usable = replica.state == ReplicaState::Ready;
            usable.then_some((
                node.status == NodeStatus::Up,
                Candidate {
                    replica: replica.replica,
                    incarnation: replica.incarnation,
                    sealed: replica.sealed,
                    node: replica.node,
                    address,
                },
            ))
        });
    let (up, rest): (Vec<_>, Vec<_>) = members.partition(|(up, _)| *up);
    let chosen = if up.is_empty() { rest } else { up };
    chosen.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The instance in whose name a fence seals: the same for every leader that works on it, since a
/// replica accepts one instance per epoch (R3). No engine ever runs under a fence's epoch.
#[must_use]
pub fn fence_instance(volume: VolumeId, epoch: Epoch) -> EngineInstance {
    EngineInstance(Uuid::from_u128(volume.0.as_u128() ^ u128::from(epoch.0)))
}
