//! fio writes blocks that verify themselves on a filesystem of a kernel device, through three faults:
//! the daemon under the device is killed, the other copy's daemon is killed, its node is cut off.
#![allow(clippy::unwrap_used)]

use e2e::{in_sync, lab};
use lab::Lab;
use lab::daemons::REPLICATOR;
use lab::kubelet::{Claim, Kubelet};
use lab::net::Cut;
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(60);
const KILL_PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

/// The same blocks with the same contents each time: 48 MiB in pieces of 4 to 32 KiB.
fn fio(directory: &Path, more: &[&str]) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=verified", "--size=48m", "--rw=randwrite", "--bsrange=4k-32k"])
        .args(["--ioengine=libaio", "--iodepth=8", "--direct=1", "--fsync=32"])
        .args(["--randseed=7", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
        .arg(format!("--directory={}", directory.display()))
        .args(more);
    fio
}

/// While fio writes. Each fault is over before the next.
async fn faults(lab: &Lab, volume: &str) {
    sleep(Duration::from_secs(2)).await;
    lab.signal(1, REPLICATOR, Signal::SIGKILL, KILL_PATIENCE).unwrap();
    lab.start(1).unwrap();
    lab.wait_ready([1]).await.unwrap();
    in_sync(lab, 1, volume).await.unwrap();

    lab.signal(2, REPLICATOR, Signal::SIGKILL, KILL_PATIENCE).unwrap();
    sleep(Duration::from_secs(1)).await;
    lab.start(2).unwrap();
    lab.wait_ready([2]).await.unwrap();
    in_sync(lab, 1, volume).await.unwrap();

    lab.cut_some(2, Cut::All).unwrap();
    sleep(Duration::from_secs(4)).await;
    lab.heal(2).unwrap();
    in_sync(lab, 1, volume).await.unwrap();
}

async fn verified(fs_type: &str) {
    let lab = lab(3).await.unwrap();
    let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
    let claim = Claim {
        name: format!("pvc-{fs_type}"),
        size: 512 << 20,
        fs_type: fs_type.into(),
        parameters: HashMap::from([("repl".into(), "2".into())]),
        node: 1,
    };
    let volume = kubelet.create_volume(&claim).await.unwrap();
    let id = &volume.volume_id;
    let target = kubelet.mount(1, &volume, fs_type, PATIENCE).await.unwrap();
    let copies = lab.client(1).unwrap().get_volume(id).await.unwrap().replicas;
    let other = copies.iter().map(|copy| copy.node).find(|node| *node != 1).unwrap();
    assert_eq!(other, 2, "the faults are for the copies on nodes 1 and 2");

    // Slow enough for the three faults to be over before it ends.
    let write = fio(&target, &["--rate=3m", "--do_verify=1"]);
    let (wrote, ()) = tokio::join!(lab::exec::run_async(write), faults(&lab, id));
    wrote.unwrap();
    let compared = lab.local_client(1).unwrap().compare_replicas(id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));

    kubelet.take_down(1, &volume, PATIENCE).await.unwrap();
    let target = kubelet.mount(2, &volume, fs_type, PATIENCE).await.unwrap();
    lab::exec::run_async(fio(&target, &["--verify_only"])).await.unwrap();
    kubelet.take_down(2, &volume, PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_every_block_through_three_faults_on_ext4() {
    verified("ext4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_every_block_through_three_faults_on_xfs() {
    verified("xfs").await;
}
