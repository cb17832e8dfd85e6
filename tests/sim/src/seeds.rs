//! Many seeds on several threads, and the sum of what they came to.

use crate::run::{Options, Outcome, run};
use crate::world::Figures;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use types::plant::Bug;

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Sum {
    /// Seeds that were run.
    pub seeds: u64,
    /// All figures added up.
    pub figures: Figures,
    /// Runs that found something, and runs that were not the same twice.
    pub violations: u64,
    /// The first few runs that found something.
    pub failed: Vec<Outcome>,
    /// What was found, a line each.
    pub lines: Vec<String>,
    /// The trace of the last seed, if words were wanted.
    pub trace: Vec<String>,
}

impl Sum {
    /// The line that ends the output of a command.
    #[must_use]
    pub fn last_line(&self) -> String {
        let (faults, operations) = (self.figures.faults, self.figures.operations);
        format!(
            "{} seeds, {faults} faults, {operations} operations checked, {} violations",
            self.seeds, self.violations
        )
    }

    fn add(&mut self, mut outcome: Outcome) {
        self.trace = std::mem::take(&mut outcome.lines);
        let (sum, one) = (&mut self.figures, outcome.figures);
        self.seeds += 1;
        sum.faults += one.faults;
        sum.operations += one.operations;
        sum.errors += one.errors;
        sum.attachments += one.attachments;
        sum.fences += one.fences;
        sum.resyncs += one.resyncs;
        sum.destroyed += one.destroyed;
        sum.snapshots += one.snapshots;
        sum.tendings += one.tendings;
        sum.removals += one.removals;
        sum.restores += one.restores;
        sum.older_pools += one.older_pools;
        sum.losses += one.losses;
        sum.time += one.time;
        if let Some(text) = &outcome.violation {
            self.violations += 1;
            self.lines.push(format!("seed {} fails: {text}", outcome.seed));
            if self.failed.len() < 3 {
                self.failed.push(outcome);
            }
        }
    }
}

/// Runs all of `seeds` on `threads` threads; one in a hundred is run twice and must be the same.
#[must_use]
pub fn run_all(seeds: Range<u64>, options: &Options, threads: u64) -> Sum {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, options);
                    let again = seed.is_multiple_of(100).then(|| run(seed, options).hash);
                    let Ok(mut sum) = sum.lock() else { return };
                    if let Some(again) = again.filter(|again| *again != outcome.hash) {
                        sum.violations += 1;
                        let text = format!(
                            "determinism: seed {seed} gave {:016x}, then {again:016x}",
                            outcome.hash
                        );
                        sum.lines.push(text);
                    }
                    sum.add(outcome);
                }
            });
        }
    });
    sum.into_inner().unwrap_or_default()
}

/// The first of `seeds` that fails with `bug` planted and passes without it; later ones that are under
/// way are finished.
#[must_use]
pub fn first_failure(seeds: Range<u64>, bug: Bug, threads: u64) -> Option<Outcome> {
    let options = Options { plant: Some(bug), ..Options::default() };
    let sound = Options::default();
    let next = AtomicU64::new(seeds.start);
    let first: Mutex<Option<Outcome>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = first.lock().is_ok_and(|first| first.is_some());
                    if seed >= seeds.end || over {
                        return;
                    }
                    let outcome = run(seed, &options);
                    // What fails anyway proves nothing.
                    if outcome.violation.is_none() || run(seed, &sound).violation.is_some() {
                        continue;
                    }
                    let Ok(mut first) = first.lock() else { return };
                    let sooner = first.as_ref().is_none_or(|other| other.seed > seed);
                    if sooner {
                        *first = Some(outcome);
                    }
                }
            });
        }
    });
    first.into_inner().ok().flatten()
}
