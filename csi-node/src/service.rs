//! The Node service: requests checked and turned into operations, one in flight per volume.

use crate::Error;
use crate::bounded::Bounded;
use crate::mounts::Health;
use crate::options::Options;
use client::Client;
use client::api::{Attachment, GetNodeResponse};
use core::time::Duration;
use csi_common::{
    Access, CONTEXT_FS_TYPE, FsType, InFlight, Mode, RequestError, TOPOLOGY_NODE, TOPOLOGY_ZONE,
    capability, non_empty, path, volume_id, volume_size,
};
use proto::csi::node_server::Node;
use proto::csi::node_service_capability::{Rpc, Type, rpc};
use proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetStorageHealthRequest, NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest,
    NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology,
};
use std::collections::HashMap;
use std::path::PathBuf;
use tonic::{Code, Request, Response, Status};
use types::VolumeId;

/// Who this node is.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Its name, in Kubernetes and in Holdfast: CSI's node id.
    pub name: String,
    /// Its id in Holdfast.
    pub id: u64,
    /// How many volumes it takes; 0: no limit of ours.
    pub max_volumes: i64,
    /// Whether the calls that CSI calls alpha are offered.
    pub alpha: bool,
}

impl NodeIdentity {
    /// Whether `node`, which a replicator says it is, is this one: another's volumes must not be mounted
    /// here, nor its topology be told.
    pub(crate) fn check(&self, node: &GetNodeResponse) -> Result<(), String> {
        if node.node != self.id {
            let (is, told) = (node.node, self.id);
            return Err(format!("the local replicator is node {is}, and --node-id says {told}"));
        }
        if node.name != self.name {
            let (is, told) = (&node.name, &self.name);
            return Err(format!("the local replicator is {is:?}, and --node-name says {told:?}"));
        }
        Ok(())
    }
}

/// The Node service over the local replicator.
#[derive(Clone)]
pub struct NodeService {
    pub(crate) client: Client,
    pub(crate) bounded: Bounded,
    identity: NodeIdentity,
    in_flight: InFlight,
}

/// A checked NodeStageVolume.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub volume: VolumeId,
    pub path: PathBuf,
    pub access: StageAccess,
}

/// What staging makes of a volume.
#[derive(Clone, Debug)]
pub(crate) enum StageAccess {
    /// Only the device.
    Block,
    /// A mounted filesystem.
    Mount { fs_type: Option<FsType>, options: Options, read_only: bool },
}

/// A checked NodePublishVolume.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    pub volume: VolumeId,
    pub staging: PathBuf,
    pub target: PathBuf,
    pub block: bool,
    pub read_only: bool,
    /// No other pod may have it.
    pub single: bool,
}

type Answer<T> = Result<Response<T>, Status>;

/// How long the replicator may take to say who it is.
const INFO_LIMIT: Duration = Duration::from_secs(5);

impl NodeService {
    /// The service of `identity`, over `client` of its replicator.
    #[must_use]
    pub fn new(client: Client, identity: NodeIdentity) -> Self {
        let in_flight = InFlight::on(&identity.name);
        Self { client, bounded: Bounded::default(), identity, in_flight }
    }

    pub(crate) async fn alone<T: Send + 'static>(
        &self,
        operation: &'static str,
        volume: VolumeId,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Answer<T> {
        self.in_flight.run(operation, &volume.to_string(), work).await.map(Response::new)
    }

    fn check_alpha(&self, call: &str) -> Result<(), Status> {
        if self.identity.alpha {
            return Ok(());
        }
        Err(Status::unimplemented(format!("{call} is alpha: start csi-node with --alpha")))
    }

