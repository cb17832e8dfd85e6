//! Attachments, fences and the ISR: who may write, to which copies, under which epoch.

use super::volume::not_live;
use super::{Change, OK, find, find_at};
use crate::event::EventKind;
use crate::outcome::{Done, NotGrown, Outcome, Refused};
use crate::state::{Attachment, Lifecycle, NodeStatus, ReplicaState, State, Volume};
use std::collections::BTreeSet;
use types::plant::{Bug, planted};
use types::{EngineInstance, Epoch, IsrVersion, NodeId, ReplicaId, VolumeId};

/// A wanted attachment.
pub(super) struct Wanted {
    pub node: NodeId,
    pub instance: EngineInstance,
    pub expected: Epoch,
    pub internal: bool,
}

pub(super) fn wrong_state(found: &Volume, needed: &str) -> Refused {
    Refused::WrongState {
        volume: found.volume,
        found: found.attachment.as_str().into(),
        needed: needed.into(),
    }
}

fn not_eligible(found: &Volume, replica: ReplicaId, reason: &str) -> Refused {
    Refused::NotEligible { volume: found.volume, replica, reason: reason.into() }
}

fn granted(found: &Volume) -> Outcome {
    Ok(Done::Epoch { epoch: found.epoch, clean: found.clean })
}

impl Change {
    pub(super) fn begin_attach(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        wanted: &Wanted,
    ) -> Outcome {
        let Wanted { node, instance, expected, internal } = *wanted;
        let found = find(state, volume)?;
        if found.attachment == (Attachment::Attaching { node, instance })
            && found.epoch == expected.next()
        {
            return granted(found);
        }
        match state.nodes.get(&node).map(|n| n.status) {
            None => return Err(Refused::NoNode { node }),
            Some(NodeStatus::Unknown) => return Err(Refused::NotRegistered { node }),
            Some(NodeStatus::Lost) => return Err(Refused::NodeIsLost { node }),
            Some(NodeStatus::Up) => {}
        }
        match found.lifecycle {
            Lifecycle::Live => {}
            Lifecycle::Filling if internal => {}
            _ => return Err(not_live(found)),
        }
        match found.attachment {
            Attachment::Attaching { node: holder, .. }
            | Attachment::Attached { node: holder, .. }
                if holder != node =>
            {
                return Err(if state.is_lost(holder) {
                    Refused::NeedsFence { volume, node: holder }
                } else if found.internal {
                    Refused::HeldInternally { volume, node: holder }
                } else {
                    Refused::HeldBy { volume, node: holder }
                });
            }
            // Not even from an engine of the same node, whose device may outlive it (R14).
            Attachment::Attaching { .. } | Attachment::Attached { .. }
                if internal && !found.internal =>
            {
                return Err(Refused::HeldBy { volume, node });
            }
            // A fence tells who has to move where: only the next user may end it.
            Attachment::Fenced { .. } if internal && found.lifecycle == Lifecycle::Live => {
                return Err(wrong_state(found, "detached"));
            }
            Attachment::Fenced { sealed: None, .. } => {
                return Err(Refused::NeedsSeal { volume, epoch: found.epoch });
            }
            _ => {}
        }
        if found.epoch != expected {
            return Err(Refused::Superseded { volume, current: found.epoch });
        }
        let found = self.volume(state, volume)?;
        found.epoch = found.epoch.next();
        found.attachment = Attachment::Attaching { node, instance };
        found.internal = internal;
        let outcome = granted(found);
        let about = Some((volume, found.epoch));
        let purpose = if internal { ", without a device" } else { "" };
        let message = format!("epoch {} granted{purpose}", found.epoch);
        self.event(state, EventKind::Attaching, about, Some(node), message);
        outcome
    }

