//! One method a call; what each means is said in `control.proto`.

use crate::api::control_client::ControlClient;
use crate::api::peer_client::PeerClient;
use crate::api::{
    AddNodeRequest, AttachVolumeRequest, Attachment, CompareReplicasRequest,
    CompareReplicasResponse, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, DetachVolumeRequest, Event, ExpandVolumeRequest, FillVolumeRequest,
    GetAttachmentRequest, GetCapacityRequest, GetCapacityResponse, GetClusterRequest,
    GetClusterResponse, GetNodeRequest, GetNodeResponse, GetSnapshotRequest, GetVolumeRequest,
    HeartbeatRequest, HeartbeatResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    ListVolumesRequest, ListVolumesResponse, ModifyVolumeRequest, MoveReplicaRequest,
    NoteFailoverRequest, ProposeRequest, ProposeResponse, RemoveNodeRequest, ResizeDeviceRequest,
    Snapshot, TakeSnapshotRequest, TendVolumeRequest, Volume, WatchEventsRequest,
    YieldVolumeRequest, get_snapshot_request, get_volume_request::By,
};
use crate::route::Scope;
use crate::{ATTACH_DEADLINE, Client, Error, MAX_MESSAGE};
use core::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn peer(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// `$service.$method($request)` as a call with retries.
macro_rules! call {
    ($self:ident, $name:literal, $scope:ident, $least:expr, $service:ident.$method:ident, $request:expr) => {{
        let request = $request;
        $self
            .call($name, Scope::$scope, $least, |channel| {
                let request = request.clone();
                async move { $service(channel).$method(request).await }
            })
            .await
    }};
}

/// Calls that the leader answers, wherever they are sent.
///
/// # Errors
/// [`Error::Status`] with the leader's code, [`Error::Deadline`].
impl Client {
    /// Creates a volume; idempotent by name.
    pub async fn create_volume(&self, request: CreateVolumeRequest) -> Result<Volume, Error> {
        call!(self, "CreateVolume", Leader, Duration::ZERO, control.create_volume, request)
    }

    /// Deletes a volume; idempotent.
    pub async fn delete_volume(&self, volume_id: &str) -> Result<(), Error> {
        let request = DeleteVolumeRequest { volume_id: volume_id.to_owned() };
        call!(self, "DeleteVolume", Leader, Duration::ZERO, control.delete_volume, request)
            .map(|_| ())
    }

    /// A volume by its id; NOT_FOUND if there is none.
    pub async fn get_volume(&self, volume_id: &str) -> Result<Volume, Error> {
        self.get_volume_by(By::VolumeId(volume_id.to_owned())).await
    }

    /// A volume by its name; NOT_FOUND if there is none.
    pub async fn get_volume_by_name(&self, name: &str) -> Result<Volume, Error> {
        self.get_volume_by(By::Name(name.to_owned())).await
    }

    async fn get_volume_by(&self, by: By) -> Result<Volume, Error> {
        let request = GetVolumeRequest { by: Some(by) };
        call!(self, "GetVolume", Leader, Duration::ZERO, control.get_volume, request)
    }

    /// A volume whose text is its id or, failing that, its name: for people.
    pub async fn find_volume(&self, id_or_name: &str) -> Result<Volume, Error> {
        match self.get_volume(id_or_name).await {
            Err(error) if matches!(error.code(), Code::NotFound | Code::InvalidArgument) => {
                self.get_volume_by_name(id_or_name).await
            }
            other => other,
        }
    }

    /// One page of volumes, ordered by id.
    pub async fn list_volumes(
        &self,
        max_entries: u32,
        starting_after: &str,
    ) -> Result<ListVolumesResponse, Error> {
        let starting_after = starting_after.to_owned();
        let request = ListVolumesRequest { max_entries, starting_after };
        call!(self, "ListVolumes", Leader, Duration::ZERO, control.list_volumes, request)
    }

    /// Changes how many copies a volume has, and of which class.
    pub async fn modify_volume(&self, request: ModifyVolumeRequest) -> Result<Volume, Error> {
        call!(self, "ModifyVolume", Leader, Duration::ZERO, control.modify_volume, request)
    }

    /// Moves a copy of a volume to another node.
    pub async fn move_replica(&self, request: MoveReplicaRequest) -> Result<Volume, Error> {
        call!(self, "MoveReplica", Leader, Duration::ZERO, control.move_replica, request)
    }

    /// Grows a volume to at least `size_bytes` (R25).
    pub async fn expand_volume(&self, volume_id: &str, size_bytes: u64) -> Result<Volume, Error> {
        let request = ExpandVolumeRequest { volume_id: volume_id.to_owned(), size_bytes };
        call!(self, "ExpandVolume", Leader, Duration::ZERO, control.expand_volume, request)
    }

    /// Takes a snapshot of a volume; idempotent by name.
    pub async fn create_snapshot(&self, name: &str, volume_id: &str) -> Result<Snapshot, Error> {
        let request =
            CreateSnapshotRequest { name: name.to_owned(), volume_id: volume_id.to_owned() };
        call!(self, "CreateSnapshot", Leader, Duration::ZERO, control.create_snapshot, request)
    }

    /// Deletes a snapshot; idempotent.
    pub async fn delete_snapshot(&self, snapshot_id: &str) -> Result<(), Error> {
        let request = DeleteSnapshotRequest { snapshot_id: snapshot_id.to_owned() };
        call!(self, "DeleteSnapshot", Leader, Duration::ZERO, control.delete_snapshot, request)
            .map(|_| ())
    }

    /// A snapshot by its id; NOT_FOUND if there is none.
    pub async fn get_snapshot(&self, snapshot_id: &str) -> Result<Snapshot, Error> {
        self.get_snapshot_by(get_snapshot_request::By::SnapshotId(snapshot_id.to_owned())).await
    }

    /// A snapshot by its name; NOT_FOUND if there is none.
    pub async fn get_snapshot_by_name(&self, name: &str) -> Result<Snapshot, Error> {
        self.get_snapshot_by(get_snapshot_request::By::Name(name.to_owned())).await
    }

    async fn get_snapshot_by(&self, by: get_snapshot_request::By) -> Result<Snapshot, Error> {
        let request = GetSnapshotRequest { by: Some(by) };
        call!(self, "GetSnapshot", Leader, Duration::ZERO, control.get_snapshot, request)
    }

    /// A snapshot whose text is its id or, failing that, its name: for people.
    pub async fn find_snapshot(&self, id_or_name: &str) -> Result<Snapshot, Error> {
        match self.get_snapshot(id_or_name).await {
            Err(error) if matches!(error.code(), Code::NotFound | Code::InvalidArgument) => {
                self.get_snapshot_by_name(id_or_name).await
            }
            other => other,
        }
    }

    /// One page of snapshots, ordered by id; of one volume, or of all if `volume_id` is empty.
    pub async fn list_snapshots(
        &self,
        max_entries: u32,
        starting_after: &str,
        volume_id: &str,
    ) -> Result<ListSnapshotsResponse, Error> {
        let (starting_after, volume_id) = (starting_after.to_owned(), volume_id.to_owned());
        let request = ListSnapshotsRequest { max_entries, starting_after, volume_id };
        call!(self, "ListSnapshots", Leader, Duration::ZERO, control.list_snapshots, request)
    }

    /// Room for a new volume with these parameters.
    pub async fn get_capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, Error> {
        call!(self, "GetCapacity", Leader, Duration::ZERO, control.get_capacity, request)
    }

    /// Nodes, Raft and volumes.
    pub async fn get_cluster(&self) -> Result<GetClusterResponse, Error> {
        call!(self, "GetCluster", Leader, Duration::ZERO, control.get_cluster, GetClusterRequest {})
    }

    /// Adds a node to Raft.
    pub async fn add_node(&self, request: AddNodeRequest) -> Result<(), Error> {
        call!(self, "AddNode", Leader, Duration::ZERO, control.add_node, request).map(|_| ())
    }

    /// Removes a node from Raft.
    pub async fn remove_node(&self, node: u64) -> Result<(), Error> {
        let request = RemoveNodeRequest { node };
        call!(self, "RemoveNode", Leader, Duration::ZERO, control.remove_node, request).map(|_| ())
    }

    /// Remembers when a step of a failover was.
    pub async fn note_failover(&self, request: NoteFailoverRequest) -> Result<(), Error> {
        call!(self, "NoteFailover", Leader, Duration::ZERO, control.note_failover, request)
            .map(|_| ())
    }

    /// Between replicators: liveness of a node.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Error> {
        call!(self, "Heartbeat", Leader, Duration::ZERO, peer.heartbeat, request)
    }

    /// Between replicators: an encoded metadata command; answered once the leader applied it.
    pub async fn propose(&self, command: Vec<u8>) -> Result<ProposeResponse, Error> {
        let request = ProposeRequest { command };
        call!(self, "Propose", Leader, Duration::ZERO, peer.propose, request)
    }
}

