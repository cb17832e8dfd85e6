//! What an I/O on a volume can fail with, errno kept.

use thiserror::Error;

/// Failure of a volume I/O as a front-end reports it to its kernel or client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IoError {
    /// EIO: a disk failed, or the engine could not make the I/O durable in time (R4).
    #[error("I/O error")]
    Io,
    /// ENOSPC: a pool is full; nothing was changed.
    #[error("no space left in a pool")]
    NoSpace,
    /// EINVAL: misaligned, empty or out of bounds.
    #[error("invalid offset or length")]
    Invalid,
    /// ESHUTDOWN, shown to kernels as EIO: the epoch was superseded or the engine was stopped (promise 3).
    #[error("the attachment was superseded by a later epoch")]
    Fenced,
}

impl IoError {
    /// The errno for FUSE (positive). NBD maps the same numbers.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Io | Self::Fenced => 5,
            Self::NoSpace => 28,
            Self::Invalid => 22,
        }
    }
}
