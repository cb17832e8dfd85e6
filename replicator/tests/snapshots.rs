//! R26 with whole daemons: snapshots of a volume in use and of one that is not, volumes that begin with them,
//! copies that are lost and return, and the deletion of all of it in any order.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use client::api::create_volume_request::Source;
use client::api::{CreateVolumeRequest, Snapshot, Volume, VolumeState};
use client::{Client, Error};
use common::{Cluster, nbd, until, volume_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tonic::Code;

const SIZE: u64 = 16 << 20;
const MIB: u64 = 1 << 20;

fn request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { fs_type: "ext4".to_owned(), ..volume_of(name, SIZE) }
}

fn restored(name: &str, snapshot: &Snapshot) -> CreateVolumeRequest {
    let source = Some(Source::SourceSnapshotId(snapshot.snapshot_id.clone()));
    CreateVolumeRequest { source, ..request(name) }
}

fn cloned(name: &str, volume: &Volume) -> CreateVolumeRequest {
    let source = Some(Source::SourceVolumeId(volume.volume_id.clone()));
    CreateVolumeRequest { source, ..request(name) }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code()
}

async fn attach(client: &Client, volume: &Volume) -> nbd::Client {
    let attached = client.attach_volume(&volume.volume_id, "nbd").await.unwrap();
    nbd::Client::connect(attached.nbd_socket.as_ref(), volume.size_bytes)
}

async fn content(disk: &nbd::Client, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in (0..size).step_by(MIB as usize) {
        bytes.extend(disk.read(offset, MIB as usize).await.unwrap());
    }
    bytes
}

/// What `volume` holds, read on `client`'s node.
async fn holds(client: &Client, volume: &Volume) -> Vec<u8> {
    let disk = attach(client, volume).await;
    let bytes = content(&disk, volume.size_bytes).await;
    let compared = client.compare_replicas(&volume.volume_id).await.unwrap();
    assert_eq!(compared.different_blocks, 0, "{}", volume.name);
    drop(disk);
    client.detach_volume(&volume.volume_id).await.unwrap();
    bytes
}

async fn free(client: &Client) -> u64 {
    client.get_node().await.unwrap().pool_free_bytes
}

