//! What the Raft leader does beside Raft: registers nodes, declares the silent ones lost, fences
//! their volumes (R6, R7), makes voters of learners.
//!
//! Nothing here is remembered across leaderships but what Raft committed: each round looks at the
//! applied state, behind a read index, and takes the next steps. Every step may be repeated.

use super::Node;
use super::fence::{self, Action, Candidate, fence_instance};
use super::liveness::Monitor;
use super::status::CommandError;
use super::steps::{Ended, Steps};
use core::time::Duration;
use futures::stream::{FuturesUnordered, StreamExt};
use metadata::{Change, Command, NodeInfo, NodeStatus, State};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, timeout};
use types::{Epoch, NodeId, VolumeId};

/// How often the leader looks at its timers.
const ROUND: Duration = Duration::from_millis(100);
/// How long one command may take before it is tried again.
const COMMAND: Duration = Duration::from_secs(3);
/// How long a read index may take: a leader without a majority gets none.
const READ: Duration = Duration::from_secs(1);
/// How long one attempt to seal may take: a replica waits out a lease of 3 s (R3).
const SEAL: Duration = Duration::from_secs(5);

/// Who spoke to this leader, and when. Volatile: a new leadership starts afresh (R6).
pub struct Roll {
    inner: Mutex<Inner>,
    /// Somebody spoke who is not registered as it describes itself.
    stranger: Notify,
}

struct Inner {
    monitor: Monitor,
    nodes: BTreeMap<NodeId, (NodeInfo, u64)>,
}

impl Default for Roll {
    fn default() -> Self {
        let monitor = Monitor::new(hostio::clock::boottime());
        Self {
            inner: Mutex::new(Inner { monitor, nodes: BTreeMap::new() }),
            stranger: Notify::new(),
        }
    }
}

impl Roll {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A heartbeat: `info` is what the node says of itself, `free` the free bytes of its pool.
    pub fn introduce(&self, info: NodeInfo, free: u64) {
        let mut inner = self.inner();
        inner.monitor.heard(info.node, hostio::clock::boottime());
        let known = inner.nodes.get(&info.node).is_some_and(|(known, _)| *known == info);
        inner.nodes.insert(info.node, (info, free));
        drop(inner);
        if !known {
            self.stranger.notify_one();
        }
    }

    /// Free bytes of a node's pool, as it last said; `None` if it did not speak to this leader.
    #[must_use]
    pub fn pool_free(&self, node: NodeId) -> Option<u64> {
        self.inner().nodes.get(&node).map(|(_, free)| *free)
    }

    fn restart(&self) {
        let mut inner = self.inner();
        inner.monitor = Monitor::new(hostio::clock::boottime());
        inner.nodes.clear();
    }

    /// Nodes that spoke since this leadership began and are not in `state` as they say, or lost
    /// there although they were heard a moment ago.
    fn unregistered(&self, state: &State) -> Vec<NodeInfo> {
        let inner = self.inner();
        let now = hostio::clock::boottime();
        let fresh =
            |info: &NodeInfo| inner.monitor.silence(info.node, now) < Duration::from_secs(1);
        let differs = |info: &NodeInfo| {
            let up = |node: &metadata::Node| node.status == NodeStatus::Up && node.info() == *info;
            !state.retired.contains(&info.node) && !state.nodes.get(&info.node).is_some_and(up)
        };
        inner
            .nodes
            .values()
            .map(|(info, _)| info)
            .filter(|info| fresh(info) && differs(info))
            .cloned()
            .collect()
    }

    fn silent(&self, state: &State) -> Vec<NodeId> {
        let up = state.nodes.values().filter(|node| node.status == NodeStatus::Up);
        self.inner().monitor.silent(up.map(|node| node.node), hostio::clock::boottime())
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.inner().monitor.silence(node, hostio::clock::boottime()) >= super::liveness::LOST_AFTER
    }
}

/// One thing at a time per node and per volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Register(NodeId),
    Lost(NodeId),
    Volume(VolumeId),
    Membership,
}

/// Does the leader's duties whenever this node leads, for ever.
pub(super) async fn run(node: Arc<Node>) {
    let mut status = node.meta.watch_status();
    loop {
        let here = node.config.node;
        let term = match status.wait_for(|status| status.leader == Some(here)).await {
            Ok(leading) => leading.term,
            Err(_) => return,
        };
        tracing::info!(node = %here, term, "this node leads");
        node.roll.restart();
        lead(&node, term).await;
        tracing::info!(node = %here, term, "this node does not lead any more");
    }
}

/// One leadership.
async fn lead(node: &Arc<Node>, term: u64) {
    let mut applied = node.meta.watch();
    let mut status = node.meta.watch_status();
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Dropped, and with it every step under way, when the leadership ends.
    let mut steps = Steps::new();
    // Until a read index is confirmed the state may be that of another leader's time (R6).
    let mut current = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = applied.changed() => if changed.is_err() { return },
            changed = status.changed() => if changed.is_err() { return },
            () = node.roll.stranger.notified() => {}
            () = steps.progress() => {}
        }
        {
            let status = status.borrow_and_update();
            if status.leader != Some(node.config.node) || status.term != term {
                return;
            }
        }
        if !current {
            current = is_current(node).await;
            continue;
        }
        applied.borrow_and_update();
        for (key, step) in steps_of(node, &node.meta.state()) {
            let node = Arc::clone(node);
            steps.begin(key, move || async move { step.take(&node).await });
        }
    }
}

