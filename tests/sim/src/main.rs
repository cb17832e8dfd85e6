//! `sim`: runs seeds of the whole-cluster simulation. The last line sums up; the exit code is 1 if
//! anything was violated.
#![forbid(unsafe_code)]

use clap::Parser;
use sim::clock::SEC;
use sim::run::{Options, Outcome};
use sim::seeds::first_failure;
use sim::shrink::shrink;
use std::process::ExitCode;
use std::time::Duration;
use types::plant::Bug;

/// Simulates whole clusters under faults and checks what they promise.
#[derive(Debug, Parser)]
struct Cli {
    /// Run this one seed
    #[arg(long, value_name = "S", conflicts_with_all = ["seed_start", "seeds"])]
    seed: Option<u64>,
    /// First seed
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed_start: u64,
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Print the last lines of the trace of a single seed
    #[arg(long)]
    trace: bool,
    /// Seconds to look for a smaller list of faults after a violation
    #[arg(long, value_name = "S", default_value_t = 30)]
    shrink: u64,
    /// Plant this bug, or `all` one after the other, and look for it in the seeds
    /// (a build with the feature `planted-bugs`)
    #[arg(long, value_name = "NAME")]
    planted: Option<String>,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u64,
}

/// Lines of the trace that are printed with a violation.
const LINES: usize = 120;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seeds = match cli.seed {
        Some(seed) => seed..seed + 1,
        None => cli.seed_start..cli.seed_start + cli.seeds,
    };
    let plant = cli.planted.as_ref().and_then(|name| Bug::ALL.iter().find(|(_, of)| name == of));
    if let Some(name) = &cli.planted
        && (plant.is_none() || cli.seed.is_none() || !types::plant::ENABLED)
    {
        return look_for(name, seeds, cli.threads);
    }
    let words = cli.trace && cli.seed.is_some();
    let options = Options { words, plant: plant.map(|(bug, _)| *bug), ..Options::default() };
    let sum = sim::seeds::run_all(seeds, &options, cli.threads);
    if options.words {
        for line in &sum.trace {
            println!("{line}");
        }
    }
    for outcome in sum.failed.iter().filter(|_| !options.words) {
        report(outcome, &options, Duration::from_secs(cli.shrink));
    }
    for line in &sum.lines {
        println!("{line}");
    }
    let figures = sum.figures;
    println!(
        "{:.1} cluster-hours, {} attachments, {} fences, {} resyncs, {} tendings, {} nodes removed, {} snapshots, {} restores, {} older pools, {} errors to consumers, {} losses allowed, {} volumes destroyed",
        figures.time as f64 / SEC as f64 / 3600.0,
        figures.attachments,
        figures.fences,
        figures.resyncs,
        figures.tendings,
        figures.removals,
        figures.snapshots,
        figures.restores,
        figures.older_pools,
        figures.errors,
        figures.losses,
        figures.destroyed,
    );
    println!("{}", sum.last_line());
    if sum.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(failed: &Outcome, options: &Options, patience: Duration) {
    println!("seed {} fails: {}", failed.seed, failed.violation.as_deref().unwrap_or_default());
    let small = shrink(failed, options, patience);
    for line in small.lines.iter().skip(small.lines.len().saturating_sub(LINES)) {
        println!("{line}");
    }
    println!(
        "seed {}: {}",
        small.seed,
        small.violation.as_deref().unwrap_or("not with fewer faults")
    );
    println!("faults that matter:");
    for (number, fault) in small.plan.faults.iter().enumerate() {
        if !small.plan.without[number] {
            println!(
                "  {number}: at {:.3} s {:?} for {:.3} s",
                fault.at as f64 / 1e9,
                fault.kind,
                fault.lasts as f64 / 1e9
            );
        }
    }
    println!("again: cargo run --release -p sim -- --seed {} --trace", small.seed);
}

/// Plants bugs and says in which seed each was found.
fn look_for(name: &str, seeds: std::ops::Range<u64>, threads: u64) -> ExitCode {
    if !types::plant::ENABLED {
        println!("this build cannot plant bugs: build it with --features planted-bugs");
        return ExitCode::FAILURE;
    }
    // A planted bug may well make a state machine panic.
    std::panic::set_hook(Box::new(|_| {}));
    let end = if seeds.end - seeds.start > 1 { seeds.end } else { seeds.start + 1000 };
    let (mut found, mut missed) = (0, 0);
    for (bug, of) in Bug::ALL.iter().filter(|(_, of)| name == "all" || name == *of) {
        match first_failure(seeds.start..end, *bug, threads) {
            Some(outcome) => {
                found += 1;
                let (seed, text) = (outcome.seed, outcome.violation.unwrap_or_default());
                let text: String = text.chars().take(160).collect();
                println!("{of}: seed {seed} ({} tried): {text}", seed - seeds.start + 1);
            }
            None => {
                missed += 1;
                println!("{of}: NOT FOUND in {} seeds", end - seeds.start);
            }
        }
    }
    println!("{found} planted bugs found, {missed} missed");
    if missed == 0 && found > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
