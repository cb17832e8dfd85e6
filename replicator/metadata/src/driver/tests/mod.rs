//! Clusters of drivers in memory: a network that can be cut, stores that survive a restart.
#![allow(clippy::unwrap_used)]

mod cluster;
mod elections;
mod fuzz;
mod members;
mod restart;

use cluster::Cluster;
