//! What is refused, and how; one operation in flight.

use super::fixture::{Fixture, block, mount, run};
use proto::csi::node_server::Node;
use proto::csi::*;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use tonic::{Code, Request};

const ID: &str = "0b51f6cc-6a3b-4c53-9e0f-2f6f4bd1a3de";

#[tokio::test]
async fn requests_of_the_wrong_shape() {
    let node = Fixture::without_devices().await;
    let service = &node.service;
    let long = format!("/{}", "a".repeat(5000));
    let paths = ["", "stage", "/", "/a/../b", "/a\0b", long.as_str()];
    // volume id, staging path, target path, capability given -> code
    let mut table = vec![
        ("", "/s", "/t", true, Code::InvalidArgument),
        (ID, "/s", "/t", false, Code::InvalidArgument),
        ("no-uuid", "", "", false, Code::InvalidArgument),
        ("no-uuid", "/s", "/t", true, Code::NotFound),
        ("../../etc", "/s", "/t", true, Code::NotFound),
    ];
    table.extend(paths.map(|path| (ID, path, path, true, Code::InvalidArgument)));
    for (id, staging, target, given, code) in table {
        let volume_id = id.to_owned();
        let staging_target_path = staging.to_owned();
        let target_path = target.to_owned();
        let volume_capability = given.then(|| mount("ext4"));
        let stage = NodeStageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: staging_target_path.clone(),
            volume_capability: volume_capability.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let publish = NodePublishVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: staging_target_path.clone(),
            target_path: target_path.clone(),
            volume_capability,
            ..NodePublishVolumeRequest::default()
        };
        let found = service.node_stage_volume(Request::new(stage)).await.unwrap_err();
        assert_eq!(found.code(), code, "stage {id:?} {staging:?}: {found}");
        let found = service.node_publish_volume(Request::new(publish)).await.unwrap_err();
        assert_eq!(found.code(), code, "publish {id:?} {target:?}: {found}");
        if !given {
            continue;
        }
        let unstage =
            NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
        let found = service.node_unstage_volume(Request::new(unstage)).await.unwrap_err();
        assert_eq!(found.code(), code, "unstage {id:?} {staging:?}: {found}");
        let unpublish = NodeUnpublishVolumeRequest { volume_id, target_path };
        let found = service.node_unpublish_volume(Request::new(unpublish)).await.unwrap_err();
        assert_eq!(found.code(), code, "unpublish {id:?} {target:?}: {found}");
    }
    assert!(node.fake.control.state().calls.is_empty(), "refused before anything was asked");
}

#[tokio::test]
async fn volumes_and_paths_that_do_not_exist() {
    let node = Fixture::without_devices().await;
    for (id, path, code) in [
        ("", "/a", Code::InvalidArgument),
        (ID, "", Code::InvalidArgument),
        ("foobar", "some/path", Code::NotFound),
        (ID, "some/path", Code::NotFound),
        (ID, "/some/path", Code::NotFound),
    ] {
        let stats = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        let found = node.service.node_get_volume_stats(Request::new(stats)).await.unwrap_err();
        assert_eq!(found.code(), code, "stats {id:?} {path:?}: {found}");
        let expand = NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..NodeExpandVolumeRequest::default()
        };
        let found = node.service.node_expand_volume(Request::new(expand)).await.unwrap_err();
        assert_eq!(found.code(), code, "expand {id:?} {path:?}: {found}");
    }
    // Nothing there to take away: done.
    node.unpublish(ID, "nothing").await.unwrap();
    node.unstage(ID).await.unwrap();
    let found = node.publish(ID, "pod", mount("ext4"), false).await.unwrap_err();
    assert_eq!(found.code(), Code::FailedPrecondition);
    assert!(found.message().contains("not staged on this node"), "{found}");
}

#[tokio::test]
async fn the_replicators_words_reach_the_caller() {
    let node = Fixture::without_devices().await;
    for (code, message, wanted) in [
        (Code::FailedPrecondition, "held by live node n2 (2)", Code::FailedPrecondition),
        (Code::NotFound, "no such volume", Code::NotFound),
        (Code::Unknown, "odd", Code::Internal),
    ] {
        let refused = (code, message.to_owned());
        node.fake.control.state().refuse.insert("AttachVolume", refused);
        let found = node.stage(ID, mount("ext4")).await.unwrap_err();
        assert_eq!((found.code(), found.message()), (wanted, message));
    }
}

