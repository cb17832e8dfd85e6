//! When the node plugin is ready: when the local replicator is, and is the node that we were told.

use crate::NodeIdentity;
use client::Client;
use core::time::Duration;
use csi_common::Readiness;

/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Ready while the local replicator is: Raft has a leader, metadata is applied, the pool serves.
#[derive(Clone)]
pub struct NodeReady {
    /// Client of the local replicator.
    pub client: Client,
    /// Its node, as we were told.
    pub node: NodeIdentity,
}

#[tonic::async_trait]
impl Readiness for NodeReady {
    async fn ready(&self) -> Result<(), String> {
        let answer = self.client.with_deadline(PROBE_DEADLINE).get_node().await;
        let node = answer.map_err(|error| error.to_string())?;
        self.node.check(&node)?;
        if node.ready { Ok(()) } else { Err("the local replicator is not ready".into()) }
    }
}
