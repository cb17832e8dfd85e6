//! An in-process Control server for tests: volumes in a map, attachments as loop devices over sparse files.
//!
//! It is a stand-in for the replicator's answers only; the devices that it hands out are real.
#![allow(missing_docs, clippy::unwrap_used)]

mod devices;
mod server;
mod snapshots;

pub use devices::LoopDevice;
pub use server::{FakeControl, FakeServer, State};