/// A step and what it needs.
enum Step {
    Register(NodeInfo),
    Lost(NodeId),
    Fence { volume: VolumeId, expected_epoch: Epoch, holder: NodeId },
    Seal { volume: VolumeId, epoch: Epoch, candidates: Vec<Candidate> },
    Promote(NodeId),
}

fn steps_of(node: &Node, state: &State) -> Vec<(Key, Step)> {
    let mut steps = Vec::new();
    for info in node.roll.unregistered(state) {
        steps.push((Key::Register(info.node), Step::Register(info)));
    }
    for silent in node.roll.silent(state) {
        if silent != node.config.node {
            steps.push((Key::Lost(silent), Step::Lost(silent)));
        }
    }
    for action in fence::plan(state, node.config.node) {
        let key = Key::Volume(action.volume());
        steps.push((
            key,
            match action {
                Action::Fence { volume, expected_epoch, holder } => {
                    Step::Fence { volume, expected_epoch, holder }
                }
                Action::Seal { volume, epoch, candidates } => {
                    Step::Seal { volume, epoch, candidates }
                }
            },
        ));
    }
    if let Some(learner) = promotable(state) {
        steps.push((Key::Membership, Step::Promote(learner)));
    }
    steps
}

/// A learner that may vote: up, and there is room among the voters.
fn promotable(state: &State) -> Option<NodeId> {
    if state.membership.voters.len() >= crate::config::MAX_VOTERS {
        return None;
    }
    let up = |node: &NodeId| state.nodes.get(node).is_some_and(|n| n.status == NodeStatus::Up);
    state.membership.learners.iter().copied().find(up)
}

impl Step {
    async fn take(self, node: &Arc<Node>) -> Ended {
        match self {
            Self::Register(info) => register(node, info).await,
            Self::Lost(lost) => declare_lost(node, lost).await,
            Self::Fence { volume, expected_epoch, holder } => {
                tracing::warn!(%volume, epoch = %expected_epoch, node = %holder, "fencing: the holder is lost");
                command(node, Command::Fence { volume, expected_epoch }).await
            }
            Self::Seal { volume, epoch, candidates } => seal(node, volume, epoch, candidates).await,
            Self::Promote(learner) => {
                match node.meta.change_membership(Change::PromoteVoter(learner)).await {
                    Ok(_) => Ended::Done,
                    // It has not caught up, or another change is under way.
                    Err(_) => Ended::Again,
                }
            }
        }
    }
}

async fn command(node: &Node, command: Command) -> Ended {
    match node.proposer.propose(command.clone(), COMMAND).await {
        Ok(_) => Ended::Done,
        Err(error) => {
            tracing::warn!(?command, %error, "the leader's command was not carried out");
            match error {
                CommandError::Refused(_) => Ended::Refused,
                CommandError::Unknown { .. } => Ended::Again,
            }
        }
    }
}

/// RegisterNode also brings a lost node up: it carries all that NodeUp does.
async fn register(node: &Node, info: NodeInfo) -> Ended {
    let known = node.meta.state().nodes.get(&info.node).is_some_and(|n| n.info() == info);
    let NodeInfo { node: id, boot, process, .. } = info;
    if known {
        command(node, Command::NodeUp { node: id, boot, process }).await
    } else {
        command(node, Command::RegisterNode(info)).await
    }
}

/// Whether this node leads a majority now and has applied all that was committed before (R6).
async fn is_current(node: &Node) -> bool {
    matches!(timeout(READ, node.proposer.leader_state()).await, Ok(Ok(_)))
}

async fn declare_lost(node: &Node, lost: NodeId) -> Ended {
    // A leader without a majority must not decide (R6), and the node may have spoken meanwhile.
    if !is_current(node).await || !node.roll.is_silent(lost) {
        return Ended::Again;
    }
    command(node, Command::NodeLost { node: lost }).await
}

/// Seals one of the candidates, whichever is first, and commits that (R7).
async fn seal(node: &Node, volume: VolumeId, epoch: Epoch, candidates: Vec<Candidate>) -> Ended {
    let mut attempts: FuturesUnordered<_> = candidates
        .into_iter()
        .map(|candidate| {
            let hello = wire::Hello {
                cluster: node.config.cluster,
                volume,
                replica: candidate.replica,
                incarnation: candidate.incarnation,
                epoch,
                instance: fence_instance(volume, epoch),
                node: node.config.node,
                role: wire::Role::Sealer,
            };
            async move {
                let sealed = timeout(SEAL, node.data.seal(hello, candidate.address)).await;
                (candidate, sealed)
            }
        })
        .collect();
    while let Some((candidate, sealed)) = attempts.next().await {
        let (replica, at) = (candidate.replica, candidate.node);
        match sealed {
            Ok(Ok(_)) => {
                tracing::info!(%volume, %epoch, %replica, node = %at, "sealed");
                return command(node, Command::FenceSealed { volume, epoch, replica }).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(%volume, %epoch, %replica, node = %at, %error, "seal failed");
            }
            Err(_) => {
                tracing::warn!(%volume, %epoch, %replica, node = %at, "seal: no answer in time");
            }
        }
    }
    Ended::Again
}
