//! Power cuts: a pool at work loses power, or its process, after every single step; what is left is
//! opened again and compared with a model.
//!
//! [`workload`] drives the very state machine that the daemon drives, [`disk`] remembers which of
//! its writes are durable, [`cut`] chooses which of the others survive, [`image`] makes a disk of
//! that in microseconds, [`check`] opens it and knows from [`model`] what it may hold, [`run`] is
//! all of it for one seed. [`files`] and [`raft`] do the same to the Raft log and its directory,
//! [`rot`] damages pools instead. A seed replays everything.
#![forbid(unsafe_code)]

pub mod check;
pub mod cut;
pub mod disk;
#[cfg(feature = "raft-log")]
pub mod files;
pub mod image;
pub mod model;
mod opened;
#[cfg(feature = "raft-log")]
pub mod raft;
pub mod rot;
pub mod run;
pub mod snapshots;
pub mod workload;
