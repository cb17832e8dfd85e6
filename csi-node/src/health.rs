//! What is wrong with a volume or with storage as a whole, as this node sees it (alpha since CSI 1.13).

use crate::Error;
use crate::service::NodeService;
use client::api::Attachment;
use core::time::Duration;
use proto::csi::StorageHealthErrorType as Backend;
use proto::csi::VolumeHealthErrorType as Kind;
use proto::csi::node_get_storage_health_response::StorageBackendHealth;
use proto::csi::volume_health::VolumeHealthEntry;
use proto::csi::{NodeGetStorageHealthResponse, VolumeHealth};
use types::VolumeId;

/// How long the replicator may take before it counts as unreachable.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// The role of a copy in [`Attachment::replicas`] that counts for every write.
const MEMBER: &str = "member";

impl NodeService {
    /// The health of a volume that is attached here; NOT_FOUND for another.
    pub(crate) async fn volume_health(&self, volume: VolumeId) -> Result<VolumeHealth, Error> {
        let attachment = self.attachment(volume).await?.ok_or_else(|| {
            Error::NotFound(format!("volume {volume} is not attached to this node"))
        })?;
        Ok(VolumeHealth { volume_id: volume.to_string(), health_statuses: entries(&attachment) })
    }

    /// The health of this node's replicator and its pool.
    pub(crate) async fn storage_health(&self) -> NodeGetStorageHealthResponse {
        let entry = |status: Backend, reason: &str, message: String| StorageBackendHealth {
            status: status.into(),
            reason: reason.into(),
            message,
            volume_capability: None,
        };
        let answer = self.client.with_deadline(ASK_LIMIT).get_node().await;
        let mut backend_health = Vec::new();
        match answer {
            Err(error) => {
                let reason = "ReplicatorUnreachable";
                backend_health.push(entry(Backend::StorageUnreachable, reason, error.to_string()));
            }
            Ok(node) => {
                if !node.ready {
                    let message = "the metadata have no leader, or the pool is not served".into();
                    backend_health.push(entry(Backend::StorageDegraded, "NotReady", message));
                }
                if node.pool_bytes > 0 && node.pool_free_bytes == 0 {
                    let message = format!("no byte of {} is free", node.pool_bytes);
                    backend_health.push(entry(Backend::StorageDegraded, "PoolFull", message));
                }
            }
        }
        NodeGetStorageHealthResponse { backend_health }
    }
}

fn entries(attachment: &Attachment) -> Vec<VolumeHealthEntry> {
    let entry = |status: Kind, reason: &str, message: String| VolumeHealthEntry {
        status: status.into(),
        reason: reason.into(),
        message,
    };
    let mut entries = Vec::new();
    if attachment.unrepairable_blocks > 0 {
        let message =
            format!("{} blocks of 4 KiB have no good copy", attachment.unrepairable_blocks);
        entries.push(entry(Kind::DataLoss, "BlocksWithoutGoodCopy", message));
    }
    if attachment.failed {
        let message = format!("epoch {} was superseded or failed", attachment.epoch);
        entries.push(entry(Kind::Inaccessible, "AttachmentFailed", message));
    } else if attachment.replicas.iter().any(|replica| replica.role != MEMBER) {
        let copies: Vec<String> = attachment
            .replicas
            .iter()
            .map(|replica| format!("node {}: {}", replica.node, replica.role))
            .collect();
        entries.push(entry(Kind::Degraded, "CopiesMissing", copies.join("; ")));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::api::ReplicaProgress;

    #[test]
    fn health_follows_the_attachment() {
        let of = |failed, lost, roles: [&str; 2]| {
            let replica = |(node, role): (u64, &str)| ReplicaProgress {
                node,
                role: role.into(),
                ..ReplicaProgress::default()
            };
            let attachment = Attachment {
                failed,
                unrepairable_blocks: lost,
                replicas: [1, 2].into_iter().zip(roles).map(replica).collect(),
                ..Attachment::default()
            };
            let found = entries(&attachment);
            found.into_iter().map(|e| (e.status(), e.reason)).collect::<Vec<_>>()
        };
        let missing = || (Kind::Degraded, "CopiesMissing".to_owned());
        assert_eq!(of(false, 0, ["member", "member"]), []);
        assert_eq!(of(false, 0, ["member", "away"]), [missing()]);
        assert_eq!(of(false, 0, ["member", "resyncing"]), [missing()]);
        let failed = (Kind::Inaccessible, "AttachmentFailed".to_owned());
        assert_eq!(of(true, 0, ["member", "away"]), [failed]);
        let lost = (Kind::DataLoss, "BlocksWithoutGoodCopy".to_owned());
        assert_eq!(of(false, 3, ["member", "away"]), [lost, missing()]);
    }
}
