//! R11 with whole daemons: a node comes back with another pool of the same cluster before it has heard
//! that it has replicas by now.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use client::api::CreateVolumeRequest;
use common::{Cluster, PATIENCE, nbd, serve, until, volume_of};
use replicator::data;
use tokio::sync::watch;
use types::PoolId;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pool_that_stands_in_for_the_right_one_gets_no_replica() {
    let mut cluster = Cluster::start().await;
    let one = cluster.client(1);
    let leader = until("all three are known", async || {
        let found = one.get_cluster().await.ok()?;
        let up = found.nodes.iter().filter(|node| node.state == "up" && !node.pool_id.is_empty());
        (up.count() == 3).then_some(found.leader)
    })
    .await;
    let away = if leader == 3 { 2 } else { 3 };
    let pool = cluster.node(away).settings.pool.clone().unwrap();
    cluster.node(away).kill();
    // All three are to have a copy, and the one that is away is not missed yet.
    let request =
        CreateVolumeRequest { repl: 3, preferred_nodes: Vec::new(), ..volume_of("v", 16 << 20) };
    let creating = tokio::spawn(async move { one.create_volume(request).await });
    let one = cluster.client(1);
    let made = until("the volume is recorded", async || {
        one.list_volumes(0, "").await.ok()?.volumes.into_iter().next()
    })
    .await;
    let right = pool.with_extension("right");
    std::fs::rename(&pool, &right).unwrap();
    std::fs::File::create(&pool).unwrap().set_len(256 << 20).unwrap();
    let (id, other) = (cluster.id.parse().unwrap(), PoolId(Uuid::new_v4()));
    data::init_pool(&pool, id, other, false).unwrap();
    let config = cluster.node(away).settings.clone().check().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let served = tokio::time::timeout(PATIENCE, serve(config, stopped)).await;
    let refused = served.unwrap().unwrap_err().to_string();
    assert!(refused.contains(&other.to_string()) && refused.contains("pool"), "{refused}");
    let standing = async || {
        let volume = one.get_volume(&made.volume_id).await.ok()?;
        let copy = volume.replicas.into_iter().find(|replica| replica.node == away as u64)?;
        Some(copy.standing)
    };
    let found = until("the volume is found", async || standing().await).await;
    assert_eq!(found, "creating", "nothing was made in the other pool");

    std::fs::rename(&right, &pool).unwrap();
    cluster.node(away).start();
    until("it is made in the right one", async || {
        standing().await.filter(|standing| standing == "in sync")
    })
    .await;
    creating.abort();
}

/// A pool is put back from a copy that was made before the volume was ever written: it has all the right ids.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_older_image_of_a_pool_is_not_taken_for_what_it_was() {
    const SIZE: u64 = 16 << 20;
    let mut cluster = Cluster::start().await;
    let one = cluster.client(1);
    let volume = one.create_volume(volume_of("v", SIZE)).await.unwrap();
    let id = volume.volume_id.as_str();
    let copy = volume.replicas.iter().find(|replica| replica.node != 1).unwrap();
    let at = copy.node as usize;
    let pool = cluster.node(at).settings.pool.clone().unwrap();
    let image = pool.with_extension("image");
    cluster.node(at).stop().await;
    std::fs::copy(&pool, &image).unwrap();
    cluster.node(at).start();
    cluster.ready(at).await;

    let in_sync = async || {
        let volume = one.get_volume(id).await.ok()?;
        let ids = || volume.replicas.iter().filter(|r| r.in_sync).map(|r| r.replica_id.clone());
        (!volume.degraded).then(|| ids().collect::<Vec<_>>())
    };
    let attached = until("it is attached", async || one.attach_volume(id, "nbd").await.ok()).await;
    let device = nbd::Client::connect(attached.nbd_socket.as_ref(), SIZE);
    let both = until("both copies count", in_sync).await;
    assert!(both.contains(&copy.replica_id));
    device.write(0, 7, 4096).await.unwrap();
    device.flush().await.unwrap();
    one.detach_volume(id).await.unwrap();

    cluster.node(at).stop().await;
    std::fs::rename(&image, &pool).unwrap();
    cluster.node(at).start();
    cluster.ready(at).await;
    let there = cluster.client(at);
    let attached =
        until("it is attached there", async || there.attach_volume(id, "nbd").await.ok()).await;
    let device = nbd::Client::connect(attached.nbd_socket.as_ref(), SIZE);
    assert_eq!(device.read(0, 4096).await.unwrap(), vec![7; 4096], "not what the image holds");
    let others = until("there is another copy", in_sync).await;
    assert!(!others.contains(&copy.replica_id), "{others:?}");
    let compared = there.compare_replicas(id).await.unwrap();
    assert_eq!((compared.replicas, compared.different_blocks), (2, 0));
}