/// The nodes that have it, sorted.
fn nodes(snapshot: &Snapshot) -> Vec<String> {
    let mut nodes = snapshot.holders.clone();
    nodes.sort_unstable();
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_life_of_a_snapshot() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.client(1), cluster.client(2));
    let mut empty = Vec::new();
    for node in 1..=3 {
        empty.push(free(&cluster.client(node)).await);
    }
    let volume = one.create_volume(request("v")).await.unwrap();
    let id = volume.volume_id.as_str();
    let disk = attach(&one, &volume).await;
    disk.write(0, 0xa5, 3 << 20).await.unwrap();
    disk.write(9 << 20, 0x11, 4096).await.unwrap();
    let first_content = content(&disk, SIZE).await;
    let first = two.create_snapshot("first", id).await.unwrap();
    assert!(first.ready && first.holders.len() == 2, "{first:?}");
    let shown = (first.volume_id.as_str(), first.size_bytes, first.fs_type.as_str());
    assert_eq!(shown, (id, SIZE, "ext4"));
    disk.write(MIB, 0x5a, 2 << 20).await.unwrap();
    disk.write(12 << 20, 0x22, 8192).await.unwrap();
    let second_content = content(&disk, SIZE).await;
    assert_ne!(first_content, second_content);
    let second = two.create_snapshot("second", id).await.unwrap();
    let again = one.create_snapshot("first", id).await.unwrap();
    assert_eq!(again, first, "idempotent by name");
    disk.write(0, 0x77, 4096).await.unwrap();
    let third_content = content(&disk, SIZE).await;

    // Found, and listed by pages and by volume.
    assert_eq!(one.get_snapshot(&first.snapshot_id).await.unwrap(), first);
    assert_eq!(one.get_snapshot_by_name("second").await.unwrap(), second);
    let page = one.list_snapshots(1, "", id).await.unwrap();
    let rest = one.list_snapshots(0, &page.next, "").await.unwrap();
    let mut listed: Vec<_> = page.snapshots.into_iter().chain(rest.snapshots).collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(listed, [first.clone(), second.clone()]);
    let other = one.create_volume(request("other")).await.unwrap();
    assert!(one.list_snapshots(0, "", &other.volume_id).await.unwrap().snapshots.is_empty());

    // What cannot be is refused.
    let taken = one.create_snapshot("first", &other.volume_id).await;
    assert_eq!(code(taken), Code::AlreadyExists);
    assert_eq!(code(one.create_snapshot("", id).await), Code::InvalidArgument);
    assert_eq!(code(one.create_snapshot("x", "x").await), Code::InvalidArgument);
    let unknown = first.snapshot_id.replace(|c: char| c.is_ascii_digit(), "0");
    assert_eq!(code(one.create_snapshot("x", &unknown).await), Code::NotFound);
    assert_eq!(code(one.get_snapshot(&unknown).await), Code::NotFound);
    one.delete_snapshot(&unknown).await.unwrap();
    let small = CreateVolumeRequest { size_bytes: MIB, ..restored("r", &first) };
    assert_eq!(code(one.create_volume(small).await), Code::OutOfRange);
    let small = CreateVolumeRequest { size_bytes: MIB, ..cloned("r", &volume) };
    assert_eq!(code(one.create_volume(small).await), Code::OutOfRange);
    let nothing = Snapshot { snapshot_id: unknown.clone(), ..first.clone() };
    assert_eq!(code(one.create_volume(restored("r", &nothing)).await), Code::NotFound);
    one.delete_volume(&other.volume_id).await.unwrap();

    // Restored and cloned while the source is in use; each is a volume of its own.
    let larger = CreateVolumeRequest { size_bytes: 2 * SIZE, ..restored("r1", &first) };
    let r1 = one.create_volume(larger.clone()).await.unwrap();
    assert_eq!((r1.state(), r1.degraded), (VolumeState::Detached, false));
    assert_eq!(r1.source_snapshot_id, first.snapshot_id);
    assert_eq!(one.create_volume(larger).await.unwrap().volume_id, r1.volume_id);
    assert_eq!(code(one.create_volume(restored("r1", &second)).await), Code::AlreadyExists);
    let clone = two.create_volume(cloned("clone", &volume)).await.unwrap();
    assert_eq!(clone.source_volume_id, id);
    assert_eq!(
        two.create_volume(cloned("clone", &volume)).await.unwrap().volume_id,
        clone.volume_id
    );
    assert_eq!(
        one.list_snapshots(0, "", "").await.unwrap().snapshots.len(),
        2,
        "none of the clone"
    );
    let found = holds(&two, &r1).await;
    assert!(found[..SIZE as usize] == first_content, "as it was at the first snapshot");
    assert!(found[SIZE as usize..].iter().all(|byte| *byte == 0), "and zeros behind it");
    assert!(holds(&two, &clone).await == third_content, "as it was at the time");
    assert!(content(&disk, SIZE).await == third_content, "the source is what it was");

    // Detached it can be taken too; then the source goes first.
    drop(disk);
    one.detach_volume(id).await.unwrap();
    let third = one.create_snapshot("third", id).await.unwrap();
    assert_eq!(nodes(&third).len(), 2);
    let kept = two.get_volume(id).await.unwrap();
    assert_eq!((kept.state(), kept.attached_node), (VolumeState::Detached, 0));
    one.delete_snapshot(&second.snapshot_id).await.unwrap();
    assert_eq!(code(one.get_snapshot(&second.snapshot_id).await), Code::NotFound);
    one.delete_volume(id).await.unwrap();
    one.delete_volume(id).await.unwrap();
    assert_eq!(code(one.get_volume(id).await), Code::NotFound);
    assert_eq!(code(one.attach_volume(id, "nbd").await), Code::NotFound);
    assert_eq!(code(one.create_snapshot("x", id).await), Code::NotFound);
    let names = |volumes: Vec<Volume>| volumes.into_iter().map(|v| v.name).collect::<Vec<_>>();
    let listed = names(one.list_volumes(0, "").await.unwrap().volumes);
    assert!(!listed.contains(&"v".to_owned()), "{listed:?}");
    let successor = one.create_volume(request("v")).await.unwrap();
    assert_ne!(successor.volume_id, id, "its name is free");
    let left = one.list_snapshots(0, "", id).await.unwrap().snapshots;
    assert_eq!(left.len(), 2);
    let r3 = one.create_volume(restored("r3", &third)).await.unwrap();
    assert!(holds(&one, &r3).await == third_content);
    let single =
        CreateVolumeRequest { repl: 1, preferred_nodes: vec![3], ..restored("r4", &first) };
    let r4 = one.create_volume(single).await.unwrap();
    assert!(holds(&one, &r4).await == first_content);

    // All of it goes, and so does the space.
    for volume in [&r1, &clone, &successor, &r3, &r4] {
        one.delete_volume(&volume.volume_id).await.unwrap();
    }
    for snapshot in [&third, &first] {
        one.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
        one.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
    }
    for (node, empty) in (1..=3).zip(empty) {
        let client = cluster.client(node);
        until("the space is free again", async || (free(&client).await == empty).then_some(()))
            .await;
    }
    // The record of a volume that was kept for its snapshots goes after the space: when Raft hears of it.
    until("nothing is listed", async || {
        one.get_cluster().await.unwrap().volumes.is_empty().then_some(())
    })
    .await;
}

