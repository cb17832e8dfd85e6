//! Holdfast on a real Kubernetes cluster: what the scenarios in `tests/` share.
//!
//! A cluster is given by the environment (see [`bed::Bed::find`]); without one every scenario says
//! that it is skipped. Everything a scenario makes lies in a namespace of its own and goes with it.
#![forbid(unsafe_code)]

pub mod bed;
pub mod ledger;
pub mod postgres;

use std::time::{Duration, Instant};

/// Looks until `look` finds something; `None` after `patience`.
pub fn poll<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begun.elapsed() > patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
