//! The node service on real loop devices, filesystems and mounts, over an in-process Control server.
#![allow(clippy::unwrap_used)]

mod copies;
mod dead;
mod fixture;
mod life;
mod refusals;
mod sweep;
