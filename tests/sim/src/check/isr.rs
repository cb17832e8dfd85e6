//! The in-sync set as Raft committed it, and what its members hold.
//!
//! The truth is the newest state that any node has applied. A member is *whole* if its host has not
//! lost power since the member last had everything that was acknowledged.
//!
//! Checked:
//! - an acknowledged write is in every whole in-sync replica at that moment, a flushed one is
//!   covered by `blocks` after the next loss (R4);
//! - a replica that joins, and every one that an attach keeps, holds nothing stale, and the same as
//!   the other members (R5, R20);
//! - a device that outlives its daemon is not resumed if every whole copy lost its memory when not all that was
//!   acknowledged had been flushed, and serves nothing if that happened while it was being resumed (R10);
//! - data is read only from in-sync replicas: for consumers, as the source of a resync, and to take a write back (R5);
//! - an in-sync replica counts as failed only if something happened to its disk (R13);
//! - the set is never empty, and an ISR without a whole member is committed, while not all that was
//!   acknowledged has been flushed, only if every whole one was out of order a moment ago, or was given up by order in the moment in which the others' hosts died: only then acknowledged and unflushed writes may be lost.
//!
//! Not checked: replicas whose daemon does not run (looked at when it does, or by their effects),
//! and blocks in which rot was injected.

use crate::clock::{SEC, Time};
use crate::content::parse;
use crate::plan::Moment;
use crate::world::{World, index};
use metadata::{Attachment, ReplicaState, State, Volume};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use types::{BLOCK, Epoch, NodeId, ReplicaId, VolumeId};

/// A member is excused if its node was out of order within this time before.
const EXCUSE: Time = 16 * SEC;
/// What was given up by order this long after the last other host died would have been given up anyway.
const MOMENT: Time = SEC;
/// An engine may read from a member that left the ISR this long ago: it has not heard of it yet.
const NEWS: Time = 12 * SEC;

#[derive(Debug)]
struct Known {
    epoch: Epoch,
    isr: BTreeSet<ReplicaId>,
    active: bool,
    whole: BTreeSet<ReplicaId>,
    nodes: BTreeMap<ReplicaId, NodeId>,
    left: BTreeMap<ReplicaId, Time>,
    /// When the present epoch was granted.
    granted: Time,
    /// When the engine of an epoch asked to be activated, with copies that were identical then.
    reconciled: Option<(Epoch, Time)>,
    /// Nobody has written since all of it was flushed everywhere: a loss of memory loses nothing (R20).
    clean: bool,
    /// When every copy lost its memory under the present epoch: until the next one is active its engine
    /// may acknowledge what is gone already, since it cannot know.
    lost: Option<Time>,
    /// The epoch whose engine resumed a device and may not have heard yet what was lost.
    poisoned: Option<Epoch>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Isr {
    applied: u64,
    volumes: BTreeMap<VolumeId, Known>,
    power_lost: BTreeMap<usize, Time>,
    resynced: BTreeMap<ReplicaId, Time>,
    /// Copies whose disk failed: they never count again (R13).
    failed: BTreeSet<ReplicaId>,
    /// Copies whose pool was another one for a while.
    swapped: BTreeSet<ReplicaId>,
}

impl Isr {
    /// Host `n` lost its memory; returns the volumes that have no whole member left.
    pub(super) fn host_lost_power(&mut self, n: usize, now: Time) -> Vec<VolumeId> {
        self.power_lost.insert(n, now);
        let mut lost = Vec::new();
        // After a loss of all of them nothing is written that could be lost, until one is chosen (R22).
        let dirty = |known: &Known| known.lost.is_none() && !known.clean;
        for (id, known) in self.volumes.iter_mut().filter(|(_, known)| dirty(known)) {
            let nodes = &known.nodes;
            let had = !known.whole.is_empty();
            known.whole.retain(|replica| nodes.get(replica).is_some_and(|node| index(*node) != n));
            if had && known.whole.is_empty() {
                // From here on any member is as good as another (R22).
                known.whole = known.isr.clone();
                known.lost = Some(now);
                lost.push(*id);
            }
        }
        lost
    }

