//! This node's sign of life to the leader.

use super::Node;
use client::api::HeartbeatRequest;
use core::sync::atomic::Ordering;
use core::time::Duration;
use policy::liveness::HEARTBEAT;
use std::sync::Arc;
use tokio::time::MissedTickBehavior;

/// Seconds that a restart may take. A node that does not come back is missed that much later, so it is
/// not long: the next daemon is usually there within a few.
const ABSENCE: u32 = 15;

/// Longer than this a heartbeat is not waited for: the next one may find a new leader.
const PATIENCE: Duration = Duration::from_millis(900);

/// Sends heartbeats for ever: to the leader's roll if this node leads, to the leader otherwise.
pub(super) async fn run(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Said once a change, not once a heartbeat.
    let mut heard = None;
    loop {
        ticks.tick().await;
        let free = node.pool_free().await;
        if node.proposer.leads() {
            node.roll.introduce(node.info(), free);
            heard = None;
            continue;
        }
        let answer = node.proposer.peers(PATIENCE).heartbeat(request(&node, free)).await;
        match &answer {
            Ok(answer) if answer.lost => {
                tracing::warn!(node = %node.config.node, "the leader has this node as lost; it is up again from now on");
            }
            Ok(_) if heard != Some(true) => {
                tracing::info!(node = %node.config.node, "the leader hears this node");
            }
            Err(error) if heard != Some(false) => {
                tracing::warn!(node = %node.config.node, %error, "the leader does not hear this node");
            }
            _ => {}
        }
        heard = Some(answer.is_ok());
    }
}

fn request(node: &Node, free: u64) -> HeartbeatRequest {
    let info = node.info();
    HeartbeatRequest {
        cluster_id: node.config.cluster.to_string(),
        node: info.node.0,
        name: info.name,
        boot_id: info.boot.to_string(),
        control_address: info.control_address,
        data_address: info.data_address,
        pool_id: info.pool.map(|pool| pool.id.to_string()).unwrap_or_default(),
        pool_bytes: info.pool.map_or(0, |pool| pool.bytes),
        pool_free_bytes: free,
        priority_io: info.class.map(|class| class.to_string()).unwrap_or_default(),
        process_instance: info.process.to_string(),
        zone: info.zone.unwrap_or_default(),
        returns_within_seconds: if node.restarting() { ABSENCE } else { 0 },
    }
}

/// Tells the leader that this node restarts, once and for all: the regular signs of life say it as well
/// from now on, so that none of them takes it back.
pub(super) async fn take_leave(node: &Node) {
    node.leaving.store(true, Ordering::Relaxed);
    if node.proposer.leads() {
        return;
    }
    let free = node.pool_free().await;
    if let Err(error) = node.proposer.peers(PATIENCE).heartbeat(request(node, free)).await {
        tracing::warn!(node = %node.config.node, %error, "the leader was not told of the restart");
    }
}
