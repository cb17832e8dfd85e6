//! The Raft leader's duties beside Raft: who spoke, and what is to be done next (R6, R7, R26, R27).
//!
//! Nothing here is remembered across leaderships but what Raft committed: each round looks at the
//! applied state, behind a read index, and takes the next steps. Every step may be repeated.

use crate::fence::{self, Action};
use crate::liveness::{LOST_AFTER, Monitor};
use crate::membership;
use crate::replace::{self, Absence};
use crate::snapshot;
use core::time::Duration;
use metadata::placement::Free;
use metadata::{Change, Command, NodeInfo, NodeStatus, State};
use std::collections::{BTreeMap, BTreeSet};
use types::{Epoch, Instant, NodeId, ReplicaId, SnapshotId, VolumeId};

#[cfg(test)]
mod tests;

/// A node counts as speaking while its last word is not older than this.
const FRESH: Duration = Duration::from_secs(1);
/// How long a node may be lost before its replicas and its vote are replaced, if nothing else is said (R27).
pub const REPLACE_AFTER: Duration = Duration::from_secs(300);
/// How long a detached volume is left to its next user before an engine without a device fills its
/// replicas: a pod that moves is there within this time.
const TEND_AFTER: Duration = Duration::from_secs(10);

/// Who spoke to this leader, and when. Volatile: a new leadership starts afresh (R6).
#[derive(Debug)]
pub struct Roll {
    monitor: Monitor,
    absence: Absence,
    replace_after: Duration,
    nodes: BTreeMap<NodeId, (NodeInfo, u64)>,
    /// Snapshots that this leader is taking, or cloning from.
    own: BTreeSet<SnapshotId>,
    /// Since when each detached volume has had replicas to be filled, under which epoch.
    untended: BTreeMap<VolumeId, (Epoch, Instant)>,
    /// Since when in-sync replicas have been more than a volume needs.
    unneeded: BTreeMap<ReplicaId, Instant>,
}

impl Roll {
    /// A new leadership.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            monitor: Monitor::new(now),
            absence: Absence::new(now),
            replace_after: REPLACE_AFTER,
            nodes: BTreeMap::new(),
            own: BTreeSet::new(),
            untended: BTreeMap::new(),
            unneeded: BTreeMap::new(),
        }
    }

    /// With another time than [`REPLACE_AFTER`].
    #[must_use]
    pub fn replacing_after(self, replace_after: Duration) -> Self {
        Self { replace_after, ..self }
    }

    /// A heartbeat: `info` is what the node says of itself, `free` the free bytes of its pool.
    /// Returns whether it had not said just that before.
    pub fn introduce(&mut self, info: NodeInfo, free: u64, now: Instant) -> bool {
        self.monitor.heard(info.node, now);
        let known = self.nodes.get(&info.node).is_some_and(|(known, _)| *known == info);
        self.nodes.insert(info.node, (info, free));
        !known
    }

    /// A node's last word before it restarts; see [`Monitor::excuse`].
    pub fn excuse(&mut self, node: NodeId, until: Instant) {
        self.monitor.excuse(node, until);
    }

    /// This leader is about to take `snapshot` until [`Self::end_snapshot`]; what nobody is about goes.
    pub fn begin_snapshot(&mut self, snapshot: SnapshotId) {
        self.own.insert(snapshot);
    }

    /// See [`Self::begin_snapshot`].
    pub fn end_snapshot(&mut self, snapshot: SnapshotId) {
        self.own.remove(&snapshot);
    }

    /// Free bytes of a node's pool, as it last said; `None` if it did not speak to this leader.
    #[must_use]
    pub fn pool_free(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node).map(|(_, free)| *free)
    }

    /// Free bytes of the pools, as far as their nodes spoke to this leader.
    #[must_use]
    pub fn free(&self) -> Free {
        self.nodes.iter().map(|(node, (_, free))| (*node, *free)).collect()
    }

    /// For how long a node that spoke to this leader has been silent.
    #[must_use]
    pub fn silence(&self, node: NodeId, now: Instant) -> Option<Duration> {
        self.monitor.silence_since_word(node, now)
    }

    /// Whether `node` has been silent for [`LOST_AFTER`].
    #[must_use]
    pub fn is_silent(&self, node: NodeId, now: Instant) -> bool {
        self.monitor.silence(node, now) >= LOST_AFTER
    }

    /// Nodes that spoke since this leadership began and are not in `state` as they say, or lost
    /// there although they were heard a moment ago.
    fn unregistered(&self, state: &State, now: Instant) -> Vec<NodeInfo> {
        let fresh = |info: &NodeInfo| self.monitor.silence(info.node, now) < FRESH;
        let differs = |info: &NodeInfo| {
            let up = |node: &metadata::Node| node.status == NodeStatus::Up && node.info() == *info;
            !state.retired.contains(&info.node) && !state.nodes.get(&info.node).is_some_and(up)
        };
        self.nodes
            .values()
            .map(|(info, _)| info)
            .filter(|info| fresh(info) && differs(info))
            .cloned()
            .collect()
    }

    fn silent(&mut self, state: &State, now: Instant) -> Vec<NodeId> {
        let up = state.nodes.values().filter(|node| node.status == NodeStatus::Up);
        self.monitor.silent(up.map(|node| node.node), now)
    }

    /// The nodes that have been lost for so long that others take their place.
    fn gone(&mut self, state: &State, now: Instant) -> Vec<NodeId> {
        self.absence.look(state.nodes.keys().copied().filter(|node| state.is_lost(*node)), now);
        self.absence.at_least(self.replace_after)
    }

    /// Which replicas are to be added and given up (R27). To be called several times a second.
    pub fn replacements(&mut self, state: &State, now: Instant) -> Vec<replace::Action> {
        let gone = self.gone(state, now);
        let mut actions = replace::plan(state, &gone, &self.free());
        let untended = core::mem::take(&mut self.untended);
        let unneeded = core::mem::take(&mut self.unneeded);
        actions.retain(|action| match *action {
            replace::Action::Tend { volume, epoch, .. } => {
                let known = untended.get(&volume).filter(|(of, _)| *of == epoch);
                let (_, since) = known.copied().unwrap_or((epoch, now));
                self.untended.insert(volume, (epoch, since));
                now.since(since) >= TEND_AFTER
            }
            // A host that died a moment ago is not missed yet: whoever is to do without this replica must have
            // spoken since, and under the boot that Raft has of it. What it says of a new one may come to Raft
            // behind the release.
            replace::Action::Release { volume, replica, .. } => {
                let since = unneeded.get(&replica).copied().unwrap_or(now);
                self.unneeded.insert(replica, since);
                let Some(record) = state.volumes.get(&volume) else { return false };
                let kept = record.isr.iter().filter(|member| **member != replica);
                let mut nodes = kept.filter_map(|member| record.replicas.get(member));
                let same_boot = |node: &NodeId| {
                    let known = state.nodes.get(node).map(|node| node.boot);
                    known == self.nodes.get(node).map(|(said, _)| said.boot)
                };
                nodes.all(|kept| {
                    self.monitor.silence(kept.node, now) < now.since(since) && same_boot(&kept.node)
                })
            }
            _ => true,
        });
        actions
    }

    /// What the leader, node `here`, has to do. To be called several times a second.
    pub fn steps(&mut self, state: &State, here: NodeId, now: Instant) -> Vec<(Key, Step)> {
        let mut steps = Vec::new();
        for info in self.unregistered(state, now) {
            steps.push((Key::Register(info.node), Step::Register(info)));
        }
        for silent in self.silent(state, now) {
            if silent != here {
                steps.push((Key::Lost(silent), Step::Lost(silent)));
            }
        }
        for action in fence::plan(state, here) {
            steps.push((Key::Volume(action.volume()), Step::Fencing(action)));
        }
        for action in self.replacements(state, now) {
            steps.push((Key::of(&action), Step::Replace(action)));
        }
        for action in snapshot::plan(state, &self.own) {
            let key = match action {
                snapshot::Action::Fill { volume, .. } => Key::Fill(volume),
                snapshot::Action::Abort { snapshot } | snapshot::Action::Drop { snapshot } => {
                    Key::Snapshot(snapshot)
                }
            };
            steps.push((key, Step::Snapshot(action)));
        }
        if let Some(change) = membership::plan(state, &self.gone(state, now)) {
            steps.push((Key::Membership, Step::Membership(change)));
        }
        steps
    }
}

