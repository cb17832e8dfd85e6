//! The control plane of a node: gRPC services, liveness, fencing, replicas, attachments.
//!
//! It decides nothing that Raft should decide and touches no data: it proposes commands, watches
//! the applied state, and tells the data thread what follows from it.

mod attach;
mod convert;
mod events;
mod farewell;
mod heartbeat;
mod isr;
mod leader;
mod peer;
mod propose;
mod reconcile;
mod record;
mod server;
mod service;
mod snapshots;
pub mod status;
mod steps;
pub mod transport;

pub use attach::{Attachments, Keeper};
pub use events::Events;
pub use leader::Roll;
pub use propose::Proposer;
pub use server::{ListenError, listen_tcp, listen_unix};

use crate::config::Config;
use crate::data::{DataEvent, DataHandle};
use crate::meta::MetaHandle;
use client::MAX_MESSAGE;
use client::api::control_server::ControlServer;
use client::api::peer_server::PeerServer;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use frontend::select::{NoFrontend, Selection};
use metadata::{NewReplica, NodeInfo, PoolInfo};
use std::sync::Arc;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Server;
use tonic::transport::server::Router;
use transport::{Sender, Transport};
use types::{BootId, EngineInstance, Incarnation, NodeId, PoolId, Process, ReplicaId};
use uuid::Uuid;

/// Pings of the server on idle connections, and how long they may stay unanswered: dead clients
/// must not keep connections for ever.
const PING: Duration = Duration::from_secs(5);
/// Requests at a time on one connection.
const STREAMS: u32 = 256;
/// How long requests may take to end when the daemon ends.
const GRACE: Duration = Duration::from_millis(500);

/// Everything the parts of the control plane share.
pub struct Node {
    config: Config,
    boot: BootId,
    process: Process,
    pool: PoolInfo,
    meta: MetaHandle,
    data: DataHandle,
    proposer: Proposer,
    transport: Transport,
    roll: Roll,
    events: Events,
    attachments: Attachments,
    keeper: Arc<Keeper>,
    snapshots: snapshots::InFlight,
    /// How the kernel reaches volumes here.
    frontend: Result<Selection, NoFrontend>,
    /// SIGTERM came.
    leaving: AtomicBool,
}

impl Node {
    /// Whether SIGTERM came: this daemon ends, and the next one is expected.
    fn restarting(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// The kernel device that this node chose.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with what the kernel lacks.
    fn kernel_device(&self) -> Result<attach::Frontend, Status> {
        match &self.frontend {
            Ok(selection) => Ok(attach::Frontend::Kernel(selection.kind)),
            Err(error) => Err(Status::failed_precondition(error.to_string())),
        }
    }

    /// What this node says of itself.
    fn info(&self) -> NodeInfo {
        NodeInfo {
            node: self.config.node,
            name: self.config.name.clone(),
            control_address: self.config.control_address.to_string(),
            data_address: self.config.data_address.to_string(),
            pool: Some(self.pool),
            class: Some(self.config.priority_io),
            zone: self.config.zone.clone(),
            boot: self.boot,
            process: self.process.run,
        }
    }

    async fn pool_free(&self) -> u64 {
        self.data.pool().await.map_or(0, |pool| pool.free)
    }
}

/// A replica that nobody has heard of yet, on `node`.
fn new_replica(node: NodeId) -> NewReplica {
    NewReplica {
        replica: ReplicaId(Uuid::new_v4()),
        incarnation: Incarnation(Uuid::new_v4()),
        node,
    }
}

/// The parts that were started before.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// Boot of the host.
    pub boot: BootId,
    /// The pool that is served.
    pub pool: PoolInfo,
    /// Raft.
    pub meta: MetaHandle,
    /// What Raft wants to send.
    pub outbound: Receiver<(NodeId, Vec<u8>)>,
    /// The data thread.
    pub data: DataHandle,
    /// What it reports.
    pub data_events: UnboundedReceiver<DataEvent>,
    /// Bound to the control address.
    pub tcp: TcpListener,
    /// Bound to the control socket.
    pub unix: UnixListener,
    /// Kernel devices of a former daemon.
    pub legacy: Legacy,
}

/// What a former daemon of this node left: kernel devices, and the link to their holder.
#[derive(Debug)]
pub struct Legacy {
    keeper: Arc<Keeper>,
    devices: Vec<attach::Inherited>,
}

impl Legacy {
    /// Takes it over, and removes the devices, mounts and sockets that nobody kept. Blocking;
    /// to be called before anything is served.
    #[must_use]
    pub fn inherit(config: &Config) -> Self {
        let keeper = Arc::new(Keeper::new(config));
        let devices = attach::inherit(&keeper, config);
        Self { keeper, devices }
    }
}

/// Why the control plane ended unasked.
#[derive(Debug, Error)]
pub enum RunError {
    /// A listener failed for good.
    #[error("the control API cannot be served: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The data thread is gone, and with it everything this node serves.
    #[error("the data thread ended unexpectedly")]
    DataEnded,
    /// Another pool than the one that holds this node's replicas (R11).
    #[error(
        "the pool is {found}, but this node's replicas are in pool {expected}: give it that one back, or replace the node"
    )]
    PoolSwapped {
        /// The pool in metadata.
        expected: PoolId,
        /// The pool that this daemon opened.
        found: PoolId,
    },
    /// Raft is gone: without it this node may not serve.
    #[error("metadata failed: {0}")]
    MetaEnded(String),
}

