//! The record of failovers: tells Raft when each step was, as far as this node saw it.
//!
//! Beside the events that it follows, and behind them: no failover waits for its record. The leader
//! tells of the loss, the fence and the seal; the node that gets the volume of the attachment and the
//! first write; who deletes pods tells that by NoteFailover.

use super::{Node, attach};
use core::time::Duration;
use hostio::clock::unix_ms;
use metadata::{Command, EventKind, FailoverStep};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::{Instant, sleep};
use types::{Epoch, NodeId, VolumeId};

/// How long one note may take before it is given up.
const NOTE: Duration = Duration::from_secs(5);
/// How long the first write is waited for, and how often looked for: the error of its time.
const WRITE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

/// A fence whose volume nobody has attached since.
struct Fence {
    epoch: Epoch,
    from: NodeId,
    at: u64,
}

/// When a node was lost, as seen here.
struct Loss {
    /// Its last word to this node, if that leads.
    heard: Option<u64>,
    at: u64,
}

/// Follows the events, for ever.
pub(super) async fn run(node: Arc<Node>) {
    let here = node.config.node;
    let begun = node.meta.state().applied;
    let mut events = node.meta.events(0);
    let mut losses: BTreeMap<NodeId, Loss> = BTreeMap::new();
    let mut fences: BTreeMap<VolumeId, Fence> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let now = unix_ms();
        // What was applied before this daemon began has no time that it could tell.
        let known = event.index > begun;
        let at = if known { now } else { 0 };
        if let (EventKind::NodeLost, Some(lost)) = (event.kind, event.node) {
            let silence = node.roll.silence(lost).filter(|_| known);
            let heard = silence.map(|silence| {
                now.saturating_sub(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX))
            });
            losses.insert(lost, Loss { heard, at });
        }
        let (Some(volume), Some(epoch), Some(about)) = (event.volume, event.epoch, event.node)
        else {
            continue;
        };
        match event.kind {
            EventKind::Fenced => {
                fences.insert(volume, Fence { epoch, from: about, at });
            }
            EventKind::Sealed if known && node.meta.raft_status().leader == Some(here) => {
                let Some(fence) = fences.get(&volume).filter(|fence| fence.epoch == epoch) else {
                    continue;
                };
                let loss = losses.get(&fence.from);
                let steps = [
                    (FailoverStep::Heard, fence.from, loss.and_then(|loss| loss.heard)),
                    (FailoverStep::Lost, fence.from, loss.map(|loss| loss.at)),
                    (FailoverStep::Fenced, fence.from, Some(fence.at)),
                    (FailoverStep::Sealed, about, Some(now)),
                ];
                let steps = steps.into_iter().filter_map(|(step, about, at)| {
                    let at = at.filter(|at| *at != 0)?;
                    Some((step, about, at))
                });
                tokio::spawn(note(Arc::clone(&node), volume, epoch, steps.collect()));
            }
            EventKind::Attached => {
                if let Some(fence) = fences.remove(&volume)
                    && known
                    && about == here
                    && about != fence.from
                {
                    tokio::spawn(follow(Arc::clone(&node), volume, fence.epoch, now));
                }
            }
            EventKind::VolumeDeleted => drop(fences.remove(&volume)),
            _ => {}
        }
    }
}

/// The rest of a failover to this node, which attached the volume at `attached`.
async fn follow(node: Arc<Node>, volume: VolumeId, fence: Epoch, attached: u64) {
    let here = node.config.node;
    let steps = vec![(FailoverStep::Attached, here, attached)];
    note(Arc::clone(&node), volume, fence, steps).await;
    let deadline = Instant::now() + WRITE;
    while Instant::now() < deadline {
        let attachment = attach::describe(&node, volume).await;
        if attachment.is_some_and(|attachment| attachment.writes > 0) {
            let steps = vec![(FailoverStep::Written, here, unix_ms())];
            return note(node, volume, fence, steps).await;
        }
        sleep(LOOK).await;
    }
}

async fn note(
    node: Arc<Node>,
    volume: VolumeId,
    epoch: Epoch,
    steps: Vec<(FailoverStep, NodeId, u64)>,
) {
    for (step, about, unix_ms) in steps {
        let note = Command::NoteFailover { volume, epoch, node: about, step, unix_ms };
        if let Err(error) = node.proposer.propose(note, NOTE).await {
            tracing::warn!(%volume, %step, %error, "a step of a failover is not recorded");
        }
    }
}
