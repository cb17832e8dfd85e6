//! Many seeds of whole clusters under faults: nothing that is promised may be violated.
#![allow(clippy::unwrap_used)]

use sim::clock::SEC;
use sim::run::{Options, run};
use sim::seeds::run_all;

/// The seeds that `make test` runs.
const SEEDS: u64 = 2100;
/// What they must amount to: fewer faults in as many seeds would prove less.
const HOURS: f64 = 100.0;
const FAULTS: u64 = 70_000;
const OPERATIONS: u64 = 5_000_000;

#[test]
fn clusters_keep_their_promises_under_faults() {
    // Fewer, for a look at a changed state machine: scripts/mutants.
    let told = std::env::var("HOLDFAST_SEEDS").ok().map(|seeds| seeds.parse::<u64>().unwrap());
    let sum = run_all(0..told.unwrap_or(SEEDS), &Options::default(), 2);
    let hours = sum.figures.time as f64 / SEC as f64 / 3600.0;
    println!("{hours:.1} cluster-hours\n{}", sum.last_line());
    for line in &sum.lines {
        println!("{line}");
    }
    assert_eq!(sum.violations, 0, "again: cargo run --release -p sim -- --seed S");
    let figures = (hours, sum.figures.faults, sum.figures.operations);
    assert!(
        told.is_some() || hours >= HOURS && figures.1 >= FAULTS && figures.2 >= OPERATIONS,
        "{figures:?}"
    );
}

#[test]
fn a_seed_replays_bit_for_bit_and_another_one_differs() {
    let options = Options::default();
    let (first, second, other) = (run(7, &options), run(7, &options), run(8, &options));
    assert_eq!((first.hash, first.events), (second.hash, second.events));
    assert_ne!(first.hash, other.hash);
    assert!(first.events > 1_000, "{} events", first.events);
}
