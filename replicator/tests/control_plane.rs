//! Three whole daemons in one process, with real Raft, pools (files) and loopback sockets, driven
//! through their control sockets: the life of a volume, and a failover.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use client::api::{AddNodeRequest, Attachment, CreateVolumeRequest, ModifyVolumeRequest, Volume};
use client::{Client, Error};
use common::{Cluster, PATIENCE, addresses, until, volume_of};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

const SIZE: u64 = 32 << 20;

fn request(name: &str) -> CreateVolumeRequest {
    volume_of(name, SIZE)
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code()
}

async fn in_sync(client: &Client, volume: &Volume) -> Volume {
    until("all replicas are in sync", async || {
        let volume = client.get_volume(&volume.volume_id).await.ok()?;
        (!volume.degraded).then_some(volume)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_life_of_a_volume() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client(2);

    let volume = client.create_volume(request("v")).await.unwrap();
    assert_eq!((volume.size_bytes, volume.replicas.len(), volume.degraded), (SIZE, 2, false));
    assert!(volume.replicas.iter().any(|replica| replica.node == 1), "the preferred node");
    let again = cluster.client(3).create_volume(request("v")).await.unwrap();
    assert_eq!(again.volume_id, volume.volume_id, "idempotent by name, whoever is asked");
    let other = CreateVolumeRequest { size_bytes: 2 * SIZE, ..request("v") };
    assert_eq!(code(client.create_volume(other).await), Code::AlreadyExists);
    let huge = CreateVolumeRequest { size_bytes: 1 << 40, ..request("huge") };
    assert_eq!(code(client.create_volume(huge).await), Code::ResourceExhausted);

    client.create_volume(request("w")).await.unwrap();
    let page = client.list_volumes(1, "").await.unwrap();
    assert_eq!(page.volumes.len(), 1);
    let rest = client.list_volumes(0, &page.next).await.unwrap();
    assert_eq!((rest.volumes.len(), rest.next.as_str()), (1, ""));
    assert_ne!(page.volumes[0].volume_id, rest.volumes[0].volume_id);

    let id = volume.volume_id.as_str();
    let one = cluster.client(1);
    let attached = one.attach_volume(id, "nbd").await.unwrap();
    assert!(!attached.failed && attached.device.is_empty() && attached.epoch == 1);
    assert!(PathBuf::from(&attached.nbd_socket).exists());
    let same = one.attach_volume(id, "nbd").await.unwrap();
    assert_eq!(same.epoch, attached.epoch, "an attachment that works is returned");
    let refused = client.attach_volume(id, "nbd").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("node 1"), "{refused}");
    assert_eq!(code(client.delete_volume(id).await), Code::FailedPrecondition);
    assert_eq!(code(client.get_attachment(id).await), Code::NotFound);

    let grown = client.expand_volume(id, 2 * SIZE).await.unwrap();
    assert_eq!(grown.size_bytes, 2 * SIZE);
    assert_eq!(one.resize_device(id).await.unwrap(), 2 * SIZE);
    assert_eq!(one.get_attachment(id).await.unwrap().size_bytes, 2 * SIZE);
    let compared = one.compare_replicas(id).await.unwrap();
    assert_eq!((compared.replicas, compared.different_blocks), (2, 0));

    one.detach_volume(id).await.unwrap();
    one.detach_volume(id).await.unwrap();
    assert!(!PathBuf::from(&attached.nbd_socket).exists());
    let moved = client.attach_volume(id, "nbd").await.unwrap();
    assert_eq!(moved.epoch, 2);

    // A clean stop gives the volume back.
    cluster.node(2).stop().await;
    let released = until("the stopped node's volume is free", async || {
        let volume = one.get_volume(id).await.ok()?;
        (volume.attached_node == 0).then_some(volume)
    });
    released.await;
    one.delete_volume(id).await.unwrap();
    one.delete_volume(id).await.unwrap();
    let names: Vec<String> =
        one.list_volumes(0, "").await.unwrap().volumes.into_iter().map(|v| v.name).collect();
    assert!(names.contains(&"w".to_owned()));
    for node in [1, 3] {
        cluster.node(node).stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_outlives_its_node() {
    let mut cluster = Cluster::start().await;
    let volume = cluster.client(1).create_volume(request("v")).await.unwrap();
    let id = volume.volume_id.clone();
    let before = cluster.client(1).attach_volume(&id, "nbd").await.unwrap();
    let survivor = volume.replicas.iter().map(|replica| replica.node).find(|node| *node != 1);
    let survivor = usize::try_from(survivor.unwrap()).unwrap();
    let client = cluster.client(survivor);

    let mut events = client.watch_events(0, &id).await.unwrap();
    cluster.node(1).kill();
    let killed = Instant::now();
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("sealed") {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap();
        seen.push(event.unwrap().kind);
    }
    let fenced = killed.elapsed();
    assert!(seen.contains(&"fenced".to_owned()), "{seen:?}");
    assert!(fenced > Duration::from_secs(2), "lost after 3 s of silence, not {fenced:?}");

    let after = client.attach_volume(&id, "nbd").await.unwrap();
    assert!(after.epoch > before.epoch + 1, "fence and attach each take an epoch");
    let record = client.get_volume(&id).await.unwrap();
    assert_eq!(record.attached_node, survivor as u64);
    assert!(record.degraded, "down to one copy it says so");

    // The node comes back: it is up again, its replica is resynced, and it holds nothing.
    cluster.node(1).start();
    cluster.ready(1).await;
    in_sync(&client, &volume).await;
    let one = cluster.client(1);
    one.detach_volume(&id).await.unwrap();
    assert_eq!(code(one.attach_volume(&id, "nbd").await), Code::FailedPrecondition);
    let compared = client.compare_replicas(&id).await.unwrap();
    assert_eq!((compared.replicas, compared.different_blocks), (2, 0));
    let attachment: Attachment = client.get_attachment(&id).await.unwrap();
    assert!(!attachment.failed);
}

/// R14: a new run of the daemon attaches again at the next epoch, without any fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restarted_daemon_attaches_again() {
    let mut cluster = Cluster::start().await;
    let volume = cluster.client(1).create_volume(request("v")).await.unwrap();
    let id = volume.volume_id.as_str();
    let first = cluster.client(1).attach_volume(id, "nbd").await.unwrap();
    cluster.node(1).kill();
    cluster.node(1).start();
    cluster.ready(1).await;
    assert_eq!(code(cluster.client(1).get_attachment(id).await), Code::NotFound);
    assert!(!PathBuf::from(&first.nbd_socket).exists(), "what the former run left is removed");
    let second = cluster.client(1).attach_volume(id, "nbd").await.unwrap();
    assert!(second.epoch > first.epoch && !second.failed);
}

/// Learner first, voter once it caught up; it leaves only when it holds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_joins_serves_votes_and_leaves() {
    let mut cluster = Cluster::start().await;
    let [control, data] = addresses();
    cluster.add([control.clone(), data]);
    cluster.node(4).start();
    let client = cluster.client(1);
    // The name by which it registers itself, which may happen between the two calls.
    let add = AddNodeRequest { node: 4, name: "node-4".into(), control_address: control };
    client.add_node(add.clone()).await.unwrap();
    client.add_node(add).await.unwrap();
    let role = async || {
        let nodes = client.get_cluster().await.ok()?.nodes;
        Some(nodes.into_iter().find(|node| node.node == 4).map(|node| node.raft_role))
    };
    until("the new node votes", async || (role().await?.as_deref() == Some("voter")).then_some(()))
        .await;
    cluster.ready(4).await;

    let wanted = CreateVolumeRequest { preferred_nodes: vec![4], ..request("v") };
    let volume = client.create_volume(wanted).await.unwrap();
    assert!(volume.replicas.iter().any(|replica| replica.node == 4), "its pool is used");
    let refused = client.remove_node(4).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("1 replicas"), "{refused}");

    client.delete_volume(&volume.volume_id).await.unwrap();
    until("the node is removed", async || {
        match client.remove_node(4).await {
            Ok(()) => Some(()),
            // Its replica's space is given back a moment after the volume is gone, or it leads.
            Err(error) => {
                assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
                None
            }
        }
    })
    .await;
    client.remove_node(4).await.unwrap();
    assert_eq!(role().await, Some(None));
    client.create_volume(request("w")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn copies_go_to_different_zones_and_a_pinned_one_where_it_has_to_be() {
    let zones = |settings: &mut replicator::config::Settings| {
        settings.zone = match settings.node {
            Some(1 | 2) => Some("a".to_owned()),
            _ => Some("b".to_owned()),
        };
    };
    let cluster = Cluster::start_with(zones).await;
    let client = cluster.client(1);
    let known = client.get_cluster().await.unwrap().nodes;
    let zone = |node: u64| known.iter().find(|n| n.node == node).unwrap().zone.clone();
    assert_eq!([zone(1), zone(2), zone(3)], ["a", "a", "b"]);
    assert_eq!(client.get_node().await.unwrap().zone, "a");
    let nodes = |volume: &Volume| {
        let mut nodes: Vec<u64> = volume.replicas.iter().map(|replica| replica.node).collect();
        nodes.sort_unstable();
        nodes
    };
    for (number, first) in [1, 2].into_iter().enumerate() {
        let wanted =
            CreateVolumeRequest { preferred_nodes: vec![first], ..request(&format!("v{number}")) };
        let volume = client.create_volume(wanted).await.unwrap();
        assert_eq!(nodes(&volume), [first, 3]);
    }
    let pinned = |preferred_nodes| CreateVolumeRequest {
        placement: "local".to_owned(),
        preferred_nodes,
        ..request("pinned")
    };
    let refused = client.create_volume(pinned(vec![9])).await;
    assert_eq!(code(refused), Code::ResourceExhausted);
    let volume = client.create_volume(pinned(vec![2])).await.unwrap();
    assert_eq!((nodes(&volume), volume.placement.as_str()), (vec![2, 3], "local"));
    assert_eq!(code(client.create_volume(request("pinned")).await), Code::AlreadyExists);

    // What cannot be had is refused, and nothing is changed by it.
    let modify = |repl, class: Option<&str>| ModifyVolumeRequest {
        volume_id: volume.volume_id.clone(),
        repl,
        priority_io: class.map(str::to_owned),
        ..ModifyVolumeRequest::default()
    };
    for (request, wanted) in [
        (modify(Some(4), None), Code::InvalidArgument),
        (modify(None, Some("fast")), Code::InvalidArgument),
        (modify(None, Some("low")), Code::ResourceExhausted),
        (
            ModifyVolumeRequest { volume_id: "x".into(), ..modify(Some(1), None) },
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(code(client.modify_volume(request).await), wanted);
    }
    let now = client.get_volume(&volume.volume_id).await.unwrap();
    assert_eq!((now.repl, now.priority_io.as_str(), now.isr_version), (2, "", volume.isr_version));
    // There is no copy there to be moved; one copy less it can have at once.
    let order = |from, to| client::api::MoveReplicaRequest {
        volume_id: volume.volume_id.clone(),
        from,
        to,
    };
    assert_eq!(code(client.move_replica(order(1, 0)).await), Code::NotFound);
    client.modify_volume(modify(Some(1), None)).await.unwrap();
    until("one copy is left", async || {
        let volume = client.get_volume(&volume.volume_id).await.ok()?;
        (volume.replicas.len() == 1 && !volume.degraded).then_some(())
    })
    .await;
}