    /// The disk of `replica` failed: what it holds does not count any more. Returns its volume if that
    /// has no whole member left.
    pub(super) fn copy_failed(&mut self, replica: ReplicaId, now: Time) -> Option<VolumeId> {
        self.failed.insert(replica);
        let (id, known) =
            self.volumes.iter_mut().find(|(_, known)| known.whole.contains(&replica))?;
        known.whole.remove(&replica);
        if !known.whole.is_empty() {
            return None;
        }
        known.whole = known.isr.iter().copied().filter(|member| *member != replica).collect();
        known.lost = Some(now);
        Some(*id)
    }

    /// A resync of `replica` reached its end: its disk was synced just before.
    pub fn resynced(&mut self, replica: ReplicaId, now: Time) {
        self.resynced.insert(replica, now);
    }

    /// The engine of `epoch` has made its copies identical.
    pub fn reconciled(&mut self, volume: VolumeId, epoch: Epoch, now: Time) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.reconciled = Some((epoch, now));
        }
    }

    /// The pool of `replica` is another one for a while: it may be missed.
    pub fn pool_swapped(&mut self, replica: ReplicaId) {
        self.swapped.insert(replica);
    }

    /// Whether the disk of `replica` failed.
    #[must_use]
    pub(super) fn has_failed(&self, replica: ReplicaId) -> bool {
        self.failed.contains(&replica)
    }

    /// Whether the engine of `epoch` must not serve anything: see `Known::poisoned`.
    #[must_use]
    pub fn is_poisoned(&self, volume: VolumeId, epoch: Epoch) -> bool {
        self.volumes.get(&volume).is_some_and(|known| known.poisoned == Some(epoch))
    }

    fn lost_power_since(&self, node: NodeId, since: Time) -> bool {
        self.power_lost.get(&index(node)).is_some_and(|at| *at >= since)
    }

    /// The committed ISR of a volume, with nodes, if `epoch` is still the newest.
    #[must_use]
    pub fn members(&self, volume: VolumeId, epoch: Epoch) -> Vec<(ReplicaId, NodeId)> {
        let counts = |known: &&Known| known.epoch == epoch && known.lost.is_none();
        let Some(known) = self.volumes.get(&volume).filter(counts) else {
            return Vec::new();
        };
        let whole = known.isr.iter().filter(|replica| known.whole.contains(replica));
        whole.filter_map(|replica| Some((*replica, *known.nodes.get(replica)?))).collect()
    }

    /// All of the committed ISR whose disks did not fail, if `epoch` is still the newest.
    pub(super) fn committed(&self, volume: VolumeId, epoch: Epoch) -> Vec<ReplicaId> {
        let known = self.volumes.get(&volume).filter(|known| known.epoch == epoch);
        let isr = known.into_iter().flat_map(|known| &known.isr);
        isr.filter(|replica| !self.failed.contains(replica)).copied().collect()
    }

    /// Whether an engine of `epoch` may read from `replica`.
    #[must_use]
    pub fn may_read(&self, volume: VolumeId, epoch: Epoch, replica: ReplicaId, now: Time) -> bool {
        self.volumes.get(&volume).is_none_or(|known| {
            known.epoch != epoch
                || known.isr.contains(&replica)
                || known.left.get(&replica).is_some_and(|at| at + NEWS >= now)
        })
    }
}

impl World {
    /// What is true now, unless all who know are down or have not found it in their logs yet.
    pub(crate) fn true_state(&self) -> Option<Arc<State>> {
        self.newest_state().filter(|state| state.applied >= self.checks.isr.applied)
    }