#[tokio::test]
async fn nothing_is_ever_formatted_over() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    let file = node.path(&volume);
    // What is on the device, and what the refusal must say.
    let contents: [(&str, &dyn Fn(), &str); 4] = [
        ("swap", &|| drop(run("mkswap", &["-q", &file.to_string_lossy()])), "swap data"),
        ("ext2", &|| drop(run("mkfs.ext2", &["-q", &file.to_string_lossy()])), "ext2 data"),
        ("bytes", &|| fill(&file, 77_777, b"precious"), "data without a known signature"),
        ("tail", &|| fill(&file, 32 * 1024 * 1024 - 8, b"precious"), "data without a known"),
    ];
    for (name, write, says) in contents {
        let handle = fs::File::create(&file).unwrap();
        handle.set_len(32 << 20).unwrap();
        write();
        let before = fs::read(&file).unwrap();
        for fs_type in ["", "ext4", "xfs"] {
            let found = node.stage(&volume, mount(fs_type)).await.unwrap_err();
            assert_eq!(found.code(), Code::FailedPrecondition, "{name}: {found}");
            assert!(found.message().contains(says), "{name}: {found}");
        }
        assert!(node.fake.control.state().attachments.is_empty(), "{name}: given back");
        assert!(fs::read(&file).unwrap() == before, "{name}: changed");
    }
    // Raw use is always possible.
    node.stage(&volume, block()).await.unwrap();
    node.unstage(&volume).await.unwrap();
}

fn fill(file: &std::path::Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

#[tokio::test]
async fn another_filesystem_than_the_one_that_is_there_is_refused() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.stage(&volume, mount("ext4")).await.unwrap();
    let found = node.stage(&volume, mount("xfs")).await.unwrap_err();
    assert_eq!(found.code(), Code::AlreadyExists, "{found}");
    node.unstage(&volume).await.unwrap();
    let found = node.stage(&volume, mount("xfs")).await.unwrap_err();
    assert_eq!(found.code(), Code::FailedPrecondition);
    assert!(found.message().contains("holds ext4, and xfs was asked for"), "{found}");
}

#[tokio::test]
async fn a_damaged_filesystem_is_not_repaired_blindly() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.stage(&volume, mount("ext4")).await.unwrap();
    node.unstage(&volume).await.unwrap();
    // The block group descriptors.
    fill(&node.path(&volume), 4096, &[0xff; 4096]);
    let before = fs::read(node.path(&volume)).unwrap();
    let found = node.stage(&volume, mount("ext4")).await.unwrap_err();
    assert_eq!(found.code(), Code::Internal);
    assert!(found.message().starts_with("mount "), "{found}");
    assert!(fs::read(node.path(&volume)).unwrap() == before);
    assert!(node.fake.control.state().attachments.is_empty());
}

#[tokio::test]
async fn what_others_mounted_is_left_alone() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    for name in ["stage", "pod"] {
        fs::create_dir(node.path(name)).unwrap();
        run("mount", &["-t", "tmpfs", "none", &node.path(name).to_string_lossy()]);
    }
    let found = node.stage(&volume, mount("ext4")).await.unwrap_err();
    assert!(found.message().contains("not Holdfast's"), "{found}");
    let found = node.unpublish(&volume, "pod").await.unwrap_err();
    assert_eq!(found.code(), Code::FailedPrecondition, "{found}");
    assert!(node.mounted("stage") && node.mounted("pod"));
    // Nor are files that a pod's path should not hold.
    fs::create_dir(node.path("full")).unwrap();
    fs::write(node.path("full/precious"), "x").unwrap();
    node.unpublish(&volume, "full").await.unwrap_err();
    assert!(node.path("full/precious").exists());
}

#[tokio::test]
async fn a_mount_in_use_is_left_alone_while_its_device_lives() {
    let Some(node) = Fixture::new().await else { return };
    let volume = node.volume(32);
    node.stage(&volume, mount("ext4")).await.unwrap();
    let held = fs::File::create(node.path("stage/open")).unwrap();
    let found = node.unstage(&volume).await.unwrap_err();
    assert_eq!(found.code(), Code::FailedPrecondition);
    assert!(found.message().contains("in use"), "{found}");
    assert!(node.mounted("stage"));
    assert!(node.fake.control.state().attachments.contains_key(&volume));
    drop(held);
    node.unstage(&volume).await.unwrap();
}

