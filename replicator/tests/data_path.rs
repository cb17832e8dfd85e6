//! Data threads of several nodes in one process, on real pools (files), loopback sockets and the
//! NBD front-end, without Raft: the test plays the control plane.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::nbd::Client;
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
    BootId, ClusterId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId,
    VolumeId,
};
use uuid::Uuid;
use wire::{Hello, Role, WireError};

const SIZE: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    id: NodeId,
    pool: PathBuf,
    address: SocketAddr,
    running: Option<(DataHandle, UnboundedReceiver<DataEvent>, JoinHandle<()>)>,
    replica: ReplicaId,
    incarnation: Incarnation,
}

struct Bed {
    dir: TempDir,
    cluster: ClusterId,
    volume: VolumeId,
    nodes: Vec<Node>,
    version: IsrVersion,
    isr: Vec<ReplicaId>,
}

impl Bed {
    async fn new(nodes: u64) -> Self {
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

    fn run(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let config = DataConfig {
            pool: node.pool.clone(),
            cluster: self.cluster,
            expected_pool: None,
            boot: BootId(Uuid::from_u128(1)),
            listener: TcpListener::bind(node.address).unwrap(),
            cpu: None,
        };
        node.running = Some(data::start(config).unwrap());
    }

    fn halt(&mut self, index: usize) {
        let (handle, _, thread) = self.nodes[index].running.take().unwrap();
        handle.shutdown();
        thread.join().unwrap();
    }

    fn handle(&self, index: usize) -> DataHandle {
        self.nodes[index].running.as_ref().unwrap().0.clone()
    }

    fn members(&self, at: usize) -> Vec<MemberSpec> {
        let member = |(index, node): (usize, &Node)| MemberSpec {
            replica: node.replica,
            incarnation: node.incarnation,
            node: node.id,
            address: (index != at).then_some(node.address),
            in_isr: self.isr.contains(&node.replica),
            lost: false,
        };
        self.nodes.iter().enumerate().map(member).collect()
    }

    /// Attaches on node `at`; returns a client of its NBD socket.
    async fn attach(&mut self, at: usize, epoch: u64) -> Client {
        let spec = EngineSpec {
            cluster: self.cluster,
            volume: self.volume,
            size: SIZE,
            epoch: Epoch(epoch),
            instance: EngineInstance(Uuid::new_v4()),
            node: self.nodes[at].id,
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

    fn view(&self) -> IsrView {
        IsrView { version: self.version, isr: self.isr.clone() }
    }

    /// Plays Raft for the next change that the engine on `at` asks for.
    async fn grant(&mut self, at: usize) -> DataEvent {
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

#[tokio::test(flavor = "multi_thread")]
async fn writes_reach_both_replicas_and_reads_come_back() {
    let mut bed = Bed::new(2).await;
    let client = bed.attach(0, 1).await;
    client.write(0, 0xa5, 4096).await.unwrap();
    client.write(5 << 20, 0x5a, 1 << 20).await.unwrap();
    assert_eq!(client.read(5 << 20, 1 << 20).await.unwrap(), vec![0x5a; 1 << 20]);
    assert_eq!(client.read(4096, 4096).await.unwrap(), vec![0; 4096]);
    let compared = bed.handle(0).compare(bed.volume).await.unwrap();
    assert_eq!((compared.replicas, compared.different, compared.bytes), (2, 0, SIZE));
    drop(client);
    bed.handle(0).detach_frontends(bed.volume).await.unwrap();
    assert!(bed.handle(0).stop_engine(bed.volume).await.unwrap(), "a clean stop");
    // The other node sees the same, and the clean end costs no resync.
    let client = bed.attach(1, 2).await;
    assert_eq!(bed.isr.len(), 2);
    assert_eq!(client.read(0, 4096).await.unwrap(), vec![0xa5; 4096]);
}

/// The last answer of a session must get through on a connection of any age.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_idle_for_long_stops_clean() {
    let mut bed = Bed::new(2).await;
    let client = bed.attach(0, 1).await;
    client.write(0, 1, 4096).await.unwrap();
    // Longer than a connection may be silent before it has said whom it means.
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(client);
    bed.handle(0).detach_frontends(bed.volume).await.unwrap();
    assert!(bed.handle(0).stop_engine(bed.volume).await.unwrap(), "a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_replica_leaves_and_comes_back_by_copying_what_differs() {
    let mut bed = Bed::new(2).await;
    let client = bed.attach(0, 1).await;
    client.write(0, 1, 4 << 20).await.unwrap();
    bed.halt(1);
    let writer = {
        let client = client.clone();
        tokio::spawn(async move { client.write(8 << 20, 2, 1 << 20).await })
    };
    assert!(matches!(bed.grant(0).await, DataEvent::ShrinkIsr { .. }));
    writer.await.unwrap().unwrap();
    assert_eq!(bed.isr, [bed.nodes[0].replica]);
    bed.run(1);
    assert!(matches!(bed.grant(0).await, DataEvent::GrowIsr { .. }));
    let compared = loop {
        match bed.handle(0).compare(bed.volume).await {
            Ok(result) if result.replicas == 2 => break result,
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(compared.different, 0);
    let status = bed.handle(0).engine_status(bed.volume).await.unwrap();
    let back = status.members.iter().find(|m| m.replica == bed.nodes[1].replica).unwrap();
    assert!(back.progress.copied >= 1 << 20, "{back:?}");
    assert!(back.progress.copied < SIZE / 2, "only what may differ: {back:?}");
    drop(client);
    bed.handle(0).detach_frontends(bed.volume).await.unwrap();
    assert!(bed.handle(0).stop_engine(bed.volume).await.unwrap(), "clean again after a resync");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_epoch_fences_the_engine_before_it() {
    let mut bed = Bed::new(2).await;
    let client = bed.attach(0, 1).await;
    client.write(0, 1, 4096).await.unwrap();
    let (node, volume) = (&bed.nodes[1], bed.volume);
    let hello = |epoch: u64| Hello {
        cluster: bed.cluster,
        volume,
        replica: node.replica,
        incarnation: node.incarnation,
        epoch: Epoch(epoch),
        instance: EngineInstance(Uuid::from_u128(7)),
        node: NodeId(9),
        role: Role::Sealer,
    };
    // From another node over the wire; the read lease of the old engine runs out first (R3).
    let info = bed.handle(0).seal(hello(2), Some(node.address)).await.unwrap();
    assert_eq!(info.epoch, Epoch(2));
    let late = client.write(0, 2, 4096).await;
    assert!(late.is_err(), "a write under the old epoch was acknowledged");
    let refused = bed.handle(1).seal(hello(1), None).await;
    assert!(
        matches!(&refused, Err(data::DataError::Replica(WireError::Fenced { sealed })) if *sealed == Epoch(2)),
        "{refused:?}"
    );
}
