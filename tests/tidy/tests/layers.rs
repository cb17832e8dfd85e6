//! Dependencies point downwards only (ARCHITECTURE.md, "The crates"), as `cargo metadata` sees them.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate of ours may use of ours. A crate that is not here fails the test: say where it stands.
const ALLOWED: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("types", &[]),
    ("wire", &["types"]),
    ("hostio", &["types"]),
    ("metadata", &["types"]),
    ("store", &["types", "wire"]),
    ("engine", &["types", "wire"]),
    ("policy", &["types", "metadata", "store", "engine"]),
    ("frontend", &["types", "hostio"]),
    ("holder", &["hostio"]),
    ("client", &["types", "proto"]),
    (
        "replicator",
        &[
            "types", "hostio", "wire", "metadata", "store", "engine", "policy", "frontend",
            "holder", "client", "proto",
        ],
    ),
    ("csi-common", &["types", "client", "proto"]),
    ("csi-node", &["types", "client", "proto", "csi-common"]),
    ("csi-controller", &["types", "client", "proto", "csi-common"]),
    ("join", &["client"]),
    ("lab", &["types", "hostio", "frontend", "client", "proto"]),
    ("manifests", &[]),
    ("cli", &["types", "client", "proto", "lab", "manifests"]),
    ("kit", &["types", "wire"]),
    ("crash", &["types", "wire", "store", "metadata", "replicator", "kit"]),
    ("fuzz", &["kit"]),
    ("e2e", &["types", "client", "proto", "lab", "wire"]),
    ("sim", &["types", "wire", "metadata", "store", "engine", "policy"]),
    ("kubernetes", &[]),
    ("tidy", &[]),
];

/// State machines and words: no I/O, no clock, no threads of their own, so none of these.
const PURE: &[&str] = &["types", "wire", "metadata", "store", "engine", "policy"];
const NOT_IN_PURE: &[&str] = &["tokio", "tonic", "nix", "libc", "io-uring", "rand", "sled"];

fn workspace() -> BTreeMap<String, BTreeMap<String, bool>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter().map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap().iter().map(|dependency| {
            let normal = dependency["kind"].is_null();
            (dependency["name"].as_str().unwrap().to_owned(), normal)
        });
        // A dependency may be there twice, for tests and for good: the stricter counts.
        let mut all = BTreeMap::new();
        for (name, normal) in dependencies {
            *all.entry(name).or_insert(false) |= normal;
        }
        (package["name"].as_str().unwrap().to_owned(), all)
    });
    packages.collect()
}

#[test]
fn dependencies_point_downwards() {
    let workspace = workspace();
    let ours: BTreeSet<&str> = workspace.keys().map(String::as_str).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let known: BTreeSet<&str> = allowed.keys().copied().collect();
    assert_eq!(ours, known, "every crate has its place in ALLOWED and in ARCHITECTURE.md");
    for (name, dependencies) in &workspace {
        for (dependency, normal) in dependencies {
            let fine = !ours.contains(dependency.as_str())
                || !normal
                || allowed[name.as_str()].contains(&dependency.as_str());
            assert!(fine, "{name} must not depend on {dependency}");
        }
    }
}

/// The daemon refuses to compile with them (`replicator/src/lib.rs`); this says why it never has to.
#[test]
fn bugs_are_planted_by_the_simulator_and_the_power_cuts_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        for (feature, enables) in package["features"].as_object().unwrap() {
            let plants = feature == "planted-bugs" || enables.to_string().contains("planted-bugs");
            assert!(
                !plants || ["types", "sim", "crash"].contains(&name),
                "{name} has the feature {feature}"
            );
            assert!(!plants || feature == "planted-bugs", "{name} plants bugs by {feature}");
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            let features = dependency["features"].to_string();
            assert!(!features.contains("planted-bugs"), "{name} switches planted bugs on");
        }
    }
    let daemon = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../replicator/src/lib.rs"
    ));
    assert!(daemon.unwrap().contains("assert!(!types::plant::ENABLED"), "the daemon's own guard");
}

#[test]
fn state_machines_have_no_means_of_io() {
    let workspace = workspace();
    for name in PURE {
        for (dependency, normal) in &workspace[*name] {
            let fine = !normal || !NOT_IN_PURE.contains(&dependency.as_str());
            assert!(fine, "{name} is a state machine and must not depend on {dependency}");
        }
    }
}
