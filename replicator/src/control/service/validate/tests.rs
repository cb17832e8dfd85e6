#![allow(clippy::unwrap_used)]

use super::*;
use tonic::Code;

fn request() -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        size_bytes: 1 << 30,
        repl: 2,
        priority_io: "high".to_owned(),
        fs_type: "ext4".to_owned(),
        preferred_nodes: vec![3],
        placement: "local".to_owned(),
        source: None,
    }
}

#[test]
fn a_good_volume_is_accepted_and_rounded_up() {
    let volume =
        new_volume(CreateVolumeRequest { size_bytes: (1 << 30) + 1, ..request() }).unwrap();
    assert_eq!(volume.size, (1 << 30) + (1 << 20));
    assert_eq!((volume.class, volume.fs_type), (Some(PoolClass::High), Some(FsType::Ext4)));
    assert!(volume.pinned);
    let plain =
        CreateVolumeRequest { priority_io: String::new(), fs_type: String::new(), ..request() };
    let volume = new_volume(plain).unwrap();
    assert_eq!((volume.class, volume.fs_type), (None, None));
}

/// Each row: how the good request is spoilt, and what the message must name.
#[test]
fn refusals_name_field_value_and_what_is_accepted() {
    type Spoil = fn(&mut CreateVolumeRequest);
    let rows: &[(Spoil, [&str; 3])] = &[
        (|r| r.placement = "here".into(), ["placement", "\"here\"", "\"local\""]),
        (
            |r| r.source = Some(Source::SourceSnapshotId("x".into())),
            ["source_snapshot_id", "\"x\"", "CreateSnapshot"],
        ),
        (
            |r| r.source = Some(Source::SourceVolumeId(String::new())),
            ["source_volume_id", "\"\"", "CreateVolume"],
        ),
        (|r| r.name.clear(), ["name", "\"\"", "1 to 128"]),
        (|r| r.name = "x".repeat(129), ["name", "xxx", "1 to 128"]),
        (|r| r.name = "a\nb".into(), ["name", "\\n", "printable"]),
        (|r| r.size_bytes = 0, ["size_bytes", "\"0\"", "1 to"]),
        (|r| r.size_bytes = u64::MAX, ["size_bytes", "18446744073709551615", "1 to"]),
        (|r| r.repl = 0, ["repl", "\"0\"", "1, 2 or 3"]),
        (|r| r.repl = 4, ["repl", "\"4\"", "1, 2 or 3"]),
        (|r| r.priority_io = "fast".into(), ["priority_io", "fast", "high"]),
        (|r| r.fs_type = "btrfs".into(), ["fs_type", "btrfs", "xfs"]),
    ];
    for (row, (spoil, wanted)) in rows.iter().enumerate() {
        let mut request = request();
        spoil(&mut request);
        let status = new_volume(request).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "row {row}");
        for part in wanted {
            assert!(
                status.message().contains(part),
                "row {row}: {part:?} in {:?}",
                status.message()
            );
        }
    }
}

#[test]
fn ids_addresses_and_front_ends() {
    assert!(volume_id("6f1c1dcb-41a8-4d1c-9f3a-2f5a2d0c7b11").is_ok());
    for bad in ["", "x", "6F1C1DCB-41A8-4D1C-9F3A-2F5A2D0C7B11", "../../etc/passwd"] {
        let status = volume_id(bad).unwrap_err();
        assert!(status.message().contains("volume_id"), "{bad}: {}", status.message());
    }
    for named in ["fuse-loop", "kernel-nbd", "nbd"] {
        assert_eq!(front_end(named).unwrap().unwrap().as_str(), named);
        assert!(front_end("ublk").unwrap_err().message().contains(named));
    }
    assert_eq!(front_end("").unwrap(), None);
    assert!(node_id("node", 0).is_err());
    assert!(address("control_address", "10.0.0.1:7420").is_ok());
    for bad in ["0.0.0.0:1", "10.0.0.1", "10.0.0.1:0", "host:1"] {
        assert!(address("control_address", bad).is_err(), "{bad}");
    }
}
