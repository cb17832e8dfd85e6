//! A cluster of several nodes on one machine, for demonstration and end-to-end tests: each node is a
//! network namespace on a bridge, with real daemons, a loop device as its pool, and a cable that can be
//! cut. [`story`] plays the main job on it: PostgreSQL outlives its node.
//!
//! This crate must never leave anything behind: every resource is found again by name ([`layout`]),
//! whatever happened to the process that made it ([`down`]).
#![forbid(unsafe_code)]

pub mod clock;
pub mod cluster;
pub mod command;
pub mod daemons;
pub mod disk;
pub mod down;
pub mod exec;
pub mod fire;
pub mod journal;
pub mod kubelet;
pub mod layout;
pub mod ledger;
pub mod machine;
pub mod net;
pub mod pool;
pub mod postgres;
pub mod process;
pub mod rpc;
pub mod state;
pub mod story;
pub mod witness;

pub use cluster::{Lab, Plan};
