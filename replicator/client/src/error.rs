//! What a call can fail with, the gRPC code kept.

use core::time::Duration;
use thiserror::Error;
use tonic::{Code, Status};

/// Why a call of the control API failed.
#[derive(Debug, Error)]
pub enum Error {
    /// No endpoint was given.
    #[error("no replicator endpoint: give at least one, like unix:///run/holdfast/control.sock")]
    NoEndpoint,
    /// A text that is not an endpoint.
    #[error(
        "endpoint {text:?}: {reason}; accepted: http://IP:PORT, IP:PORT or unix:///ABSOLUTE/PATH"
    )]
    Endpoint {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The replicator answered with an error that trying again does not help.
    #[error("{call} at {endpoint}: {}", status.message())]
    Status {
        /// Name of the call in `control.proto`.
        call: &'static str,
        /// Who answered.
        endpoint: String,
        /// The answer; its words are in the message above, so that it is no `source`.
        status: Box<Status>,
    },
    /// No answer within the deadline, or only UNAVAILABLE.
    #[error("{call}: no answer within {} s{}", after.as_secs_f32(), describe(last.as_deref()))]
    Deadline {
        /// Name of the call in `control.proto`.
        call: &'static str,
        /// The deadline.
        after: Duration,
        /// The last answer or transport error, if there was one; see `status` above.
        last: Option<Box<Status>>,
    },
}

fn describe(last: Option<&Status>) -> String {
    last.map_or_else(String::new, |status| format!("; last: {}", status.message()))
}

impl Error {
    /// The gRPC code: of the answer, or UNAVAILABLE or DEADLINE_EXCEEDED if there was none.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoEndpoint | Self::Endpoint { .. } => Code::InvalidArgument,
            Self::Status { status, .. } => status.code(),
            Self::Deadline { last: Some(_), .. } => Code::Unavailable,
            Self::Deadline { last: None, .. } => Code::DeadlineExceeded,
        }
    }

    /// The message without the call and endpoint around it: what the replicator said.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Status { status, .. } => status.message().to_owned(),
            other => other.to_string(),
        }
    }

    /// For a service that passes the failure on: same code, the replicator's own words.
    #[must_use]
    pub fn to_status(&self) -> Status {
        Status::new(self.code(), self.message())
    }
}