    pub(super) fn activate(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        epoch: Epoch,
        instance: EngineInstance,
        isr: &[ReplicaId],
        isr_version: IsrVersion,
    ) -> Outcome {
        let found = find_at(state, volume, epoch)?;
        if found.attachment.instance() != Some(instance) {
            return Err(Refused::Superseded { volume, current: found.epoch });
        }
        let wanted: BTreeSet<ReplicaId> = isr.iter().copied().collect();
        let Attachment::Attaching { node, .. } = found.attachment else {
            // Repeated: the proposer did not hear the first answer, and no I/O has run yet.
            if found.isr == wanted && found.isr_version.0 == isr_version.0 + 1 {
                return Ok(Done::Isr { isr_version: found.isr_version });
            }
            return Err(wrong_state(found, "attaching"));
        };
        if found.isr_version != isr_version {
            return Err(Refused::IsrChanged { volume, current: found.isr_version });
        }
        if wanted.is_empty() {
            return Err(Refused::EmptyIsr { volume });
        }
        for id in &wanted {
            if !found.isr.contains(id) {
                return Err(not_eligible(found, *id, "it is not in the committed ISR"));
            }
            if found.replicas.get(id).is_none_or(|r| r.state != ReplicaState::Ready) {
                return Err(not_eligible(found, *id, "it is not ready"));
            }
        }
        for id in &wanted {
            self.joins(state, volume, *id)?;
        }
        let found = self.volume(state, volume)?;
        let shrunk = found.isr.len() - wanted.len();
        found.isr = wanted;
        found.isr_version.0 += 1;
        found.attachment = Attachment::Attached { node, instance };
        // From the first write on the members may differ until a clean end.
        found.clean = false;
        let isr_version = found.isr_version;
        let members = found.isr.len();
        let about = Some((volume, epoch));
        let message = format!("attached with {members} in-sync replicas");
        self.event(state, EventKind::Attached, about, Some(node), message);
        if shrunk > 0 {
            let message = format!("{shrunk} left at attach, {members} in sync");
            self.event(state, EventKind::IsrShrunk, about, Some(node), message);
        }
        self.settle_expansion(state, volume);
        Ok(Done::Isr { isr_version })
    }

    pub(super) fn detach(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        epoch: Epoch,
        instance: EngineInstance,
        clean: bool,
    ) -> Outcome {
        let found = find_at(state, volume, epoch)?;
        if found.attachment == Attachment::Detached {
            return OK;
        }
        if found.attachment.instance() != Some(instance) {
            return Err(Refused::Superseded { volume, current: found.epoch });
        }
        let found = self.volume(state, volume)?;
        let node = found.attachment.holder();
        // An attachment that never became active wrote nothing: what was clean stays clean.
        if matches!(found.attachment, Attachment::Attached { .. }) {
            found.clean = clean;
        }
        found.attachment = Attachment::Detached;
        found.internal = false;
        let about = Some((volume, epoch));
        let message = if found.clean { "cleanly" } else { "not cleanly" };
        self.event(state, EventKind::Detached, about, node, message.into());
        OK
    }

    pub(super) fn fence(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        expected: Epoch,
    ) -> Outcome {
        let found = find(state, volume)?;
        if matches!(found.attachment, Attachment::Fenced { .. }) && found.epoch == expected.next() {
            return granted(found);
        }
        let found = find_at(state, volume, expected)?;
        let Some(holder) = found.attachment.holder() else {
            return Err(wrong_state(found, "attaching or attached"));
        };
        if !state.is_lost(holder) {
            return Err(Refused::NotLost { node: holder });
        }
        let found = self.volume(state, volume)?;
        found.epoch = found.epoch.next();
        found.attachment = Attachment::Fenced { holder, sealed: None };
        found.internal = false;
        let outcome = granted(found);
        let about = Some((volume, found.epoch));
        let message = format!("taken from lost node {holder} at epoch {}", found.epoch);
        self.event(state, EventKind::Fenced, about, Some(holder), message);
        outcome
    }

    pub(super) fn fence_sealed(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        epoch: Epoch,
        replica: ReplicaId,
    ) -> Outcome {
        let found = find_at(state, volume, epoch)?;
        let holder = match found.attachment {
            Attachment::Fenced { sealed: Some(_), .. } => return OK,
            Attachment::Fenced { holder, sealed: None } => holder,
            _ => return Err(wrong_state(found, "fenced")),
        };
        if !found.isr.contains(&replica) {
            return Err(not_eligible(found, replica, "it is not in the ISR"));
        }
        let Some(entry) = found.replicas.get(&replica) else {
            return Err(Refused::NoReplica { replica });
        };
        if entry.state != ReplicaState::Ready {
            return Err(not_eligible(found, replica, "it is not ready"));
        }
        let node = entry.node;
        let found = self.volume(state, volume)?;
        found.attachment = Attachment::Fenced { holder, sealed: Some(replica) };
        if let Some(entry) = found.replicas.get_mut(&replica) {
            entry.sealed = epoch;
        }
        let about = Some((volume, epoch));
        let message = format!("replica {replica} sealed; node {holder} can write no more");
        self.event(state, EventKind::Sealed, about, Some(node), message);
        OK
    }

