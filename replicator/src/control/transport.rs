//! Raft messages to the other nodes: one task a peer, with its own connection and a bounded queue.
//!
//! Raft tolerates loss, so that nothing here ever waits: a full queue or a missing connection drops
//! the message. What must be quick is coming back, so that Raft works within a second or two after
//! a cut is healed.

#[cfg(test)]
mod tests;

use client::api::RaftMessage;
use client::api::peer_client::PeerClient;
use client::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_MESSAGE};
use core::net::SocketAddr;
use core::time::Duration;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use types::{ClusterId, NodeId};

/// Metadata key of the sender's cluster on a Raft stream: messages of another one are refused.
pub const CLUSTER: &str = "holdfast-cluster";
/// Messages that may wait for a peer; more are dropped (Raft sends them again).
const QUEUE: usize = 256;
/// A connect that takes longer is tried again: a lost SYN must not cost a second.
const CONNECT: Duration = Duration::from_millis(500);
/// A peer that takes nothing for so long is connected to anew.
const STUCK: Duration = Duration::from_secs(3);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(150);

/// Who is sending.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its control address, so that a node which does not know it yet can answer.
    pub address: SocketAddr,
}

struct Peer {
    address: SocketAddr,
    queue: mpsc::Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

/// The outgoing half of the Raft transport; cheap to clone.
#[derive(Clone)]
pub struct Transport {
    sender: Arc<Sender>,
    peers: Arc<Mutex<BTreeMap<NodeId, Peer>>>,
}

impl Transport {
    /// Without peers.
    #[must_use]
    pub fn new(sender: Sender) -> Self {
        Self { sender: Arc::new(sender), peers: Arc::default() }
    }

    /// `node` is reached at `address` from now on.
    pub fn set_peer(&self, node: NodeId, address: SocketAddr) {
        if node == self.sender.node {
            return;
        }
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.get(&node).is_some_and(|peer| peer.address == address) {
            return;
        }
        let (queue, messages) = mpsc::channel(QUEUE);
        let task = tokio::spawn(link(Arc::clone(&self.sender), node, address, messages));
        if let Some(former) = peers.insert(node, Peer { address, queue, task }) {
            former.task.abort();
        }
    }

    /// `node` is reached at `address` unless another address is known.
    pub fn learn_peer(&self, node: NodeId, address: SocketAddr) {
        let known = self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&node);
        if !known {
            self.set_peer(node, address);
        }
    }

    /// Queues a message for `node`; dropped if there is no room or no such peer.
    pub fn send(&self, node: NodeId, message: Vec<u8>) {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match peers.get(&node) {
            None => tracing::debug!(peer = %node, "no address for a raft message"),
            Some(peer) => {
                if peer.queue.try_send(message).is_err() {
                    tracing::debug!(peer = %node, "raft message dropped: the queue is full");
                }
            }
        }
    }

    /// Sends what Raft hands out until it ends.
    pub async fn run(self, mut outbound: mpsc::Receiver<(NodeId, Vec<u8>)>) {
        while let Some((node, message)) = outbound.recv().await {
            self.send(node, message);
        }
    }

    /// Ends all connections.
    pub fn stop(&self) {
        let peers = self.peers.lock().map(|mut peers| std::mem::take(&mut *peers));
        for peer in peers.unwrap_or_default().into_values() {
            peer.task.abort();
        }
    }
}

/// Keeps a connection to `peer` and feeds it, for ever.
async fn link(
    sender: Arc<Sender>,
    peer: NodeId,
    address: SocketAddr,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    let Ok(uri) = Uri::try_from(format!("http://{address}")) else {
        tracing::error!(%peer, %address, "the peer's address makes no URI");
        return;
    };
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    // Said once a change, not once an attempt.
    let mut up = None;
    loop {
        let error = match endpoint.connect().await {
            Err(error) => error.to_string(),
            Ok(channel) => {
                if up != Some(true) {
                    tracing::info!(%peer, %address, "raft link is up");
                }
                up = Some(true);
                // What was queued without a connection is stale.
                while queue.try_recv().is_ok() {}
                match feed(&sender, channel, &mut queue).await {
                    Ok(()) => return,
                    Err(status) => status.message().to_owned(),
                }
            }
        };
        if up != Some(false) {
            tracing::warn!(%peer, %address, error, "raft link is down");
        }
        up = Some(false);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Feeds one connection until it breaks, or the queue ends.
async fn feed(
    sender: &Sender,
    channel: Channel,
    queue: &mut mpsc::Receiver<Vec<u8>>,
) -> Result<(), Status> {
    let (stream, messages) = mpsc::channel(QUEUE);
    let mut request = Request::new(ReceiverStream::new(messages));
    let cluster: MetadataValue<Ascii> = sender
        .cluster
        .to_string()
        .parse()
        .map_err(|_| Status::internal("the cluster id is no metadata value"))?;
    request.metadata_mut().insert(CLUSTER, cluster);
    let mut client = PeerClient::new(channel).max_encoding_message_size(MAX_MESSAGE);
    let mut call = pin!(client.raft(request));
    let mut stuck_since: Option<Instant> = None;
    loop {
        tokio::select! {
            answer = &mut call => {
                return Err(answer.err().unwrap_or_else(|| Status::unavailable("the peer ended the stream")));
            }
            message = queue.recv() => {
                let Some(message) = message else { return Ok(()) };
                let from_address = sender.address.to_string();
                let message = RaftMessage { from: sender.node.0, message, from_address };
                // Full: the peer is slower than Raft, and Raft sends again; or nobody reads there.
                if stream.try_send(message).is_ok() {
                    stuck_since = None;
                } else if stuck_since.get_or_insert_with(Instant::now).elapsed() >= STUCK {
                    return Err(Status::unavailable("the peer takes no more messages"));
                }
            }
        }
    }
}
