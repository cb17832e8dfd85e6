//! What the host can refuse, errno kept.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Failure of a host resource. Data-path errors are bare errnos in [`crate::Completion`].
#[derive(Debug, Error)]
pub enum HostError {
    /// Another process holds the pool or device, or a killed one's writes are still under way (R12).
    #[error("{path:?} is in use by another process")]
    InUse {
        /// What was to be opened.
        path: PathBuf,
    },
    /// The path is neither a regular file nor a block device.
    #[error("{path:?} is neither a regular file nor a block device")]
    WrongKind {
        /// What was to be opened.
        path: PathBuf,
    },
    /// The filesystem or device of the path does not take direct I/O in 4096-byte blocks.
    #[error("{path:?} does not allow direct I/O in 4096-byte blocks")]
    NoDirectIo {
        /// What was to be opened.
        path: PathBuf,
    },
    /// An offset or length that is not made of 4096-byte blocks.
    #[error("{what} {value} is not a multiple of 4096 bytes")]
    Unaligned {
        /// Which argument.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
    },
    /// The kernel refused; `source` keeps its errno.
    #[error("cannot {action} {path:?}")]
    Sys {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl HostError {
    pub(crate) fn sys(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Sys { action, path: path.to_owned(), source: source.into() }
    }

    /// The errno behind this error, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        use nix::libc;
        match self {
            Self::InUse { .. } => libc::EBUSY,
            Self::WrongKind { .. } | Self::NoDirectIo { .. } | Self::Unaligned { .. } => {
                libc::EINVAL
            }
            Self::Sys { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}
