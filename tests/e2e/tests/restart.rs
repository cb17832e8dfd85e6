//! R14: a kernel device outlives the daemon that serves it. Restarts, upgrades, and their limits.
#![allow(clippy::unwrap_used)]

use e2e::{Stamped, Stamper, TestLab, eventually, in_sync, lab, volume};
use lab::daemons::{DEVICE_HOLDER, REPLICATOR};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BLOCKS: u64 = 16_384;
const SIZE: u64 = 128 << 20;
/// After this the leader calls a silent node lost.
const LOST_AFTER: Duration = Duration::from_secs(3);
const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

async fn attached(lab: &TestLab, name: &str) -> (String, PathBuf) {
    let id = volume(lab, name, SIZE).await.unwrap().volume_id;
    let device = lab.local_client(1).unwrap().attach_volume(&id, "").await.unwrap().device;
    (id, PathBuf::from(device))
}

async fn writing(device: &Path, before: Stamped) -> Stamper {
    let stamper = Stamper::start(device, BLOCKS, before).unwrap();
    eventually("some writes", || async { Ok(stamper.writes() > 1_000) }).await.unwrap();
    stamper
}

async fn goes_on(stamper: &Stamper) {
    let before = stamper.writes();
    let more = || async { Ok(stamper.writes() > before + 500) };
    eventually("writes after the restart", more).await.unwrap();
}

async fn restarted(lab: &TestLab) {
    lab.start(1).unwrap();
    lab.wait_ready([1]).await.unwrap();
}

/// The epoch of each restart is a new one; the device, and who has it open, notice a pause only.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_outlives_kill_and_upgrade_of_its_daemon_under_load() {
    let lab = lab(3).await.unwrap();
    let (id, device) = attached(&lab, "outliving").await;
    let mut stamped = Stamped::default();
    for (round, signal) in
        [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate()
    {
        let first = lab.local_client(1).unwrap();
        let epoch = first.get_attachment(&id).await.unwrap().epoch;
        let stamper = writing(&device, stamped).await;
        lab.signal(1, REPLICATOR, signal, PATIENCE).unwrap();
        restarted(&lab).await;
        goes_on(&stamper).await;
        let now = first.get_attachment(&id).await.unwrap();
        assert!(now.epoch > epoch && !now.failed, "round {round}: {now:?}");
        assert_eq!(PathBuf::from(now.device), device, "round {round}");
        in_sync(&lab, 1, &id).await.unwrap();
        stamped = stamper.stop().unwrap();
        assert_eq!(stamped.error, None, "round {round}");
        println!("{signal}: longest stall {} ms", stamped.longest_stall_ms);
        stamped.check(&device).unwrap();
        let compared = first.compare_replicas(&id).await.unwrap();
        assert_eq!((compared.different_blocks, compared.replicas), (0, 2), "round {round}");
    }
    let first = lab.local_client(1).unwrap();
    first.detach_volume(&id).await.unwrap();
    // With nothing to keep, the holder is not needed for a restart.
    lab.signal(1, REPLICATOR, Signal::SIGTERM, PATIENCE).unwrap();
    restarted(&lab).await;
    assert!(!device.exists() || std::fs::read(sys_backing(&device)).is_err(), "the device is gone");
}

fn sys_backing(device: &Path) -> PathBuf {
    PathBuf::from("/sys/block").join(device.file_name().unwrap()).join("loop/backing_file")
}

/// A restart that was announced takes longer than a lost node may be silent: nobody takes the volume away.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upgrade_is_not_a_lost_node() {
    let lab = lab(3).await.unwrap();
    let (id, device) = attached(&lab, "slow").await;
    let stamper = writing(&device, Stamped::default()).await;
    lab.signal(1, REPLICATOR, Signal::SIGTERM, PATIENCE).unwrap();
    // Twice as long as the leader waits for a node that said nothing.
    tokio::time::sleep(2 * LOST_AFTER).await;
    restarted(&lab).await;
    goes_on(&stamper).await;
    let stamped = stamper.stop().unwrap();
    assert_eq!(stamped.error, None);
    stamped.check(&device).unwrap();
    let first = lab.local_client(1).unwrap();
    assert!(!first.get_attachment(&id).await.unwrap().failed);
    first.detach_volume(&id).await.unwrap();
}

/// The holder may die as well, as long as the daemon lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_holder_is_found_for_one_that_was_killed() {
    let lab = lab(1).await.unwrap();
    let client = lab.local_client(1).unwrap();
    let request = client::api::CreateVolumeRequest {
        name: "kept".into(),
        size_bytes: SIZE,
        repl: 1,
        ..Default::default()
    };
    let id = client.create_volume(request).await.unwrap().volume_id;
    let device = PathBuf::from(client.attach_volume(&id, "").await.unwrap().device);
    let stamper = writing(&device, Stamped::default()).await;
    let first = lab.processes(1, DEVICE_HOLDER).unwrap();
    assert_eq!(first.len(), 1);
    first[0].signal(Signal::SIGKILL).unwrap();
    let replaced = || async {
        let now = lab.processes(1, DEVICE_HOLDER)?;
        Ok(now.iter().any(|process| *process != first[0]))
    };
    eventually("another holder", replaced).await.unwrap();
    // It keeps the device once it has said so; the daemon's death shows it.
    goes_on(&stamper).await;
    lab.signal(1, REPLICATOR, Signal::SIGKILL, PATIENCE).unwrap();
    restarted(&lab).await;
    goes_on(&stamper).await;
    let stamped = stamper.stop().unwrap();
    assert_eq!(stamped.error, None);
    stamped.check(&device).unwrap();
    client.detach_volume(&id).await.unwrap();
}

/// Once the volume was fenced, its old device may not come back to life: promise 3.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_volume_went_elsewhere_fails_and_is_removed() {
    let lab = lab(3).await.unwrap();
    let (id, device) = attached(&lab, "gone").await;
    let stamper = writing(&device, Stamped::default()).await;
    lab.signal(1, REPLICATOR, Signal::SIGKILL, PATIENCE).unwrap();
    let second = lab.local_client(2).unwrap();
    eventually("attached on node 2", || async { Ok(second.attach_volume(&id, "").await.is_ok()) })
        .await
        .unwrap();
    restarted(&lab).await;
    let stamped = stamper.stop().unwrap();
    assert!(stamped.error.is_some(), "the device of a superseded epoch must fail");
    let first = lab.local_client(1).unwrap();
    assert!(first.get_attachment(&id).await.is_err());
    let elsewhere = PathBuf::from(second.get_attachment(&id).await.unwrap().device);
    stamped.check(&elsewhere).unwrap();
    eventually("the old device is gone", || async {
        Ok(std::fs::read(sys_backing(&device)).is_err())
    })
    .await
    .unwrap();
    second.detach_volume(&id).await.unwrap();
}
