//! csi-sanity, the suite that every CSI driver is measured with, against the real plugins of a lab: once
//! with mounted and once with raw block volumes. What it skips is written down here, with the reason.
#![allow(clippy::unwrap_used)]

use anyhow::{Context as _, Result, ensure};
use e2e::lab;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::timeout;

/// How long one run may take: some ten times what it takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Fewer specs than this that ran and passed: the suite is not the one that we think it is.
const LEAST: usize = 60;

/// Why specs of the suite are skipped, by a part of their full name. A spec that is skipped and is not
/// here fails the test, and so does a line here that nothing is skipped for.
const SKIPPED: &[(&str, &str)] = &[
    (
        "ControllerPublishVolume",
        "there is none: stage carries the fencing, attachRequired is false",
    ),
    ("ControllerUnpublishVolume", "as ControllerPublishVolume"),
    ("volume lifecycle", "as ControllerPublishVolume"),
    ("GroupController", "snapshots of several volumes at one instant are not offered"),
    (
        "snapshot with accessibility requirements",
        "none can be asked for: every snapshot can be restored for every node",
    ),
];

/// The suite's program, built by `scripts/csi-sanity`; `None`, with the reason, where it cannot be had.
fn program() -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/csi-sanity");
    let output = Command::new(script).output().unwrap();
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()));
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    let reason = reason.trim().lines().last().unwrap_or_default();
    // Past the test harness, which keeps what a passing test prints to itself.
    let mut seen = std::io::stderr();
    writeln!(seen, "\nSKIPPED: csi_sanity: {reason}").unwrap();
    None
}

/// A spec and how it ended.
struct Spec {
    name: String,
    state: String,
    failure: String,
}

fn specs(report: &Path) -> Result<Vec<Spec>> {
    let text = fs::read(report).with_context(|| format!("reading {}", report.display()))?;
    let suites: Value = serde_json::from_slice(&text)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = suites[0]["SpecReports"].as_array().context("a report without specs")?;
    let of_specs = list.iter().filter(|spec| spec["LeafNodeType"] == "It");
    let spec = |spec: &Value| {
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let mut name: Vec<String> = containers.map(text).collect();
        name.push(text(&spec["LeafNodeText"]));
        let failure = &spec["Failure"];
        let at = &failure["Location"];
        Spec {
            name: name.join(" "),
            state: text(&spec["State"]),
            failure: format!(
                "{} ({}:{})",
                text(&failure["Message"]),
                text(&at["FileName"]),
                at["LineNumber"]
            ),
        }
    };
    Ok(of_specs.map(spec).collect())
}

/// Nothing failed, enough passed, and what was skipped is what we know of.
fn judge(specs: &[Spec]) -> Result<()> {
    let mut unused: BTreeMap<&str, &str> = SKIPPED.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut passed = 0;
    for spec in specs {
        match spec.state.as_str() {
            "passed" => passed += 1,
            // Switched off in the suite's own source.
            "pending" => {}
            "skipped" => match SKIPPED.iter().find(|(part, _)| spec.name.contains(part)) {
                Some((part, _)) => drop(unused.remove(part)),
                None => wrong.push(format!("skipped without a reason: {}", spec.name)),
            },
            state => wrong.push(format!("{state}: {}: {}", spec.name, spec.failure)),
        }
    }
    wrong.extend(unused.keys().map(|part| format!("nothing is skipped for {part:?} any more")));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(passed >= LEAST, "only {passed} of {} specs ran and passed", specs.len());
    Ok(())
}

async fn sanity(access: &str) {
    let Some(program) = program() else { return };
    let lab = lab(3).await.unwrap();
    let node = 1;
    let dir = lab.layout.node_dir(node);
    let write = |name: &str, yaml: &str| {
        let path = dir.join(name);
        fs::write(&path, yaml).unwrap();
        path.display().to_string()
    };
    let parameters = write("parameters.yaml", "repl: \"2\"\n");
    // While nobody has it attached a volume of two copies may want three.
    let mutable = write("mutable.yaml", "repl: \"3\"\npriority_io: any\n");
    let report = dir.join("csi-sanity.json");
    let unix = |path: PathBuf| format!("unix://{}", path.display());
    let node_endpoint = unix(lab.layout.csi_socket(node));
    let controller = unix(lab.layout.controller_socket(lab.controller_node));
    // The suite makes and removes these two itself.
    let (mounted, staged) = (dir.join("sanity-mount"), dir.join("sanity-stage"));
    let mut command = tokio::process::Command::new(&program);
    command
        .args(["--csi.endpoint", &node_endpoint, "--csi.controllerendpoint", &controller])
        .args(["--csi.testvolumeaccesstype", access])
        .args(["--csi.testvolumesize", &(1_u64 << 30).to_string()])
        .args(["--csi.testvolumeexpandsize", &(2_u64 << 30).to_string()])
        .args(["--csi.testvolumeparameters", &parameters])
        .args(["--csi.testvolumemutableparameters", &mutable])
        .arg("--csi.mountdir")
        .arg(mounted)
        .arg("--csi.stagingdir")
        .arg(staged)
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .arg("--ginkgo.no-color")
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let specs = specs(&report).unwrap_or_else(|error| panic!("{error:#}: {said}"));
    judge(&specs).unwrap();
    assert!(output.status.success(), "{said}");
    let client = lab.client(node).unwrap();
    let left = client.list_volumes(0, "").await.unwrap().volumes;
    assert!(left.is_empty(), "volumes that the suite did not get rid of: {left:?}");
    let left = client.list_snapshots(0, "", "").await.unwrap().snapshots;
    assert!(left.is_empty(), "snapshots that the suite did not get rid of: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_volumes_pass_csi_sanity() {
    sanity("mount").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn block_volumes_pass_csi_sanity() {
    sanity("block").await;
}