    /// A node has applied `state`; if nobody was further, it is the truth.
    pub(crate) fn truth(&mut self, state: &State) {
        if state.applied <= self.checks.isr.applied {
            return;
        }
        self.checks.isr.applied = state.applied;
        for record in state.volumes.values() {
            self.record_changed(record);
        }
        self.check_snapshots(state, false);
        self.check_restores(state);
    }

    fn record_changed(&mut self, record: &Volume) {
        let now = self.now;
        let Some(volume) = self.checks.volume(record.volume) else { return };
        let active = matches!(record.attachment, Attachment::Attached { .. });
        let nodes = record.replicas.iter().map(|(id, replica)| (*id, replica.node)).collect();
        let isr = &mut self.checks.isr;
        let known = isr.volumes.entry(record.volume).or_insert_with(|| Known {
            epoch: Epoch(0),
            isr: record.isr.clone(),
            active: false,
            whole: record.isr.clone(),
            nodes: BTreeMap::new(),
            left: BTreeMap::new(),
            granted: now,
            reconciled: None,
            clean: false,
            lost: None,
            poisoned: None,
        });
        known.clean = record.clean;
        known.nodes.extend::<BTreeMap<_, _>>(nodes);
        if known.epoch != record.epoch {
            known.epoch = record.epoch;
            known.active = false;
            known.granted = now;
            if matches!(record.attachment, Attachment::Fenced { .. }) {
                self.moment(Moment::Fenced);
            }
        }
        let isr = &self.checks.isr;
        let sound = |id: &ReplicaId| {
            isr.volumes.get(&record.volume).is_some_and(|v| v.isr.contains(id))
                && !isr.has_failed(*id)
                && !isr.swapped.contains(id)
        };
        let mut failed = record.replicas.values().filter(|r| r.state == ReplicaState::Failed);
        if let Some(replica) = failed.find(|replica| sound(&replica.replica)) {
            return self.violation(format!(
                "isr: {} of volume {volume}, which was in sync, counts as failed although nothing happened to its disk",
                replica.replica
            ));
        }
        let Some(known) = self.checks.isr.volumes.get_mut(&record.volume) else { return };
        let activated = active && !known.active;
        known.active = active;
        if known.isr == record.isr && !activated {
            return;
        }
        let joined: Vec<ReplicaId> = record.isr.difference(&known.isr).copied().collect();
        for replica in known.isr.difference(&record.isr) {
            known.left.insert(*replica, now);
        }
        let before = std::mem::replace(&mut known.isr, record.isr.clone());
        let happened = if activated { Some(Moment::Activated) } else { None };
        let happened = happened.or((!joined.is_empty()).then_some(Moment::Joined));
        let was_whole = known.whole.clone();
        let granted = known.granted;
        let reconciled = known.reconciled.filter(|(epoch, _)| *epoch == record.epoch);
        let reconciled = reconciled.map_or(granted, |(_, at)| at);
        known.whole.retain(|replica| record.isr.contains(replica));
        let none_left = known.whole.is_empty() && joined.is_empty();
        let nodes = known.nodes.clone();
        if let Some(moment) = happened {
            self.moment(moment);
        }
        self.note(|| format!("truth: epoch {} ISR {before:?} -> {:?}", record.epoch, record.isr));
        if record.isr.is_empty() && record.lifecycle == metadata::Lifecycle::Live {
            return self.violation(format!("isr: the in-sync set of volume {volume} is empty"));
        }
        if none_left {
            // Was there a whole one that could have been kept?
            let since =
                if activated { granted.saturating_sub(EXCUSE) } else { now.saturating_sub(EXCUSE) };
            let given_up = |replica: &ReplicaId| {
                record.replicas.get(replica).is_none_or(|r| r.state == ReplicaState::Deleting)
            };
            let isr = &self.checks.isr;
            let just_lost = record.isr.iter().any(|replica| {
                let node = nodes.get(replica);
                node.is_some_and(|node| isr.lost_power_since(*node, now.saturating_sub(MOMENT)))
            });
            let left_out = was_whole.iter().find(|replica| {
                !(just_lost && given_up(replica))
                    && nodes
                        .get(replica)
                        .is_some_and(|node| !self.was_impaired(index(*node), since))
            });
            // A loss of memory takes nothing from a copy if all that was acknowledged had been flushed.
            if let Some(replica) = left_out.filter(|_| self.checks.blocks[volume].owes_something())
            {
                return self.violation(format!(
                    "isr: epoch {} keeps {:?} of volume {volume}, none of which is whole, and gives up {replica}, which was in order",
                    record.epoch, record.isr
                ));
            }
            self.figures.losses += 1;
            self.checks.blocks[volume].lose();
        }
        if let Some(instance) = record.attachment.instance().filter(|_| activated)
            && self.checks.blocks[volume].is_owing()
            && self.is_resuming(volume, instance)
        {
            let isr = &mut self.checks.isr;
            let lost = |id| nodes.get(id).is_some_and(|n| isr.lost_power_since(*n, granted));
            let all = record.isr.iter().all(lost);
            let known = isr.volumes.get_mut(&record.volume);
            if let Some(known) = known.filter(|known| all || known.lost >= Some(granted)) {
                // Its engine may have sealed before: it finds out when it reaches the copy again.
                known.poisoned = Some(record.epoch);
            } else {
                return self.violation(format!(
                "isr: epoch {} of volume {volume} resumes a device although every copy lost acknowledged writes with its memory (R10)",
                record.epoch
                ));
            }
        }
        let mut kept = false;
        let mut lost = false;
        let whole: BTreeSet<ReplicaId> = if activated {
            self.checks.blocks[volume].activated(record.epoch);
            // They are identical now; one that lost power meanwhile is not.
            let isr = &self.checks.isr;
            let sound_since = |since| -> BTreeSet<ReplicaId> {
                let sound = |id: &ReplicaId| {
                    let node = nodes.get(id).filter(|_| !isr.failed.contains(id));
                    node.is_some_and(|node| !isr.lost_power_since(*node, since))
                };
                record.isr.iter().copied().filter(sound).collect()
            };
            let mut sound = sound_since(granted);
            if sound.is_empty() {
                // Where all lost power before they were sealed, one of them was made the truth (R22).
                sound = sound_since(reconciled);
            }
            lost = sound.is_empty();
            if lost { record.isr.clone() } else { sound }
        } else {
            let isr = &self.checks.isr;
            let sound = |id: &&ReplicaId| {
                let since = isr.resynced.get(id).copied().unwrap_or(0);
                let node = nodes.get(id).filter(|_| !isr.failed.contains(id));
                node.is_some_and(|node| !isr.lost_power_since(*node, since))
            };
            let known = &isr.volumes[&record.volume];
            let mut whole = known.whole.clone();
            // One that counted already when the others lost their memory, unknown to Raft, has it all.
            let before =
                |id: &&ReplicaId| isr.resynced.get(id).is_some_and(|at| known.lost > Some(*at));
            let saved: BTreeSet<ReplicaId> =
                joined.iter().filter(|id| sound(id) && before(id)).copied().collect();
            if !saved.is_empty() {
                whole = saved;
                kept = true;
            } else {
                whole.extend(joined.iter().filter(sound));
            }
            if none_left { record.isr.clone() } else { whole }
        };
        let concerned = if lost {
            // The next engine makes them identical.
            self.checks.blocks[volume].lose();
            BTreeSet::new()
        } else if activated {
            whole.clone()
        } else {
            joined.into_iter().filter(|id| whole.contains(id)).collect()
        };
        if let Some(known) = self.checks.isr.volumes.get_mut(&record.volume) {
            known.whole = whole;
            if kept {
                known.lost = None;
                self.checks.blocks[volume].keep();
            }
            known.lost = known.lost.or(none_left.then_some(now)).filter(|_| !activated);
            known.lost = known.lost.or(lost.then_some(now));
        }
        for replica in &concerned {
            if let Some(node) = nodes.get(replica) {
                self.check_whole_replica(volume, *replica, *node);
            }
        }
        if !concerned.is_empty() {
            // After a loss of all of them they may differ until one is chosen (R22).
            let known =
                self.checks.isr.volumes.get(&record.volume).filter(|known| known.lost.is_none());
            let members = known.map(|known| &known.whole);
            let held: Vec<(ReplicaId, NodeId)> = members
                .into_iter()
                .flatten()
                .filter_map(|replica| Some((*replica, *nodes.get(replica)?)))
                .collect();
            self.check_identical(volume, &held);
            self.check_resync_sets(volume, record, &held);
        }
    }

