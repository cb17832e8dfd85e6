//! Messages between the control plane and the data thread.

use engine::{
    CompareResult, FillSource, IsrAnswer, IsrView, MemberSpec, SnapshotError, SnapshotTaken, Status,
};
use metadata::Limits;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use store::{Admin, PoolStats, ReplicaInfo, StoreError};
use thiserror::Error;
use tokio::sync::oneshot;
use types::{Epoch, IsrVersion, ReplicaId, SnapshotId, VolumeId};
use wire::{Hello, SealInfo, WireError};

/// An attachment to serve; see [`engine::EngineConfig`].
pub type EngineSpec = engine::EngineConfig;

/// Why the data thread did not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum DataError {
    /// The volume has no engine here.
    #[error("volume {0} is not attached on this node")]
    NotAttached(VolumeId),
    /// The volume has an engine here already.
    #[error("volume {0} has an engine on this node")]
    Attached(VolumeId),
    /// The engine failed; every I/O gets an error.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A replica refused or failed a request.
    #[error(transparent)]
    Replica(#[from] WireError),
    /// A replica could not be reached in time.
    #[error("replica {0} could not be reached")]
    Unreachable(ReplicaId),
    /// The replicas could not be compared: the volume is not active, or its ISR changed meanwhile.
    #[error("the comparison was interrupted; the in-sync set changed or the volume is not active")]
    Comparison,
    /// A snapshot was aborted; nothing counts of what single replicas have of it.
    #[error("no snapshot was taken: {0}")]
    Snapshot(SnapshotError),
    /// The volume could not be filled.
    #[error("the volume could not be filled: {0}")]
    Fill(String),
    /// A file descriptor could not be taken over.
    #[error("cannot serve the descriptor: {0}")]
    Descriptor(String),
    /// The thread is gone: the daemon is ending.
    #[error("the data thread has ended")]
    Ended,
}

/// What the data thread tells the control plane unasked.
#[derive(Clone, Debug)]
pub enum DataEvent {
    /// Have Raft remove replicas from the ISR (R4), then call [`super::DataHandle::isr_changed`].
    ShrinkIsr {
        /// The volume.
        volume: VolumeId,
        /// Compare-and-set.
        epoch: Epoch,
        /// Compare-and-set.
        isr_version: IsrVersion,
        /// Whom to remove.
        remove: Vec<ReplicaId>,
        /// For the answer.
        ticket: u64,
    },
    /// Have Raft add a replica to the ISR (R5), then call [`super::DataHandle::isr_changed`].
    GrowIsr {
        /// The volume.
        volume: VolumeId,
        /// Compare-and-set.
        epoch: Epoch,
        /// Compare-and-set.
        isr_version: IsrVersion,
        /// Whom to add.
        add: ReplicaId,
        /// For the answer.
        ticket: u64,
    },
    /// Every I/O of the volume gets an error from here on.
    EngineFailed {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
        /// For people.
        reason: String,
    },
    /// A replica failed for good (R11, R13), here or, as its engine saw it, elsewhere.
    ReplicaFailed {
        /// The replica.
        replica: ReplicaId,
        /// For people.
        reason: String,
    },
    /// Blocks of a replica could not be read as they were written.
    Repaired {
        /// The volume.
        volume: VolumeId,
        /// Whose.
        replica: ReplicaId,
        /// Blocks of 4 KiB rewritten from another replica.
        repaired: u64,
        /// Blocks that no in-sync replica has.
        unrepairable: u64,
    },
    /// The scrub found 64 KiB blocks in which in-sync replicas differ although each can be read.
    ReplicasDiffer {
        /// The volume.
        volume: VolumeId,
        /// How many.
        blocks: u64,
    },
    /// A connection to the kernel's NBD driver ended, and nobody here had asked for that.
    LinkDead {
        /// The volume.
        volume: VolumeId,
    },
    /// The pool of this node has no free slot.
    PoolFull,
    /// A resync reached its end.
    ResyncDone {
        /// The volume.
        volume: VolumeId,
        /// The target.
        replica: ReplicaId,
        /// Bytes in its resync set (R19).
        total: u64,
        /// Bytes copied.
        copied: u64,
    },
}

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, DataError>>;

/// What the control plane asks.
#[derive(Debug)]
pub(super) enum Command {
    Admin { admin: Admin, answer: Answer<()> },
    Replicas { answer: Answer<Vec<ReplicaInfo>> },
    Pool { answer: Answer<PoolStats> },
    Seal { hello: Hello, address: Option<SocketAddr>, answer: Answer<SealInfo> },
    StartEngine { spec: Box<EngineSpec>, answer: Answer<Vec<ReplicaId>> },
    Activate { volume: VolumeId, view: IsrView, answer: Answer<()> },
    SetMembers { volume: VolumeId, members: Vec<MemberSpec> },
    SetLimits { volume: VolumeId, limits: Limits },
    Resize { volume: VolumeId, size: u64, answer: Answer<()> },
    StopEngine { volume: VolumeId, answer: Answer<bool> },
    FailEngine { volume: VolumeId },
    AttachFuse { volume: VolumeId, fd: OwnedFd, name: String, answer: Answer<()> },
    AttachNbd { volume: VolumeId, listener: UnixListener, answer: Answer<()> },
    AttachKernelNbd { volume: VolumeId, socket: OwnedFd, answer: Answer<()> },
    DetachFrontends { volume: VolumeId, answer: Answer<()> },
    Status { volume: VolumeId, answer: Answer<Status> },
    Compare { volume: VolumeId, answer: Answer<CompareResult> },
    Snapshot { volume: VolumeId, snapshot: SnapshotId, answer: Answer<SnapshotTaken> },
    Fill { volume: VolumeId, source: FillSource, answer: Answer<()> },
    IsrChanged { volume: VolumeId, ticket: u64, result: IsrAnswer },
    Shutdown,
}
