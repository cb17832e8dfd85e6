//! What goes into the driver and what comes out.

use crate::command::Command;
use crate::event::Event;
use crate::outcome::Outcome;
use crate::state::Membership;
use core::fmt;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use types::NodeId;

/// Most voters of a cluster; further nodes stay learners.
pub const MAX_VOTERS: usize = 5;

/// A change of the Raft membership, one node at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The node gets the log but does not vote. It must be in the state's nodes.
    AddLearner(NodeId),
    /// A learner that has caught up gets a vote (at most [`MAX_VOTERS`]).
    PromoteVoter(NodeId),
    /// A voter becomes a learner, under the same conditions as [`Change::Remove`].
    Demote(NodeId),
    /// The node leaves Raft. The leader does not remove itself: transfer leadership first.
    Remove(NodeId),
}

/// Why a proposal, a read or a change of membership did not end with an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ProposeError {
    /// Another node leads, or none; nothing was proposed.
    #[error("not the leader (leader: {})", leader.map_or_else(|| "none".into(), |l| l.to_string()))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// Leadership ended meanwhile; the command may or may not come to be applied.
    #[error("leadership was lost; the outcome is unknown")]
    Dropped,
    /// No outcome in time; the command may or may not come to be applied.
    #[error("no outcome in time")]
    Timeout,
    /// Too much is queued; nothing was proposed.
    #[error("too many commands are queued")]
    Busy,
    /// The metadata thread has ended; for a command under way the outcome is unknown.
    #[error("metadata has shut down")]
    Shutdown,
}

/// Why a change of membership was not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// As for a command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Another change is under way; try again.
    #[error("another change of membership is under way")]
    InProgress,
    /// The node is not in the state's nodes (`Command::AddNode` comes first).
    #[error("node {0} is not known; add it first")]
    UnknownNode(NodeId),
    /// Only a learner can be promoted.
    #[error("node {0} is not a learner")]
    NotLearner(NodeId),
    /// A voter does not become a learner: remove it.
    #[error("node {0} is a voter already")]
    IsVoter(NodeId),
    /// The learner lacks entries; try again.
    #[error("learner {node} lacks {behind} log entries")]
    NotCaughtUp {
        /// The learner.
        node: NodeId,
        /// Entries it lacks.
        behind: u64,
    },
    /// There are [`MAX_VOTERS`] already.
    #[error("there are {MAX_VOTERS} voters already, the most there may be")]
    TooManyVoters,
    /// The rest would have no majority of live voters.
    #[error("without node {0} a majority of the remaining voters would be lost")]
    NoQuorum(NodeId),
    /// The leader cannot remove itself.
    #[error("node {0} leads; transfer leadership first")]
    IsLeader(NodeId),
}

/// A node's part in Raft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes and follows.
    #[default]
    Follower,
    /// It asks to lead.
    Candidate,
    /// It follows without a vote.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
        })
    }
}

/// Raft as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node.
    pub node: NodeId,
    /// Who leads, if known.
    pub leader: Option<NodeId>,
    /// Current term.
    pub term: u64,
    /// Index known to be committed.
    pub commit: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// This node's part.
    pub role: Role,
    /// Members as of `applied`.
    pub membership: Membership,
}

/// Something happens to the driver. A `ticket` is chosen by the caller and comes back with the
/// answer, once.
#[derive(Clone, Debug)]
pub enum Input {
    /// A tick passed (100 ms in production).
    Tick,
    /// A message of another member, as [`Output::Send`] gave it there.
    Message(Vec<u8>),
    /// A command to be agreed on.
    Propose {
        /// Returned with [`Output::Proposed`].
        ticket: u64,
        /// The command.
        command: Command,
    },
    /// Asks for an index such that a state applied up to it has everything committed before now.
    ReadIndex {
        /// Returned with [`Output::Read`].
        ticket: u64,
    },
    /// A change of membership.
    ChangeMembership {
        /// Returned with [`Output::Changed`].
        ticket: u64,
        /// The change.
        change: Change,
    },
    /// Hand leadership to a voter, if this node leads.
    TransferLeadership(NodeId),
    /// A message to this node could not be sent.
    Unreachable(NodeId),
    /// Stand for election now.
    Campaign,
}

/// The driver wants something done. By then everything it rests on is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send `message` to `to`; it may be lost, repeated or reordered.
    Send {
        /// The other member.
        to: NodeId,
        /// Opaque bytes, at most about 1 MiB, but a whole snapshot in one.
        message: Vec<u8>,
    },
    /// How a command ended.
    Proposed {
        /// The caller's.
        ticket: u64,
        /// Index of its entry, and its outcome.
        result: Result<(u64, Outcome), ProposeError>,
    },
    /// The index asked for.
    Read {
        /// The caller's.
        ticket: u64,
        /// Wait until this index is applied.
        result: Result<u64, ProposeError>,
    },
    /// How a change of membership ended.
    Changed {
        /// The caller's.
        ticket: u64,
        /// Index as of which it holds.
        result: Result<u64, ChangeError>,
    },
    /// Something happened, in order of sequence.
    Event(Event),
}
