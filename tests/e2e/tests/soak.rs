//! PostgreSQL under fire: a short soak, with faults of every kind.
#![allow(clippy::unwrap_used)]

use e2e::{fresh_dir, tell_last_lines, turn};
use lab::fire::{self, Options};
use lab::{Lab, Plan};

/// Twelve faults; `make soak` has any number of them.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_row_is_lost_under_fire() {
    let _turn = turn().await;
    let dir = fresh_dir();
    let options = Options { plan: Plan::new(dir.clone(), 3), rounds: 12, seed: 1 };
    let told = fire::run(&options, |line| println!("{line}")).await;
    let ended = Lab::open(&dir).and_then(|lab| {
        if told.is_err() {
            tell_last_lines(&lab);
        }
        lab.down()
    });
    let tally = told.unwrap();
    ended.unwrap();
    assert_eq!((tally.rounds, tally.lost, tally.phantom), (12, 0, 0));
    assert!(tally.longest_stall_ms <= 10_000, "{tally:?}");
}
