//! Data threads of several nodes in one process, on real pools (files), loopback sockets and the
//! NBD front-end, without Raft: the test plays the control plane.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::bed::{Bed, SIZE};
use replicator::data::{self, DataEvent};
use std::time::Duration;
use types::{EngineInstance, Epoch, NodeId, Process};
use uuid::Uuid;
use wire::{Hello, Role, WireError};

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
        sealed: Epoch(0),
        epoch: Epoch(epoch),
        instance: EngineInstance(Uuid::from_u128(7)),
        process: Process { node: NodeId(9), ..Process::default() },
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
