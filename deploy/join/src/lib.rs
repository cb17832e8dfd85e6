//! What a node does before its replicator starts, in a Kubernetes cluster: take a number in the
//! cluster's registry, prepare the pool that the administrator chose for it, write the configuration
//! files, and ask to be taken in if the cluster was founded without it.
//!
//! Reading order: `registry` (what is agreed, a pure value), `object` (how it is agreed: one
//! Kubernetes object, compare-and-set), `pool` (which device), `files` (what is written).
#![forbid(unsafe_code)]

pub mod files;
pub mod leave;
pub mod object;
pub mod pool;
pub mod registry;
