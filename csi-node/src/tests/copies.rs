//! Volumes that are copies of others: restored snapshots and clones.

use super::fixture::{Fixture, MIB, may_resize_ext4, mount};
use std::fs;

/// A copy of a volume in use, larger than it and used beside it on the same node; sizes in MiB.
async fn copy(fs_type: &str, size: u64, larger: u64) {
    let Some(node) = Fixture::new().await else { return };
    let source = node.volume(size);
    node.stage(&source, mount(fs_type)).await.unwrap();
    fs::write(node.path("stage/ledger"), "row 1").unwrap();
    nix::unistd::sync();
    let copy = node.volume(larger);
    // As a snapshot has it: at one point, the journal not replayed.
    fs::copy(node.path(&source), node.path(&copy)).unwrap();
    fs::write(node.path("stage/ledger"), "row 2").unwrap();

    for _ in 0..2 {
        node.stage_at("beside", &copy, mount(fs_type)).await.unwrap();
        assert_eq!(fs::read(node.path("beside/ledger")).unwrap(), b"row 1");
        assert_eq!(fs::read(node.path("stage/ledger")).unwrap(), b"row 2");
        let (before, _) = node.stats(&source, "stage").await.unwrap();
        let (after, _) = node.stats(&copy, "beside").await.unwrap();
        if fs_type == "ext4" && !may_resize_ext4() {
            eprintln!("SKIPPED: growing a mounted ext4 needs CAP_SYS_RESOURCE, which is missing");
            assert_eq!(before.total, after.total, "what is there is used all the same");
        } else {
            let gained = (after.total - before.total) as u64;
            assert!(gained > (larger - size) * MIB * 8 / 10, "larger by {gained} bytes only");
        }
        node.unstage_at("beside", &copy).await.unwrap();
    }
    node.unstage(&source).await.unwrap();
}

#[tokio::test]
async fn a_larger_copy_of_ext4_is_mounted_beside_its_source_and_grows() {
    copy("ext4", 32, 64).await;
}

#[tokio::test]
async fn a_larger_copy_of_xfs_is_mounted_beside_its_source_and_grows() {
    copy("xfs", 300, 340).await;
}
