//! A Control service that gives one prepared answer, and counts.

use crate::api::control_server::{Control, ControlServer};
use crate::api::*;
use crate::{LEADER_ADDRESS, LEADER_ID};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(super) enum Answer {
    Volume,
    Redirect(String),
    UnavailableThen(usize),
    NotFound,
}

pub(super) struct Fake {
    pub(super) calls: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
    address: String,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn tcp(answer: Answer) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self::serve(answer, address, |router, ended| async move {
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), ended).await
        })
    }

    pub(super) async fn unix(path: &Path, answer: Answer) -> Self {
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        Self::serve(answer, String::new(), |router, ended| async move {
            router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), ended).await
        })
    }

    fn serve<F, S>(answer: Answer, address: String, serve: S) -> Self
    where
        S: FnOnce(tonic::transport::server::Router, Ended) -> F,
        F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
    {
        let (end, ended) = oneshot::channel::<()>();
        let answer = Arc::new(Mutex::new(answer));
        let calls = Arc::new(AtomicUsize::new(0));
        let service = Service { calls: Arc::clone(&calls), answer: Arc::clone(&answer) };
        let router = Server::builder().add_service(ControlServer::new(service));
        let ended: Ended = Box::pin(async move { drop(ended.await) });
        let serving = serve(router, ended);
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { calls, answer, address, end: Some(end), task }
    }

    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    pub(super) fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
        self.calls.store(0, Ordering::Relaxed);
    }

    /// Returns once every connection is closed.
    pub(super) async fn stop(mut self) {
        drop(self.end.take());
        self.task.await.unwrap();
    }
}

type Ended = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

struct Service {
    calls: Arc<AtomicUsize>,
    answer: Arc<Mutex<Answer>>,
}

impl Service {
    fn answer<T>(&self, good: impl FnOnce() -> T) -> Result<Response<T>, Status> {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        match &*self.answer.lock().unwrap() {
            Answer::UnavailableThen(times) if before < *times => {
                Err(Status::unavailable("no leader now"))
            }
            Answer::Volume | Answer::UnavailableThen(_) => Ok(Response::new(good())),
            Answer::NotFound => Err(Status::not_found("no volume v")),
            Answer::Redirect(address) => {
                let mut status = Status::failed_precondition("not the leader");
                status.metadata_mut().insert(LEADER_ID, "1".parse().unwrap());
                status.metadata_mut().insert(LEADER_ADDRESS, address.parse().unwrap());
                Err(status)
            }
        }
    }
}

type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Service {
    type WatchEventsStream = tokio_stream::Empty<Result<Event, Status>>;

    async fn create_volume(&self, _: Request<CreateVolumeRequest>) -> Answered<Volume> {
        self.answer(Volume::default)
    }
    async fn delete_volume(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Answered<DeleteVolumeResponse> {
        self.answer(DeleteVolumeResponse::default)
    }
    async fn note_failover(
        &self,
        _: Request<NoteFailoverRequest>,
    ) -> Answered<NoteFailoverResponse> {
        self.answer(NoteFailoverResponse::default)
    }
    async fn get_volume(&self, _: Request<GetVolumeRequest>) -> Answered<Volume> {
        self.answer(|| Volume { volume_id: "v".to_owned(), ..Volume::default() })
    }
    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Answered<ListVolumesResponse> {
        self.answer(ListVolumesResponse::default)
    }
    async fn expand_volume(&self, _: Request<ExpandVolumeRequest>) -> Answered<Volume> {
        self.answer(Volume::default)
    }
    async fn modify_volume(&self, _: Request<ModifyVolumeRequest>) -> Answered<Volume> {
        self.answer(Volume::default)
    }
    async fn move_replica(&self, _: Request<MoveReplicaRequest>) -> Answered<Volume> {
        self.answer(Volume::default)
    }
    async fn create_snapshot(&self, _: Request<CreateSnapshotRequest>) -> Answered<Snapshot> {
        self.answer(Snapshot::default)
    }
    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Answered<DeleteSnapshotResponse> {
        self.answer(DeleteSnapshotResponse::default)
    }
    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Answered<Snapshot> {
        self.answer(Snapshot::default)
    }
    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Answered<ListSnapshotsResponse> {
        self.answer(ListSnapshotsResponse::default)
    }
    async fn get_capacity(&self, _: Request<GetCapacityRequest>) -> Answered<GetCapacityResponse> {
        self.answer(GetCapacityResponse::default)
    }
    async fn attach_volume(
        &self,
        _: Request<AttachVolumeRequest>,
    ) -> Answered<AttachVolumeResponse> {
        self.answer(AttachVolumeResponse::default)
    }
    async fn detach_volume(
        &self,
        _: Request<DetachVolumeRequest>,
    ) -> Answered<DetachVolumeResponse> {
        self.answer(DetachVolumeResponse::default)
    }
    async fn get_attachment(&self, _: Request<GetAttachmentRequest>) -> Answered<Attachment> {
        self.answer(Attachment::default)
    }
    async fn resize_device(
        &self,
        _: Request<ResizeDeviceRequest>,
    ) -> Answered<ResizeDeviceResponse> {
        self.answer(ResizeDeviceResponse::default)
    }
    async fn compare_replicas(
        &self,
        _: Request<CompareReplicasRequest>,
    ) -> Answered<CompareReplicasResponse> {
        self.answer(CompareReplicasResponse::default)
    }
    async fn get_node(&self, _: Request<GetNodeRequest>) -> Answered<GetNodeResponse> {
        self.answer(GetNodeResponse::default)
    }
    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Answered<GetClusterResponse> {
        self.answer(GetClusterResponse::default)
    }
    async fn add_node(&self, _: Request<AddNodeRequest>) -> Answered<AddNodeResponse> {
        self.answer(AddNodeResponse::default)
    }
    async fn remove_node(&self, _: Request<RemoveNodeRequest>) -> Answered<RemoveNodeResponse> {
        self.answer(RemoveNodeResponse::default)
    }
    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Answered<Self::WatchEventsStream> {
        self.answer(tokio_stream::empty)
    }
}
