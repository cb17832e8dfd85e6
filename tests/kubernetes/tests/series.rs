//! How long a failover takes: cuts one after the other, each phase of each, and what was lost.
//!
//! By hand, on a quiet cluster: `HOLDFAST_E2E_CUTS=20 cargo test … --test series -- --nocapture`.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Healed, Namespace, now};
use kubernetes::ledger::Ledger;
use kubernetes::postgres::{Postgres, Wanted};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Everything is as it should be before the next cut.
const WELL: Duration = Duration::from_secs(180);

/// A volume is moved once in 60 s only (hysteresis).
const APART: Duration = Duration::from_secs(63);

/// pgbench in the database's pod until dropped.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn load(bed: &Bed, namespace: &str) -> Load {
    // As much as leaves the processors of a small machine some room: the cut node goes on computing.
    let pgbench = ["pgbench", "-U", "postgres", "-n", "-c", "2", "-R", "50", "-T", "3600"];
    let exec = [&["exec", "-n", namespace, "pg-0", "--"][..], &pgbench].concat();
    let child = Command::new(bed.program())
        .args(exec)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Load(child.unwrap())
}

/// Phases, in seconds after the cut; a phase that nobody saw is NaN.
struct Cut([f64; PHASES.len()]);

const PHASES: [&str; 8] = [
    "lost",
    "sealed",
    "pod deleted",
    "attached",
    "first write",
    "server starts",
    "server ready",
    "first commit",
];

fn cut(
    bed: &Bed,
    namespace: &Namespace,
    postgres: &Postgres<'_>,
    number: usize,
    last: &mut Option<Instant>,
) -> Cut {
    bed.well(WELL).unwrap();
    let before = postgres.node(0).unwrap();
    let nodes = bed.nodes().unwrap();
    let others: Vec<_> = nodes.iter().filter(|node| **node != before).collect();
    let client = others[number % others.len()];
    let busy = load(bed, &namespace.name);
    let ledger = Ledger::named(bed, namespace, client, &format!("ledger{number}")).unwrap();
    // Not always at the same point of anybody's period.
    std::thread::sleep(Duration::from_millis(5000 + 370 * (number as u64 % 10)));
    // Of this volume: the cluster may remember failovers of others.
    let volume = postgres.volume(0).unwrap();
    let newest = || {
        let all = bed.holdfast(client, &["failovers", "--volume", &volume]).ok()?;
        all.as_array()?.iter().max_by_key(|failover| failover["epoch"].as_u64()).cloned()
    };
    let epoch = |failover: &serde_json::Value| failover["epoch"].as_u64().unwrap();
    let known = newest().map_or(0, |failover| epoch(&failover));
    if let Some(last) = last {
        std::thread::sleep(APART.saturating_sub(last.elapsed()));
    }
    *last = Some(Instant::now());
    let machine = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();

    let healed = Healed(bed, before.clone(), "heal");
    let begun = bed.fault("cut", &before).unwrap();
    let first = ledger.after(now(), Duration::from_secs(120)).unwrap();
    drop(busy);
    postgres.ready(0).unwrap();
    assert_ne!(postgres.node(0).unwrap(), before, "it is on another node");
    let (starts, ready) = postgres.recovery(0).unwrap();
    let found = kubernetes::poll(Duration::from_secs(20), || {
        newest().filter(|new| epoch(new) > known && new.get("written_unix_ms").is_some())
    });
    let record = found.expect("the failover is recorded");
    drop(healed);

    let at = |step: &str| {
        let ms = record[format!("{step}_unix_ms")].as_u64();
        ms.map_or(f64::NAN, |ms| ms as f64 / 1e3 - begun)
    };
    let phases = [
        at("lost"),
        at("sealed"),
        at("moved"),
        at("attached"),
        at("written"),
        starts - begun,
        ready - begun,
        first - begun,
    ];
    let rows = ledger.audit().unwrap().acknowledged.len();
    let shown: Vec<_> = phases.iter().map(|phase| format!("{phase:5.1}")).collect();
    let load = machine.split(' ').next().unwrap_or_default();
    println!("| {number:2} | {before} | {} | {rows} | 0 | {load} |", shown.join(" | "));
    Cut(phases)
}

#[test]
fn cuts_one_after_the_other() {
    let test = "cuts_one_after_the_other";
    let Some(count) = std::env::var("HOLDFAST_E2E_CUTS").ok().and_then(|n| n.parse().ok()) else {
        println!("SKIPPED: {test}: made by hand (HOLDFAST_E2E_CUTS=20)");
        return;
    };
    let Some(bed) = Bed::with_faults(test) else { return };
    let namespace = Namespace::new(&bed, "holdfast-e2e-series").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    postgres.exec(0, &["pgbench", "-U", "postgres", "-i", "-q", "-s", "10"]).unwrap();
    // The bulk load is no part of what is recovered.
    postgres.sql(0, "checkpoint").unwrap();

    println!("| cut | node | {} | rows acknowledged | lost | load |", PHASES.join(" | "));
    let mut last = None;
    let all = (1..=count).map(|n| cut(&bed, &namespace, &postgres, n, &mut last));
    let cuts: Vec<Cut> = all.collect();
    bed.well(WELL).unwrap();
    let rows = postgres.sql(0, "select count(*) from pgbench_accounts").unwrap();
    assert_eq!(rows, "1000000");
    for (index, phase) in PHASES.iter().enumerate() {
        let mut all: Vec<f64> =
            cuts.iter().map(|cut| cut.0[index]).filter(|s| s.is_finite()).collect();
        all.sort_by(f64::total_cmp);
        let (Some(worst), Some(median)) = (all.last(), all.get(all.len() / 2)) else { continue };
        println!("| {phase} | median {median:.1} s | worst {worst:.1} s | of {} |", all.len());
    }
}
