#![allow(clippy::unwrap_used)]

use super::*;

const GOOD: &str = r#"
node = 2
name = "n2"
cluster = "6f1c1dcb-41a8-4d1c-9f3a-2f5a2d0c7b11"
data_dir = "/var/lib/holdfast"
control_address = "10.0.0.2"
data_address = "10.0.0.2:7500"
pool = "/dev/vdb"
priority_io = "high"
zone = "rack-7"
log = "info,raft=debug"

[[peers]]
node = 1
control_address = "10.0.0.1:7420"

[[peers]]
node = 2
control_address = "10.0.0.2:7420"
"#;

fn good() -> Settings {
    toml::from_str(GOOD).unwrap()
}

#[test]
fn a_whole_file_is_read() {
    let config = good().check().unwrap();
    assert_eq!(config.node, NodeId(2));
    assert_eq!(config.control_address.to_string(), "10.0.0.2:7420");
    assert_eq!(config.data_address.to_string(), "10.0.0.2:7500");
    assert_eq!(config.control_socket, Path::new("/var/lib/holdfast/control.sock"));
    assert_eq!(config.initial_voters(), [NodeId(1), NodeId(2)]);
    assert_eq!(config.priority_io, PoolClass::High);
    assert_eq!(config.zone.as_deref(), Some("rack-7"));
    assert_eq!(config.replace_after.as_secs(), 300, "the default");
}

#[test]
fn flags_win_over_the_file() {
    let flags = Settings { name: Some("other".to_owned()), ..Settings::default() };
    let config = flags.or(good()).check().unwrap();
    assert_eq!((config.name.as_str(), config.node), ("other", NodeId(2)));
}

#[test]
fn who_starts_the_raft_group() {
    let peers = |list: &[(u64, &str)]| {
        let peers = list
            .iter()
            .map(|(node, address)| PeerSetting {
                node: *node,
                control_address: (*address).to_owned(),
            })
            .collect();
        Settings { peers: Some(peers), ..good() }.check().unwrap().initial_voters()
    };
    assert_eq!(peers(&[]), [NodeId(2)], "a cluster of its own");
    assert_eq!(peers(&[(1, "10.0.0.1"), (2, "10.0.0.2")]), [NodeId(1), NodeId(2)]);
    assert_eq!(peers(&[(1, "10.0.0.1"), (3, "10.0.0.3")]), [], "joins later");
}

/// Each row: how the good settings are spoilt, and what the message must name.
#[test]
fn refusals_name_key_value_and_what_is_accepted() {
    type Spoil = fn(&mut Settings);
    let rows: &[(Spoil, &[&str])] = &[
        (|s| s.node = None, &["node is missing", "--node"]),
        (|s| s.node = Some(0), &["node", "\"0\"", "from 1 on"]),
        (|s| s.cluster = None, &["cluster is missing"]),
        (|s| s.cluster = Some("x".into()), &["cluster", "\"x\"", "UUID"]),
        (|s| s.cluster = Some("00000000-0000-0000-0000-000000000000".into()), &["cluster", "0000"]),
        (|s| s.data_dir = Some("lib".into()), &["data_dir", "\"lib\"", "absolute"]),
        (|s| s.data_dir = None, &["data_dir is missing", "--data-dir"]),
        (|s| s.pool = None, &["pool is missing"]),
        (|s| s.control_address = Some("0.0.0.0:1".into()), &["control_address", "not 0.0.0.0"]),
        (|s| s.control_address = Some("host:1".into()), &["control_address", "\"host:1\""]),
        (|s| s.data_address = Some("10.0.0.2:0".into()), &["data_address", "10.0.0.2:0"]),
        (|s| s.data_address = Some("10.0.0.2:7420".into()), &["data_address", "another port"]),
        (|s| s.control_socket = Some(format!("/{}", "x".repeat(107)).into()), &["107 bytes"]),
        (|s| s.name = Some("Node_1".into()), &["name", "\"Node_1\"", "a-z"]),
        (|s| s.name = Some(String::new()), &["name", "\"\""]),
        (|s| s.zone = Some("rack 7".into()), &["zone", "\"rack 7\"", "1 to 63 bytes"]),
        (
            |s| s.priority_io = Some("fast".into()),
            &["priority_io", "\"fast\"", "high, medium, low"],
        ),
        (
            |s| s.replace_after_seconds = Some(4),
            &["replace_after_seconds", "\"4\"", "5 to 2592000"],
        ),
        (
            |s| s.frontend = Some("ublk".into()),
            &["frontend", "\"ublk\"", "auto, kernel-nbd or fuse-loop"],
        ),
        (|s| s.nbd_connections = Some(0), &["nbd_connections", "\"0\"", "1 to 16"]),
        (|s| s.nbd_connections = Some(17), &["nbd_connections", "17"]),
        (|s| s.scrub_days = Some(0), &["scrub_days", "\"0\"", "1 to 365"]),
        (|s| s.scrub_days = Some(366), &["scrub_days", "366"]),
        (|s| s.replace_after_seconds = Some(2_592_001), &["replace_after_seconds", "2592001"]),
        (|s| s.log = Some("info,=".into()), &["log", "\"info,=\"", "debug"]),
        (|s| s.peers = Some(vec![peer(0, "10.0.0.1")]), &["peers", "0=10.0.0.1", "from 1 on"]),
        (
            |s| s.peers = Some(vec![peer(2, "10.0.0.9")]),
            &["peers", "2=10.0.0.9", "control_address"],
        ),
        (
            |s| s.peers = Some(vec![peer(1, "10.0.0.1"), peer(1, "10.0.0.3")]),
            &["peers", "1=10.0.0.3", "once"],
        ),
        (
            |s| s.peers = Some(vec![peer(1, "10.0.0.1"), peer(3, "10.0.0.1")]),
            &["peers", "3=10.0.0.1", "address of its own"],
        ),
        (
            |s| s.peers = Some((10..16).map(|n| peer(n, &format!("10.0.0.{n}"))).collect()),
            &["peers", "6 nodes", "at most 5"],
        ),
    ];
    for (row, (spoil, wanted)) in rows.iter().enumerate() {
        let mut settings = good();
        spoil(&mut settings);
        let message = settings.check().unwrap_err().to_string();
        for part in *wanted {
            assert!(message.contains(part), "row {row}: {part:?} is not in {message:?}");
        }
    }
}

fn peer(node: u64, address: &str) -> PeerSetting {
    PeerSetting { node, control_address: address.to_owned() }
}

#[test]
fn unknown_keys_and_wrong_types_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replicator.toml");
    for (text, wanted) in [
        ("pools = \"/dev/vdb\"", "pools"),
        ("node = \"two\"", "two"),
        ("node = -1", "node = -1"),
        ("[[peers]]\nnode = 1\naddress = \"x\"", "address"),
        ("node = ", "node"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = Settings::read(&path).unwrap_err().to_string();
        assert!(message.contains(wanted), "{text}: {message}");
        assert!(message.contains("replicator.toml"), "{message}");
    }
    let absent = Settings::read(&directory.path().join("absent.toml")).unwrap_err();
    assert!(matches!(absent, ConfigError::Read { .. }));
}
