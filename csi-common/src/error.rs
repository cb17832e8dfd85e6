//! What is wrong with a request, and how failures become gRPC codes.

use thiserror::Error;
use tonic::{Code, Status};

/// Why a request is refused before anything is done (promise 6): names the field, the value and what
/// would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// INVALID_ARGUMENT: a field that has to be there is empty.
    #[error("{field} is missing; accepted: {accepted}")]
    Missing {
        /// Name of the field in csi.proto.
        field: &'static str,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// INVALID_ARGUMENT: a value that is not accepted.
    #[error("{field} {value:?} is not accepted; accepted: {accepted}")]
    Invalid {
        /// Name of the field in csi.proto, or of the parameter.
        field: String,
        /// The value, shortened.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// INVALID_ARGUMENT: something that Holdfast does not do.
    #[error("{what} is not supported; {instead}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What can be had.
        instead: &'static str,
    },
    /// OUT_OF_RANGE: a capacity range without a possible size in it.
    #[error("capacity range: {reason}")]
    OutOfRange {
        /// Why no size fits, with the numbers.
        reason: String,
    },
    /// NOT_FOUND: an id that cannot be one of ours.
    #[error("{field} {id:?} names no volume: Holdfast's volume ids are lower-case UUIDs")]
    NoVolume {
        /// Name of the field in csi.proto.
        field: &'static str,
        /// The id, shortened.
        id: String,
    },
    /// NOT_FOUND: an id that cannot be one of ours.
    #[error("{field} {id:?} names no snapshot: Holdfast's snapshot ids are lower-case UUIDs")]
    NoSnapshot {
        /// Name of the field in csi.proto.
        field: &'static str,
        /// The id, shortened.
        id: String,
    },
    /// ABORTED: another operation on the same volume is in flight.
    #[error("{running} is in flight for {key}; try again when it is done")]
    Busy {
        /// Volume id or name.
        key: String,
        /// The operation in flight.
        running: &'static str,
    },
}

impl RequestError {
    /// [`RequestError::Invalid`] with the value shortened to something that fits a log line.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &str, accepted: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), value: shorten(value), accepted: accepted.into() }
    }

    /// The gRPC code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Invalid { .. } | Self::Unsupported { .. } => {
                Code::InvalidArgument
            }
            Self::OutOfRange { .. } => Code::OutOfRange,
            Self::NoVolume { .. } | Self::NoSnapshot { .. } => Code::NotFound,
            Self::Busy { .. } => Code::Aborted,
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// At most 128 characters of what a caller sent.
pub(crate) fn shorten(value: &str) -> String {
    value.chars().take(128).collect()
}

/// A failure of the replicator as CSI shall see it: the same code and the replicator's own words, which
/// name the node that holds a volume. Codes that mean nothing to a CSI caller become INTERNAL.
#[must_use]
pub fn from_client(error: &client::Error) -> Status {
    let code = match error.code() {
        code @ (Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::OutOfRange
        | Code::Aborted
        | Code::Unavailable
        | Code::DeadlineExceeded) => code,
        _ => Code::Internal,
    };
    Status::new(code, error.message())
}
