//! The Control service over [`State`].

use super::LoopDevice;
use super::snapshots::no_snapshot;
use proto::control::control_server::{Control, ControlServer};
use proto::control::create_volume_request::Source;
use proto::control::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

/// What the fake cluster holds; tests change it as they like.
#[derive(Debug, Default)]
pub struct State {
    pub volumes: BTreeMap<String, Volume>,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub nodes: Vec<Node>,
    pub leader: u64,
    pub ready: bool,
    pub zone: String,
    pub capacity: GetCapacityResponse,
    pub last_capacity: Option<GetCapacityRequest>,
    pub last_create: Option<CreateVolumeRequest>,
    pub attachments: BTreeMap<String, Attachment>,
    pub devices: BTreeMap<String, LoopDevice>,
    /// Devices whose detach has to wait for a guard of the test.
    pub retired: Vec<LoopDevice>,
    /// Answer of the next calls of that name.
    pub refuse: BTreeMap<&'static str, (Code, String)>,
    pub calls: Vec<&'static str>,
    /// What NoteFailover was told.
    pub notes: Vec<NoteFailoverRequest>,
    next: u64,
}

impl State {
    /// A number that no volume and no snapshot has yet.
    pub(super) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// The fake; clones share the state.
#[derive(Clone, Debug)]
pub struct FakeControl {
    state: Arc<Mutex<State>>,
    /// Closed by [`FakeControl::hold`]: calls that change something wait here.
    gate: Arc<Semaphore>,
    /// Told whenever a call arrives.
    arrivals: watch::Sender<()>,
    directory: PathBuf,
    files: PathBuf,
}

/// The fake, served on a Unix socket until dropped.
#[derive(Debug)]
pub struct FakeServer {
    pub control: FakeControl,
    pub endpoint: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
        self.control.state().devices.clear();
        self.control.state().retired.clear();
    }
}

const OPEN: usize = 1 << 20;

impl FakeControl {
    /// Three nodes, led by node 1, asked as node 1; its socket in `directory`, its volumes in `files`.
    #[must_use]
    pub fn new(directory: PathBuf, files: PathBuf) -> Self {
        let nodes = (1..=3).map(|node| Node {
            node,
            name: format!("n{node}"),
            state: "up".into(),
            ..Node::default()
        });
        let state = State { nodes: nodes.collect(), leader: 1, ready: true, ..State::default() };
        Self {
            state: Arc::new(Mutex::new(state)),
            gate: Arc::new(Semaphore::new(OPEN)),
            arrivals: watch::Sender::new(()),
            directory,
            files,
        }
    }