    /// The attachment of `volume` here, if there is one.
    pub(crate) async fn attachment(&self, volume: VolumeId) -> Result<Option<Attachment>, Error> {
        match self.client.get_attachment(&volume.to_string()).await {
            Ok(attachment) => Ok(Some(attachment)),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether what is attached can still save data.
    pub(crate) fn health(attachment: Option<&Attachment>) -> Health {
        match attachment {
            Some(attachment) if !attachment.failed => Health::Alive,
            _ => Health::Dead,
        }
    }
}

/// The device of an attachment.
pub(crate) fn device(attachment: &Attachment) -> Result<PathBuf, Error> {
    if attachment.device.is_empty() {
        return Err(Error::Precondition(format!(
            "volume {} is attached without a kernel device (front-end {:?}); detach it first",
            attachment.volume_id, attachment.frontend
        )));
    }
    Ok(PathBuf::from(&attachment.device))
}

fn check_stage(request: &NodeStageVolumeRequest) -> Result<Stage, RequestError> {
    non_empty("volume_id", &request.volume_id)?;
    let path = path("staging_target_path", &request.staging_target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    let access = match capability.access {
        Access::Block => StageAccess::Block,
        Access::Mount { fs_type, flags } => {
            let created = request.volume_context.get(CONTEXT_FS_TYPE);
            let created = created.map_or(Ok(None), |text| {
                FsType::parse(&format!("volume_context {CONTEXT_FS_TYPE}"), text)
            })?;
            let options = Options::parse(&flags)?;
            let read_only = capability.mode == Mode::ReaderOnly || options.read_only();
            StageAccess::Mount { fs_type: fs_type.or(created), options, read_only }
        }
    };
    Ok(Stage { volume: volume_id(&request.volume_id)?, path, access })
}

fn check_publish(request: &NodePublishVolumeRequest) -> Result<Publish, RequestError> {
    non_empty("volume_id", &request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let (block, asks_read_only) = match &capability.access {
        // Nothing keeps a pod from writing to a device node that is bound read-only, and the kernel's
        // read-only flag of a loop device outlives its attachment.
        Access::Block if request.readonly => {
            return Err(RequestError::Unsupported {
                what: "readonly with a block volume".into(),
                instead: "publish it writable, or mount it",
            });
        }
        Access::Block => (true, false),
        Access::Mount { flags, .. } => (false, Options::parse(flags)?.read_only()),
    };
    Ok(Publish {
        volume: volume_id(&request.volume_id)?,
        staging,
        target,
        block,
        read_only: request.readonly || asks_read_only || capability.mode == Mode::ReaderOnly,
        single: capability.mode == Mode::SingleWriter,
    })
}

/// Where a volume is to be looked at. A path that cannot be one of ours holds no volume of ours.
fn volume_path(text: &str) -> Result<PathBuf, Error> {
    non_empty("volume_path", text)?;
    path("volume_path", text).map_err(|error| Error::NotFound(error.to_string()))
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        let stage = check_stage(request.get_ref())?;
        let this = self.clone();
        let volume = stage.volume;
        let work = async move { this.stage(stage).await.map(|()| NodeStageVolumeResponse {}) };
        self.alone("NodeStageVolume", volume, work).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        let path = path("staging_target_path", &request.staging_target_path)?;
        let volume = volume_id(&request.volume_id)?;
        let this = self.clone();
        let work =
            async move { this.unstage(volume, &path).await.map(|()| NodeUnstageVolumeResponse {}) };
        self.alone("NodeUnstageVolume", volume, work).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let publish = check_publish(request.get_ref())?;
        let this = self.clone();
        let volume = publish.volume;
        let work =
            async move { this.publish(publish).await.map(|()| NodePublishVolumeResponse {}) };
        self.alone("NodePublishVolume", volume, work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let volume = volume_id(&request.volume_id)?;
        let this = self.clone();
        let work = async move {
            this.unpublish(volume, &target).await.map(|()| NodeUnpublishVolumeResponse {})
        };
        self.alone("NodeUnpublishVolume", volume, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        non_empty("volume_path", &request.volume_path)?;
        let volume = volume_id(&request.volume_id)?;
        let path = volume_path(&request.volume_path)?;
        // Only reads, so it needs not be alone.
        Ok(Response::new(self.stats(volume, &path).await?))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        non_empty("volume_path", &request.volume_path)?;
        if request.volume_capability.is_some() {
            capability(request.volume_capability.as_ref())?;
        }
        let range = request.capacity_range.unwrap_or_default();
        volume_size(Some(&range), 0)?;
        let required = range.required_bytes.unsigned_abs();
        let limit = range.limit_bytes.unsigned_abs();
        let volume = volume_id(&request.volume_id)?;
        let path = volume_path(&request.volume_path)?;
        let this = self.clone();
        let work = async move {
            let capacity_bytes = this.expand(volume, &path, required, limit).await?;
            Ok(NodeExpandVolumeResponse { capacity_bytes })
        };
        self.alone("NodeExpandVolume", volume, work).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let mut kinds = vec![
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        if self.identity.alpha {
            kinds.extend([rpc::Type::GetVolumeHealth, rpc::Type::GetStorageHealth]);
        }
        let capability = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = kinds.into_iter().map(capability).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        // Kubernetes keeps the answer for as long as the plugin is registered: without the replicator,
        // which knows the zone, it has to ask again.
        let node = self.client.with_deadline(INFO_LIMIT).get_node().await.map_err(Error::from)?;
        self.identity.check(&node).map_err(Error::Precondition)?;
        let mut segments = HashMap::from([(TOPOLOGY_NODE.to_owned(), node.name)]);
        if !node.zone.is_empty() {
            segments.insert(TOPOLOGY_ZONE.to_owned(), node.zone);
        }
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.identity.name.clone(),
            max_volumes_per_node: self.identity.max_volumes,
            accessible_topology: Some(Topology { segments }),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Answer<NodeGetVolumeHealthResponse> {
        self.check_alpha("NodeGetVolumeHealth")?;
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        for (field, text) in [
            ("volume_publish_path", &request.volume_publish_path),
            ("staging_target_path", &request.staging_target_path),
        ] {
            if !text.is_empty() {
                path(field, text)?;
            }
        }
        let volume = volume_id(&request.volume_id)?;
        let volume_health = Some(self.volume_health(volume).await?);
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Answer<NodeGetStorageHealthResponse> {
        self.check_alpha("NodeGetStorageHealth")?;
        Ok(Response::new(self.storage_health().await))
    }
}
