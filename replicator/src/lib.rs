//! The replicator daemon: wires the metadata Raft, the pool, engines and front-ends of one node.
pub mod config;
pub mod control;
pub mod data;
pub mod meta;