    pub(super) fn shrink_isr(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        epoch: Epoch,
        isr_version: IsrVersion,
        remove: &[ReplicaId],
    ) -> Outcome {
        let found = if planted(Bug::ShrinkStaleEpoch) {
            find(state, volume)?
        } else {
            find_at(state, volume, epoch)?
        };
        let Attachment::Attached { node, .. } = found.attachment else {
            return Err(wrong_state(found, "attached"));
        };
        let isr_version =
            if planted(Bug::ShrinkStaleEpoch) { found.isr_version } else { isr_version };
        if found.isr_version.0 == isr_version.0 + 1
            && !remove.is_empty()
            && remove.iter().all(|id| !found.isr.contains(id))
        {
            return Ok(Done::Isr { isr_version: found.isr_version });
        }
        if found.isr_version != isr_version {
            return Err(Refused::IsrChanged { volume, current: found.isr_version });
        }
        if let Some(id) = remove.iter().find(|id| !found.isr.contains(id)) {
            return Err(not_eligible(found, *id, "it is not in the ISR"));
        }
        let rest: BTreeSet<ReplicaId> =
            found.isr.iter().copied().filter(|id| !remove.contains(id)).collect();
        if rest.is_empty() {
            return Err(Refused::EmptyIsr { volume });
        }
        if rest.len() == found.isr.len() {
            return Ok(Done::Isr { isr_version });
        }
        let found = self.volume(state, volume)?;
        found.isr = rest;
        found.isr_version.0 += 1;
        let isr_version = found.isr_version;
        let left: Vec<String> = remove.iter().map(ToString::to_string).collect();
        let message = format!("{} left, {} in sync", left.join(", "), found.isr.len());
        self.event(state, EventKind::IsrShrunk, Some((volume, epoch)), Some(node), message);
        self.settle_expansion(state, volume);
        Ok(Done::Isr { isr_version })
    }

    pub(super) fn grow_isr(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        epoch: Epoch,
        isr_version: IsrVersion,
        add: ReplicaId,
    ) -> Outcome {
        let found = find_at(state, volume, epoch)?;
        let Attachment::Attached { node, .. } = found.attachment else {
            return Err(wrong_state(found, "attached"));
        };
        if found.isr_version.0 == isr_version.0 + 1 && found.isr.contains(&add) {
            return Ok(Done::Isr { isr_version: found.isr_version });
        }
        if found.isr_version != isr_version && !planted(Bug::GrowStaleVersion) {
            return Err(Refused::IsrChanged { volume, current: found.isr_version });
        }
        if found.isr.contains(&add) {
            return Err(not_eligible(found, add, "it is in the ISR"));
        }
        let Some(entry) = found.replicas.get(&add) else {
            return Err(Refused::NoReplica { replica: add });
        };
        // A replaced replica that came back and its replacement: the first one in is kept (R27).
        let counts = |id: &&ReplicaId| {
            entry.leaving || found.replicas.get(*id).is_none_or(|member| !member.leaving)
        };
        let full = found.isr.iter().filter(counts).count() >= found.repl as usize;
        let why = if entry.state != ReplicaState::Ready {
            Some(NotGrown::NotReady)
        } else if entry.size < found.size {
            Some(NotGrown::TooSmall)
        } else if full {
            Some(NotGrown::Enough)
        } else {
            None
        };
        if let Some(why) = why {
            // The engine goes on without it, and what is in the way may go: a repeat of this command that is
            // still under way must not be taken then.
            let found = self.volume(state, volume)?;
            found.isr_version.0 += 1;
            return Ok(Done::NotGrown { isr_version: found.isr_version, why });
        }
        self.joins(state, volume, add)?;
        let found = self.volume(state, volume)?;
        found.isr.insert(add);
        found.isr_version.0 += 1;
        let isr_version = found.isr_version;
        let message = format!("{add} joined, {} in sync", found.isr.len());
        self.event(state, EventKind::IsrGrown, Some((volume, epoch)), Some(node), message);
        self.hold_all(state, volume, add);
        Ok(Done::Isr { isr_version })
    }

    /// Notes the boot of a host whose replica is in sync from now on, and that it has sealed the epoch under
    /// which it is: no engine asks for a replica that has not (R2, R5).
    fn joins(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Result<(), Refused> {
        let nodes = &state.nodes;
        let found = state.volumes.get(&volume).and_then(|v| v.replicas.get(&replica));
        let boot = found.and_then(|r| nodes.get(&r.node)).map(|node| node.boot);
        let found = self.volume(state, volume)?;
        let epoch = found.epoch;
        if let Some(entry) = found.replicas.get_mut(&replica) {
            entry.boot = boot.unwrap_or_default();
            entry.sealed = epoch;
        }
        Ok(())
    }
}