/// Calls between replicators about the node of the first endpoint.
///
/// # Errors
/// [`Error::Status`] with the node's code, [`Error::Deadline`].
impl Client {
    /// Has it take a snapshot that Raft has as being taken. It is asked once only: a snapshot id is one
    /// attempt, and a second one would take it of other data.
    pub async fn take_snapshot(&self, volume_id: &str, snapshot_id: &str) -> Result<(), Error> {
        let (volume_id, snapshot_id) = (volume_id.to_owned(), snapshot_id.to_owned());
        let request = TakeSnapshotRequest { volume_id, snapshot_id };
        call!(self, "TakeSnapshot", Once, Duration::ZERO, peer.take_snapshot, request).map(|_| ())
    }

    /// Has it fill a new volume; that goes on if this gives up waiting.
    pub async fn fill_volume(&self, volume_id: &str) -> Result<(), Error> {
        let request = FillVolumeRequest { volume_id: volume_id.to_owned() };
        call!(self, "FillVolume", Local, Duration::ZERO, peer.fill_volume, request).map(|_| ())
    }

    /// Has it begin to bring the replicas of a detached volume up to date.
    pub async fn tend_volume(&self, volume_id: &str) -> Result<(), Error> {
        let request = TendVolumeRequest { volume_id: volume_id.to_owned() };
        call!(self, "TendVolume", Local, Duration::ZERO, peer.tend_volume, request).map(|_| ())
    }

