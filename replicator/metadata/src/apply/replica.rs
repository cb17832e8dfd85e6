//! Which replicas a volume is to have: added, moved, released, given up (R27).

use super::volume::{check_replica, invalid, not_live};
use super::{Change, OK, find};
use crate::command::NewReplica;
use crate::event::EventKind;
use crate::outcome::{Outcome, Refused};
use crate::state::{
    Attachment, Lifecycle, NodeStatus, PoolClass, Replica, ReplicaState, State, Volume,
};
use types::{BootId, Epoch, IsrVersion, ReplicaId, VolumeId};

impl Change {
    pub(super) fn modify_volume(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        repl: Option<u32>,
        class: Option<Option<PoolClass>>,
    ) -> Outcome {
        let found = find(state, volume)?;
        if found.lifecycle != Lifecycle::Live {
            return Err(not_live(found));
        }
        let repl = repl.unwrap_or(found.repl);
        if !(1..=3).contains(&repl) {
            return Err(invalid("repl", repl, "1, 2 or 3"));
        }
        let class = class.unwrap_or(found.class);
        if (repl, class) == (found.repl, found.class) {
            return OK;
        }
        let found = self.volume(state, volume)?;
        let before = (found.repl, found.class);
        (found.repl, found.class) = (repl, class);
        let about = Some((volume, found.epoch));
        let word = |class: Option<PoolClass>| class.map_or("any", PoolClass::as_str);
        let message = format!(
            "repl {}, priority_io {}; was {}, {}",
            repl,
            word(class),
            before.0,
            word(before.1)
        );
        self.event(state, EventKind::VolumeModified, about, None, message);
        OK
    }

    pub(super) fn add_replica(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        added: u64,
        new: &NewReplica,
    ) -> Outcome {
        if is_there(find(state, volume)?, new) {
            return OK;
        }
        check_new(state, volume, added, new)?;
        let message = format!("replica {} is to be made and resynced", new.replica);
        self.insert(state, volume, new, message)
    }

    /// Grow before shrink: `from` only gets a mark.
    pub(super) fn move_replica(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        added: u64,
        from: ReplicaId,
        to: &NewReplica,
    ) -> Outcome {
        let found = find(state, volume)?;
        if is_there(found, to) {
            return OK;
        }
        check_new(state, volume, added, to)?;
        let entry = found.replicas.get(&from).ok_or(Refused::NoReplica { replica: from })?;
        let not = |reason: &str| {
            Err(Refused::NotEligible { volume, replica: from, reason: reason.to_owned() })
        };
        if !found.isr.contains(&from) || entry.state != ReplicaState::Ready {
            return not("only a replica that is in sync can be moved");
        }
        if entry.leaving {
            return not("it is being moved already");
        }
        if let Some(entry) = self.volume(state, volume)?.replicas.get_mut(&from) {
            entry.leaving = true;
        }
        let message =
            format!("replica {} is to be made and resynced; {from} leaves then", to.replica);
        self.insert(state, volume, to, message)
    }

    /// `new` was checked.
    fn insert(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        new: &NewReplica,
        message: String,
    ) -> Outcome {
        let found = self.volume(state, volume)?;
        let replica = Replica {
            replica: new.replica,
            incarnation: new.incarnation,
            node: new.node,
            state: ReplicaState::Creating,
            size: found.reserved(),
            leaving: false,
            boot: BootId::default(),
            sealed: Epoch(0),
        };
        found.replicas.insert(new.replica, replica);
        found.added += 1;
        let about = Some((volume, found.epoch));
        self.event(state, EventKind::ReplicaAdded, about, Some(new.node), message);
        OK
    }

