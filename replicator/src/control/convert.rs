//! The applied state in the words of the control API.

use client::api;
use metadata::{
    Attachment, Lifecycle, Replica, ReplicaState, Snapshot, SnapshotState, Source, State, Volume,
};
use types::NodeId;

fn node_name(state: &State, node: NodeId) -> String {
    state.nodes.get(&node).map(|node| node.name.clone()).unwrap_or_default()
}

/// Fewer copies than wanted would take an acknowledged write now (promise 4). A lost node's copy
/// leaves the ISR only by the engine's hand, and an unattached volume has no engine.
fn degraded(state: &State, volume: &Volume) -> bool {
    let lost = |id| volume.replicas.get(id).is_some_and(|replica| state.is_lost(replica.node));
    let live = volume.lifecycle == Lifecycle::Live;
    volume.degraded() || (live && volume.isr.iter().any(lost))
}

/// How a replica stands, in the words of control.proto.
fn standing(state: &State, volume: &Volume, replica: &Replica) -> &'static str {
    let attached = matches!(volume.attachment, Attachment::Attached { .. });
    match replica.state {
        ReplicaState::Creating | ReplicaState::Failed | ReplicaState::Deleting => {
            replica.state.as_str()
        }
        ReplicaState::Ready if state.is_lost(replica.node) => "lost",
        ReplicaState::Ready if volume.isr.contains(&replica.replica) => "in sync",
        ReplicaState::Ready if attached => "rebuilding",
        ReplicaState::Ready => "stale",
    }
}

/// One volume.
pub(super) fn volume(state: &State, volume: &Volume) -> api::Volume {
    // Callers ask who uses it: what a node does with it by itself ends by itself.
    let attached = volume.attachment.holder().filter(|_| !volume.internal);
    let shown = match (volume.lifecycle, &volume.attachment) {
        (Lifecycle::Creating, _) => api::VolumeState::Creating,
        (Lifecycle::Filling, _) => api::VolumeState::Filling,
        (Lifecycle::Retired | Lifecycle::Deleting, _) => api::VolumeState::Deleting,
        (Lifecycle::Live, _) if volume.internal => api::VolumeState::Detached,
        (Lifecycle::Live, Attachment::Detached) => api::VolumeState::Detached,
        (Lifecycle::Live, Attachment::Attaching { .. }) => api::VolumeState::Attaching,
        (Lifecycle::Live, Attachment::Attached { .. }) => api::VolumeState::Attached,
        (Lifecycle::Live, Attachment::Fenced { .. }) => api::VolumeState::Fenced,
    };
    let (fenced, sealed_by) = match volume.attachment {
        Attachment::Fenced { holder, sealed } => (Some(holder), sealed),
        _ => (None, None),
    };
    let sealed_at = sealed_by.and_then(|replica| volume.replicas.get(&replica));
    api::Volume {
        volume_id: volume.volume.to_string(),
        name: volume.name.clone(),
        size_bytes: volume.size,
        repl: volume.repl,
        priority_io: volume.class.map(|class| class.to_string()).unwrap_or_default(),
        fs_type: volume.fs_type.map(|fs_type| fs_type.to_string()).unwrap_or_default(),
        state: shown.into(),
        epoch: volume.epoch.0,
        isr_version: volume.isr_version.0,
        replicas: volume
            .replicas
            .values()
            .map(|replica| api::Replica {
                replica_id: replica.replica.to_string(),
                node: replica.node.0,
                node_name: node_name(state, replica.node),
                incarnation: replica.incarnation.to_string(),
                in_sync: volume.isr.contains(&replica.replica),
                state: replica.state.as_str().to_owned(),
                standing: standing(state, volume, replica).to_owned(),
                leaving: replica.leaving,
            })
            .collect(),
        attached_node: attached.unwrap_or_default().0,
        attached_node_name: attached.map(|node| node_name(state, node)).unwrap_or_default(),
        degraded: degraded(state, volume),
        engine_instance: volume
            .attachment
            .instance()
            .map(|instance| instance.to_string())
            .unwrap_or_default(),
        fenced_node: fenced.unwrap_or_default().0,
        fenced_node_name: fenced.map(|node| node_name(state, node)).unwrap_or_default(),
        fence_sealed_by: sealed_by.map(|replica| replica.to_string()).unwrap_or_default(),
        fence_sealed_by_node: sealed_at
            .map(|replica| node_name(state, replica.node))
            .unwrap_or_default(),
        iops_limit: volume.limits.iops.unwrap_or(0),
        bandwidth_limit: volume.limits.bandwidth.unwrap_or(0),
        placement: if volume.pinned { "local" } else { "" }.to_owned(),
        source_snapshot_id: match volume.source {
            Some(Source::Snapshot(snapshot)) => snapshot.to_string(),
            Some(Source::Clone { .. }) | None => String::new(),
        },
        source_volume_id: match volume.source {
            Some(Source::Clone { volume, .. }) => volume.to_string(),
            Some(Source::Snapshot(_)) | None => String::new(),
        },
    }
}

/// One snapshot.
pub(super) fn snapshot(state: &State, snapshot: &Snapshot) -> api::Snapshot {
    let replicas = state.volumes.get(&snapshot.volume).map(|volume| &volume.replicas);
    let holder = |id| replicas?.get(id).filter(|replica| replica.state == ReplicaState::Ready);
    api::Snapshot {
        snapshot_id: snapshot.snapshot.to_string(),
        name: snapshot.name.clone(),
        volume_id: snapshot.volume.to_string(),
        size_bytes: snapshot.size,
        created_unix_ms: snapshot.created_unix_ms,
        ready: snapshot.state == SnapshotState::Ready,
        holders: snapshot
            .holders
            .iter()
            .filter_map(holder)
            .map(|replica| node_name(state, replica.node))
            .collect(),
        fs_type: snapshot.fs_type.map(|fs_type| fs_type.to_string()).unwrap_or_default(),
    }
}

/// One node; `free` is what it last said of its pool.
pub(super) fn node(state: &State, node: &metadata::Node, free: Option<u64>) -> api::Node {
    let role = if state.membership.voters.contains(&node.node) {
        "voter"
    } else if state.membership.learners.contains(&node.node) {
        "learner"
    } else {
        "client"
    };
    api::Node {
        node: node.node.0,
        name: node.name.clone(),
        control_address: node.control_address.clone(),
        data_address: node.data_address.clone(),
        raft_role: role.to_owned(),
        state: node.status.as_str().to_owned(),
        boot_id: node.boot.to_string(),
        priority_io: node.class.map(|class| class.to_string()).unwrap_or_default(),
        pool_bytes: node.pool.map_or(0, |pool| pool.bytes),
        pool_free_bytes: free.unwrap_or(0),
        pool_id: node.pool.map(|pool| pool.id.to_string()).unwrap_or_default(),
        zone: node.zone.clone().unwrap_or_default(),
    }
}

/// The replicas of an attachment as its engine sees them.
pub(super) fn progress(status: &engine::Status) -> Vec<api::ReplicaProgress> {
    let member = |member: &engine::MemberStatus| api::ReplicaProgress {
        replica_id: member.replica.to_string(),
        node: member.node.0,
        role: member.role.to_owned(),
        resync_total_bytes: member.progress.total,
        resync_compared_bytes: member.progress.compared,
        resync_copied_bytes: member.progress.copied,
    };
    status.members.iter().map(member).collect()
}
