//! Epochs that ended and devices that do not answer.

use super::fixture::{Fixture, block, mount, run};
use crate::mountinfo::MountTable;
use std::fs;
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test]
async fn a_pod_never_gets_a_mount_of_a_dead_epoch() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.stage(&volume, mount("ext4")).await.unwrap();
    node.publish(&volume, "pod", mount("ext4"), false).await.unwrap();
    node.fake.control.fail(&volume);
    for target in ["pod", "other"] {
        let status = node.publish(&volume, target, mount("ext4"), false).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("epoch 1"), "{status}");
    }
    assert!(!node.path("other").exists());

    // Unstage clears it all away, also what was not unpublished.
    node.unstage(&volume).await.unwrap();
    assert!(!node.mounted("stage") && !node.mounted("pod"));
    assert!(node.fake.control.state().attachments.is_empty());
    let status = node.publish(&volume, "pod", mount("ext4"), false).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    node.unpublish(&volume, "pod").await.unwrap();
    node.unstage(&volume).await.unwrap();
}

#[tokio::test]
async fn a_dead_stage_is_staged_anew_over_its_remains() {
    for fs_type in ["ext4", "xfs"] {
        let Some(node) = Fixture::new().await else { return };
        let volume = node.volume(300);
        node.stage(&volume, mount(fs_type)).await.unwrap();
        node.publish(&volume, "pod", mount(fs_type), false).await.unwrap();
        fs::write(node.path("pod/ledger"), "row 1").unwrap();
        run("sync", &["-f", &node.path("pod/ledger").to_string_lossy()]);
        // Something still holds a file open on the dead mount: XFS then knows the UUID as mounted.
        let held = fs::File::open(node.path("pod/ledger")).unwrap();
        let old = node.device(&volume);
        node.fake.control.fail(&volume);
        node.stage(&volume, mount(fs_type)).await.unwrap();
        assert_ne!(node.device(&volume), old);
        assert!(!node.mounted("pod"), "the dead publish is gone");
        node.publish(&volume, "pod", mount(fs_type), false).await.unwrap();
        assert_eq!(fs::read(node.path("pod/ledger")).unwrap(), b"row 1");
        let table = MountTable::read().unwrap();
        assert_eq!(table.at(&node.path("stage")).count(), 1);
        drop(held);
    }
}

#[tokio::test]
async fn a_mount_that_outlived_its_attachment_is_cleared() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.stage(&volume, mount("ext4")).await.unwrap();
    // The replicator was restarted and knows nothing of it any more.
    let lost = {
        let mut state = node.fake.control.state();
        state.attachments.remove(&volume);
        state.devices.remove(&volume).unwrap()
    };
    node.stage(&volume, mount("ext4")).await.unwrap();
    let table = MountTable::read().unwrap();
    assert_eq!(table.at(&node.path("stage")).count(), 1);
    let (number, _) = crate::mounts::device_number(&node.device(&volume)).unwrap();
    assert_eq!(table.top(&node.path("stage")).unwrap().device, number);
    node.unstage(&volume).await.unwrap();
    drop(lost);
}

#[tokio::test]
async fn a_dead_block_volume_leaves_no_device_node_behind() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(16);
    node.stage(&volume, block()).await.unwrap();
    node.publish(&volume, "disk", block(), false).await.unwrap();
    node.fake.control.fail(&volume);
    let status = node.publish(&volume, "disk", block(), false).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    node.unstage(&volume).await.unwrap();
    assert!(!node.mounted("disk"), "the next owner of that loop device would be seen there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_hangs_does_not_hang_unstage() {
    let Some(mut node) = Fixture::freezable().await else { return };
    let volume = node.volume(32);
    node.stage(&volume, mount("ext4")).await.unwrap();
    node.publish(&volume, "pod", mount("ext4"), false).await.unwrap();
    fs::write(node.path("pod/dirty"), vec![1; 1 << 20]).unwrap();
    node.freeze();
    node.fake.control.fail(&volume);
    let begun = Instant::now();
    node.unpublish(&volume, "pod").await.unwrap();
    node.unstage(&volume).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(!node.mounted("stage") && !node.mounted("pod"));
    // Again, while the kernel still waits for the device.
    node.unstage(&volume).await.unwrap();
}
