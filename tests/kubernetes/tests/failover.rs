//! A node is lost under a PostgreSQL pod: the headline, and what else may be lost with it.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Healed, Namespace, SYSTEM, now};
use kubernetes::ledger::Ledger;
use kubernetes::poll;
use kubernetes::postgres::{Postgres, Wanted};
use std::time::Duration;

/// From the cut to the first acknowledged row; the goal is 10 s in the median, on real machines 6.
const BOUND: f64 = 30.0;
/// Whoever takes longer is to say what the client saw meanwhile.
const GOAL: f64 = 10.0;
/// How long nothing may happen while nothing can be decided.
const STANDSTILL: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(180);

/// A database with a million rows on `node`, or anywhere.
fn database<'a>(bed: &'a Bed, namespace: &'a Namespace, node: Option<String>) -> Postgres<'a> {
    bed.well(PATIENCE).unwrap();
    let wanted = Wanted { node: node.clone(), ..Wanted::default() };
    let postgres = Postgres::start(bed, namespace, &wanted).unwrap();
    if let Some(node) = node {
        assert_eq!(postgres.node(0).unwrap(), node, "it runs where it was wished");
    }
    postgres.exec(0, &["pgbench", "-U", "postgres", "-i", "-q", "-s", "10"]).unwrap();
    postgres
}

fn is_fenced(bed: &Bed, node: &str) -> bool {
    bed.taints(node).unwrap().contains(&"holdfast.dev/fenced:NoSchedule".to_owned())
}

/// The pod is another one on another node than `before`, and has all of its rows.
fn moved(postgres: &Postgres<'_>, uid: &serde_json::Value, before: &str) {
    let pod = postgres.ready(0).unwrap();
    assert_ne!(pod["metadata"]["uid"], *uid, "it is another pod");
    assert_ne!(pod["spec"]["nodeName"], before, "on another node");
    let rows = postgres.sql(0, "select count(*) from pgbench_accounts").unwrap();
    assert_eq!(rows, "1000000");
}

fn lose_the_node(bed: &Bed, name: &str, fault: &str, cure: &'static str, node: Option<String>) {
    let namespace = Namespace::new(bed, name).unwrap();
    let postgres = database(bed, &namespace, node);
    let before = postgres.node(0).unwrap();
    let uid = postgres.pod(0).unwrap()["metadata"]["uid"].clone();
    let nodes = bed.nodes().unwrap();
    let client = nodes.iter().find(|node| **node != before).unwrap();
    let ledger = Ledger::start(bed, &namespace, client).unwrap();

    let healed = Healed(bed, before.clone(), cure);
    let cut = bed.fault(fault, &before).unwrap();
    let first = ledger.after(now(), Duration::from_secs(60)).unwrap() - cut;
    println!("{name}: {fault} of {before} to the first acknowledged row: {first:.2} s");
    if first > GOAL {
        println!("cut at {cut:.3}; {}", ledger.failures().unwrap());
    }
    moved(&postgres, &uid, &before);
    assert!(is_fenced(bed, &before));
    told(bed, &namespace, &before);

    drop(healed);
    bed.well(PATIENCE).unwrap();
    let record = ledger.audit().unwrap();
    println!("{name}: {} rows acknowledged, 0 lost, 0 phantom", record.acknowledged.len());
    assert!(first < BOUND, "{first:.2} s");
}

/// The failover is told as events of pod, claim and node.
fn told(bed: &Bed, namespace: &Namespace, node: &str) {
    let events = |namespace: &str, kind: &str, name: &str| {
        let selector = format!("regarding.kind={kind},regarding.name={name},reason=FailedOver");
        let found =
            bed.get(&["events.v1.events.k8s.io", "-n", namespace, "--field-selector", &selector]);
        found.is_ok_and(|found| !found["items"].as_array().unwrap().is_empty())
    };
    for (namespace, kind, name) in [
        (namespace.name.as_str(), "Pod", "pg-0"),
        (namespace.name.as_str(), "PersistentVolumeClaim", "data-pg-0"),
        ("default", "Node", node),
    ] {
        let found = poll(Duration::from_secs(20), || events(namespace, kind, name).then_some(()));
        assert!(found.is_some(), "no event about {kind} {name}");
    }
}

#[test]
fn a_cut_off_node_loses_its_pod_and_no_row() {
    let Some(bed) = Bed::with_faults("a_cut_off_node_loses_its_pod_and_no_row") else { return };
    lose_the_node(&bed, "holdfast-e2e-cut", "cut", "heal", None);
}

#[test]
fn a_crashed_node_loses_its_pod_and_no_row() {
    let Some(bed) = Bed::with_faults("a_crashed_node_loses_its_pod_and_no_row") else { return };
    lose_the_node(&bed, "holdfast-e2e-crash", "crash", "boot", None);
}

