//! What can go wrong on a node, and which gRPC code it becomes.

use core::time::Duration;
use csi_common::RequestError;
use nix::errno::Errno;
use std::io;
use std::path::PathBuf;
use thiserror::Error;
use tonic::{Code, Status};

/// Why an operation on a volume failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The request itself.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The replicator refused or did not answer.
    #[error(transparent)]
    Replicator(#[from] client::Error),
    /// FAILED_PRECONDITION: the volume or a path is not in the state that the call needs.
    #[error("{0}")]
    Precondition(String),
    /// ALREADY_EXISTS: published or staged otherwise at the same path.
    #[error("{0}")]
    Conflict(String),
    /// NOT_FOUND: nothing of the volume at that path.
    #[error("{0}")]
    NotFound(String),
    /// A system call failed.
    #[error("{call} {}: {errno}", path.display())]
    System {
        /// Which one.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// Reading or writing the device failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call did not come back in time; it goes on behind our back, and the mount table will say
    /// how it ended.
    #[error("{call} did not end within {} s; the device may be dead", limit.as_secs())]
    Stuck {
        /// Which one.
        call: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Too many system calls are stuck already.
    #[error("{0} system calls hang on dead devices; no further one is started")]
    TooManyStuck(usize),
    /// A thread could not be started or died.
    #[error("{0}: its thread died")]
    Thread(&'static str),
    /// A program could not be started.
    #[error("cannot start {program}: {source}; is it installed?")]
    Start {
        /// Which one.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} on {}: {outcome}: {output}", path.display())]
    Program {
        /// Which one.
        program: &'static str,
        /// On what.
        path: PathBuf,
        /// Exit status, signal, or how long it was waited for.
        outcome: String,
        /// The end of what it printed.
        output: String,
    },
}

impl Error {
    /// [`Error::System`].
    pub(crate) fn system(
        call: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::System { call, path, errno }
    }

    /// [`Error::Io`].
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// The gRPC code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Replicator(error) => csi_common::from_client(error).code(),
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Conflict(_) => Code::AlreadyExists,
            Self::NotFound(_) => Code::NotFound,
            Self::Stuck { .. } => Code::DeadlineExceeded,
            Self::TooManyStuck(_) => Code::ResourceExhausted,
            Self::System { .. }
            | Self::Io { .. }
            | Self::Thread(_)
            | Self::Start { .. }
            | Self::Program { .. } => Code::Internal,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match &error {
            Error::Replicator(inner) => csi_common::from_client(inner),
            _ => Self::new(error.code(), error.to_string()),
        }
    }
}
