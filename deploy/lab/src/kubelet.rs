//! The part of Kubernetes that the lab plays: it calls the CSI plugins through their sockets as the
//! provisioner and kubelet do, with kubelet's retries, and makes the directories that they make.

use crate::layout::Layout;
use crate::rpc;
use anyhow::{Context as _, Result, bail};
use proto::csi::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteVolumeRequest,
    NodeGetInfoRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Topology, TopologyRequirement, Volume,
    VolumeCapability, VolumeContentSource,
    controller_client::ControllerClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type as SourceType},
};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// First pause of kubelet after a failed call; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest that one CSI call may take: kubelet's own limit.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// What a claim asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Name of the volume.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// "ext4" or "xfs".
    pub fs_type: String,
    /// Parameters of the storage class besides the filesystem.
    pub parameters: HashMap<String, String>,
    /// Node where the pod will run first.
    pub node: u64,
}

/// Calls CSI plugins of a lab.
#[derive(Clone, Debug)]
pub struct Kubelet {
    layout: Layout,
    controller_node: u64,
}

/// A filesystem volume that one node writes.
#[must_use]
pub fn mounted(fs_type: &str) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            ..MountVolume::default()
        })),
    }
}

/// Calls again what fails in a way that `later` takes for a passing one, with kubelet's pauses; returns how
/// often it was called.
async fn retried<T, F>(
    what: &str,
    patience: Duration,
    later: impl Fn(&anyhow::Error) -> bool,
    mut call: impl FnMut() -> F,
) -> Result<(u32, T)>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + patience;
    let (mut calls, mut pause) = (1, FIRST_RETRY);
    loop {
        let error = match call().await {
            Ok(answer) => return Ok((calls, answer)),
            Err(error) => error,
        };
        if !later(&error) || Instant::now() + pause >= end {
            return Err(error.context(format!("{what}, {calls} calls")));
        }
        tracing::info!(calls, "{what} failed, again in {pause:?}: {error:#}");
        sleep(pause).await;
        calls += 1;
        pause *= 2;
    }
}

/// Whether the sidecars call again at once: nothing is wrong, it is only not there yet.
fn is_not_ready(error: &anyhow::Error) -> bool {
    code(error).is_none_or(|code| matches!(code, Code::Unavailable | Code::Aborted))
}

impl Kubelet {
    /// For the lab with this layout, whose CSI controller runs on `controller_node`.
    #[must_use]
    pub fn new(layout: &Layout, controller_node: u64) -> Self {
        Self { layout: layout.clone(), controller_node }
    }

