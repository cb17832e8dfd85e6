//! No cut of the power loses anything that the Raft log acknowledged; and a directory that breaks
//! its promises is found out.
#![allow(clippy::unwrap_used)]

use crash::files::FileLie;
use crash::raft::{RaftPlan, run};
use crash::run::Tally;

/// Images of the log in `make test`.
const IMAGES: u64 = 100_000;

#[test]
fn nothing_acknowledged_is_lost() {
    let mut total = Tally::default();
    let mut seed = 0;
    while total.images < IMAGES && total.losses.is_empty() {
        seed += 1;
        total.add(run(seed, RaftPlan::USUAL));
    }
    println!("{seed} seeds, {} images, {} prefixes", total.images, total.prefixes);
    assert!(total.losses.is_empty(), "{}", total.losses.join("\n"));
    assert!(total.recoveries > 0 && total.kills > 0, "{total:?}");
}

#[test]
fn a_directory_that_breaks_its_promises_is_found_out() {
    for lie in [FileLie::Syncs, FileLie::Names] {
        let plan = RaftPlan { lie, ..RaftPlan::USUAL };
        let found = (1..=20).find_map(|seed| run(seed, plan).losses.pop());
        println!("{lie:?}: {found:?}");
        assert!(found.is_some(), "{lie:?} loses nothing");
    }
}
