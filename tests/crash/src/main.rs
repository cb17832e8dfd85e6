//! `cargo run --release -p crash -- --seed-start 1 --images 5000000`: power cuts by hand, of a pool
//! and of a Raft log, seed by seed.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use crash::raft::{self, RaftPlan};
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
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Images at each moment that has too many.
    #[arg(long, default_value_t = Plan::USUAL.samples)]
    samples: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
                    total.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(tally);
                }
            });
        }
    });
    let seeds = next.into_inner() - arguments.seed_start;
    let total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
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
