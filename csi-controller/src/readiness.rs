//! When the controller plugin is ready: when it can reach the Raft leader.

use client::Client;
use core::time::Duration;
use csi_common::Readiness;

/// How long a probe may take; the usual liveness probe gives up sooner than this twice over.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Ready while the leader of the cluster answers.
#[derive(Clone)]
pub struct LeaderReachable(pub Client);

#[tonic::async_trait]
impl Readiness for LeaderReachable {
    async fn ready(&self) -> Result<(), String> {
        match self.0.with_deadline(PROBE_DEADLINE).get_cluster().await {
            Ok(cluster) if cluster.leader != 0 => Ok(()),
            Ok(_) => Err("the cluster has no leader".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}