/// A snapshot outlives each copy of its volume, and one that returns is given what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_returning_copy_gets_the_snapshots_that_it_missed() {
    let mut cluster = Cluster::start().await;
    let one = cluster.client(1);
    let volume = one.create_volume(request("v")).await.unwrap();
    let id = volume.volume_id.as_str();
    let other = volume.replicas.iter().map(|r| r.node).find(|node| *node != 1).unwrap();
    let index = usize::try_from(other).unwrap();
    let witness = cluster.client(5 - index);
    let disk = attach(&one, &volume).await;
    disk.write(0, 1, 4 << 20).await.unwrap();
    let first = one.create_snapshot("first", id).await.unwrap();
    let first_content = content(&disk, SIZE).await;

    cluster.node(index).kill();
    until("it says that it is degraded", async || {
        one.get_volume(id).await.ok().filter(|volume| volume.degraded)
    })
    .await;
    let mut missed = Vec::new();
    for round in 1..=3_u8 {
        disk.write(u64::from(round) * MIB, 0x10 + round, 2 << 20).await.unwrap();
        let snapshot = one.create_snapshot(&format!("missed{round}"), id).await.unwrap();
        assert_eq!(snapshot.holders.len(), 1, "{snapshot:?}");
        missed.push((snapshot, content(&disk, SIZE).await));
    }
    // Meanwhile one is deleted that the absent copy has.
    let gone = one.create_snapshot("gone", id).await.unwrap();
    one.delete_snapshot(&gone.snapshot_id).await.unwrap();
    disk.write(8 << 20, 0x99, MIB as usize).await.unwrap();

    cluster.node(index).start();
    cluster.ready(index).await;
    until("the copy is in sync again", async || {
        one.get_volume(id).await.ok().filter(|volume| !volume.degraded)
    })
    .await;
    for (snapshot, _) in &missed {
        let now = one.get_snapshot(&snapshot.snapshot_id).await.unwrap();
        assert_eq!(now.holders.len(), 2, "who is in sync has it");
    }
    let compared = one.compare_replicas(id).await.unwrap();
    assert_eq!((compared.replicas, compared.different_blocks), (2, 0));

    // From the copy that returned alone.
    drop(disk);
    one.detach_volume(id).await.unwrap();
    cluster.node(1).kill();
    missed.push((first, first_content));
    for (number, (snapshot, wanted)) in missed.iter().enumerate() {
        let request = CreateVolumeRequest {
            repl: 1,
            preferred_nodes: vec![5 - other],
            ..restored(&format!("r{number}"), snapshot)
        };
        let volume = until("it is restored from the copy that is left", async || {
            witness.create_volume(request.clone()).await.ok()
        })
        .await;
        assert!(holds(&witness, &volume).await == *wanted, "{}", snapshot.name);
    }
}

