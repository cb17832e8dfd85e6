//! The demo's story: PostgreSQL on a volume with two copies outlives its node.
#![allow(clippy::unwrap_used)]

use e2e::{fresh_dir, turn};
use lab::story::{self, Options};
use lab::{Lab, Plan};
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_outlives_its_node() {
    let _turn = turn().await;
    let dir = fresh_dir();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("story");
    let plan = Plan::new(dir.clone(), 3);
    let told = story::run(&Options { plan, out: out.clone(), quiet: true }).await;
    // Ended in any case; what is left of a lab that did not come up is found by its directory.
    let ended = Lab::open(&dir).and_then(|lab| lab.down());
    let report = told.unwrap();
    ended.unwrap();
    assert_eq!(report.failed_checks, Vec::<String>::new());
    assert!(!dir.exists());

    let json = std::fs::read_to_string(out.join("report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (name, is_right) in [
        ("cut_to_first_commit_seconds", json["cut_to_first_commit_seconds"].is_f64()),
        ("phases", json["phases"]["sealed"].is_f64()),
        ("acknowledged_rows", json["acknowledged_rows"].as_u64() > Some(100)),
        ("lost_rows", json["lost_rows"] == 0),
        ("phantom_rows", json["phantom_rows"] == 0),
        ("accounts_rows", json["accounts_rows"] == 1_000_000),
        ("old_epoch_acks", json["old_epoch_acks"] == 0),
        ("resynced_bytes", json["resynced_bytes"].is_u64()),
        ("volume_bytes", json["volume_bytes"] == 1 << 30),
        ("replicas_identical", json["replicas_identical"] == true),
    ] {
        assert!(is_right, "report.json: {name} is {}", json[name]);
    }
    let picture = std::fs::read_to_string(out.join("timeline.svg")).unwrap();
    assert!(picture.contains("first commit"));
}
