//! The engine against fake replicas, links and Raft on a fake clock.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attach;
mod eras;
mod history;
mod membership;
mod repair;
mod replica;
mod rng;
mod serve;
mod simulation;
mod snapshots;
mod world;
mod writes;