    /// What an attach keeps is identical before the first I/O (R20), and so is what a replica that
    /// joins and the members hold, but for writes that are under way (R5).
    fn check_identical(&mut self, volume: usize, members: &[(ReplicaId, NodeId)]) {
        let written: Vec<u32> = self.checks.blocks[volume].written().collect();
        for block in written {
            if self.checks.blocks[volume].is_busy(block) {
                continue;
            }
            let mut held = members.iter().filter_map(|(replica, node)| {
                let buf = self.peek(*replica, *node, u64::from(block) * BLOCK)?;
                let rotten = buf.as_ref().is_some_and(|buf| self.is_rotten(index(*node), buf));
                (!rotten).then_some(buf.filter(|buf| !types::is_zeros(buf.as_slice())))
            });
            let Some(first) = held.next() else { continue };
            if held.any(|other| other != first) {
                return self.violation(format!(
                    "isr: {members:?} of volume {volume} count, but their blocks {block} differ"
                ));
            }
        }
    }

    /// An engine reads from `replica`: for a consumer, for a resync, or to take a write back.
    pub(crate) fn check_source(
        &mut self,
        n: usize,
        volume: VolumeId,
        epoch: Epoch,
        replica: ReplicaId,
    ) {
        // One that cannot reach Raft's leader may go on with the ISR that it knows: it acknowledges nothing without
        // all of that.
        let cut_off = || self.was_impaired(n, self.now.saturating_sub(NEWS));
        if !self.checks.isr.may_read(volume, epoch, replica, self.now) && !cut_off() {
            self.violation(format!(
                "isr: the engine of epoch {epoch} on node {} reads from {replica}, which is not in sync",
                n + 1
            ));
        }
    }

