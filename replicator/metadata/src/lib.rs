//! What the cluster agrees on: nodes, volumes, replicas, in-sync sets, epochs and attachments, and
//! the Raft member that agrees on it.
//!
//! Everything here is a state machine without I/O: no clock, thread, socket, file or randomness.
//! [`State::apply`] is the one place where the cluster's record changes; [`Driver`] wraps raft-rs
//! and works over [`LogStore`] and [`AppliedStore`], which the daemon implements on files and tests
//! in memory.
#![forbid(unsafe_code)]

mod apply;
mod codec;
mod command;
mod driver;
mod event;
mod failover;
mod outcome;
pub mod placement;
mod state;
mod storage;

pub use apply::{Applied, Changed};
pub use codec::{CodecError, decode, encode};
pub use command::{Command, NewReplica, NodeInfo, PoolInfo};
pub use driver::{
    Change, ChangeError, Driver, DriverConfig, DriverError, Input, MAX_VOTERS, Output,
    ProposeError, RaftStatus, Role,
};
pub use event::{Event, EventKind};
pub use failover::FailoverStep;
pub use outcome::{Done, NotGrown, Outcome, Refused};
pub use state::{
    Attachment, BANDWIDTH_LIMITS, FsType, IOPS_LIMITS, Lifecycle, Limits, Membership, Node,
    NodeStatus, ParseWordError, PoolClass, Replica, ReplicaState, Snapshot, SnapshotState, Source,
    State, Volume,
};
pub use storage::{
    AppliedStore, HardState, LogBatch, LogContents, LogEntry, LogSnapshot, LogStore, StoreError,
};
