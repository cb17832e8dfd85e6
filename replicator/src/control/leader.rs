//! What the Raft leader does beside Raft: registers nodes, declares the silent ones lost, fences
//! their volumes (R6, R7), replaces their replicas (R27), has new volumes filled from snapshots (R26), decides who
//! votes.
//!
//! What is to be done says [`policy::leader`]; this carries it out.

use super::Node;
use super::status::CommandError;
use super::steps::{Ended, Steps};
use core::time::Duration;
use futures::stream::{FuturesUnordered, StreamExt};
use metadata::placement::Free;
use metadata::{Command, NodeInfo, State};
use policy::fence::{Action, Candidate, fence_instance};
use policy::leader::{Key, Step};
use policy::{replace, snapshot};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, timeout};
use tonic::Status;
use types::{Epoch, NodeId, SnapshotId, VolumeId};

/// How often the leader looks at its timers.
const ROUND: Duration = Duration::from_millis(100);
/// How long one command may take before it is tried again.
const COMMAND: Duration = Duration::from_secs(3);
/// How long a read index may take: a leader without a majority gets none.
const READ: Duration = Duration::from_secs(1);
/// How long the leader waits for a node that fills a volume; the filling goes on after that.
const FILL: Duration = Duration::from_secs(10);
/// How long one attempt to seal may take: a replica waits out a lease of 3 s (R3).
const SEAL: Duration = Duration::from_secs(5);

/// Who spoke to this leader, shared by those who hear it.
pub struct Roll {
    inner: Mutex<policy::leader::Roll>,
    /// Somebody spoke who had not described itself like that before.
    stranger: Notify,
}

impl Default for Roll {
    fn default() -> Self {
        let inner = policy::leader::Roll::new(hostio::clock::boottime());
        Self { inner: Mutex::new(inner), stranger: Notify::new() }
    }
}

impl Roll {
    fn inner(&self) -> MutexGuard<'_, policy::leader::Roll> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A heartbeat: `info` is what the node says of itself, `free` the free bytes of its pool.
    pub fn introduce(&self, info: NodeInfo, free: u64) {
        if self.inner().introduce(info, free, hostio::clock::boottime()) {
            self.stranger.notify_one();
        }
    }

    /// `node` restarts and asks to be missed for so long only after so long.
    pub fn excuse(&self, node: NodeId, absence: Duration) {
        let until = hostio::clock::boottime().after(absence);
        self.inner().excuse(node, until);
    }

    /// Until the guard is dropped this leader takes `snapshot`, or clones from it; see
    /// [`policy::leader::Roll::begin_snapshot`].
    pub fn own(&self, snapshot: SnapshotId) -> Own<'_> {
        self.inner().begin_snapshot(snapshot);
        Own { roll: self, snapshot }
    }

    /// Free bytes of a node's pool, as it last said; `None` if it did not speak to this leader.
    #[must_use]
    pub fn pool_free(&self, node: NodeId) -> Option<u64> {
        self.inner().pool_free(node)
    }

    /// Free bytes of the pools, as far as their nodes spoke to this leader.
    #[must_use]
    pub fn free(&self) -> Free {
        self.inner().free()
    }

    fn restart(&self, replace_after: Duration) {
        let roll = policy::leader::Roll::new(hostio::clock::boottime());
        *self.inner() = roll.replacing_after(replace_after);
    }

    fn steps(&self, state: &State, here: NodeId) -> Vec<(Key, Step)> {
        self.inner().steps(state, here, hostio::clock::boottime())
    }

    fn replacements(&self, state: &State) -> Vec<replace::Action> {
        self.inner().replacements(state, hostio::clock::boottime())
    }

    /// For how long a node that spoke to this leader has been silent; `None` if it never did.
    pub(super) fn silence(&self, node: NodeId) -> Option<Duration> {
        self.inner().silence(node, hostio::clock::boottime())
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.inner().is_silent(node, hostio::clock::boottime())
    }
}

/// See [`Roll::own`].
pub struct Own<'r> {
    roll: &'r Roll,
    snapshot: SnapshotId,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.roll.inner().end_snapshot(self.snapshot);
    }
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
        node.roll.restart(node.config.replace_after);
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
        for (key, step) in node.roll.steps(&node.meta.state(), node.config.node) {
            let node = Arc::clone(node);
            steps.begin(key, move || async move { take(step, &node).await });
        }
    }
}

async fn take(step: Step, node: &Arc<Node>) -> Ended {
    match step {
        Step::Register(info) => {
            // RegisterNode or NodeUp: the state may have moved on since the step was planned.
            let register = policy::leader::register(&node.meta.state(), info);
            command(node, register).await
        }
        Step::Lost(lost) => declare_lost(node, lost).await,
        Step::Fencing(Action::Fence { volume, expected_epoch, holder }) => {
            tracing::warn!(%volume, epoch = %expected_epoch, node = %holder, "fencing: the holder is lost");
            command(node, Command::Fence { volume, expected_epoch }).await
        }
        Step::Fencing(Action::Seal { volume, epoch, candidates }) => {
            seal(node, volume, epoch, candidates).await
        }
        Step::Replace(action) => replace_replica(node, action).await,
        Step::Snapshot(snapshot::Action::Fill { volume, node: at }) => fill(node, volume, at).await,
        Step::Snapshot(action) => match action.command() {
            Some(order) => command(node, order).await,
            None => Ended::Done,
        },
        Step::Membership(change) => match node.meta.change_membership(change).await {
            Ok(_) => {
                tracing::info!(?change, "the Raft membership changed");
                Ended::Done
            }
            // It has not caught up, or another change is under way.
            Err(_) => Ended::Again,
        },
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

/// Adds, moves, fills or gives up a replica, if that is still due in a state that is surely this leader's (R6).
async fn replace_replica(node: &Arc<Node>, action: replace::Action) -> Ended {
    if !is_current(node).await || !node.roll.replacements(&node.meta.state()).contains(&action) {
        return Ended::Again;
    }
    tracing::info!(node = %node.config.node, ?action, "replacing a replica");
    match action {
        replace::Action::Tend { volume, node: at, .. } => tend(node, volume, at).await,
        action => match action.command(super::new_replica) {
            Some(order) => command(node, order).await,
            None => Ended::Done,
        },
    }
}

/// Has the node `at` begin to fill the replicas of a volume that nobody has attached.
async fn tend(node: &Arc<Node>, volume: VolumeId, at: NodeId) -> Ended {
    let asked = super::snapshots::have_tended(node, volume, at);
    answered(volume, at, "nobody fills its replicas yet", asked).await
}

/// Has the node `at` fill a new volume; that may take much longer than the answer is waited for.
async fn fill(node: &Arc<Node>, volume: VolumeId, at: NodeId) -> Ended {
    tracing::info!(%volume, node = %at, "a new volume is to be filled there");
    let asked = super::snapshots::have_filled(node, volume, at);
    answered(volume, at, "the volume was not filled", asked).await
}

/// What the node `at` was asked to do with a volume without a device; `refused` says what it means that it
/// does not.
async fn answered(
    volume: VolumeId,
    at: NodeId,
    refused: &str,
    asked: impl Future<Output = Result<(), Status>>,
) -> Ended {
    match timeout(FILL, asked).await {
        Ok(Ok(())) => Ended::Done,
        Ok(Err(status)) => {
            tracing::warn!(%volume, node = %at, error = status.message(), "{refused}");
            Ended::Refused
        }
        // The record says whether it is under way.
        Err(_) => Ended::Refused,
    }
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
                sealed: candidate.sealed,
                epoch,
                instance: fence_instance(volume, epoch),
                process: node.process,
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
