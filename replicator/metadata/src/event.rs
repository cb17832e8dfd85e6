//! What an operator wants to know, as the state machine sees it happen.

use crate::failover::FailoverStep;
use core::fmt;
use serde::{Deserialize, Serialize};
use types::{Epoch, NodeId, VolumeId};

/// Kind of an [`Event`]; its text is the `kind` of the control API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum EventKind {
    NodeRegistered,
    NodeRemoved,
    NodeLost,
    NodeUp,
    VolumeCreated,
    VolumeReady,
    VolumeDeleted,
    VolumeExpanded,
    VolumeModified,
    Attaching,
    Attached,
    Detached,
    Fenced,
    Sealed,
    IsrShrunk,
    IsrGrown,
    ReplicaFailed,
    ReplicaAdded,
    ReplicaRemoved,
    VolumeFilled,
    VolumeRetired,
    SnapshotBegun,
    SnapshotTaken,
    SnapshotAborted,
    SnapshotDeleted,
    SnapshotLost,
    /// Its message is the time of the step, in milliseconds since 1970; its epoch is the fence's.
    Failover(FailoverStep),
}

impl EventKind {
    /// The word of the control API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeRegistered => "node_registered",
            Self::NodeRemoved => "node_removed",
            Self::NodeLost => "node_lost",
            Self::NodeUp => "node_up",
            Self::VolumeCreated => "volume_created",
            Self::VolumeReady => "volume_ready",
            Self::VolumeDeleted => "volume_deleted",
            Self::VolumeExpanded => "volume_expanded",
            Self::VolumeModified => "volume_modified",
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Fenced => "fenced",
            Self::Sealed => "sealed",
            Self::IsrShrunk => "isr_shrunk",
            Self::IsrGrown => "isr_grown",
            Self::ReplicaFailed => "replica_failed",
            Self::ReplicaAdded => "replica_added",
            Self::ReplicaRemoved => "replica_removed",
            Self::VolumeFilled => "volume_filled",
            Self::VolumeRetired => "volume_retired",
            Self::SnapshotBegun => "snapshot_begun",
            Self::SnapshotTaken => "snapshot_taken",
            Self::SnapshotAborted => "snapshot_aborted",
            Self::SnapshotDeleted => "snapshot_deleted",
            Self::SnapshotLost => "snapshot_lost",
            Self::Failover(step) => step.as_str(),
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event, ordered by `sequence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts all events of the cluster from 1, the same on every node.
    pub sequence: u64,
    /// Raft index of the command that caused it.
    pub index: u64,
    /// What happened.
    pub kind: EventKind,
    /// The volume concerned.
    pub volume: Option<VolumeId>,
    /// The node concerned.
    pub node: Option<NodeId>,
    /// The volume's epoch after it.
    pub epoch: Option<Epoch>,
    /// For people.
    pub message: String,
}
