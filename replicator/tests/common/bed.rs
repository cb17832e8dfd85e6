//! Data threads of several nodes without Raft: the test plays the control plane.

use super::nbd::Client;
use engine::{IsrAnswer, IsrView, MemberSpec};
use replicator::data::{self, DataConfig, DataEvent, DataHandle, EngineSpec};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;
use types::{
    BootId, ClusterId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, Process,
    ReplicaId, VolumeId,
};
use uuid::Uuid;

pub const SIZE: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A node: a data thread over a pool.
pub struct Node {
    pub id: NodeId,
    pub pool: PathBuf,
    pub address: SocketAddr,
    pub running: Option<(DataHandle, UnboundedReceiver<DataEvent>, JoinHandle<()>)>,
    pub replica: ReplicaId,
    pub incarnation: Incarnation,
}

/// Data threads, and what Raft would know.
pub struct Bed {
    pub dir: TempDir,
    pub cluster: ClusterId,
    pub volume: VolumeId,
    pub nodes: Vec<Node>,
    pub version: IsrVersion,
    pub isr: Vec<ReplicaId>,
}

impl Bed {
    pub async fn new(nodes: u64) -> Self {
        // Not /tmp: the pool needs direct I/O, which a tmpfs may not have.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let cluster = ClusterId(Uuid::new_v4());
        let volume = VolumeId(Uuid::new_v4());
        let mut bed =
            Self { dir, cluster, volume, nodes: vec![], version: IsrVersion(1), isr: vec![] };
        for id in 1..=nodes {
            let pool = bed.dir.path().join(format!("pool{id}"));
            std::fs::File::create(&pool).unwrap().set_len(256 << 20).unwrap();
            data::init_pool(&pool, cluster, PoolId(Uuid::new_v4()), false).unwrap();
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let replica = ReplicaId(Uuid::new_v4());
            let incarnation = Incarnation(Uuid::new_v4());
            bed.nodes.push(Node {
                id: NodeId(id),
                pool,
                address,
                running: None,
                replica,
                incarnation,
            });
            bed.isr.push(replica);
            bed.run(bed.nodes.len() - 1);
            let node = &bed.nodes[bed.nodes.len() - 1];
            bed.handle(bed.nodes.len() - 1)
                .admin(store::Admin::CreateReplica {
                    volume,
                    replica: node.replica,
                    incarnation: node.incarnation,
                    size: SIZE,
                })
                .await
                .unwrap();
        }
        bed
    }

    pub fn run(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let config = DataConfig {
            pool: node.pool.clone(),
            cluster: self.cluster,
            expected_pool: None,
            boot: BootId(Uuid::from_u128(1)),
            listener: TcpListener::bind(node.address).unwrap(),
            scrub: Duration::from_secs(7 * 86_400),
            cpu: None,
        };
        node.running = Some(data::start(config).unwrap());
    }

    pub fn halt(&mut self, index: usize) {
        let (handle, _, thread) = self.nodes[index].running.take().unwrap();
        handle.shutdown();
        thread.join().unwrap();
    }

    pub fn handle(&self, index: usize) -> DataHandle {
        self.nodes[index].running.as_ref().unwrap().0.clone()
    }

    pub fn members(&self, at: usize) -> Vec<MemberSpec> {
        let member = |(index, node): (usize, &Node)| MemberSpec {
            replica: node.replica,
            incarnation: node.incarnation,
            sealed: Epoch(0),
            node: node.id,
            address: (index != at).then_some(node.address),
            in_isr: self.isr.contains(&node.replica),
            lost: false,
        };
        self.nodes.iter().enumerate().map(member).collect()
    }

    /// Attaches on node `at`; returns a client of its NBD socket.
    pub async fn attach(&mut self, at: usize, epoch: u64) -> Client {
        let spec = EngineSpec {
            cluster: self.cluster,
            volume: self.volume,
            size: SIZE,
            epoch: Epoch(epoch),
            instance: EngineInstance(Uuid::new_v4()),
            process: Process { node: self.nodes[at].id, ..Process::default() },
            resumed: false,
            isr_version: self.version,
            members: self.members(at),
        };
        let handle = self.handle(at);
        self.isr = timeout(PATIENCE, handle.start_engine(spec)).await.unwrap().unwrap();
        self.version = IsrVersion(self.version.0 + 1);
        handle.activate(self.volume, self.view()).await.unwrap();
        let socket = self.dir.path().join(format!("nbd{at}-{epoch}"));
        handle.attach_nbd(self.volume, UnixListener::bind(&socket).unwrap()).await.unwrap();
        Client::connect(&socket, SIZE)
    }

    pub fn view(&self) -> IsrView {
        IsrView { version: self.version, isr: self.isr.clone() }
    }

    /// Plays Raft for the next change that the engine on `at` asks for.
    pub async fn grant(&mut self, at: usize) -> DataEvent {
        let events = &mut self.nodes[at].running.as_mut().unwrap().1;
        let event = loop {
            let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
            if matches!(event, DataEvent::ShrinkIsr { .. } | DataEvent::GrowIsr { .. }) {
                break event;
            }
        };
        let ticket = match &event {
            DataEvent::ShrinkIsr { remove, ticket, .. } => {
                self.isr.retain(|replica| !remove.contains(replica));
                *ticket
            }
            DataEvent::GrowIsr { add, ticket, .. } => {
                self.isr.push(*add);
                *ticket
            }
            other => panic!("unexpected {other:?}"),
        };
        self.version = IsrVersion(self.version.0 + 1);
        self.handle(at).isr_changed(self.volume, ticket, IsrAnswer::View(self.view()));
        event
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].running.is_some() {
                self.halt(index);
            }
        }
    }
}
