//! Calls about this node and the volumes attached to it.

use super::ControlService;
use crate::control::attach;
use crate::control::status::data_status;
use client::api;
use metadata::NodeStatus;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use types::VolumeId;

/// Events that wait for a slow watcher; then its stream waits.
const WATCH: usize = 64;

impl ControlService {
    pub(super) async fn attachment(&self, volume: VolumeId) -> Result<api::Attachment, Status> {
        let attachment = attach::describe(&self.0, volume).await;
        attachment.ok_or_else(|| {
            Status::not_found(format!("volume {volume} is not attached to this node"))
        })
    }

    pub(super) async fn compare(
        &self,
        volume: VolumeId,
    ) -> Result<api::CompareReplicasResponse, Status> {
        // NOT_FOUND for a volume that is not here, before anything is read.
        self.attachment(volume).await?;
        let result = self
            .0
            .data
            .compare(volume)
            .await
            .map_err(|error| data_status("comparing replicas", &error))?;
        Ok(api::CompareReplicasResponse {
            compared_bytes: result.bytes,
            different_blocks: result.different,
            replicas: result.replicas,
            repaired_blocks: result.repaired,
            unrepairable_blocks: result.unrepairable,
        })
    }

    pub(super) async fn this_node(&self) -> Result<api::GetNodeResponse, Status> {
        let node = &self.0;
        let state = node.meta.state();
        let raft = node.meta.raft_status();
        let pool = node.data.pool().await;
        let registered = state
            .nodes
            .get(&node.config.node)
            .is_some_and(|record| record.status == NodeStatus::Up && record.info() == node.info());
        let mut attachments = Vec::new();
        for volume in node.attachments.volumes() {
            attachments.extend(attach::describe(node, volume).await);
        }
        let leader = raft.leader.unwrap_or_default();
        Ok(api::GetNodeResponse {
            node: node.config.node.0,
            name: node.config.name.clone(),
            cluster_id: node.config.cluster.to_string(),
            boot_id: node.boot.to_string(),
            leader: leader.0,
            leader_address: state
                .nodes
                .get(&leader)
                .map(|leader| leader.control_address.clone())
                .unwrap_or_default(),
            ready: raft.leader.is_some() && registered && pool.is_ok(),
            pool_id: node.pool.id.to_string(),
            pool_bytes: node.pool.bytes,
            pool_free_bytes: pool.map_or(0, |pool| pool.free),
            attachments,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control_address: node.config.control_address.to_string(),
            data_address: node.config.data_address.to_string(),
            zone: node.config.zone.clone().unwrap_or_default(),
            frontend: match &node.frontend {
                Ok(selection) => selection.kind.name().to_owned(),
                Err(_) => String::new(),
            },
            frontend_reason: match &node.frontend {
                Ok(selection) => selection.reason.clone(),
                Err(error) => error.to_string(),
            },
        })
    }

    /// Events after Raft index `after`, and those that only this node saw.
    pub(super) fn watch(
        &self,
        after: u64,
        volume_id: String,
    ) -> ReceiverStream<Result<api::Event, Status>> {
        let (events, stream) = mpsc::channel(WATCH);
        let mut reader = self.0.events.reader();
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = reader.next() => event,
                    () = events.closed() => return,
                };
                let Some(event) = event else { return };
                let old = event.index != 0 && event.index <= after;
                let other = !volume_id.is_empty() && event.volume_id != volume_id;
                if !old && !other && events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(stream)
    }
}
