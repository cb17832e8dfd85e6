//! The one place where failures become gRPC statuses.

use crate::data::DataError;
use client::{LEADER_ADDRESS, LEADER_ID};
use metadata::{ProposeError, Refused, State};
use thiserror::Error;
use tonic::{Code, Status};
use types::NodeId;

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum CommandError {
    /// Raft decided, and the decision is no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nobody answered in time: the command may have been carried out or not.
    #[error("no answer of the metadata leader: {reason}")]
    Unknown {
        /// The last thing heard.
        reason: String,
    },
}

impl From<CommandError> for Status {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refused) => refused_status(&refused),
            unknown @ CommandError::Unknown { .. } => Self::unavailable(unknown.to_string()),
        }
    }
}

/// The gRPC status of a refusal, in the refusal's own words.
#[must_use]
pub fn refused_status(refused: &Refused) -> Status {
    let code = match refused {
        Refused::Invalid { .. } => Code::InvalidArgument,
        Refused::Conflict { .. } => Code::AlreadyExists,
        Refused::NoVolume { .. }
        | Refused::NoSnapshot { .. }
        | Refused::NoReplica { .. }
        | Refused::NoNode { .. } => Code::NotFound,
        Refused::SmallerThanSource { .. } => Code::OutOfRange,
        Refused::NoRoom { .. } | Refused::BadPlacement { .. } => Code::ResourceExhausted,
        Refused::NeedsFence { .. }
        | Refused::NeedsSeal { .. }
        | Refused::Creating { .. }
        | Refused::Filling { .. }
        | Refused::HeldInternally { .. } => Code::Unavailable,
        Refused::Superseded { .. }
        | Refused::WrongState { .. }
        | Refused::IsrChanged { .. }
        | Refused::ReplicasChanged { .. }
        | Refused::NotHeld { .. }
        | Refused::SnapshotState { .. }
        | Refused::Taking { .. } => Code::Aborted,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, refused.to_string())
}

/// The answer of a member that does not lead: where the leader is, UNAVAILABLE if unknown.
#[must_use]
pub fn not_leader(state: &State, here: NodeId, leader: Option<NodeId>) -> Status {
    let unavailable = || Status::unavailable("the cluster has no metadata leader now");
    let Some(leader) = leader.filter(|leader| *leader != here) else { return unavailable() };
    let Some(node) = state.nodes.get(&leader) else { return unavailable() };
    let Ok(address) = node.control_address.parse() else { return unavailable() };
    let mut status =
        Status::failed_precondition(format!("node {here} does not lead, node {leader} does"));
    status.metadata_mut().insert(LEADER_ID, leader.0.into());
    status.metadata_mut().insert(LEADER_ADDRESS, address);
    status
}

/// The answer to a failed local proposal or read.
#[must_use]
pub fn propose_status(error: &ProposeError, state: &State, here: NodeId) -> Status {
    match error {
        ProposeError::NotLeader { leader } => not_leader(state, here, *leader),
        other => Status::unavailable(other.to_string()),
    }
}

/// The answer to a failed operation of the data thread.
#[must_use]
pub fn data_status(doing: &str, error: &DataError) -> Status {
    Status::unavailable(format!("{doing}: {error}"))
}

/// INVALID_ARGUMENT that names the field, the value and what is accepted.
#[must_use]
pub fn invalid(field: &str, value: impl core::fmt::Display, accepted: &str) -> Status {
    let value: String = value.to_string().chars().take(200).collect();
    Status::invalid_argument(format!("{field}: {value:?} is not accepted; accepted: {accepted}"))
}
