//! What a crash left is found at start and removed; what is in use, and what is not ours, is not.

use super::fixture::{Fixture, block, mount, run};
use std::fs;

const DRIVER: &str = "csi.holdfast.dev";

impl Fixture {
    /// As kubelet does before it calls: a directory with its data, and the path for the plugin in it.
    fn kubelet(&self, directory: &str, driver: &str, volume: &str) {
        let directory = self.path(directory);
        fs::create_dir_all(&directory).unwrap();
        let data = format!(
            r#"{{"attachmentID":"x","driverName":"{driver}","nodeName":"n1","volumeHandle":"{volume}"}}"#
        );
        fs::write(directory.join("vol_data.json"), data).unwrap();
    }

    async fn sweep(&self) {
        self.service.clone().sweep(self.directory.path().to_owned()).await;
    }
}

#[tokio::test]
async fn what_is_attached_is_left_alone_and_what_is_not_goes() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.kubelet("pods/u1/pv", DRIVER, &volume);
    node.kubelet("pods/u2/pv", "csi.example.com", &volume);
    node.stage(&volume, mount("ext4")).await.unwrap();
    fs::create_dir_all(node.path("pods/u3/pv")).unwrap();
    let targets = ["pods/u1/pv/mount", "pods/u2/pv/mount", "pods/u3/pv/mount"];
    for target in targets {
        node.publish(&volume, target, mount("ext4"), false).await.unwrap();
    }
    node.sweep().await;
    assert!(targets.iter().all(|target| node.mounted(target)), "it is attached");
    // Fenced, it is kubelet's to unpublish: its device is still there.
    node.fake.control.fail(&volume);
    node.sweep().await;
    assert!(targets.iter().all(|target| node.mounted(target)), "it is attached, though dead");

    // The replicator was killed with its devices, and knows nothing of them any more.
    let lost = {
        let mut state = node.fake.control.state();
        state.attachments.remove(&volume);
        state.devices.remove(&volume).unwrap()
    };
    node.sweep().await;
    let mounted = targets.map(|target| node.mounted(target));
    assert_eq!(mounted, [false, true, true], "only what kubelet says is ours");
    assert!(node.path(targets[0]).exists(), "the directory is kubelet's to have unpublished");
    node.unpublish(&volume, targets[0]).await.unwrap();
    drop(lost);
}

#[tokio::test]
async fn an_older_mount_goes_and_the_present_one_stays() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.kubelet("pods/old/pv", DRIVER, &volume);
    node.kubelet("pods/new/pv", DRIVER, &volume);
    node.stage(&volume, mount("ext4")).await.unwrap();
    node.publish(&volume, "pods/old/pv/mount", mount("ext4"), false).await.unwrap();
    let lost = {
        let mut state = node.fake.control.state();
        state.attachments.remove(&volume);
        state.devices.remove(&volume).unwrap()
    };
    node.stage(&volume, mount("ext4")).await.unwrap();
    node.publish(&volume, "pods/new/pv/mount", mount("ext4"), false).await.unwrap();
    node.sweep().await;
    assert!(!node.mounted("pods/old/pv/mount"));
    assert!(node.mounted("pods/new/pv/mount") && node.mounted("stage"));
    drop(lost);
}

#[tokio::test]
async fn a_device_node_that_was_left_goes_too() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(16);
    node.kubelet("volumeDevices/pv/data", DRIVER, &volume);
    fs::create_dir_all(node.path("volumeDevices/publish/pv")).unwrap();
    node.stage(&volume, block()).await.unwrap();
    node.publish(&volume, "volumeDevices/publish/pv/u", block(), false).await.unwrap();
    node.sweep().await;
    assert!(node.mounted("volumeDevices/publish/pv/u"));
    node.fake.control.state().attachments.remove(&volume);
    node.sweep().await;
    assert!(!node.mounted("volumeDevices/publish/pv/u"));
}

#[tokio::test]
async fn a_directory_without_anything_of_ours_is_nothing_to_do() {
    let Some(node) = Fixture::new().await else { return };
    fs::create_dir(node.path("other")).unwrap();
    run("mount", &["-t", "tmpfs", "none", &node.path("other").to_string_lossy()]);
    node.kubelet("other", DRIVER, "not-a-volume");
    node.sweep().await;
    assert!(node.mounted("other"));
}
