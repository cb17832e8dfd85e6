//! From a run that failed to the faults that matter: left out by halves, then one by one, while the
//! run still fails.

use crate::run::{Options, Outcome, run};
use std::time::{Duration, Instant};

/// Leaves out what it can within `patience`; returns the smallest run that still fails, in words.
#[must_use]
pub fn shrink(failed: &Outcome, options: &Options, patience: Duration) -> Outcome {
    let begun = Instant::now();
    let count = failed.plan.faults.len();
    let mut without = vec![false; count];
    let try_without = |without: &[bool]| {
        let options = Options { without: without.to_vec(), ..options.clone() };
        run(failed.seed, &options).violation.is_some()
    };
    let mut piece = count.div_ceil(2).max(1);
    loop {
        let mut helped = false;
        let mut at = 0;
        while at < count {
            let end = (at + piece).min(count);
            if begun.elapsed() < patience && without[at..end].contains(&false) {
                let mut attempt = without.clone();
                attempt[at..end].fill(true);
                if try_without(&attempt) {
                    without = attempt;
                    helped = true;
                }
            }
            at = end;
        }
        if begun.elapsed() >= patience || (piece == 1 && !helped) {
            break;
        }
        piece = if piece == 1 { 1 } else { piece.div_ceil(2) };
    }
    run(failed.seed, &Options { without, words: true, ..options.clone() })
}
