//! Applying a command: deterministic, and all or nothing (R1). A refused command changes only the
//! applied index.

mod attach;
mod failover;
mod node;
mod replica;
mod snapshot;
mod volume;

use crate::command::Command;
use crate::event::{Event, EventKind};
use crate::outcome::{Done, Outcome, Refused};
use crate::state::{EVENTS_KEPT, Membership, Node, State, Volume};
use std::collections::BTreeSet;
use types::{Epoch, NodeId, SnapshotId, VolumeId};

/// A record of the state that an apply changed (or removed), for incremental persistence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changed {
    /// This node.
    Node(NodeId),
    /// This volume.
    Volume(VolumeId),
    /// This snapshot.
    Snapshot(SnapshotId),
    /// This event, by sequence.
    Event(u64),
}

/// What applying one command did. The applied index always changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For the proposer.
    pub outcome: Outcome,
    /// What happened, in order; also kept in [`State::events`] for a while.
    pub events: Vec<Event>,
    /// Which records changed.
    pub changed: BTreeSet<Changed>,
}

impl State {
    /// Applies the command of log entry `index` in `term`. Entries are applied once each, in order.
    pub fn apply(&mut self, index: u64, term: u64, command: &Command) -> Applied {
        self.applied = index;
        self.applied_term = term;
        let mut change = Change { index, events: Vec::new(), changed: BTreeSet::new() };
        let outcome = change.command(self, command);
        debug_assert!(outcome.is_ok() || change.events.is_empty());
        Applied { outcome, events: change.events, changed: change.changed }
    }

    /// Records an entry without a command: a new leader's first, or a membership change.
    pub fn apply_empty(&mut self, index: u64, term: u64, membership: Option<Membership>) {
        self.applied = index;
        self.applied_term = term;
        if let Some(membership) = membership {
            self.membership = membership;
        }
    }
}

/// One apply under way: collects what it does.
struct Change {
    index: u64,
    events: Vec<Event>,
    changed: BTreeSet<Changed>,
}

impl Change {
    fn command(&mut self, state: &mut State, command: &Command) -> Outcome {
        match command {
            Command::RegisterNode(info) => self.register_node(state, info),
            Command::AddNode { node, name, control_address } => {
                self.add_node(state, *node, name, control_address)
            }
            Command::RemoveNode { node } => self.remove_node(state, *node),
            Command::NodeLost { node } => self.node_lost(state, *node),
            Command::NodeUp { node, boot, process } => self.node_up(state, *node, *boot, *process),
            Command::CreateVolume {
                volume,
                name,
                size,
                repl,
                class,
                fs_type,
                pinned,
                source,
                replicas,
            } => {
                let wanted = volume::Wanted {
                    volume: *volume,
                    name,
                    size: *size,
                    repl: *repl,
                    class: *class,
                    fs_type: *fs_type,
                    pinned: *pinned,
                    source: *source,
                };
                self.create_volume(state, &wanted, replicas)
            }
            Command::ReplicaReady { replica } => self.replica_ready(state, *replica),
            Command::ReplicaFailed { replica, reason } => {
                self.replica_failed(state, *replica, reason)
            }
            Command::AddReplica { volume, added, replica } => {
                self.add_replica(state, *volume, *added, replica)
            }
            Command::RemoveReplica { volume, replica, isr_version } => {
                self.remove_replica(state, *volume, *replica, *isr_version)
            }
            Command::ModifyVolume { volume, repl, class } => {
                self.modify_volume(state, *volume, *repl, *class)
            }
            Command::LimitVolume { volume, iops, bandwidth } => {
                self.limit_volume(state, *volume, *iops, *bandwidth)
            }
            Command::MoveReplica { volume, added, from, to } => {
                self.move_replica(state, *volume, *added, *from, to)
            }
            Command::ReleaseReplica { volume, replica, isr_version } => {
                self.release_replica(state, *volume, *replica, *isr_version)
            }
            Command::DeleteVolume { volume } => self.delete_volume(state, *volume),
            Command::ReplicaDeleted { replica } => self.replica_deleted(state, *replica),
            Command::ExpandBegin { volume, size } => self.expand_begin(state, *volume, *size),
            Command::ReplicaResized { replica, size } => {
                self.replica_resized(state, *replica, *size)
            }
            Command::BeginAttach { volume, node, instance, expected_epoch, internal } => {
                let wanted = attach::Wanted {
                    node: *node,
                    instance: *instance,
                    expected: *expected_epoch,
                    internal: *internal,
                };
                self.begin_attach(state, *volume, &wanted)
            }
            Command::Activate { volume, epoch, instance, isr, isr_version } => {
                self.activate(state, *volume, *epoch, *instance, isr, *isr_version)
            }
            Command::Detach { volume, epoch, instance, clean } => {
                self.detach(state, *volume, *epoch, *instance, *clean)
            }
            Command::Fence { volume, expected_epoch } => {
                self.fence(state, *volume, *expected_epoch)
            }
            Command::FenceSealed { volume, epoch, replica } => {
                self.fence_sealed(state, *volume, *epoch, *replica)
            }
            Command::ShrinkIsr { volume, epoch, isr_version, remove } => {
                self.shrink_isr(state, *volume, *epoch, *isr_version, remove)
            }
            Command::GrowIsr { volume, epoch, isr_version, add } => {
                self.grow_isr(state, *volume, *epoch, *isr_version, *add)
            }
            Command::CreateSnapshot { snapshot, name, volume, created_unix_ms, hidden } => {
                let wanted = snapshot::Wanted {
                    snapshot: *snapshot,
                    name,
                    volume: *volume,
                    created_unix_ms: *created_unix_ms,
                    hidden: *hidden,
                };
                self.create_snapshot(state, &wanted)
            }
            Command::SnapshotTaken { snapshot, epoch, isr_version, holders } => {
                self.snapshot_taken(state, *snapshot, *epoch, *isr_version, holders)
            }
            Command::AbortSnapshot { snapshot } => self.abort_snapshot(state, *snapshot),
            Command::DeleteSnapshot { snapshot } => self.delete_snapshot(state, *snapshot),
            Command::SnapshotDropped { snapshot, replica } => {
                self.snapshot_dropped(state, *snapshot, *replica)
            }
            Command::Filled { volume, epoch } => self.filled(state, *volume, *epoch),
            Command::NoteFailover { volume, epoch, node, step, unix_ms } => {
                self.note_failover(state, (*volume, *epoch), *node, *step, *unix_ms)
            }
        }
    }

