//! How a command ended: the same on every node, since applying is deterministic.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use types::{Epoch, IsrVersion, NodeId, ReplicaId, SnapshotId, VolumeId};

/// Result of applying a command.
pub type Outcome = Result<Done, Refused>;

/// What an applied command achieved, also when it repeated an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// Nothing more to say.
    Ok,
    /// `CreateVolume`: the volume of that name.
    Volume {
        /// Its id, not the proposed one if it existed.
        volume: VolumeId,
        /// It existed before.
        existing: bool,
    },
    /// `CreateSnapshot`: the snapshot of that name.
    Snapshot {
        /// Its id, not the proposed one if it existed.
        snapshot: SnapshotId,
        /// It was ready before.
        existing: bool,
    },
    /// `DeleteVolume`: replicas whose space is not yet free; 0 when the volume is gone or
    /// retired.
    Deleting {
        /// How many.
        remaining: u32,
    },
    /// `BeginAttach`, `Fence`: the granted epoch.
    Epoch {
        /// The epoch.
        epoch: Epoch,
        /// The last attachment ended with everything flushed and sealed, so that all ISR members
        /// are identical (R20).
        clean: bool,
    },
    /// `Activate`, `ShrinkIsr`, `GrowIsr`: the ISR's new version.
    Isr {
        /// The version.
        isr_version: IsrVersion,
    },
    /// `GrowIsr`: the replica may not join now. The ISR stays as it is and its version is a new one.
    NotGrown {
        /// The version.
        isr_version: IsrVersion,
        /// Why.
        why: NotGrown,
    },
    /// `ExpandBegin`, `ReplicaResized`: the committed size, and the one wanted.
    Size {
        /// Bytes that may be used.
        committed: u64,
        /// Bytes wanted; equal to `committed` when done.
        target: u64,
    },
}

