//! The CSI controller plugin: the life of volumes and snapshots, over the replicators' control API.
//!
//! And, if told to, the failover controller ([`failover`]).
//!
//! It keeps no state of its own: what exists is what Raft says. It must never wait without a bound.
#![forbid(unsafe_code)]

mod controller;
mod create;
pub mod failover;
mod health;
mod limits;
mod parameters;
mod readiness;
mod snapshots;
mod source;
#[cfg(test)]
mod tests;
mod topology;

pub use controller::ControllerService;
pub use readiness::LeaderReachable;
