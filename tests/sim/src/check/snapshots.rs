//! What snapshots hold (R26).
//!
//! Checked, from the moment in which an engine says that one is taken:
//! - it holds what its volume held at that moment: every acknowledged write, on every holder;
//! - a volume that begins with it holds the same on every in-sync replica, once Raft says that it is filled;
//! - it never changes: whatever is written, lost or torn afterwards, every holder that Raft names and that can be looked
//!   at has it, and the same, whenever the holders change and at the end.
//!
//! Not checked: copies whose daemon does not run or whose disk is lost (looked at when they are back), and blocks
//! in which rot was injected.

use crate::content::parse;
use crate::world::{World, index};
use metadata::{Lifecycle, Replica, ReplicaState, SnapshotState, State, Volume};
use std::collections::{BTreeMap, BTreeSet};
use types::{Buf, ReplicaId, SnapshotId, VolumeId};

/// See the module's text.
#[derive(Debug, Default)]
pub struct Snapshots {
    taken: BTreeMap<SnapshotId, Taken>,
    /// Volumes that began with one and were compared.
    restored: BTreeSet<VolumeId>,
}

#[derive(Debug)]
struct Taken {
    volume: usize,
    /// Blocks that had been written, and what they held; `None`: nothing, or nobody could be looked at.
    blocks: BTreeMap<u32, Option<Buf>>,
    /// Whom Raft named when they were looked at last.
    holders: BTreeSet<ReplicaId>,
}

impl World {
    /// An engine has taken a snapshot: writes that came meanwhile have not reached any disk yet.
    pub(crate) fn remember_snapshot(
        &mut self,
        id: VolumeId,
        snapshot: SnapshotId,
        holders: &[ReplicaId],
    ) {
        let Some(volume) = self.checks.volume(id) else { return };
        let Some(state) = self.newest_state() else { return };
        let Some(record) = state.volumes.get(&id) else { return };
        let written: Vec<u32> = self.checks.blocks[volume].written().collect();
        let mut blocks = BTreeMap::new();
        for replica in holders.iter().filter_map(|id| record.replicas.get(id)) {
            for block in &written {
                let Some(held) = self.peek_snapshot(replica, snapshot, *block) else { continue };
                if self.is_spoilt(replica, held.as_ref()) {
                    continue;
                }
                if let Some(other) = blocks.insert(*block, held.clone())
                    && other != held
                {
                    return self.violation(format!(
                        "snapshots: block {block} of {snapshot} of volume {volume} is not the same on {holders:?}"
                    ));
                }
                let found = match &held {
                    None => Ok(crate::content::Content::Whole(0)),
                    Some(buf) => parse(buf.as_slice(), volume as u32, *block),
                };
                let result = found.and_then(|found| self.checks.blocks[volume].held(*block, found));
                if let Err(text) = result {
                    return self.violation(format!(
                        "snapshots: block {block} of {snapshot} of volume {volume} on node {} holds {text}",
                        replica.node
                    ));
                }
            }
        }
        let taken = Taken { volume, blocks, holders: BTreeSet::new() };
        self.checks.snapshots.taken.insert(snapshot, taken);
    }

    /// Looks at snapshots whose holders changed, or at all of them.
    pub(crate) fn check_snapshots(&mut self, state: &State, all: bool) {
        let gone = |id: &SnapshotId, known: &Taken| {
            !known.holders.is_empty() && !state.snapshots.contains_key(id)
        };
        self.checks.snapshots.taken.retain(|id, known| !gone(id, known));
        for record in state.snapshots.values().filter(|s| s.state == SnapshotState::Ready) {
            let snapshot = record.snapshot;
            let Some(volume) = state.volumes.get(&record.volume) else { continue };
            let Some(taken) = self.checks.snapshots.taken.get_mut(&snapshot) else {
                return self.violation(format!("snapshots: nobody has taken {snapshot}"));
            };
            if !all && taken.holders == record.holders {
                continue;
            }
            let new: Vec<ReplicaId> = match all {
                true => record.holders.iter().copied().collect(),
                false => record.holders.difference(&taken.holders).copied().collect(),
            };
            taken.holders = record.holders.clone();
            for holder in new {
                self.check_holder(volume, snapshot, holder);
            }
        }
    }

    /// Nobody uses a volume that was restored here: it holds what its snapshot held, as long as it is there.
    pub(crate) fn check_restores(&mut self, state: &State) {
        for record in state.volumes.values() {
            let Some(source) = record.source.filter(|_| record.lifecycle == Lifecycle::Live) else {
                continue;
            };
            let snapshot = source.snapshot();
            if self.checks.snapshots.restored.contains(&record.volume) {
                continue;
            }
            let Some(taken) = self.checks.snapshots.taken.get(&snapshot) else { continue };
            let blocks: Vec<(u32, Option<Buf>)> =
                taken.blocks.iter().map(|(block, held)| (*block, held.clone())).collect();
            let in_sync = record.isr.iter().filter_map(|id| record.replicas.get(id));
            let mut looked = false;
            for replica in in_sync.copied().collect::<Vec<_>>() {
                for (block, wanted) in &blocks {
                    let offset = u64::from(*block) * types::BLOCK;
                    let Some(held) = self.peek(replica.replica, replica.node, offset) else {
                        break;
                    };
                    looked = true;
                    let held = held.filter(|buf| !types::is_zeros(buf.as_slice()));
                    let spoilt = held.as_ref().is_some_and(|buf| self.was_spoilt(buf));
                    if held != *wanted && !spoilt {
                        let (volume, node) = (record.volume, replica.node);
                        return self.violation(format!(
                            "snapshots: volume {volume} began with {snapshot}, but on node {node} its block {block} is another"
                        ));
                    }
                }
            }
            if looked {
                self.checks.snapshots.restored.insert(record.volume);
                self.figures.restores += 1;
            }
        }
    }

    fn check_holder(&mut self, volume: &Volume, snapshot: SnapshotId, holder: ReplicaId) {
        let ready = |r: &&Replica| r.state == ReplicaState::Ready;
        let Some(replica) = volume.replicas.get(&holder).filter(ready) else { return };
        let node = &self.nodes[index(replica.node)];
        let Some(process) = node.process.as_ref().filter(|_| !node.pool_dead) else { return };
        if process.data.store.locate(holder, None, 0).is_none() {
            return;
        }
        let Some(taken) = self.checks.snapshots.taken.get(&snapshot) else { return };
        let wrong = taken.blocks.iter().find_map(|(block, wanted)| {
            let held = self.peek_snapshot(replica, snapshot, *block);
            let spoilt = self.is_spoilt(replica, held.as_ref().and_then(Option::as_ref));
            (!spoilt && held.as_ref() != Some(wanted)).then_some((*block, held.is_none()))
        });
        if let Some((block, absent)) = wrong {
            let what = if absent { "does not have it" } else { "has something else" };
            let volume = taken.volume;
            self.violation(format!(
                "snapshots: node {} holds {snapshot} of volume {volume}, but of block {block} it {what}",
                replica.node
            ));
        }
    }

    fn is_spoilt(&self, replica: &Replica, held: Option<&Buf>) -> bool {
        held.is_some_and(|buf| self.is_rotten(index(replica.node), buf))
    }
}
