//! Many seeds of whole clusters under faults: nothing that is promised may be violated.
#![allow(clippy::unwrap_used)]

use sim::run::{Options, run};
use sim::seeds::run_all;

/// The seeds that `make test` runs.
const SEEDS: u64 = 300;

#[test]
fn clusters_keep_their_promises_under_faults() {
    let sum = run_all(0..SEEDS, &Options::default(), 2);
    println!("{}", sum.last_line());
    for line in &sum.lines {
        println!("{line}");
    }
    assert_eq!(sum.violations, 0, "again: cargo run --release -p sim -- --seed S");
}

#[test]
fn a_seed_replays_bit_for_bit_and_another_one_differs() {
    let options = Options::default();
    let (first, second, other) = (run(7, &options), run(7, &options), run(8, &options));
    assert_eq!((first.hash, first.events), (second.hash, second.events));
    assert_ne!(first.hash, other.hash);
    assert!(first.events > 1_000, "{} events", first.events);
}