    pub(super) fn release_replica(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        replica: ReplicaId,
        isr_version: IsrVersion,
    ) -> Outcome {
        let found = find(state, volume)?;
        let Some(entry) = found.replicas.get(&replica) else { return OK };
        if entry.state == ReplicaState::Deleting {
            return OK;
        }
        if found.lifecycle != Lifecycle::Live {
            return Err(not_live(found));
        }
        // While an engine starts or a fence is sealed the ISR is what they work through.
        if !matches!(found.attachment, Attachment::Attached { .. } | Attachment::Detached) {
            return Err(Refused::WrongState {
                volume,
                found: found.attachment.as_str().into(),
                needed: "attached or detached".into(),
            });
        }
        if found.isr_version != isr_version {
            return Err(Refused::IsrChanged { volume, current: found.isr_version });
        }
        let not =
            |reason: &str| Err(Refused::NotEligible { volume, replica, reason: reason.to_owned() });
        if !found.isr.contains(&replica) {
            return not("it is not in the ISR");
        }
        let up = |node| state.nodes.get(&node).is_some_and(|n| n.status == NodeStatus::Up);
        let stays = |other: &&Replica| {
            let sound = other.state == ReplicaState::Ready && !other.leaving && up(other.node);
            let counts = found.isr.contains(&other.replica) && state.remembers(found, other);
            other.replica != replica && sound && counts
        };
        if found.replicas.values().filter(stays).count() < found.repl as usize {
            return not("too few others are in sync");
        }
        let node = entry.node;
        let found = self.volume(state, volume)?;
        found.isr.remove(&replica);
        found.isr_version.0 += 1;
        if let Some(entry) = found.replicas.get_mut(&replica) {
            entry.state = ReplicaState::Deleting;
        }
        let about = Some((volume, found.epoch));
        let message = format!(
            "replica {replica} is released; its node deletes it, {} in sync",
            found.isr.len()
        );
        self.event(state, EventKind::ReplicaRemoved, about, Some(node), message);
        self.forget_holders(state, volume, &[replica]);
        self.settle_expansion(state, volume);
        OK
    }

    pub(super) fn remove_replica(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        replica: ReplicaId,
        isr_version: IsrVersion,
    ) -> Outcome {
        let found = find(state, volume)?;
        let Some(entry) = found.replicas.get(&replica) else { return OK };
        if entry.state == ReplicaState::Deleting {
            return OK;
        }
        if found.isr.contains(&replica) {
            let reason = "it is in the ISR".into();
            return Err(Refused::NotEligible { volume, replica, reason });
        }
        if found.isr_version != isr_version {
            return Err(Refused::IsrChanged { volume, current: found.isr_version });
        }
        if found.lifecycle == Lifecycle::Retired
            && let Some(snapshot) = state.only_holder(found, replica)
        {
            return Err(Refused::LastHolder { replica, snapshot });
        }
        let found = self.volume(state, volume)?;
        let about = Some((volume, found.epoch));
        if let Some(entry) = found.replicas.get_mut(&replica) {
            entry.state = ReplicaState::Deleting;
            let node = entry.node;
            let message = format!("replica {replica} is given up; its node deletes it");
            self.event(state, EventKind::ReplicaRemoved, about, Some(node), message);
        }
        self.forget_holders(state, volume, &[replica]);
        OK
    }
}

/// Whether `new` was added already.
fn is_there(volume: &Volume, new: &NewReplica) -> bool {
    volume.replicas.get(&new.replica).is_some_and(|existing| {
        existing.incarnation == new.incarnation && existing.node == new.node
    })
}

/// Whether `volume` may get a replica where `new` says.
fn check_new(state: &State, volume: VolumeId, added: u64, new: &NewReplica) -> Result<(), Refused> {
    let found = find(state, volume)?;
    if found.lifecycle != Lifecycle::Live {
        return Err(not_live(found));
    }
    if found.added != added {
        return Err(Refused::ReplicasChanged { volume, current: found.added });
    }
    let there = |r: &Replica| r.node == new.node && r.state != ReplicaState::Deleting;
    if found.replicas.values().any(there) {
        let reason = "it has a replica of the volume already".into();
        return Err(Refused::BadPlacement { node: new.node, reason });
    }
    check_replica(state, new, found.reserved(), found.class)
}
