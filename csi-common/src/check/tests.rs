#![allow(clippy::unwrap_used)]

use super::*;
use proto::csi::volume_capability::{AccessMode, BlockVolume};
use tonic::Code;

fn of(access_type: Option<AccessType>, mode: i32) -> VolumeCapability {
    VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) }
}

fn mount(fs_type: &str) -> Option<AccessType> {
    Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() }))
}

#[test]
fn access_modes_of_one_node_are_accepted_and_all_others_refused() {
    let table = [
        (Wire::Unknown as i32, None),
        (Wire::SingleNodeWriter as i32, Some(Mode::Writer)),
        (Wire::SingleNodeReaderOnly as i32, Some(Mode::ReaderOnly)),
        (Wire::MultiNodeReaderOnly as i32, None),
        (Wire::MultiNodeSingleWriter as i32, None),
        (Wire::MultiNodeMultiWriter as i32, None),
        (Wire::SingleNodeSingleWriter as i32, Some(Mode::SingleWriter)),
        (Wire::SingleNodeMultiWriter as i32, Some(Mode::MultiWriter)),
        (8, None),
        (-1, None),
    ];
    for (mode, wanted) in table {
        let found = capability(Some(&of(mount(""), mode)));
        match wanted {
            Some(wanted) => assert_eq!(found.unwrap().mode, wanted, "{mode}"),
            None => {
                let error = found.unwrap_err();
                assert_eq!(error.code(), Code::InvalidArgument, "{mode}");
                assert!(error.to_string().contains("SINGLE_NODE_MULTI_WRITER"), "{error}");
            }
        }
    }
}

#[test]
fn a_capability_needs_both_halves() {
    let full = of(Some(AccessType::Block(BlockVolume {})), 1);
    assert_eq!(capability(Some(&full)).unwrap().access, Access::Block);
    let reader = of(Some(AccessType::Block(BlockVolume {})), Wire::SingleNodeReaderOnly as i32);
    assert_eq!(capability(Some(&reader)).unwrap_err().code(), Code::InvalidArgument);
    for broken in [
        None,
        Some(VolumeCapability { access_type: None, ..full.clone() }),
        Some(VolumeCapability { access_mode: None, ..full.clone() }),
    ] {
        let error = capability(broken.as_ref()).unwrap_err();
        assert!(matches!(error, RequestError::Missing { .. }), "{error}");
    }
}

#[test]
fn filesystems_are_named_when_refused() {
    for (text, wanted) in [("", None), ("ext4", Some(FsType::Ext4)), ("xfs", Some(FsType::Xfs))] {
        let found = capability(Some(&of(mount(text), 1))).unwrap().access;
        assert_eq!(found, Access::Mount { fs_type: wanted, flags: vec![] });
    }
    for text in ["ext3", "EXT4", " xfs", "btrfs", "ext4\0"] {
        let error = capability(Some(&of(mount(text), 1))).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.to_string().contains("accepted: ext4, xfs"), "{error}");
    }
}

#[test]
fn a_mount_group_is_refused_because_it_is_not_advertised() {
    let group = MountVolume { volume_mount_group: "1000".into(), ..MountVolume::default() };
    let error = capability(Some(&of(Some(AccessType::Mount(group)), 1))).unwrap_err();
    assert!(error.to_string().contains("volume_mount_group"), "{error}");
}

#[test]
fn paths() {
    let good = [
        ("/a", "/a"),
        ("/var/lib/kubelet/plugins/x/globalmount", "/var/lib/kubelet/plugins/x/globalmount"),
        ("//a///b/", "/a/b"),
        ("/a b/ü", "/a b/ü"),
        ("/..a/b..", "/..a/b.."),
    ];
    for (text, wanted) in good {
        assert_eq!(path("staging_target_path", text).unwrap(), Path::new(wanted), "{text}");
    }
    let long = format!("/{}", "a".repeat(MAX_PATH));
    for text in ["", "a", "a/b", "/", "//", "/a/../b", "/..", "/a/.", "/a\0b", long.as_str()] {
        let error = path("staging_target_path", text).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{text:?}");
        assert!(error.to_string().starts_with("staging_target_path"), "{error}");
    }
}

#[test]
fn volume_ids_have_one_spelling() {
    let id = "0b51f6cc-6a3b-4c53-9e0f-2f6f4bd1a3de";
    assert_eq!(volume_id(id).unwrap().to_string(), id);
    assert_eq!(volume_id("").unwrap_err().code(), Code::InvalidArgument);
    for text in [
        "x",
        "0B51F6CC-6A3B-4C53-9E0F-2F6F4BD1A3DE",
        "0b51f6cc6a3b4c539e0f2f6f4bd1a3de",
        "{0b51f6cc-6a3b-4c53-9e0f-2f6f4bd1a3de}",
        "../0b51f6cc-6a3b-4c53-9e0f-2f6f4bd1a3de",
    ] {
        assert_eq!(volume_id(text).unwrap_err().code(), Code::NotFound, "{text}");
    }
}
