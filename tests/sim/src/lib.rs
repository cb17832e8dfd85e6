//! Whole clusters in one thread: the state machines that production drives, under a simulated clock,
//! network and disks, with faults, consumers and checkers, all from one seed.
//!
//! Reading order: `world` (the events), `node`, `disk`, `net` (what there is), `data`, `meta`,
//! `control` (how the daemon drives the state machines), `client`, `operator` (who uses it),
//! `plan`, `faults` (what goes wrong), `check` (what must be true all the same), `run` (a run from its
//! beginning to its end).
#![forbid(unsafe_code)]

pub mod check;
pub mod client;
pub mod clock;
pub mod content;
mod control;
pub mod data;
pub mod disk;
pub mod faults;
mod members;
pub mod meta;
pub mod net;
pub mod node;
pub mod operator;
mod peek;
pub mod plan;
pub mod queue;
pub mod rng;
pub mod run;
pub mod seeds;
pub mod shrink;
mod swap;
pub mod trace;
pub mod world;