    /// Everything that a replica which counts holds must be possible.
    fn check_whole_replica(&mut self, volume: usize, replica: ReplicaId, node: NodeId) {
        let written: Vec<u32> = self.checks.blocks[volume].written().collect();
        for block in written {
            self.check_held(volume, replica, node, block);
        }
    }

    /// What one replica holds in one block, looked at from outside.
    pub(crate) fn check_held(
        &mut self,
        volume: usize,
        replica: ReplicaId,
        node: NodeId,
        block: u32,
    ) {
        let Some(held) = self.peek(replica, node, u64::from(block) * BLOCK) else { return };
        let found = match &held {
            None => Ok(crate::content::Content::Whole(0)),
            Some(buf) if self.is_rotten(index(node), buf) => return,
            Some(buf) => parse(buf.as_slice(), volume as u32, block),
        };
        let result = found.and_then(|found| self.checks.blocks[volume].held(block, found));
        if let Err(text) = result {
            self.violation(format!(
                "isr: replica {replica} on node {node} counts, but its block {block} of volume {volume} holds {text}"
            ));
        }
    }

    /// An acknowledged write must be in every whole in-sync replica (R4).
    pub(crate) fn check_acknowledged(
        &mut self,
        volume: usize,
        epoch: Epoch,
        blocks: core::ops::Range<u32>,
    ) {
        let id = self.checks.volumes[volume];
        for (replica, node) in self.checks.isr.members(id, epoch) {
            for block in blocks.clone() {
                self.check_held(volume, replica, node, block);
            }
        }
    }
}