    /// Has it end what it does with a detached volume by itself and can go on with later.
    pub async fn yield_volume(&self, volume_id: &str) -> Result<(), Error> {
        let request = YieldVolumeRequest { volume_id: volume_id.to_owned() };
        call!(self, "YieldVolume", Once, Duration::ZERO, peer.yield_volume, request).map(|_| ())
    }
}

/// Calls about the node of the first endpoint.
///
/// # Errors
/// [`Error::Status`] with the node's code, [`Error::Deadline`].
impl Client {
    /// Attaches a volume there; `front_end` is `""`, `"fuse-loop"` or `"nbd"`. Takes at most the
    /// longer of the client's deadline and [`ATTACH_DEADLINE`].
    pub async fn attach_volume(
        &self,
        volume_id: &str,
        front_end: &str,
    ) -> Result<Attachment, Error> {
        let request =
            AttachVolumeRequest { volume_id: volume_id.to_owned(), frontend: front_end.to_owned() };
        let response =
            call!(self, "AttachVolume", Local, ATTACH_DEADLINE, control.attach_volume, request)?;
        response.attachment.ok_or_else(|| Error::Status {
            call: "AttachVolume",
            endpoint: String::new(),
            status: Box::new(Status::internal("the answer holds no attachment")),
        })
    }

    /// Detaches a volume; idempotent.
    pub async fn detach_volume(&self, volume_id: &str) -> Result<(), Error> {
        let request = DetachVolumeRequest { volume_id: volume_id.to_owned() };
        call!(self, "DetachVolume", Local, ATTACH_DEADLINE, control.detach_volume, request)
            .map(|_| ())
    }

    /// The attachment there; NOT_FOUND if the volume is not attached there.
    pub async fn get_attachment(&self, volume_id: &str) -> Result<Attachment, Error> {
        let request = GetAttachmentRequest { volume_id: volume_id.to_owned() };
        call!(self, "GetAttachment", Local, Duration::ZERO, control.get_attachment, request)
    }

    /// Grows the attached device to the volume's committed size; returns it in bytes.
    pub async fn resize_device(&self, volume_id: &str) -> Result<u64, Error> {
        let request = ResizeDeviceRequest { volume_id: volume_id.to_owned() };
        call!(self, "ResizeDevice", Local, Duration::ZERO, control.resize_device, request)
            .map(|response| response.size_bytes)
    }

    /// Compares all in-sync replicas of a volume attached there. Reads all of it: set a deadline.
    pub async fn compare_replicas(
        &self,
        volume_id: &str,
    ) -> Result<CompareReplicasResponse, Error> {
        let request = CompareReplicasRequest { volume_id: volume_id.to_owned() };
        call!(self, "CompareReplicas", Local, Duration::ZERO, control.compare_replicas, request)
    }

    /// The node.
    pub async fn get_node(&self) -> Result<GetNodeResponse, Error> {
        call!(self, "GetNode", Local, Duration::ZERO, control.get_node, GetNodeRequest {})
    }
}

/// Calls that any member answers.
///
/// # Errors
/// [`Error::Status`], [`Error::Deadline`].
impl Client {
    /// Events after index `after` (0: all that are still remembered), then as they happen, as
    /// seen by the first endpoint that answers. The stream itself has no deadline; when it
    /// breaks, call again with the last index.
    pub async fn watch_events(
        &self,
        after: u64,
        volume_id: &str,
    ) -> Result<Streaming<Event>, Error> {
        let request = WatchEventsRequest { after, volume_id: volume_id.to_owned() };
        call!(self, "WatchEvents", Any, Duration::ZERO, control.watch_events, request)
    }
}
