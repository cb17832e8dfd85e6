//! A node that is gone for good: the cluster forgets it, and it may come back empty as a new one.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Healed, SYSTEM};
use kubernetes::poll;
use serde_json::Value;
use std::time::Duration;

/// The least that is accepted.
const GONE_AFTER: &str = "--gone-after-seconds=60";
const PATIENCE: Duration = Duration::from_secs(180);

/// The controllers with the shortest time, until this is dropped.
struct Impatient<'a>(&'a Bed);

impl<'a> Impatient<'a> {
    fn new(bed: &'a Bed) -> Self {
        let path = "/spec/template/spec/containers/0/command/-";
        change(bed, &format!(r#"[{{"op": "add", "path": "{path}", "value": "{GONE_AFTER}"}}]"#));
        Self(bed)
    }
}

impl Drop for Impatient<'_> {
    fn drop(&mut self) {
        let number = command(self.0).len() - 1;
        let path = format!("/spec/template/spec/containers/0/command/{number}");
        change(self.0, &format!(r#"[{{"op": "remove", "path": "{path}"}}]"#));
    }
}

fn command(bed: &Bed) -> Vec<Value> {
    let deployment = bed.get(&["deployment", "-n", SYSTEM, "holdfast-controller"]).unwrap();
    deployment["spec"]["template"]["spec"]["containers"][0]["command"].as_array().unwrap().clone()
}

fn change(bed: &Bed, patch: &str) {
    let name = "deployment/holdfast-controller";
    bed.kubectl(&["patch", "-n", SYSTEM, name, "--type=json", "-p", patch]).unwrap();
    bed.kubectl(&["rollout", "status", "-n", SYSTEM, name, "--timeout=120s"]).unwrap();
}

/// Number and role of the node of that name, if the cluster has it and hears it.
fn member(bed: &Bed, ask: &str, name: &str) -> Option<(u64, String, bool)> {
    let status = bed.holdfast(ask, &["cluster", "status"]).ok()?;
    let node = status["nodes"].as_array()?.iter().find(|node| node["name"] == name)?.clone();
    let role = node["raft_role"].as_str()?.to_owned();
    Some((node["node"].as_u64()?, role, node["state"] == "up"))
}

/// As if the node's disk had been taken out.
fn empty_directory(bed: &Bed, node: &str) {
    let daemonset = bed.get(&["daemonset", "-n", SYSTEM, "holdfast-node"]).unwrap();
    let join = &daemonset["spec"]["template"]["spec"]["initContainers"][0]["command"];
    let directory = join.as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let remove = format!("find {directory} -mindepth 1 -type f -print -delete");
    let removed = bed.on_node(node, &remove).unwrap();
    assert!(removed.contains("identity.json"), "{removed}");
}

#[test]
fn a_node_that_is_gone_for_good_is_removed_and_comes_back_under_a_new_number() {
    let test = "a_node_that_is_gone_for_good_is_removed_and_comes_back_under_a_new_number";
    let Some(bed) = Bed::with_fault(test, "in") else { return };
    bed.well(PATIENCE).unwrap();
    let nodes = bed.nodes().unwrap();
    let (gone, ask) = (nodes.last().unwrap(), &nodes[0]);
    let (number, ..) = member(&bed, ask, gone).unwrap();
    let impatient = Impatient::new(&bed);

    empty_directory(&bed, gone);
    let healed = Healed(&bed, gone.clone(), "boot");
    bed.fault("crash", gone).unwrap();
    bed.kubectl(&["delete", "node", gone]).unwrap();
    let removed = poll(PATIENCE, || member(&bed, ask, gone).is_none().then_some(()));
    removed.expect("the cluster forgets it");

    drop(healed);
    let back =
        poll(PATIENCE, || member(&bed, ask, gone).filter(|(_, role, up)| *up && role == "voter"));
    let (again, ..) = back.expect("it is a voter again");
    println!("{test}: {gone} was number {number} and is number {again}");
    assert!(again > number);
    drop(impatient);
    bed.well(PATIENCE).unwrap();
}
