//! No cut of the power loses anything that the store promised to keep; and a disk that breaks its
//! own promises is found out, or this test could not fail.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crash::disk::Lie;
use crash::run::{Plan, Tally, run};

/// Images of the pool in `make test`.
const IMAGES: u64 = 160_000;

#[test]
fn nothing_is_lost_whatever_survives_a_cut() {
    let (next, done) = (AtomicU64::new(1), AtomicU64::new(0));
    let total = Mutex::new(Tally::default());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while done.load(Ordering::Relaxed) < IMAGES {
                    let tally = run(next.fetch_add(1, Ordering::Relaxed), Plan::USUAL);
                    done.fetch_add(tally.images, Ordering::Relaxed);
                    total.lock().unwrap().add(tally);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!("{} images, {} prefixes", total.images, total.prefixes);
    assert!(total.losses.is_empty(), "{}", total.losses.join("\n"));
    for (reached, corner) in [
        (total.exhaustive, "a moment of which every subset was tried"),
        (total.recoveries, "a recovery that was cut"),
        (total.kills, "a death of the process alone"),
        (total.checkpoints, "a checkpoint"),
    ] {
        assert!(reached > 0, "the work did not reach {corner}");
    }
}

#[test]
fn a_disk_that_breaks_its_promises_is_found_out() {
    for lie in [Lie::Syncs, Lie::DurableWrites, Lie::DataSyncs, Lie::Zeroing] {
        let plan = Plan { lie, ..Plan::USUAL };
        let found = (1..=40).find_map(|seed| run(seed, plan).losses.pop());
        println!("{lie:?}: {found:?}");
        assert!(found.is_some(), "{lie:?} loses nothing");
    }
}

#[test]
fn a_seed_replays_everything() {
    let plan = Plan { actions: 60, ..Plan::USUAL };
    let (one, two) = (run(7, plan), run(7, plan));
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}
