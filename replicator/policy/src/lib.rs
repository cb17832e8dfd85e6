//! What the control plane decides, without its means: who is lost, what a leader does next, what a
//! node's pool must hold, what an engine is told.
//!
//! Pure functions of the applied state and of timers that are handed in: no clock, no network, no
//! task. The daemon carries the decisions out over gRPC and threads, the simulator over simulated
//! ones; both decide by this code.
#![forbid(unsafe_code)]

pub mod attachment;
pub mod fence;
pub mod leader;
pub mod liveness;
pub mod membership;
pub mod pool;
pub mod replace;
pub mod snapshot;
#[cfg(test)]
mod testing;