#[test]
fn a_node_without_a_link_loses_its_pod_and_no_row() {
    let test = "a_node_without_a_link_loses_its_pod_and_no_row";
    let Some(bed) = Bed::with_fault(test, "link-down") else { return };
    lose_the_node(&bed, "holdfast-e2e-link", "link-down", "link-up", None);
}

#[test]
fn a_node_that_is_shut_down_loses_its_pod_and_no_row() {
    let test = "a_node_that_is_shut_down_loses_its_pod_and_no_row";
    let Some(bed) = Bed::with_fault(test, "shutdown") else { return };
    lose_the_node(&bed, "holdfast-e2e-shutdown", "shutdown", "boot", None);
}

#[test]
fn the_controllers_node_is_lost_like_any_other() {
    let test = "the_controllers_node_is_lost_like_any_other";
    let Some(bed) = Bed::with_faults(test) else { return };
    // Every instance acts; one of them is to be lost with the database.
    let label = "app.kubernetes.io/component=controller";
    let pods = bed.get(&["pods", "-n", SYSTEM, "-l", label]).unwrap();
    let node = pods["items"][0]["spec"]["nodeName"].as_str().unwrap().to_owned();
    lose_the_node(&bed, "holdfast-e2e-controller", "cut", "heal", Some(node));
}

#[test]
fn the_leaders_node_is_lost_like_any_other() {
    let Some(bed) = Bed::with_faults("the_leaders_node_is_lost_like_any_other") else { return };
    let nodes = bed.nodes().unwrap();
    let status = bed.holdfast(&nodes[0], &["cluster", "status"]).unwrap();
    let all = status["nodes"].as_array().unwrap();
    let leader = all.iter().find(|node| node["node"] == status["leader"]).unwrap();
    let leader = leader["name"].as_str().unwrap().to_owned();
    lose_the_node(&bed, "holdfast-e2e-leader", "cut", "heal", Some(leader));
}

#[test]
fn two_lost_nodes_stop_everything_until_one_is_back() {
    let Some(bed) = Bed::with_faults("two_lost_nodes_stop_everything_until_one_is_back") else {
        return;
    };
    let namespace = Namespace::new(&bed, "holdfast-e2e-two").unwrap();
    let postgres = database(&bed, &namespace, None);
    let before = postgres.node(0).unwrap();
    let uid = postgres.pod(0).unwrap()["metadata"]["uid"].clone();
    let nodes = bed.nodes().unwrap();
    assert_eq!(nodes.len(), 3, "two of three are a majority");
    let others: Vec<_> = nodes.iter().filter(|node| **node != before).cloned().collect();
    let ledger = Ledger::start(&bed, &namespace, &others[0]).unwrap();

    let healed = Healed(&bed, before.clone(), "heal");
    let second = Healed(&bed, others[1].clone(), "heal");
    bed.fault("cut", &others[1]).unwrap();
    bed.fault("cut", &before).unwrap();
    let cut = now();
    std::thread::sleep(STANDSTILL);
    assert_eq!(postgres.pod(0).unwrap()["metadata"]["uid"], uid, "the pod is left alone");
    assert!(!is_fenced(&bed, &before) && !is_fenced(&bed, &others[1]));

    drop(second);
    let first = ledger.after(cut + STANDSTILL.as_secs_f64(), Duration::from_secs(90)).unwrap();
    println!(
        "two: first row {:.2} s after one node was back",
        first - cut - STANDSTILL.as_secs_f64()
    );
    moved(&postgres, &uid, &before);
    drop(healed);
    bed.well(PATIENCE).unwrap();
    ledger.audit().unwrap();
}

#[test]
fn an_unreachable_api_server_delays_the_move_and_nothing_else() {
    let test = "an_unreachable_api_server_delays_the_move_and_nothing_else";
    let Some(bed) = Bed::with_fault(test, "api-cut") else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-api").unwrap();
    let postgres = database(&bed, &namespace, None);
    let before = postgres.node(0).unwrap();
    let uid = postgres.pod(0).unwrap()["metadata"]["uid"].clone();
    let nodes = bed.nodes().unwrap();
    let client = nodes.iter().find(|node| **node != before).unwrap();
    let ledger = Ledger::start(&bed, &namespace, client).unwrap();

    let healed = Healed(&bed, before.clone(), "heal");
    let answers = Healed(&bed, "all".to_owned(), "api-heal");
    bed.fault("api-cut", "all").unwrap();
    let cut = bed.fault("cut", &before).unwrap();
    std::thread::sleep(STANDSTILL);
    assert_eq!(postgres.pod(0).unwrap()["metadata"]["uid"], uid, "nobody could delete the pod");
    drop(answers);
    let first = ledger.after(cut + STANDSTILL.as_secs_f64(), Duration::from_secs(60)).unwrap();
    println!(
        "api: first row {:.2} s after the API server was back",
        first - cut - STANDSTILL.as_secs_f64()
    );
    moved(&postgres, &uid, &before);
    drop(healed);
    bed.well(PATIENCE).unwrap();
    ledger.audit().unwrap();
}
