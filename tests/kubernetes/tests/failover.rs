//! A node is lost under a PostgreSQL pod: the headline.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Namespace, now};
use kubernetes::ledger::Ledger;
use kubernetes::poll;
use kubernetes::postgres::Postgres;
use std::time::Duration;

/// From the cut to the first acknowledged row; the goal is 10 s in the median, on real machines 6.
const BOUND: f64 = 30.0;

/// A node that is not `other`, and heals whatever a scenario did to `other` when it ends.
struct Healed<'a>(&'a Bed, String, &'static str);

impl Drop for Healed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.fault(self.2, &self.1) {
            eprintln!("{} is not healed: {error:#}", self.1);
        }
    }
}

fn lose_the_node(bed: &Bed, name: &str, fault: &str, cure: &'static str) {
    let namespace = Namespace::new(bed, name).unwrap();
    let postgres = Postgres::start(bed, &namespace, 1).unwrap();
    postgres.exec(0, &["pgbench", "-U", "postgres", "-i", "-q", "-s", "10"]).unwrap();
    let before = postgres.node(0).unwrap();
    let uid = postgres.pod(0).unwrap()["metadata"]["uid"].clone();
    let nodes = bed.nodes().unwrap();
    let client = nodes.iter().find(|node| **node != before).unwrap();
    let ledger = Ledger::start(bed, &namespace, client).unwrap();

    let healed = Healed(bed, before.clone(), cure);
    let cut = bed.fault(fault, &before).unwrap();
    let first = ledger.after(now().min(cut + 3.0), Duration::from_secs(60)).unwrap() - cut;
    println!("{name}: {fault} of {before} to the first acknowledged row: {first:.2} s");
    let pod = postgres.ready(0).unwrap();
    assert_ne!(pod["metadata"]["uid"], uid, "it is another pod");
    assert_ne!(pod["spec"]["nodeName"], before.as_str(), "on another node");
    let rows = postgres.sql(0, "select count(*) from pgbench_accounts").unwrap();
    assert_eq!(rows, "1000000");
    assert!(bed.taints(&before).unwrap().contains(&"holdfast.dev/fenced:NoSchedule".to_owned()));

    drop(healed);
    let clean = poll(Duration::from_secs(120), || {
        let taints = bed.taints(&before).ok()?;
        taints.iter().all(|taint| !taint.contains("fenced")).then_some(())
    });
    assert!(clean.is_some(), "the healed node keeps its taint: {:?}", bed.taints(&before));
    let record = ledger.audit().unwrap();
    println!("{name}: {} rows acknowledged, 0 lost, 0 phantom", record.acknowledged.len());
    assert!(first < BOUND, "{first:.2} s");
}

#[test]
fn a_cut_off_node_loses_its_pod_and_no_row() {
    let Some(bed) = Bed::with_faults("a_cut_off_node_loses_its_pod_and_no_row") else { return };
    lose_the_node(&bed, "holdfast-e2e-cut", "cut", "heal");
}

#[test]
fn a_crashed_node_loses_its_pod_and_no_row() {
    let Some(bed) = Bed::with_faults("a_crashed_node_loses_its_pod_and_no_row") else { return };
    lose_the_node(&bed, "holdfast-e2e-crash", "crash", "boot");
}
