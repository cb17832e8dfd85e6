//! R27 with whole daemons: a node of three is gone for good, its copy is rebuilt on the third one, and
//! when it comes back after all, what it had is deleted.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use client::Client;
use client::api::Volume;
use common::{Cluster, nbd, until, volume_of};

const SIZE: u64 = 32 << 20;
/// The shortest time that a daemon accepts.
const REPLACE_AFTER_SECONDS: u64 = 5;

/// Where the copies are, and how they stand.
fn copies(volume: &Volume) -> Vec<(u64, String)> {
    volume.replicas.iter().map(|replica| (replica.node, replica.standing.clone())).collect()
}

async fn content(disk: &nbd::Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in (0..SIZE).step_by(1 << 20) {
        bytes.extend(disk.read(offset, 1 << 20).await.unwrap());
    }
    bytes
}

/// Waits until exactly `nodes` have copies, all in sync.
async fn in_sync_on(client: &Client, id: &str, nodes: [u64; 2]) {
    until("the copies are where they should be", async || {
        let volume = client.get_volume(id).await.ok()?;
        let found: Vec<u64> = volume
            .replicas
            .iter()
            .filter(|replica| replica.in_sync)
            .map(|replica| replica.node)
            .collect();
        (nodes.iter().all(|node| found.contains(node)) && !volume.degraded).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_lost_copy_is_rebuilt_elsewhere_and_the_old_one_deleted_when_its_node_returns() {
    let short = |settings: &mut replicator::config::Settings| {
        settings.replace_after_seconds = Some(REPLACE_AFTER_SECONDS);
    };
    let mut cluster = Cluster::start_with(short).await;
    let one = cluster.client(1);
    let volume = one.create_volume(volume_of("v", SIZE)).await.unwrap();
    let id = volume.volume_id.as_str();
    let lost = volume.replicas.iter().map(|replica| replica.node).find(|node| *node != 1).unwrap();
    let spare = 5 - lost;
    let lost_index = usize::try_from(lost).unwrap();
    let free = async |node: u64| {
        let client = cluster.nodes[usize::try_from(node).unwrap() - 1].client();
        client.get_node().await.ok().map(|node| node.pool_free_bytes)
    };
    let empty = free(lost).await.unwrap();
    let attached = one.attach_volume(id, "nbd").await.unwrap();
    let disk = nbd::Client::connect(attached.nbd_socket.as_ref(), SIZE);
    for (offset, byte, len) in [(0, 0xa5, 3 << 20), (5 << 20, 0x5a, 4096), (31 << 20, 7, 1 << 20)] {
        disk.write(offset, byte, len).await.unwrap();
    }
    let before = content(&disk).await;
    assert!(free(lost).await.unwrap() < empty);

    cluster.node(lost_index).kill();
    let degraded = until("it says that it is degraded", async || {
        one.get_volume(id).await.ok().filter(|volume| volume.degraded)
    })
    .await;
    assert!(copies(&degraded).contains(&(1, "in sync".to_owned())), "{:?}", copies(&degraded));
    disk.write(6 << 20, 0x66, 8192).await.unwrap();
    in_sync_on(&one, id, [1, spare]).await;
    let compared = one.compare_replicas(id).await.unwrap();
    assert_eq!((compared.replicas, compared.different_blocks), (2, 0));
    let given_up = until("the lost copy is given up", async || {
        let volume = one.get_volume(id).await.ok()?;
        copies(&volume).contains(&(lost, "deleting".to_owned())).then_some(volume)
    })
    .await;
    assert_eq!(given_up.replicas.len(), 3);

    // Its node returns after all: its copy is deleted, and only that.
    cluster.node(lost_index).start();
    cluster.ready(lost_index).await;
    until("the old copy is deleted", async || {
        let volume = one.get_volume(id).await.ok()?;
        (volume.replicas.len() == 2).then_some(())
    })
    .await;
    in_sync_on(&one, id, [1, spare]).await;
    let client = cluster.client(lost_index);
    until("its space is free", async || {
        (client.get_node().await.ok()?.pool_free_bytes == empty).then_some(())
    })
    .await;

    // The new copy serves by itself.
    let mut after = before.clone();
    after[6 << 20..(6 << 20) + 8192].fill(0x66);
    assert!(content(&disk).await == after);
    drop(disk);
    one.detach_volume(id).await.unwrap();
    let new = cluster.client(usize::try_from(spare).unwrap());
    let attached = new.attach_volume(id, "nbd").await.unwrap();
    let disk = nbd::Client::connect(attached.nbd_socket.as_ref(), SIZE);
    assert!(content(&disk).await == after, "what was acknowledged is on the new copy");
}
