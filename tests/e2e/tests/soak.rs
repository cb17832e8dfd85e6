//! PostgreSQL under fire: short soaks.
#![allow(clippy::unwrap_used)]

use e2e::{fresh_dir, tell_last_lines, turn};
use lab::fire::{self, FAULTS, Fault, Harm, Options, Tally};
use lab::{Lab, Plan};

/// A soak of so many rounds, in which nothing is lost.
async fn soak(faults: Vec<Fault>, rounds: u32, seed: u64) -> Tally {
    let _turn = turn().await;
    let dir = fresh_dir();
    let options = Options { plan: Plan::new(dir.clone(), 3), rounds, seed, faults };
    let told = fire::run(&options, |line| println!("{line}")).await;
    let ended = Lab::open(&dir).and_then(|lab| {
        if told.is_err() {
            tell_last_lines(&lab);
        }
        lab.down()
    });
    let tally = told.unwrap();
    ended.unwrap();
    assert_eq!((tally.rounds, tally.lost, tally.phantom), (rounds, 0, 0));
    tally
}

/// Twelve faults of every kind; `make soak` has any number of them.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_row_is_lost_under_fire() {
    let tally = soak(FAULTS.to_vec(), 12, 1).await;
    assert!(tally.longest_stall_ms <= 10_000, "{tally:?}");
}

/// The database gets ENOSPC whichever copy has no room, fails, and is whole again once there is room. On
/// ext4 and on xfs, which take it differently.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_row_is_lost_when_a_pool_runs_full() {
    let full = FAULTS.iter().copied().filter(|fault| fault.harm == Harm::Full);
    let full: Vec<Fault> = full.collect();
    soak(full.clone(), 2, 2).await;
    soak(full, 2, 3).await;
}
