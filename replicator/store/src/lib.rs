//! The pool of a node: replicas of volumes on one flat device, as a state machine without I/O.
//!
//! [`Store::step`] takes what happened and says what to do; production and tests drive it alike.
//! This crate must never do I/O itself, read a clock, start a thread, or serve a byte that the
//! replica's own engine did not write there (R23).
//!
//! Reading order: `layout` (where everything is), `record`, `state` and `versions` (what is remembered),
//! `superblock`, `checkpoint`, `log_block`, `recovery` (how it survives), `alloc` (why nobody sees
//! an earlier owner's bytes), `session` (who may do what), `write`, `zeroes`, `read`, `flush`,
//! `seal_era`, `snapshot`, `copy`, `online` (what they do), `fail` (what happens when the disk breaks).
#![forbid(unsafe_code)]

mod admin;
mod alloc;
mod api;
mod checkpoint;
mod copy;
mod disk;
mod error;
mod fail;
mod flush;
#[cfg(test)]
mod fuzz;
mod layout;
mod log;
mod log_block;
mod online;
mod op;
mod probe;
mod read;
mod record;
mod recovery;
mod seal_era;
mod session;
mod slab;
mod slots;
mod snapshot;
mod state;
mod store;
mod sums;
mod superblock;
mod versions;
mod write;
mod zeroes;

pub use api::{
    Admin, Event, Input, IoId, IoResult, Output, Place, PoolStats, ReplicaInfo, SessionId,
};
pub use disk::PoolDisk;
pub use error::{OpenError, StoreError};
pub use recovery::{DEFAULT_SLOT_SIZE, FormatOptions, OpenOptions, format, identify};
pub use store::{Store, open};