    /// Records an event. `about`: volume with its epoch after the change, node.
    fn event(
        &mut self,
        state: &mut State,
        kind: EventKind,
        volume: Option<(VolumeId, Epoch)>,
        node: Option<NodeId>,
        message: String,
    ) {
        state.last_event += 1;
        let sequence = state.last_event;
        let event = Event {
            sequence,
            index: self.index,
            kind,
            volume: volume.map(|(volume, _)| volume),
            node,
            epoch: volume.map(|(_, epoch)| epoch),
            message,
        };
        state.events.insert(sequence, event.clone());
        self.changed.insert(Changed::Event(sequence));
        while state.events.len() > EVENTS_KEPT {
            if let Some((dropped, _)) = state.events.pop_first() {
                self.changed.insert(Changed::Event(dropped));
            }
        }
        self.events.push(event);
    }

    /// Marks a volume changed and hands it out.
    fn volume<'s>(
        &mut self,
        state: &'s mut State,
        volume: VolumeId,
    ) -> Result<&'s mut Volume, Refused> {
        let found = state.volumes.get_mut(&volume).ok_or(Refused::NoVolume { volume })?;
        self.changed.insert(Changed::Volume(volume));
        Ok(found)
    }

    /// Marks a node changed and hands it out.
    fn node<'s>(&mut self, state: &'s mut State, node: NodeId) -> Result<&'s mut Node, Refused> {
        let found = state.nodes.get_mut(&node).ok_or(Refused::NoNode { node })?;
        self.changed.insert(Changed::Node(node));
        Ok(found)
    }
}

/// The volume, to look at.
fn find(state: &State, volume: VolumeId) -> Result<&Volume, Refused> {
    state.volumes.get(&volume).ok_or(Refused::NoVolume { volume })
}

/// The volume, if its newest epoch is `epoch`; every command of an earlier one is refused
/// (promise 3).
fn find_at(state: &State, volume: VolumeId, epoch: Epoch) -> Result<&Volume, Refused> {
    let found = find(state, volume)?;
    if found.epoch == epoch {
        Ok(found)
    } else {
        Err(Refused::Superseded { volume, current: found.epoch })
    }
}

const OK: Outcome = Ok(Done::Ok);

#[cfg(test)]
mod tests;
