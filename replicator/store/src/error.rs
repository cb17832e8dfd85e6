//! Why a pool cannot be formatted or opened, and why an administrative operation is refused.

use thiserror::Error;
use types::{ClusterId, PoolId, ReplicaId};

/// Failure of an administrative operation; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The size is zero, misaligned or too large.
    #[error("size {size} bytes: must be a multiple of 4096 between 4096 and {max}")]
    BadSize {
        /// What was asked for, in bytes.
        size: u64,
        /// The largest volume, in bytes.
        max: u64,
    },
    /// The pool's metadata has no room to describe that much.
    #[error(
        "the pool can describe {limit} bytes of volumes, {provisioned} are provisioned and {wanted} more were asked for"
    )]
    OverProvisioned {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes provisioned so far.
        provisioned: u64,
        /// Bytes at most.
        limit: u64,
    },
    /// As many replicas as the pool can describe.
    #[error("the pool holds {limit} replicas and cannot describe more")]
    TooManyReplicas {
        /// The limit.
        limit: u32,
    },
    /// The replica exists with another volume or incarnation, or is smaller.
    #[error("replica {replica} exists with another {field}")]
    Exists {
        /// The replica.
        replica: ReplicaId,
        /// What differs.
        field: &'static str,
    },
    /// The replica does not exist.
    #[error("replica {replica} is not in this pool")]
    Unknown {
        /// The replica.
        replica: ReplicaId,
    },
    /// Replicas never shrink (R25).
    #[error("replica {replica} has {size} bytes and cannot shrink to {wanted}")]
    Shrink {
        /// The replica.
        replica: ReplicaId,
        /// Present size in bytes.
        size: u64,
        /// Size asked for in bytes.
        wanted: u64,
    },
    /// The pool failed (R13).
    #[error("the pool failed with errno {errno}")]
    PoolFailed {
        /// The errno.
        errno: i32,
    },
}

/// Why a pool cannot be formatted or opened. Nothing is ever initialised or repaired by guessing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The device is zeros where a pool has its superblocks.
    #[error("the device is blank: it was never made a pool (see `replicator pool init`)")]
    Blank,
    /// The device holds something else.
    #[error("the device holds {found}, not a Holdfast pool")]
    Foreign {
        /// What was recognised.
        found: String,
    },
    /// Formatting was asked for a device that is not blank.
    #[error("the device holds {found}; formatting destroys it and must be forced")]
    NotBlank {
        /// What was recognised.
        found: String,
    },
    /// The pool belongs to another cluster (R11).
    #[error("the pool belongs to cluster {found}, this is cluster {expected}")]
    OtherCluster {
        /// In the superblock.
        found: ClusterId,
        /// Of this node.
        expected: ClusterId,
    },
    /// The pool is not the one expected (R11): a swapped device.
    #[error("the device is pool {found}, expected pool {expected}")]
    OtherPool {
        /// In the superblock.
        found: PoolId,
        /// Recorded for this node.
        expected: PoolId,
    },
    /// The device is too small.
    #[error("the device has {size} bytes, at least {needed} are needed")]
    TooSmall {
        /// Bytes there are.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The slot size is not a power of two between 64 KiB and 1 MiB.
    #[error("slot size {slot_size} bytes: must be a power of two between 65536 and 1048576")]
    BadSlotSize {
        /// What was asked for, in bytes.
        slot_size: u64,
    },
    /// A later version of Holdfast made the pool.
    #[error("the pool has format version {found}, this build reads up to {supported}")]
    NewerFormat {
        /// In the superblock.
        found: u32,
        /// Newest known.
        supported: u32,
    },
    /// An earlier version of Holdfast made the pool, before its format was kept readable.
    #[error(
        "the pool has format version {found}, this build reads {supported}: move its volumes away with the \
         version that made it, then make it anew"
    )]
    OlderFormat {
        /// In the superblock.
        found: u32,
        /// The one known.
        supported: u32,
    },
    /// Neither superblock is intact.
    #[error("both superblocks of the pool are corrupt")]
    SuperblocksCorrupt,
    /// A superblock is intact but says something impossible.
    #[error("the superblock is invalid: {field} is {value}")]
    SuperblockInvalid {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The checkpoint that the superblock names is damaged.
    #[error("the metadata checkpoint is corrupt: {reason}")]
    CheckpointCorrupt {
        /// What is wrong.
        reason: String,
    },
    /// A log block that was durable is damaged, or a record contradicts the state.
    #[error("the metadata log is corrupt at block {block}: {reason}")]
    LogCorrupt {
        /// Index in the log.
        block: u64,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed.
    #[error("I/O error {errno} at {offset}")]
    Io {
        /// The errno.
        errno: i32,
        /// Bytes from the start of the pool.
        offset: u64,
    },
}
