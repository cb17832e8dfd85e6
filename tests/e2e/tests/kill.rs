//! SIGKILL of daemons at bad moments.
#![allow(clippy::unwrap_used)]

use client::api::CreateVolumeRequest;
use e2e::{Stamped, Stamper, eventually, in_sync, lab, volume};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;

const BLOCKS: u64 = 16_384;
const SIZE: u64 = 128 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_create_is_lost_when_any_node_is_killed() {
    let lab = Arc::new(lab(3).await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let creator = tokio::spawn({
        let (lab, stop) = (Arc::clone(&lab), Arc::clone(&stop));
        async move {
            let mut acknowledged = BTreeSet::new();
            let client = lab.client(1).unwrap().with_deadline(Duration::from_secs(20));
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let request = CreateVolumeRequest {
                    name: format!("v{number}"),
                    size_bytes: 1 << 20,
                    repl: 2,
                    ..CreateVolumeRequest::default()
                };
                if let Ok(made) = client.create_volume(request).await {
                    acknowledged.insert((made.volume_id, made.name));
                }
            }
            acknowledged
        }
    });
    // Whoever leads is among them.
    for node in [1, 2, 3, 1, 2, 3] {
        sleep(Duration::from_millis(700)).await;
        lab.kill(node).unwrap();
        sleep(Duration::from_millis(500)).await;
        lab.start(node).unwrap();
        lab.wait_ready(1..=3).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = creator.await.unwrap();
    assert!(acknowledged.len() >= 5, "only {} volumes were made", acknowledged.len());
    // All at once, then they agree on it anyway.
    for node in 1..=3 {
        lab.kill(node).unwrap();
    }
    for node in 1..=3 {
        lab.start(node).unwrap();
    }
    lab.wait_ready(1..=3).await.unwrap();
    let listed = lab.client(2).unwrap().list_volumes(0, "").await.unwrap().volumes;
    let listed: Vec<_> = listed.into_iter().map(|v| (v.volume_id, v.name)).collect();
    let unique: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len());
    let lost: Vec<_> = acknowledged.difference(&unique).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_moves_when_its_node_crashes_under_load() {
    let lab = lab(3).await.unwrap();
    let id = volume(&lab, "moving", SIZE).await.unwrap().volume_id;
    let device = lab.local_client(1).unwrap().attach_volume(&id, "").await.unwrap().device;
    let stamper = Stamper::start(&PathBuf::from(device), BLOCKS, Stamped::default()).unwrap();
    eventually("some writes", || async { Ok(stamper.writes() > 2_000) }).await.unwrap();
    // With its device holder: nobody is left who could serve the device again.
    lab.crash(1).unwrap();
    let stamped = stamper.stop().unwrap();
    assert!(stamped.error.is_some(), "a device without its daemon fails, it does not hang");

    // Refused while node 1 still counts as alive, then waits for the fence, then works.
    let second = lab.local_client(2).unwrap();
    eventually("attached on node 2", || {
        let (second, id) = (second.clone(), id.clone());
        async move { Ok(second.attach_volume(&id, "").await.is_ok()) }
    })
    .await
    .unwrap();
    let device = PathBuf::from(second.get_attachment(&id).await.unwrap().device);
    stamped.check(&device).unwrap();

    let stamper = Stamper::start(&device, BLOCKS, stamped).unwrap();
    lab.start(1).unwrap();
    lab.wait_ready([1]).await.unwrap();
    in_sync(&lab, 2, &id).await.unwrap();
    let stamped = stamper.stop().unwrap();
    assert_eq!(stamped.error, None);
    stamped.check(&device).unwrap();
    let compared = second.compare_replicas(&id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));
    second.detach_volume(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_the_daemon_of_a_copy_is_killed_and_it_comes_back_equal() {
    let lab = lab(3).await.unwrap();
    let id = volume(&lab, "shrinking", SIZE).await.unwrap().volume_id;
    let first = lab.local_client(1).unwrap();
    let device = PathBuf::from(first.attach_volume(&id, "").await.unwrap().device);
    let stamper = Stamper::start(&device, BLOCKS, Stamped::default()).unwrap();
    eventually("some writes", || async { Ok(stamper.writes() > 1_000) }).await.unwrap();

    lab.kill(2).unwrap();
    eventually("the cluster says that there is one copy", || async {
        let volume = lab.client(1)?.get_volume(&id).await;
        Ok(volume.is_ok_and(|volume| volume.degraded))
    })
    .await
    .unwrap();
    let before = stamper.writes();
    eventually("writes on one copy", || async { Ok(stamper.writes() > before + 1_000) })
        .await
        .unwrap();

    lab.start(2).unwrap();
    lab.wait_ready([2]).await.unwrap();
    in_sync(&lab, 1, &id).await.unwrap();
    let stamped = stamper.stop().unwrap();
    assert_eq!(stamped.error, None);
    assert!(stamped.longest_stall_ms < 10_000, "{} ms", stamped.longest_stall_ms);
    stamped.check(&device).unwrap();
    let compared = first.compare_replicas(&id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));
    first.detach_volume(&id).await.unwrap();
}
