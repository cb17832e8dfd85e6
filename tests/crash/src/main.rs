//! `cargo run --release -p crash -- --seed-start 1 --images 5000000`: power cuts by hand, of a pool
//! and of a Raft log, seed by seed.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Parser;
use crash::raft::{self, RaftPlan};
use crash::rot::{self, Moment, RotTally};
use crash::run::{Plan, Tally, run};

/// Cuts the power of a working pool, and of a Raft log, at every step and compares what is left with
/// a model.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed_start: u64,
    /// Stop after the seed with which this many images were checked.
    #[arg(long, default_value_t = 250_000)]
    images: u64,
    /// Inject this many faults into pools instead: rot, lost and misdirected writes.
    #[arg(long)]
    faults: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Images at each moment that has too many.
    #[arg(long, default_value_t = Plan::USUAL.samples)]
    samples: usize,
}

/// Faults of one pool.
const EACH: u64 = 200;

fn damage(arguments: &Arguments, faults: u64) -> ExitCode {
    let next = AtomicU64::new(arguments.seed_start);
    let last = arguments.seed_start + faults.div_ceil(3 * EACH);
    let total = Mutex::new(RotTally::default());
    thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last {
                        return;
                    }
                    for moment in [Moment::Open, Moment::Sealed, Moment::Unsealed] {
                        let tally = rot::run(seed, moment, EACH);
                        for served in &tally.served {
                            println!("{served}");
                        }
                        total.lock().unwrap_or_else(PoisonError::into_inner).add(tally);
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} reads refused, {} pools refused, {} harmless, {} without a trusted checksum, {} of the \
         newest log block",
        total.detected, total.refused, total.harmless, total.unprotected, total.tail
    );
    println!("{} faults, {} served", total.faults, total.served.len());
    if total.served.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(faults) = arguments.faults {
        return damage(&arguments, faults);
    }
    let plan = Plan { samples: arguments.samples, ..Plan::USUAL };
    let (next, done) = (AtomicU64::new(arguments.seed_start), AtomicU64::new(0));
    let total = Mutex::new(Tally::default());
    let raft_images = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                while done.load(Ordering::Relaxed) < arguments.images {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let mut tally = run(seed, plan);
                    let log = raft::run(seed, RaftPlan::USUAL);
                    raft_images.fetch_add(log.images, Ordering::Relaxed);
                    tally.add(log);
                    done.fetch_add(tally.images, Ordering::Relaxed);
                    for loss in &tally.losses {
                        println!("{loss}");
                    }
                    total.lock().unwrap_or_else(PoisonError::into_inner).add(tally);
                }
            });
        }
    });
    let seeds = next.into_inner() - arguments.seed_start;
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "seeds {}..{}: {} images of a Raft log, {} moments with every subset, {} images of a recovery \
         cut again, {} kills, {} checkpoints",
        arguments.seed_start,
        arguments.seed_start + seeds,
        raft_images.into_inner(),
        total.exhaustive,
        total.recoveries,
        total.kills,
        total.checkpoints
    );
    println!("{} images, {} prefixes, {} losses", total.images, total.prefixes, total.losses.len());
    if total.losses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
