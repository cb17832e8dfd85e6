//! The CSI node plugin: device, filesystem and mounts of volumes on this node.
//!
//! It keeps no state of its own: what is staged and published is what the kernel's mount table and the
//! local replicator say. It must never format over anything, never hang on a dead device, and never let
//! a pod have a mount of a superseded epoch.
#![forbid(unsafe_code)]

mod bounded;
mod command;
mod content;
mod error;
mod extent;
mod filesystem;
mod health;
mod mountinfo;
mod mounts;
mod options;
mod publish;
mod readiness;
mod service;
mod stage;
mod sweep;
mod usage;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use readiness::NodeReady;
pub use service::{NodeIdentity, NodeService};
