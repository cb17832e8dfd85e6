//! The pool of a node: replicas of volumes on one flat device, as a state machine without I/O.
//!
//! This crate must never do I/O itself, read a clock, start a thread or serve a byte that the
//! replica's own engine did not write there (R23).
#![forbid(unsafe_code)]

mod api;
mod disk;
mod error;

pub use api::{Admin, Event, Input, IoId, IoResult, Output, PoolStats, ReplicaInfo, SessionId};
pub use disk::PoolDisk;
pub use error::{OpenError, StoreError};

use types::{BootId, ClusterId, Instant, PoolId};

/// How to make a pool.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// The cluster that it will belong to.
    pub cluster: ClusterId,
    /// Its id, never used before.
    pub pool: PoolId,
    /// Bytes per slot: a power of two between 64 KiB and 1 MiB; see [`DEFAULT_SLOT_SIZE`].
    pub slot_size: u64,
    /// Format even if the device is not blank. Whatever it holds is lost.
    pub force: bool,
}

/// Slot size unless something else was measured to be better, in bytes.
pub const DEFAULT_SLOT_SIZE: u64 = 256 << 10;

/// What a pool must be to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// The cluster of this node.
    pub cluster: ClusterId,
    /// The pool that this node had before, if known.
    pub expected_pool: Option<PoolId>,
    /// Boot of the host (R9).
    pub boot: BootId,
}

/// Makes a pool on `disk`.
///
/// # Errors
/// The device is not blank (without `force`), too small, or failed.
pub fn format(disk: &mut dyn PoolDisk, _options: &FormatOptions) -> Result<(), OpenError> {
    let probe = disk::read(disk, 0, 4096)?;
    disk::write(disk, 0, &probe.freeze())?;
    disk::sync(disk)
}

/// Opens the pool on `disk` and recovers its state.
///
/// # Errors
/// The device is not the intact pool that `options` name; see [`OpenError`].
pub fn open(_disk: &mut dyn PoolDisk, _options: &OpenOptions) -> Result<Store, OpenError> {
    Err(OpenError::Blank)
}

/// An open pool. Feed it [`Input`]s, do what its [`Output`]s say.
#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Takes one input. `now` never goes back.
    pub fn step(&mut self, _now: Instant, _input: Input, _out: &mut Vec<Output>) {}

    /// The replicas in this pool, by id.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        Vec::new()
    }

    /// The pool's numbers.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats::default()
    }
}
