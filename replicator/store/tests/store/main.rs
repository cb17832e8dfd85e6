//! The store driven through its public door, on a disk that loses and tears what it may.
#![allow(clippy::unwrap_used, missing_docs)]

mod disk;
mod faults;
mod io;
mod model;
mod node;
mod pool;
mod sessions;
mod snapshots;
