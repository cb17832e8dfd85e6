//! The replicator daemon: wires the metadata Raft, the pool, engines and front-ends of one node.
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod daemon;
pub mod data;
pub mod meta;
