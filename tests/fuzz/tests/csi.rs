//! Requests of Kubernetes: the bytes of a message, and the checks of its fields.
#![allow(clippy::unwrap_used)]

use csi_common::{FsType, capability, path, volume_id, volume_size};
use fuzz::{Target, no_repair, run};
use prost::Message;
use proto::csi::volume_capability::access_mode::Mode;
use proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use proto::csi::{CapacityRange, CreateVolumeRequest, NodePublishVolumeRequest, VolumeCapability};

fn mounted(fs_type: &str) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            mount_flags: vec!["noatime".into()],
            volume_mount_group: String::new(),
        })),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

#[test]
fn create_volume_requests() {
    let request = CreateVolumeRequest {
        name: "pvc-6f1c1d3e".into(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 2 << 30 }),
        volume_capabilities: vec![mounted("ext4"), mounted("")],
        parameters: [("repl", "2"), ("csi.storage.k8s.io/fstype", "xfs")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..CreateVolumeRequest::default()
    };
    run(&Target {
        name: "CreateVolume requests",
        corpus: vec![request.encode_to_vec()],
        words: &[b"ext4", b"xfs", b"btrfs", b"\xff\xff\xff\xff\x0f"],
        longest: 1000,
        repair: &no_repair,
        decode: &|bytes| {
            let Ok(request) = CreateVolumeRequest::decode(bytes) else { return false };
            let size = volume_size(request.capacity_range.as_ref(), 1 << 20);
            if let Ok(size) = size {
                assert!(size.is_multiple_of(types::BLOCK) && size <= types::MAX_VOLUME);
            }
            let capabilities = request.volume_capabilities.iter().map(Some).map(capability);
            let fine = capabilities.fold(true, |fine, one| match one {
                Ok(_) => fine,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    false
                }
            });
            let types = request.parameters.values().map(|value| FsType::parse("fstype", value));
            let types = types.filter(Result::is_err).count();
            size.is_ok() && fine && types <= request.parameters.len()
        },
    });
}

#[test]
fn publish_requests() {
    let request = NodePublishVolumeRequest {
        volume_id: "6f1c1d3e-8a4b-4c65-9d5e-0a1b2c3d4e5f".into(),
        staging_target_path: "/var/lib/kubelet/plugins/a/globalmount".into(),
        target_path: "/var/lib/kubelet/pods/b/volumes/c/mount".into(),
        volume_capability: Some(mounted("ext4")),
        ..NodePublishVolumeRequest::default()
    };
    run(&Target {
        name: "NodePublishVolume requests",
        corpus: vec![request.encode_to_vec()],
        words: &[b"/../", b"/./", b"//", b"\0", b"-"],
        longest: 1000,
        repair: &no_repair,
        decode: &|bytes| {
            let Ok(request) = NodePublishVolumeRequest::decode(bytes) else { return false };
            let mut fine = volume_id(&request.volume_id).is_ok();
            for text in [&request.staging_target_path, &request.target_path] {
                match path("path", text) {
                    Ok(clean) => {
                        let clean = clean.to_str().unwrap();
                        assert!(clean.starts_with('/') && clean.len() > 1 && clean.len() < 4096);
                        assert!(!clean.split('/').any(|part| part == ".."), "{clean}");
                    }
                    Err(_) => fine = false,
                }
            }
            fine && capability(request.volume_capability.as_ref()).is_ok()
        },
    });
}