/// Blocks that the writer of the next test goes around.
const ROUND: u64 = 4096;
const BLOCK: u64 = 4096;

/// Where the write with that number goes: all over the volume, each block once a round.
fn place(number: u64) -> u64 {
    number.wrapping_mul(2_654_435_761) % ROUND
}

/// The writes 1, 2, 3, … follow each other, so what a crash leaves is all up to some number and nothing
/// after it. Returns that number.
fn last_write(bytes: &[u8]) -> u64 {
    let found: Vec<u64> = bytes
        .chunks_exact(BLOCK as usize)
        .map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()))
        .collect();
    let last = *found.iter().max().unwrap();
    for number in (1..=last).rev().take(ROUND as usize) {
        let there = found[usize::try_from(place(number)).unwrap()];
        assert_eq!(there, number, "write {last} is there, so {number} is");
    }
    last
}

/// Under load it holds what was written up to one moment between the call and its answer, and the same on
/// every copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_load_is_one_moment_on_every_copy() {
    const { assert!(ROUND * BLOCK == SIZE) };
    let cluster = Cluster::start().await;
    let one = cluster.client(1);
    let volume = one.create_volume(request("v")).await.unwrap();
    let id = volume.volume_id.as_str();
    let other = volume.replicas.iter().map(|r| r.node).find(|node| *node != 1).unwrap();
    let disk = attach(&one, &volume).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = tokio::spawn({
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let number = written.load(Ordering::Relaxed) + 1;
                let mut block = vec![0x33; BLOCK as usize];
                block[..8].copy_from_slice(&number.to_le_bytes());
                disk.put(place(number) * BLOCK, block).await.unwrap();
                written.store(number, Ordering::Relaxed);
            }
        }
    });
    let mut taken = Vec::new();
    for round in 1..=3_u64 {
        until("enough is written", async || {
            (written.load(Ordering::Relaxed) > round * 300).then_some(())
        })
        .await;
        let before = written.load(Ordering::Relaxed);
        let snapshot = one.create_snapshot(&format!("s{round}"), id).await.unwrap();
        // One write may be there that is not acknowledged yet.
        taken.push((snapshot, before..=written.load(Ordering::Relaxed) + 1));
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    for (number, (snapshot, moments)) in taken.iter().enumerate() {
        let mut copies = Vec::new();
        // Each filled where a copy of the source is, and so from that.
        for node in [1, other] {
            let request = CreateVolumeRequest {
                repl: 1,
                preferred_nodes: vec![node],
                ..restored(&format!("r{number}on{node}"), snapshot)
            };
            let restored = one.create_volume(request).await.unwrap();
            assert_eq!(restored.replicas[0].node, node);
            copies.push(holds(&one, &restored).await);
        }
        assert!(copies[0] == copies[1], "{}", snapshot.name);
        let last = last_write(&copies[0]);
        assert!(moments.contains(&last), "{last} is not in {moments:?}");
    }
}

/// A snapshot that cannot be taken leaves nothing, and the name is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failed_attempt_leaves_nothing() {
    let mut cluster = Cluster::start().await;
    let two = cluster.client(2).with_deadline(std::time::Duration::from_secs(4));
    let single = CreateVolumeRequest { repl: 1, preferred_nodes: vec![1], ..request("v") };
    let volume = two.create_volume(single).await.unwrap();
    let id = volume.volume_id.as_str();
    assert_eq!(volume.replicas[0].node, 1);
    drop(attach(&cluster.client(1), &volume).await);
    cluster.node(1).kill();
    // Its engine and its only copy are gone, at first without anybody knowing.
    two.create_snapshot("s", id).await.unwrap_err();
    until("nothing is left", async || {
        let left = two.list_snapshots(0, "", "").await.ok()?.snapshots;
        left.is_empty().then_some(())
    })
    .await;
    cluster.node(1).start();
    cluster.ready(1).await;
    drop(attach(&cluster.client(1), &volume).await);
    let taken = until("it is taken", async || two.create_snapshot("s", id).await.ok()).await;
    assert!(taken.ready);
    assert_eq!(taken.holders.len(), 1);
}