/// Runs the control plane until `stop` becomes true; then attachments are closed cleanly where
/// they can be.
///
/// # Errors
/// [`RunError`].
pub async fn run(parts: Parts, stop: watch::Receiver<bool>) -> Result<(), RunError> {
    let Parts { config, boot, pool, meta, outbound, data, data_events, tcp, unix, legacy } = parts;
    let sender =
        Sender { cluster: config.cluster, node: config.node, address: config.control_address };
    let transport = Transport::new(sender);
    for (node, address) in &config.peers {
        transport.set_peer(*node, *address);
    }
    let frontend = frontend::select::select(config.frontend);
    match &frontend {
        Ok(Selection { kind, reason }) => {
            tracing::info!(node = %config.node, frontend = kind.name(), reason, "kernel devices");
        }
        Err(error) => {
            tracing::warn!(node = %config.node, %error, "volumes can only be attached for NBD clients");
        }
    }
    let node = Arc::new(Node {
        boot,
        process: Process { node: config.node, boot, run: EngineInstance(Uuid::new_v4()) },
        pool,
        proposer: Proposer::new(config.node, meta.clone(), config.peers.clone()),
        transport,
        roll: Roll::default(),
        events: Events::new(config.node),
        attachments: Attachments::default(),
        keeper: legacy.keeper,
        snapshots: snapshots::InFlight::default(),
        frontend,
        leaving: AtomicBool::new(false),
        meta,
        data,
        config,
    });

    let resumptions = attach::claim(&node.attachments, legacy.devices);

    let mut tasks = JoinSet::new();
    tasks.spawn(node.transport.clone().run(outbound));
    tasks.spawn(node.events.clone().follow(node.meta.clone()));
    tasks.spawn(follow_addresses(Arc::clone(&node)));
    tasks.spawn(heartbeat::run(Arc::clone(&node)));
    tasks.spawn(leader::run(Arc::clone(&node)));
    tasks.spawn(reconcile::run(Arc::clone(&node)));
    tasks.spawn(record::run(Arc::clone(&node)));
    tasks.spawn(attach::follow(Arc::clone(&node)));
    tasks.spawn(attach::guard(Arc::clone(&node)));
    tasks.spawn(attach::release_dead(Arc::clone(&node)));
    for resumption in resumptions {
        tasks.spawn(attach::resume(Arc::clone(&node), resumption));
    }

    let ended = |mut stop: watch::Receiver<bool>| async move {
        // An error means that nobody can stop this any more: it ends as well.
        drop(stop.wait_for(|stop| *stop).await);
    };
    let serve_tcp = router(&node).serve_with_incoming_shutdown(
        ReceiverStream::new(server::accept(tcp)),
        ended(stop.clone()),
    );
    let serve_unix = router(&node).serve_with_incoming_shutdown(
        ReceiverStream::new(server::accept(unix)),
        ended(stop.clone()),
    );
    let serving = async { tokio::try_join!(serve_tcp, serve_unix).map(drop) };
    tokio::pin!(serving);
    let data_ended = isr::follow(Arc::clone(&node), data_events);
    tokio::pin!(data_ended);
    let result = tokio::select! {
        result = &mut serving => result.map_err(RunError::from),
        () = &mut data_ended => Err(RunError::DataEnded),
        expected = reconcile::swapped(&node) => {
            Err(RunError::PoolSwapped { expected, found: node.pool.id })
        }
        reason = node.meta.stopped() => {
            Err(RunError::MetaEnded(reason.map_or_else(|| "it ended".to_owned(), |r| r.to_string())))
        }
        () = ended(stop.clone()) => {
            // Peers keep their streams open: they are not waited for longer than this.
            let graceful = tokio::time::timeout(GRACE, &mut serving);
            let closing = async {
                let hand_over = farewell::hand_over_leadership(&node);
                let (graceful, ..) =
                    tokio::join!(graceful, hand_over, attach::detach_mortal(&node));
                // Last, because from here on I/O waits for the next daemon.
                heartbeat::take_leave(&node).await;
                attach::retire_all(&node).await;
                graceful
            };
            tokio::select! {
                graceful = closing => graceful.unwrap_or(Ok(())).map_err(RunError::from),
                () = &mut data_ended => Err(RunError::DataEnded),
            }
        }
    };
    node.transport.stop();
    result
}

/// Who may be asked: the members of the state, at the addresses that they have there.
async fn follow_addresses(node: Arc<Node>) {
    let mut applied = node.meta.watch();
    loop {
        applied.borrow_and_update();
        for member in node.meta.state().nodes.values() {
            if let Ok(address) = member.control_address.parse() {
                node.transport.set_peer(member.node, address);
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

fn router(node: &Arc<Node>) -> Router {
    let control = ControlServer::new(service::ControlService(Arc::clone(node)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let peer = PeerServer::new(peer::PeerService(Arc::clone(node)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Server::builder()
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING))
        .max_concurrent_streams(STREAMS)
        .add_service(control)
        .add_service(peer)
}