/// One thing at a time per node and per volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Registration of a node.
    Register(NodeId),
    /// The loss of a node.
    Lost(NodeId),
    /// The fence of a volume.
    Volume(VolumeId),
    /// A replica more. Additions wait for each other: each is placed by the room that the one before
    /// left.
    Add,
    /// A replica less.
    Remove(VolumeId),
    /// An engine that fills a volume's replicas.
    Tend(VolumeId),
    /// The end of a snapshot.
    Snapshot(SnapshotId),
    /// The copy that a volume begins with.
    Fill(VolumeId),
    /// The Raft membership.
    Membership,
}

impl Key {
    /// What [`Step::Replace`] with this action has to wait for.
    #[must_use]
    pub const fn of(action: &replace::Action) -> Self {
        match action {
            replace::Action::Add { .. } | replace::Action::Move { .. } => Self::Add,
            replace::Action::Remove { volume, .. } | replace::Action::Release { volume, .. } => {
                Self::Remove(*volume)
            }
            replace::Action::Tend { volume, .. } => Self::Tend(*volume),
        }
    }
}

/// A step and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A node describes itself otherwise than the state: see [`register`].
    Register(NodeInfo),
    /// A node has been silent. Before it is declared lost the leader must be confirmed by a read
    /// index, and the node still silent then (R6).
    Lost(NodeId),
    /// A volume of a lost node (R7).
    Fencing(Action),
    /// A replica is added, filled or given up (R27). Before it is done the leader must be confirmed by a read
    /// index, and the step still be among [`Roll::replacements`] (R6).
    Replace(replace::Action),
    /// A snapshot that nobody wants any more, or a volume that begins with one.
    Snapshot(snapshot::Action),
    /// Who votes in Raft.
    Membership(Change),
}

/// The command for [`Step::Register`]. RegisterNode also brings a lost node up: it carries all that
/// NodeUp does.
#[must_use]
pub fn register(state: &State, info: NodeInfo) -> Command {
    if state.nodes.get(&info.node).is_some_and(|n| n.info() == info) {
        let NodeInfo { node, boot, process, .. } = info;
        Command::NodeUp { node, boot, process }
    } else {
        Command::RegisterNode(info)
    }
}