    /// Has a volume made, the first replica near the pod if the plugin knows topology.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub async fn create_volume(&self, claim: &Claim) -> Result<Volume> {
        self.create(claim, None).await
    }

    /// As [`Self::create_volume`], with what is in a snapshot; called again while it is being copied.
    ///
    /// # Errors
    /// If the plugin refuses, or it is not there after `patience`.
    pub async fn restore(
        &self,
        claim: &Claim,
        snapshot_id: &str,
        patience: Duration,
    ) -> Result<Volume> {
        let snapshot = SnapshotSource { snapshot_id: snapshot_id.into() };
        let source = VolumeContentSource { r#type: Some(SourceType::Snapshot(snapshot)) };
        let create = || self.create(claim, Some(source.clone()));
        retried("CreateVolume", patience, is_not_ready, create).await.map(|(_, volume)| volume)
    }

    /// CreateSnapshot, called again while it cannot be taken; returns its id.
    ///
    /// # Errors
    /// If the plugin refuses, or there is none after `patience`.
    pub async fn snapshot(
        &self,
        volume_id: &str,
        name: &str,
        patience: Duration,
    ) -> Result<String> {
        let request = CreateSnapshotRequest {
            source_volume_id: volume_id.into(),
            name: name.into(),
            ..CreateSnapshotRequest::default()
        };
        let take = || async {
            let mut controller = self.controller().await?;
            let answer = timeout(CALL_LIMIT, controller.create_snapshot(request.clone())).await??;
            let snapshot = answer.into_inner().snapshot.unwrap_or_default();
            if snapshot.ready_to_use {
                return Ok(snapshot.snapshot_id);
            }
            Err(Status::unavailable("the snapshot is not ready to use").into())
        };
        retried("CreateSnapshot", patience, is_not_ready, take).await.map(|(_, id)| id)
    }

    async fn controller(&self) -> Result<ControllerClient<Channel>> {
        rpc::csi_controller(&self.layout, self.controller_node).await
    }

    async fn create(&self, claim: &Claim, source: Option<VolumeContentSource>) -> Result<Volume> {
        let mut parameters = claim.parameters.clone();
        parameters.insert("csi.storage.k8s.io/fstype".into(), claim.fs_type.clone());
        let request = CreateVolumeRequest {
            name: claim.name.clone(),
            capacity_range: Some(CapacityRange {
                required_bytes: i64::try_from(claim.size)?,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![mounted(&claim.fs_type)],
            parameters,
            accessibility_requirements: self.topology(claim.node).await?,
            volume_content_source: source,
            ..CreateVolumeRequest::default()
        };
        let mut controller = self.controller().await?;
        let answer = timeout(CALL_LIMIT, controller.create_volume(request)).await??;
        answer.into_inner().volume.context("CreateVolume answered without a volume")
    }

    /// Has a volume deleted.
    ///
    /// # Errors
    /// If the plugin refuses.
    pub async fn delete_volume(&self, volume_id: &str) -> Result<()> {
        let mut controller = self.controller().await?;
        let request = DeleteVolumeRequest { volume_id: volume_id.into(), ..Default::default() };
        timeout(CALL_LIMIT, controller.delete_volume(request)).await??;
        Ok(())
    }

    async fn topology(&self, node: u64) -> Result<Option<TopologyRequirement>> {
        let mut plugin = rpc::csi_node(&self.layout, node).await?;
        let info = plugin.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
        Ok(info.accessible_topology.map(|here: Topology| TopologyRequirement {
            requisite: Vec::new(),
            preferred: vec![here],
        }))
    }

    /// NodeStageVolume once.
    ///
    /// # Errors
    /// With the plugin's status.
    pub async fn stage_once(&self, node: u64, volume: &Volume, fs_type: &str) -> Result<()> {
        let path = self.staging(node, volume)?;
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: path.display().to_string(),
            volume_capability: Some(mounted(fs_type)),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let mut plugin = rpc::csi_node(&self.layout, node).await?;
        timeout(CALL_LIMIT, plugin.node_stage_volume(request)).await??;
        Ok(())
    }

    /// NodeStageVolume with kubelet's retries, at most for `patience`; returns how often it was called.
    ///
    /// # Errors
    /// If it still fails then.
    pub async fn stage(
        &self,
        node: u64,
        volume: &Volume,
        fs_type: &str,
        patience: Duration,
    ) -> Result<u32> {
        let what = format!("NodeStageVolume on node {node}");
        let stage = || self.stage_once(node, volume, fs_type);
        retried(&what, patience, |_| true, stage).await.map(|(calls, ())| calls)
    }

    /// NodeStageVolume and NodePublishVolume with kubelet's retries, each at most for `patience`; returns the
    /// path for the pod.
    ///
    /// # Errors
    /// If one of them still fails then.
    pub async fn mount(
        &self,
        node: u64,
        volume: &Volume,
        fs_type: &str,
        patience: Duration,
    ) -> Result<PathBuf> {
        self.stage(node, volume, fs_type, patience).await?;
        let what = format!("NodePublishVolume on node {node}");
        let publish = || self.publish(node, volume, fs_type);
        retried(&what, patience, |_| true, publish).await.map(|(_, path)| path)
    }

    /// NodePublishVolume; returns the path for the pod.
    ///
    /// # Errors
    /// With the plugin's status.
    pub async fn publish(&self, node: u64, volume: &Volume, fs_type: &str) -> Result<PathBuf> {
        let target = self.layout.target_path(node, &volume.volume_id);
        let parent = target.parent().context("a target path has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(node, volume)?.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(mounted(fs_type)),
            volume_context: volume.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let mut plugin = rpc::csi_node(&self.layout, node).await?;
        timeout(CALL_LIMIT, plugin.node_publish_volume(request))
            .await?
            .with_context(|| format!("NodePublishVolume on node {node}"))?;
        Ok(target)
    }

    /// NodeUnpublishVolume and NodeUnstageVolume, with retries; returns how long they took.
    ///
    /// # Errors
    /// If they did not succeed within `patience`.
    pub async fn take_down(
        &self,
        node: u64,
        volume: &Volume,
        patience: Duration,
    ) -> Result<Duration> {
        let start = Instant::now();
        let mut pause = FIRST_RETRY;
        loop {
            let left = (start + patience).saturating_duration_since(Instant::now());
            match timeout(left, self.take_down_once(node, volume)).await {
                Ok(Ok(())) => return Ok(start.elapsed()),
                Err(_) => bail!("unpublish and unstage on node {node} hung for {patience:?}"),
                Ok(Err(error)) if left <= pause => {
                    return Err(error.context(format!("unpublish and unstage on node {node}")));
                }
                Ok(Err(error)) => tracing::info!(node, "again in {pause:?}: {error:#}"),
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    async fn take_down_once(&self, node: u64, volume: &Volume) -> Result<()> {
        let mut plugin = rpc::csi_node(&self.layout, node).await?;
        let target = self.layout.target_path(node, &volume.volume_id);
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: target.display().to_string(),
        };
        plugin.node_unpublish_volume(unpublish).await.context("NodeUnpublishVolume")?;
        let unstage = NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(node, volume)?.display().to_string(),
        };
        plugin.node_unstage_volume(unstage).await.context("NodeUnstageVolume")?;
        Ok(())
    }

    fn staging(&self, node: u64, volume: &Volume) -> Result<PathBuf> {
        let path = self.layout.staging_path(node, &volume.volume_id);
        if volume.volume_id.contains('/') {
            bail!("volume id {:?} cannot be part of a path", volume.volume_id);
        }
        Ok(path)
    }
}

/// The gRPC status inside an error of this module.
#[must_use]
pub fn status(error: &anyhow::Error) -> Option<&Status> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// The gRPC code inside an error of this module.
#[must_use]
pub fn code(error: &anyhow::Error) -> Option<Code> {
    status(error).map(Status::code)
}
