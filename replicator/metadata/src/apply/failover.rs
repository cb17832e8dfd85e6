//! Notes of when something was.

use super::{Change, OK, find};
use crate::event::EventKind;
use crate::failover::FailoverStep;
use crate::outcome::Outcome;
use crate::state::State;
use types::{Epoch, NodeId, VolumeId};

impl Change {
    /// The first to tell counts; the others are told that it is well.
    pub(super) fn note_failover(
        &mut self,
        state: &mut State,
        about: (VolumeId, Epoch),
        node: NodeId,
        step: FailoverStep,
        unix_ms: u64,
    ) -> Outcome {
        let (volume, epoch) = about;
        find(state, volume)?;
        let kind = EventKind::Failover(step);
        let told = state.events.values().any(|event| {
            event.kind == kind && event.volume == Some(volume) && event.epoch == Some(epoch)
        });
        if !told {
            self.event(state, kind, Some(about), Some(node), unix_ms.to_string());
        }
        OK
    }
}
