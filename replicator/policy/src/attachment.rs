//! What the applied state means for an attachment of this node (R2).

use core::time::Duration;
use engine::{IsrAnswer, IsrView, MemberSpec};
use metadata::{Attachment, NodeStatus, Refused, ReplicaState, State, Volume};
use types::{EngineInstance, Epoch, NodeId, VolumeId};

/// Whether the record grants `volume` to this engine.
#[must_use]
pub fn is_ours(state: &State, volume: VolumeId, epoch: Epoch, instance: EngineInstance) -> bool {
    state.volumes.get(&volume).is_some_and(|record| {
        record.epoch == epoch
            && matches!(&record.attachment,
                Attachment::Attaching { instance: at, .. } | Attachment::Attached { instance: at, .. }
                if *at == instance)
    })
}

/// The replicas of a volume as its engine on node `here` needs them.
#[must_use]
pub fn members(state: &State, volume: &Volume, here: NodeId) -> Vec<MemberSpec> {
    volume
        .replicas
        .values()
        .filter(|replica| replica.state == ReplicaState::Ready)
        .filter_map(|replica| {
            let address = if replica.node == here {
                None
            } else {
                let node = state.nodes.get(&replica.node)?;
                Some(node.data_address.parse().ok()?)
            };
            Some(MemberSpec {
                replica: replica.replica,
                incarnation: replica.incarnation,
                sealed: replica.sealed,
                node: replica.node,
                address,
                in_isr: volume.isr.contains(&replica.replica),
                lost: state.is_lost(replica.node),
            })
        })
        .collect()
}

/// The ISR after a decision about it. The state must be at least as new as the decision; a newer
/// ISR of the same epoch is as true.
#[must_use]
pub fn decided(state: &State, volume: VolumeId, epoch: Epoch) -> IsrAnswer {
    match state.volumes.get(&volume) {
        Some(record) if record.epoch == epoch => IsrAnswer::View(IsrView {
            version: record.isr_version,
            isr: record.isr.iter().copied().collect(),
        }),
        _ => IsrAnswer::Superseded,
    }
}

/// What to do after a refused `BeginAttach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRefusal {
    /// The holder may have changed since the state was looked at: look again at once.
    LookAgain,
    /// It is being fenced, sealed, created or filled, a snapshot of it is being taken, or this node came
    /// back a moment ago: wait until the [`Situation`] has changed.
    Wait,
    /// Tell the caller.
    GiveUp,
}

/// See [`AfterRefusal`].
#[must_use]
pub const fn after_refusal(refused: &Refused) -> AfterRefusal {
    match refused {
        Refused::Superseded { .. } => AfterRefusal::LookAgain,
        Refused::NeedsFence { .. }
        | Refused::NeedsSeal { .. }
        | Refused::Creating { .. }
        | Refused::Filling { .. }
        | Refused::HeldInternally { .. }
        | Refused::NodeIsLost { .. }
        | Refused::NotRegistered { .. } => AfterRefusal::Wait,
        _ => AfterRefusal::GiveUp,
    }
}

/// An attach that waits looks again after this, even if nothing seems to have changed: its state may
/// lag behind the one that refused it, and show the situation only when it is over again.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// All that an attach depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation<'s> {
    record: Option<&'s Volume>,
    holder_lost: bool,
    up: bool,
}

/// The situation of an attach of `volume` on node `here`.
#[must_use]
pub fn situation(state: &State, volume: VolumeId, here: NodeId) -> Situation<'_> {
    let record = state.volumes.get(&volume);
    let holder = record.and_then(|record| record.attachment.holder());
    Situation {
        record,
        holder_lost: holder.is_some_and(|holder| state.is_lost(holder)),
        up: state.nodes.get(&here).is_some_and(|node| node.status == NodeStatus::Up),
    }
}
