//! What a Raft leader does before its daemon ends: somebody else leads, so that the others need not
//! notice its silence first.

use super::Node;
use core::time::Duration;
use metadata::NodeStatus;

/// How long the change may take; then the others elect somebody when they miss the leader.
const PATIENCE: Duration = Duration::from_millis(500);

/// Hands leadership to another voter that is up, if this node leads and there is one.
pub(super) async fn hand_over_leadership(node: &Node) {
    let mut status = node.meta.watch_status();
    if !node.proposer.leads() {
        return;
    }
    let state = node.meta.state();
    let up = |id: &&types::NodeId| {
        **id != node.config.node
            && state.nodes.get(id).is_some_and(|node| node.status == NodeStatus::Up)
    };
    let Some(to) = state.membership.voters.iter().find(up) else { return };
    tracing::info!(node = %node.config.node, %to, "handing over leadership");
    if node.meta.transfer_leadership(*to).is_err() {
        return;
    }
    let followed = status.wait_for(|status| status.leader.is_some_and(|at| at != status.node));
    if tokio::time::timeout(PATIENCE, followed).await.is_err() {
        tracing::warn!(node = %node.config.node, %to, "nobody took over leadership in time");
    }
}