/// Why a replica may not join the ISR now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum NotGrown {
    /// Its state is not `Ready`.
    #[error("it is not ready")]
    NotReady,
    /// It was not extended yet (R25).
    #[error("it is smaller than the volume")]
    TooSmall,
    /// The volume has what it wants (R27).
    #[error("as many replicas are in sync as are wanted")]
    Enough,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refused {
    /// A value that no volume or node may have.
    #[error("{field}: {value} is not accepted; {accepted}")]
    Invalid {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What would be.
        accepted: String,
    },
    /// The name belongs to a volume with other parameters, or to another node.
    #[error("{name:?} exists with {field} {existing}, not {wanted}")]
    Conflict {
        /// The name.
        name: String,
        /// The first field that differs.
        field: String,
        /// Its value there.
        existing: String,
        /// Its value in the command.
        wanted: String,
    },
    /// An id was used before; ids are never reused (R11).
    #[error("{what} {id} was used before")]
    IdReused {
        /// What kind of id.
        what: String,
        /// The id.
        id: String,
    },
    /// No such volume.
    #[error("there is no volume {volume}")]
    NoVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// No such replica.
    #[error("there is no replica {replica}")]
    NoReplica {
        /// The replica.
        replica: ReplicaId,
    },
    /// No such node.
    #[error("there is no node {node}")]
    NoNode {
        /// The node.
        node: NodeId,
    },
    /// The node was added, but never registered itself.
    #[error("node {node} never registered")]
    NotRegistered {
        /// The node.
        node: NodeId,
    },
    /// The node was removed; it must come back under a new id.
    #[error("node id {node} is retired; a removed node comes back under a new id")]
    Retired {
        /// The node.
        node: NodeId,
    },
    /// Another pool than the one that holds this node's replicas (R11).
    #[error("node {node} came with pool {found}, but its replicas are in pool {recorded}")]
    PoolChanged {
        /// The node.
        node: NodeId,
        /// Its pool in metadata.
        recorded: String,
        /// The pool it came with.
        found: String,
    },
    /// The node has no room for a replica of this size.
    #[error("node {node} has room for {room} more bytes, {wanted} are needed")]
    NoRoom {
        /// The node.
        node: NodeId,
        /// Bytes needed.
        wanted: u64,
        /// Bytes left, overcommit included.
        room: u64,
    },
    /// The node cannot take a replica: lost, never seen, without a pool, of another class, or it has
    /// one of the volume already.
    #[error("node {node} cannot hold the replica: {reason}")]
    BadPlacement {
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// A live node holds the volume.
    #[error("volume {volume} is attached to node {node}, which is alive")]
    HeldBy {
        /// The volume.
        volume: VolumeId,
        /// The holder.
        node: NodeId,
    },
    /// The holder is lost and about to be fenced: wait, then try again.
    #[error("volume {volume} is held by lost node {node} and not yet fenced")]
    NeedsFence {
        /// The volume.
        volume: VolumeId,
        /// The holder.
        node: NodeId,
    },
    /// Fenced, but no ISR member has sealed yet (R7): wait, then try again.
    #[error("volume {volume} is fenced at epoch {epoch} and not yet sealed")]
    NeedsSeal {
        /// The volume.
        volume: VolumeId,
        /// The fence's epoch.
        epoch: Epoch,
    },
    /// The volume's replicas do not all exist yet.
    #[error("volume {volume} is still being created")]
    Creating {
        /// The volume.
        volume: VolumeId,
    },
    /// What the volume begins with is not all there yet.
    #[error("volume {volume} is still being filled from its source")]
    Filling {
        /// The volume.
        volume: VolumeId,
    },
    /// A node has the volume without a device, which ends by itself: wait, then try again.
    #[error(
        "node {node} has volume {volume} without a device: for a snapshot, or to fill it or its replicas"
    )]
    HeldInternally {
        /// The volume.
        volume: VolumeId,
        /// The holder.
        node: NodeId,
    },
    /// No such snapshot, or it is being deleted.
    #[error("there is no snapshot {snapshot}")]
    NoSnapshot {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The snapshot is being taken: wait, then try again.
    #[error("snapshot {snapshot} of volume {volume} is being taken")]
    Taking {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Its volume.
        volume: VolumeId,
    },
    /// The snapshot is not in the state that the command needs.
    #[error("snapshot {snapshot} is {found}")]
    SnapshotState {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What it is.
        found: String,
    },
    /// A volume is being filled from the snapshot.
    #[error("volume {volume} is being filled from snapshot {snapshot}")]
    SourceInUse {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The new volume.
        volume: VolumeId,
    },
    /// The new volume would be smaller than its source.
    #[error("size: {size} is less than the {source_size} bytes of the source")]
    SmallerThanSource {
        /// Bytes wanted.
        size: u64,
        /// Bytes of the source.
        source_size: u64,
    },
    /// Not every member of the ISR has the snapshot, so it is none.
    #[error("replica {replica} is in sync, but does not have snapshot {snapshot}")]
    NotHeld {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Who lacks it.
        replica: ReplicaId,
    },
    /// The replica is the last one that has a snapshot.
    #[error("replica {replica} is the last within reach that has snapshot {snapshot}")]
    LastHolder {
        /// The replica.
        replica: ReplicaId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The volume is being deleted.
    #[error("volume {volume} is being deleted")]
    Deleting {
        /// The volume.
        volume: VolumeId,
    },
    /// The command's epoch or engine is not the current one; a later one rules (promise 3).
    #[error("volume {volume} is at epoch {current}: the command was for an earlier attachment")]
    Superseded {
        /// The volume.
        volume: VolumeId,
        /// Its epoch now.
        current: Epoch,
    },
    /// The epoch fits, but the volume is not in the state that the command needs.
    #[error("volume {volume} is {found}, the command needs it {needed}")]
    WrongState {
        /// The volume.
        volume: VolumeId,
        /// What it is.
        found: String,
        /// What it should be.
        needed: String,
    },
    /// The ISR changed since the proposer looked.
    #[error("volume {volume} has ISR version {}, the command was for another", current.0)]
    IsrChanged {
        /// The volume.
        volume: VolumeId,
        /// The version now.
        current: IsrVersion,
    },
    /// A replica was added since the proposer looked, perhaps this one, and removed again.
    #[error("volume {volume} has had {current} replicas added, the command was for another number")]
    ReplicasChanged {
        /// The volume.
        volume: VolumeId,
        /// How many were added by now.
        current: u64,
    },
    /// The ISR would become empty (R4).
    #[error("volume {volume} would have no in-sync replica left")]
    EmptyIsr {
        /// The volume.
        volume: VolumeId,
    },
    /// The replica may not be (or is not) where the command wants it: not in the ISR, failed, too
    /// small, or in the ISR already.
    #[error("replica {replica} of volume {volume} is not eligible: {reason}")]
    NotEligible {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        replica: ReplicaId,
        /// Why.
        reason: String,
    },
    /// The node is lost; it must be heard again first.
    #[error("node {node} is lost")]
    NodeIsLost {
        /// The node.
        node: NodeId,
    },
    /// The holder is not lost: a live node is never fenced.
    #[error("node {node} is not lost")]
    NotLost {
        /// The node.
        node: NodeId,
    },
    /// Declaring the node lost would leave no majority of live voters.
    #[error("node {node} cannot be declared lost: {lost} of {voters} voters are lost already")]
    TooManyLost {
        /// The node.
        node: NodeId,
        /// Lost voters.
        lost: u32,
        /// Voters.
        voters: u32,
    },
    /// The node is still in use and cannot be removed.
    #[error("node {node} {reason}")]
    NodeInUse {
        /// The node.
        node: NodeId,
        /// By what.
        reason: String,
    },
}
