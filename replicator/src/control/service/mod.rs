//! The Control service: each call validated, then handed to the module that knows how.

mod local;
mod nodes;
mod replicas;
mod snapshots;
mod validate;
mod volumes;

use super::Node;
use super::status::propose_status;
use client::api::control_server::Control;
use client::api::*;
use metadata::State;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Serves [`Control`].
pub(super) struct ControlService(pub(super) Arc<Node>);

impl ControlService {
    /// The state with everything committed before this call (R6); a redirect if another leads.
    async fn leader_state(&self) -> Result<Arc<State>, Status> {
        let node = &self.0;
        node.proposer
            .leader_state()
            .await
            .map_err(|error| propose_status(&error, &node.meta.state(), node.config.node))
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for ControlService {
    type WatchEventsStream = ReceiverStream<Result<Event, Status>>;

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<Volume> {
        self.create(request.into_inner()).await.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Answer<DeleteVolumeResponse> {
        let volume = validate::volume_id(&request.into_inner().volume_id)?;
        self.delete(volume).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Answer<Volume> {
        self.get(request.into_inner()).await.map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn expand_volume(&self, request: Request<ExpandVolumeRequest>) -> Answer<Volume> {
        self.expand(request.into_inner()).await.map(Response::new)
    }

    async fn modify_volume(&self, request: Request<ModifyVolumeRequest>) -> Answer<Volume> {
        self.modify(request.into_inner()).await.map(Response::new)
    }

    async fn move_replica(&self, request: Request<MoveReplicaRequest>) -> Answer<Volume> {
        self.move_replica_of(request.into_inner()).await.map(Response::new)
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> Answer<Snapshot> {
        self.create_snapshot_of(request.into_inner()).await.map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        let snapshot = validate::snapshot_id(&request.into_inner().snapshot_id)?;
        self.delete_snapshot_by(snapshot).await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<Snapshot> {
        self.get_snapshot_by(request.into_inner()).await.map(Response::new)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        self.list_snapshots_by(request.into_inner()).await.map(Response::new)
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Answer<GetCapacityResponse> {
        self.capacity(request.into_inner()).await.map(Response::new)
    }

    async fn attach_volume(
        &self,
        request: Request<AttachVolumeRequest>,
    ) -> Answer<AttachVolumeResponse> {
        let request = request.into_inner();
        let volume = validate::volume_id(&request.volume_id)?;
        let front_end = validate::front_end(&request.frontend)?;
        let attachment = super::attach::attach(&self.0, volume, front_end).await?;
        Ok(Response::new(AttachVolumeResponse { attachment: Some(attachment) }))
    }

    async fn detach_volume(
        &self,
        request: Request<DetachVolumeRequest>,
    ) -> Answer<DetachVolumeResponse> {
        let volume = validate::volume_id(&request.into_inner().volume_id)?;
        super::attach::detach(&self.0, volume).await?;
        Ok(Response::new(DetachVolumeResponse {}))
    }

    async fn get_attachment(&self, request: Request<GetAttachmentRequest>) -> Answer<Attachment> {
        let volume = validate::volume_id(&request.into_inner().volume_id)?;
        self.attachment(volume).await.map(Response::new)
    }

    async fn resize_device(
        &self,
        request: Request<ResizeDeviceRequest>,
    ) -> Answer<ResizeDeviceResponse> {
        let volume = validate::volume_id(&request.into_inner().volume_id)?;
        let size_bytes = super::attach::resize(&self.0, volume).await?;
        Ok(Response::new(ResizeDeviceResponse { size_bytes }))
    }

    async fn compare_replicas(
        &self,
        request: Request<CompareReplicasRequest>,
    ) -> Answer<CompareReplicasResponse> {
        let volume = validate::volume_id(&request.into_inner().volume_id)?;
        self.compare(volume).await.map(Response::new)
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Answer<GetNodeResponse> {
        self.this_node().await.map(Response::new)
    }

    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Answer<GetClusterResponse> {
        self.cluster().await.map(Response::new)
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Answer<AddNodeResponse> {
        self.add(request.into_inner()).await?;
        Ok(Response::new(AddNodeResponse {}))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        self.remove(validate::node_id("node", request.into_inner().node)?).await?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn note_failover(
        &self,
        request: Request<NoteFailoverRequest>,
    ) -> Answer<NoteFailoverResponse> {
        self.note(request.into_inner()).await?;
        Ok(Response::new(NoteFailoverResponse {}))
    }

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let WatchEventsRequest { after, volume_id } = request.into_inner();
        if !volume_id.is_empty() {
            validate::volume_id(&volume_id)?;
        }
        Ok(Response::new(self.watch(after, volume_id)))
    }
}
