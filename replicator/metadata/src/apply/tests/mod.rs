//! Every rule of every command, as tables: a story, and how its last step ends.
#![allow(clippy::unwrap_used)]

mod attach;
mod nodes;
mod replicas;
mod snapshots;
mod story;
mod volumes;

use story::{Story, check};
