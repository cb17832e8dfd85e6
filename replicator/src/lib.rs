//! The replicator daemon: wires the metadata Raft, the pool, engines and front-ends of one node.
#![forbid(unsafe_code)]

// Bugs can be planted in the simulator's builds only.
const _: () = assert!(!types::plant::ENABLED, "the daemon must not be built with planted bugs");

pub mod config;
pub mod control;
pub mod daemon;
pub mod data;
pub mod meta;