    /// Serves it on a Unix socket.
    pub async fn serve(self) -> FakeServer {
        let path = self.directory.join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let service = ControlServer::new(self.clone());
        let task = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        FakeServer { control: self, endpoint: format!("unix://{}", path.display()), task }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes calls wait until [`FakeControl::release`].
    pub async fn hold(&self) {
        self.gate.acquire_many(OPEN as u32).await.unwrap().forget();
    }

    pub fn release(&self) {
        self.gate.add_permits(OPEN);
    }

    /// Waits until `call` has arrived `times` times.
    pub async fn arrived(&self, call: &str, times: usize) {
        let enough = |_: &()| self.state().calls.iter().filter(|c| **c == call).count() >= times;
        self.arrivals.subscribe().wait_for(enough).await.unwrap();
    }

    /// Adds a volume without the API; returns its id.
    pub fn add_volume(&self, name: &str, size_bytes: u64) -> String {
        let mut state = self.state();
        let volume_id = format!("00000000-0000-4000-8000-{:012x}", state.next_id());
        let volume = Volume {
            volume_id: volume_id.clone(),
            name: name.into(),
            size_bytes,
            repl: 2,
            fs_type: "ext4".into(),
            state: VolumeState::Detached.into(),
            ..Volume::default()
        };
        state.volumes.insert(volume_id.clone(), volume);
        volume_id
    }

    /// Fences the attachment: its device stays, every further use is dead.
    pub fn fail(&self, volume: &str) {
        self.state().attachments.get_mut(volume).unwrap().failed = true;
    }

    async fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, State>, Status> {
        self.state().calls.push(call);
        self.arrivals.send_replace(());
        drop(self.gate.acquire().await.unwrap());
        let state = self.state();
        match state.refuse.get(call) {
            Some((code, message)) => Err(Status::new(*code, message.clone())),
            None => Ok(state),
        }
    }
}

pub(super) fn no_volume(id: &str) -> Status {
    Status::not_found(format!("volume {id:?} does not exist"))
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for FakeControl {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<Volume> {
        let request = request.into_inner();
        {
            let mut state = self.enter("CreateVolume").await?;
            state.last_create = Some(request.clone());
            if let Some(volume) = state.volumes.values_mut().find(|v| v.name == request.name) {
                volume.state = VolumeState::Detached.into();
                return Ok(Response::new(volume.clone()));
            }
            state.check_source(request.source.as_ref(), request.size_bytes)?;
        }
        let id = self.add_volume(&request.name, request.size_bytes);
        let mut state = self.state();
        let volume = state.volumes.get_mut(&id).unwrap();
        volume.repl = request.repl;
        volume.priority_io = request.priority_io;
        volume.placement = request.placement;
        volume.fs_type = request.fs_type;
        match request.source {
            Some(Source::SourceSnapshotId(id)) => volume.source_snapshot_id = id,
            Some(Source::SourceVolumeId(id)) => volume.source_volume_id = id,
            None => {}
        }
        Ok(Response::new(volume.clone()))
    }

    async fn note_failover(
        &self,
        request: Request<NoteFailoverRequest>,
    ) -> Answer<NoteFailoverResponse> {
        let mut state = self.enter("NoteFailover").await?;
        state.notes.push(request.into_inner());
        Ok(Response::new(NoteFailoverResponse {}))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Answer<DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        self.enter("DeleteVolume").await?.volumes.remove(&id).ok_or_else(|| no_volume(&id))?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Answer<Volume> {
        let state = self.enter("GetVolume").await?;
        let found = match request.into_inner().by {
            Some(get_volume_request::By::VolumeId(id)) => state.volumes.get(&id),
            Some(get_volume_request::By::Name(name)) => {
                state.volumes.values().find(|v| v.name == name)
            }
            None => None,
        };
        found.cloned().map(Response::new).ok_or_else(|| no_volume("asked for"))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        let ListVolumesRequest { max_entries, starting_after } = request.into_inner();
        let state = self.enter("ListVolumes").await?;
        let mut rest = state.volumes.values().filter(|v| v.volume_id > starting_after);
        let page = if max_entries == 0 { usize::MAX } else { max_entries as usize };
        let volumes: Vec<Volume> = rest.by_ref().take(page).cloned().collect();
        let next = match rest.next() {
            Some(_) => volumes.last().unwrap().volume_id.clone(),
            None => String::new(),
        };
        Ok(Response::new(ListVolumesResponse { volumes, next }))
    }

    async fn expand_volume(&self, request: Request<ExpandVolumeRequest>) -> Answer<Volume> {
        let ExpandVolumeRequest { volume_id, size_bytes } = request.into_inner();
        let mut state = self.enter("ExpandVolume").await?;
        let volume = state.volumes.get_mut(&volume_id).ok_or_else(|| no_volume(&volume_id))?;
        volume.size_bytes = volume.size_bytes.max(size_bytes);
        Ok(Response::new(volume.clone()))
    }

    async fn modify_volume(&self, request: Request<ModifyVolumeRequest>) -> Answer<Volume> {
        let request = request.into_inner();
        let ModifyVolumeRequest { volume_id, repl, priority_io, .. } = request;
        let mut state = self.enter("ModifyVolume").await?;
        let volume = state.volumes.get_mut(&volume_id).ok_or_else(|| no_volume(&volume_id))?;
        volume.repl = repl.unwrap_or(volume.repl);
        if let Some(priority_io) = priority_io {
            volume.priority_io = priority_io;
        }
        volume.iops_limit = request.iops_limit.unwrap_or(volume.iops_limit);
        volume.bandwidth_limit = request.bandwidth_limit.unwrap_or(volume.bandwidth_limit);
        Ok(Response::new(volume.clone()))
    }

    async fn move_replica(&self, _: Request<MoveReplicaRequest>) -> Answer<Volume> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> Answer<Snapshot> {
        let mut state = self.enter("CreateSnapshot").await?;
        state.take(request.into_inner()).map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        self.enter("DeleteSnapshot").await?.drop_snapshot(&request.into_inner().snapshot_id)?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<Snapshot> {
        let state = self.enter("GetSnapshot").await?;
        let found = state.find_snapshot(request.into_inner().by);
        found.cloned().map(Response::new).ok_or_else(|| no_snapshot("asked for"))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        let state = self.enter("ListSnapshots").await?;
        Ok(Response::new(state.page_of_snapshots(request.get_ref())))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Answer<GetCapacityResponse> {
        let mut state = self.enter("GetCapacity").await?;
        state.last_capacity = Some(request.into_inner());
        Ok(Response::new(state.capacity))
    }

    async fn attach_volume(
        &self,
        request: Request<AttachVolumeRequest>,
    ) -> Answer<AttachVolumeResponse> {
        let id = request.into_inner().volume_id;
        let file = self.files.join(&id);
        let mut state = self.enter("AttachVolume").await?;
        if let Some(attachment) = state.attachments.get(&id) {
            return Ok(Response::new(AttachVolumeResponse {
                attachment: Some(attachment.clone()),
            }));
        }
        let volume = state.volumes.get_mut(&id).ok_or_else(|| no_volume(&id))?;
        volume.epoch += 1;
        let (epoch, size_bytes) = (volume.epoch, volume.size_bytes);
        let device = LoopDevice::attach(&file, size_bytes)?;
        let attachment = Attachment {
            volume_id: id.clone(),
            epoch,
            device: device.device.to_string_lossy().into_owned(),
            size_bytes,
            ..Attachment::default()
        };
        state.devices.insert(id.clone(), device);
        state.attachments.insert(id, attachment.clone());
        Ok(Response::new(AttachVolumeResponse { attachment: Some(attachment) }))
    }

    async fn detach_volume(
        &self,
        request: Request<DetachVolumeRequest>,
    ) -> Answer<DetachVolumeResponse> {
        let id = request.into_inner().volume_id;
        let mut state = self.enter("DetachVolume").await?;
        let failed = state.attachments.remove(&id).is_some_and(|a| a.failed);
        let device = state.devices.remove(&id);
        if failed {
            // A dead device may have users for ever; nobody waits for them.
            state.retired.extend(device);
        }
        Ok(Response::new(DetachVolumeResponse {}))
    }

    async fn get_attachment(&self, request: Request<GetAttachmentRequest>) -> Answer<Attachment> {
        let id = request.into_inner().volume_id;
        let state = self.enter("GetAttachment").await?;
        state.attachments.get(&id).cloned().map(Response::new).ok_or_else(|| no_volume(&id))
    }

    async fn resize_device(
        &self,
        request: Request<ResizeDeviceRequest>,
    ) -> Answer<ResizeDeviceResponse> {
        let id = request.into_inner().volume_id;
        let mut state = self.enter("ResizeDevice").await?;
        let size_bytes = state.volumes.get(&id).ok_or_else(|| no_volume(&id))?.size_bytes;
        state.devices.get(&id).ok_or_else(|| no_volume(&id))?.grow(size_bytes)?;
        state.attachments.get_mut(&id).ok_or_else(|| no_volume(&id))?.size_bytes = size_bytes;
        Ok(Response::new(ResizeDeviceResponse { size_bytes }))
    }

    async fn get_node(&self, _: Request<GetNodeRequest>) -> Answer<GetNodeResponse> {
        let state = self.enter("GetNode").await?;
        Ok(Response::new(GetNodeResponse {
            node: 1,
            name: "n1".into(),
            leader: state.leader,
            ready: state.ready,
            zone: state.zone.clone(),
            ..GetNodeResponse::default()
        }))
    }

    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Answer<GetClusterResponse> {
        let state = self.enter("GetCluster").await?;
        Ok(Response::new(GetClusterResponse {
            leader: state.leader,
            nodes: state.nodes.clone(),
            ..GetClusterResponse::default()
        }))
    }

    async fn compare_replicas(
        &self,
        _: Request<CompareReplicasRequest>,
    ) -> Answer<CompareReplicasResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn add_node(&self, _: Request<AddNodeRequest>) -> Answer<AddNodeResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn remove_node(&self, _: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        Err(Status::unimplemented("not part of the fake"))
    }

    type WatchEventsStream = tokio_stream::Empty<Result<Event, Status>>;

    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        Err(Status::unimplemented("not part of the fake"))
    }
}
