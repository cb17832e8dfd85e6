#![allow(clippy::unwrap_used)]

use super::*;
use client::api::peer_server::{Peer, PeerServer};
use client::api::{
    FillVolumeRequest, FillVolumeResponse, HeartbeatRequest, HeartbeatResponse, ProposeRequest,
    ProposeResponse, RaftResponse, TakeSnapshotRequest, TakeSnapshotResponse, TendVolumeRequest,
    TendVolumeResponse, YieldVolumeRequest, YieldVolumeResponse,
};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Streaming};
use uuid::Uuid;

/// A peer that writes down what it gets, but for the first so many streams, which it leaves unread.
struct Recorder(mpsc::UnboundedSender<(u64, Vec<u8>)>, AtomicUsize);

#[tonic::async_trait]
impl Peer for Recorder {
    async fn raft(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<RaftResponse>, Status> {
        assert!(request.metadata().get(CLUSTER).is_some());
        let mut messages = request.into_inner();
        if self.1.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            return std::future::pending().await;
        }
        while let Some(message) = messages.message().await? {
            self.0.send((message.from, message.message)).unwrap();
        }
        Ok(Response::new(RaftResponse {}))
    }
    async fn heartbeat(
        &self,
        _: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn propose(
        &self,
        _: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn take_snapshot(
        &self,
        _: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn fill_volume(
        &self,
        _: Request<FillVolumeRequest>,
    ) -> Result<Response<FillVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn tend_volume(
        &self,
        _: Request<TendVolumeRequest>,
    ) -> Result<Response<TendVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn yield_volume(
        &self,
        _: Request<YieldVolumeRequest>,
    ) -> Result<Response<YieldVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

type Received = mpsc::UnboundedReceiver<(u64, Vec<u8>)>;

async fn serve(listener: TcpListener) -> (Received, JoinHandle<()>) {
    serve_but_for(0, listener).await
}

async fn serve_but_for(unread: usize, listener: TcpListener) -> (Received, JoinHandle<()>) {
    let (send, received) = mpsc::unbounded_channel();
    let recorder = Recorder(send, AtomicUsize::new(unread));
    let router = tonic::transport::Server::builder().add_service(PeerServer::new(recorder));
    let incoming = TcpListenerStream::new(listener);
    // Connections live and die with this runtime task tree.
    let task = tokio::spawn(async move {
        router.serve_with_incoming(incoming).await.unwrap();
    });
    (received, task)
}

fn transport() -> Transport {
    Transport::new(Sender {
        cluster: ClusterId(Uuid::from_u128(1)),
        node: NodeId(1),
        address: "127.0.0.1:1".parse().unwrap(),
    })
}

/// Sends numbered messages until one arrives; returns it.
async fn until_received(transport: &Transport, received: &mut Received) -> (u64, Vec<u8>) {
    let arrival = async {
        loop {
            transport.send(NodeId(2), b"hello".to_vec());
            if let Ok(Some(message)) = timeout(Duration::from_millis(20), received.recv()).await {
                return message;
            }
        }
    };
    timeout(Duration::from_secs(5), arrival).await.unwrap()
}

#[tokio::test]
async fn messages_arrive_in_order_with_their_sender() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport();
    transport.set_peer(NodeId(2), listener.local_addr().unwrap());
    let (mut received, _task) = serve(listener).await;
    assert_eq!(until_received(&transport, &mut received).await, (1, b"hello".to_vec()));
    for number in 0..100u8 {
        transport.send(NodeId(2), vec![number]);
    }
    let mut last = None;
    while last != Some(99) {
        let (_, message) = timeout(Duration::from_secs(5), received.recv()).await.unwrap().unwrap();
        if message != b"hello" {
            assert!(last.is_none_or(|last| last < message[0]));
            last = Some(message[0]);
        }
    }
}

#[tokio::test]
async fn a_peer_that_comes_late_or_moves_is_reached_within_a_second() {
    // An address where nobody listens yet.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let transport = transport();
    transport.set_peer(NodeId(2), address);
    for _ in 0..10_000 {
        transport.send(NodeId(2), vec![0]); // Never blocks, whatever the peer does.
    }
    tokio::time::sleep(PAUSE).await;
    let (mut received, _task) = serve(TcpListener::bind(address).await.unwrap()).await;
    let begin = tokio::time::Instant::now();
    until_received(&transport, &mut received).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());

    let moved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    transport.set_peer(NodeId(2), moved.local_addr().unwrap());
    let (mut received, _moved_task) = serve(moved).await;
    until_received(&transport, &mut received).await;
}

#[tokio::test]
async fn a_peer_that_leaves_a_stream_unread_gets_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport();
    transport.set_peer(NodeId(2), listener.local_addr().unwrap());
    let (mut received, _task) = serve_but_for(1, listener).await;
    let arrival = async {
        loop {
            transport.send(NodeId(2), vec![7; 64 << 10]);
            if timeout(Duration::from_millis(5), received.recv()).await.is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), arrival).await.unwrap();
}

#[tokio::test]
async fn an_unknown_peer_or_oneself_is_ignored() {
    let transport = transport();
    transport.send(NodeId(9), vec![1]);
    transport.set_peer(NodeId(1), "127.0.0.1:1".parse().unwrap());
    assert!(transport.peers.lock().unwrap().is_empty());
    transport.learn_peer(NodeId(2), "127.0.0.1:2".parse().unwrap());
    transport.learn_peer(NodeId(2), "127.0.0.1:3".parse().unwrap());
    let known = transport.peers.lock().unwrap()[&NodeId(2)].address;
    assert_eq!(known.port(), 2, "what is known is not overruled by a message");
    transport.stop();
}
