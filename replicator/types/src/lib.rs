//! The words of Holdfast as types: ids, units, epochs, time and buffers, without any I/O.
//!
//! This crate must never read a clock, open a file or start a thread: the state machines above it
//! (`metadata`, `store`, `engine`) are driven by production and by tests alike.
#![forbid(unsafe_code)]

mod block;
mod buf;
mod epoch;
mod error;
mod id;
pub mod plant;
mod process;
mod time;
mod units;

pub use block::{BlockOp, BlockResult, IoId};
pub use buf::{Buf, BufMut};
pub use epoch::{Epoch, Era, IsrVersion, Tag};
pub use error::IoError;
pub use id::{
    BootId, ClusterId, EngineInstance, Incarnation, NodeId, ParseIdError, PoolId, ReplicaId,
    SnapshotId, VolumeId,
};
pub use process::Process;
pub use time::Instant;
pub use units::*;

/// CRC32C (Castagnoli) of `bytes`, the checksum of every frame, block and record (R15, R23).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// CRC32C of the concatenation of `bytes` after data whose CRC32C is `crc`.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}