#[tokio::test]
async fn one_operation_in_flight_per_volume_even_if_its_caller_goes_away() {
    let node = Fixture::without_devices().await;
    let control = &node.fake.control;
    control.hold().await;
    // The first caller gives up; its operation goes on.
    let first = node.unstage(ID);
    tokio::select! {
        _ = first => panic!("the replicator does not answer yet"),
        () = control.arrived("GetAttachment", 1) => {}
    }
    for _ in 0..2 {
        let found = node.stage(ID, mount("ext4")).await.unwrap_err();
        assert_eq!(found.code(), Code::Aborted);
        assert!(found.message().contains("NodeUnstageVolume is in flight"), "{found}");
    }
    // Another volume is not concerned.
    let other = "0b51f6cc-6a3b-4c53-9e0f-2f6f4bd1a3df";
    tokio::select! {
        _ = node.unstage(other) => panic!("the replicator does not answer yet"),
        () = control.arrived("GetAttachment", 2) => {}
    }
    control.release();
    // Released when it ends: then the next one goes through.
    loop {
        match node.unstage(ID).await {
            Ok(()) => break,
            Err(status) => assert_eq!(status.code(), Code::Aborted),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_the_node_says_of_itself() {
    let node = Fixture::without_devices().await;
    let info = node.service.node_get_info(Request::new(NodeGetInfoRequest {})).await.unwrap();
    let info = info.into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("n1", 128));
    let segments = info.accessible_topology.unwrap().segments;
    let topology = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(segments, topology(&[("holdfast.dev/node", "n1")]), "without a zone");
    node.fake.control.state().zone = "a".into();
    let info = node.service.node_get_info(Request::new(NodeGetInfoRequest {})).await.unwrap();
    let segments = info.into_inner().accessible_topology.unwrap().segments;
    assert_eq!(segments, topology(&[("holdfast.dev/node", "n1"), ("holdfast.dev/zone", "a")]));
    let request = Request::new(NodeGetCapabilitiesRequest {});
    let answer = node.service.node_get_capabilities(request).await.unwrap().into_inner();
    let kinds: Vec<i32> = answer
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(node_service_capability::Type::Rpc(rpc)) => rpc.r#type,
            None => -1,
        })
        .collect();
    // STAGE_UNSTAGE_VOLUME, GET_VOLUME_STATS, EXPAND_VOLUME, SINGLE_NODE_MULTI_WRITER; and alpha:
    // GET_VOLUME_HEALTH, GET_STORAGE_HEALTH.
    assert_eq!(kinds, [1, 2, 3, 5, 7, 8]);
}

#[tokio::test]
async fn health_of_volumes_and_of_the_node() {
    let node = Fixture::without_devices().await;
    let ask = |id: &str, path: &str| {
        let request = NodeGetVolumeHealthRequest {
            volume_id: id.into(),
            volume_publish_path: path.into(),
            staging_target_path: String::new(),
        };
        node.service.node_get_volume_health(Request::new(request))
    };
    for (id, path, code) in [
        ("", "", Code::InvalidArgument),
        (ID, "/a/../b", Code::InvalidArgument),
        ("foobar", "", Code::NotFound),
        (ID, "/a", Code::NotFound),
    ] {
        assert_eq!(ask(id, path).await.unwrap_err().code(), code, "{id:?} {path:?}");
    }
    let attachment = client::api::Attachment { failed: true, epoch: 3, ..Default::default() };
    node.fake.control.state().attachments.insert(ID.to_owned(), attachment);
    let health = ask(ID, "/a").await.unwrap().into_inner().volume_health.unwrap();
    assert_eq!(health.volume_id, ID);
    assert_eq!(health.health_statuses[0].status(), VolumeHealthErrorType::Inaccessible);

    let storage = || async {
        let request = Request::new(NodeGetStorageHealthRequest::default());
        let answer = node.service.node_get_storage_health(request).await.unwrap().into_inner();
        answer.backend_health.into_iter().map(|entry| entry.reason).collect::<Vec<_>>()
    };
    assert!(storage().await.is_empty());
    node.fake.control.state().ready = false;
    assert_eq!(storage().await, ["NotReady"]);
    let down = (Code::Unavailable, "down".to_owned());
    node.fake.control.state().refuse.insert("GetNode", down);
    assert_eq!(storage().await, ["ReplicatorUnreachable"]);
}
