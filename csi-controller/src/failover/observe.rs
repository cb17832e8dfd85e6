//! What one round saw, and questions about it.

use super::views::{Claims, NodeView, PodView};
use client::api::{Attachment, GetClusterResponse, Node, Volume, VolumeState};
use std::collections::BTreeMap;

/// Everything that a decision rests on.
///
/// The pods are listed **before** the cluster is read: what the cluster says of a volume of a pod is
/// then later than the pod's own state, and a pod that runs while its volume has left its node is
/// surely one whose mount is dead.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Name of the node where this instance runs.
    pub here: String,
    /// The cluster, read at the leader behind a read index.
    pub cluster: GetClusterResponse,
    /// Nodes of Kubernetes by name.
    pub nodes: BTreeMap<String, NodeView>,
    /// Bound claims.
    pub claims: Claims,
    /// Pods by node; a node that is not here could not be asked for, or nobody wanted to know.
    pub pods: BTreeMap<String, Vec<PodView>>,
    /// What nodes that carry our taint say of their attachments; those that answered.
    pub attachments: BTreeMap<String, Vec<Attachment>>,
}

impl Observed {
    /// Whether this instance runs beside the Raft leader.
    pub fn beside_leader(&self) -> bool {
        let cluster = &self.cluster;
        let leader = cluster.nodes.iter().find(|node| node.node == cluster.leader);
        leader.is_some_and(|node| node.name == self.here)
    }

    /// Lost nodes and all that were ever heard, if the lost are no minority.
    pub fn too_many_lost(&self) -> Option<(usize, usize)> {
        let lost = self.cluster.nodes.iter().filter(|node| is_lost(node)).count();
        let all = self.cluster.nodes.iter().filter(|node| is_lost(node) || is_up(node)).count();
        (lost * 2 >= all && lost > 0).then_some((lost, all))
    }

    /// The volume of that id.
    pub fn volume(&self, id: &str) -> Option<&Volume> {
        self.cluster.volumes.iter().find(|volume| volume.volume_id == id)
    }

    /// Whether a copy that is in sync is on a node that is not lost.
    pub fn has_live_copy(&self, volume: &Volume) -> bool {
        let lost = |id: u64| self.cluster.nodes.iter().any(|node| node.node == id && is_lost(node));
        volume.replicas.iter().any(|replica| replica.in_sync && !lost(replica.node))
    }

    /// Volumes that the node of that name still serves in vain: failed, or no longer its own.
    pub fn stale_on<'a>(
        &'a self,
        name: &'a str,
        attachments: &'a [Attachment],
    ) -> impl Iterator<Item = &'a str> {
        let own = move |attachment: &Attachment| {
            let volume = self.volume(&attachment.volume_id);
            volume.is_some_and(|volume| volume.attached_node_name == name)
        };
        attachments
            .iter()
            .filter(move |attachment| attachment.failed || !own(attachment))
            .map(|attachment| attachment.volume_id.as_str())
    }
}

/// Raft has committed that it is lost.
pub fn is_lost(node: &Node) -> bool {
    node.state == "lost"
}

/// Raft hears it.
pub fn is_up(node: &Node) -> bool {
    node.state == "up"
}

/// Taken from a lost node and not attached since.
pub fn is_fenced(volume: &Volume) -> bool {
    volume.state() == VolumeState::Fenced
}

/// Taken from a lost node, and no survivor has sealed yet: that node might still write (R7).
pub fn is_unsealed(volume: &Volume) -> bool {
    is_fenced(volume) && volume.fence_sealed_by.is_empty()
}
