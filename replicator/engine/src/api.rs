//! What goes into an engine and what comes out.

use crate::fill::FillSource;
use core::time::Duration;
use std::net::SocketAddr;
use thiserror::Error;
use types::{
    BlockOp, BlockResult, ClusterId, EngineInstance, Epoch, Incarnation, Instant, IoId, IsrVersion,
    NodeId, Process, ReplicaId, SnapshotId, VolumeId,
};
use wire::{Hello, Reply, Request};

/// One replica of the volume as Raft knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSpec {
    /// The replica.
    pub replica: ReplicaId,
    /// Its life (R11).
    pub incarnation: Incarnation,
    /// What it has sealed (R11).
    pub sealed: Epoch,
    /// Where it is.
    pub node: NodeId,
    /// Data address of that node; `None` if it is this node.
    pub address: Option<SocketAddr>,
    /// Whether it is in the committed ISR.
    pub in_isr: bool,
    /// Whether Raft's liveness has its node as lost: then the attach does not wait for it. That
    /// is a matter of speed only; safety never depends on it (R8).
    pub lost: bool,
}

/// An attachment that Raft has granted (BeginAttach committed).
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// Bytes.
    pub size: u64,
    /// The granted epoch.
    pub epoch: Epoch,
    /// This attachment's identity.
    pub instance: EngineInstance,
    /// The daemon that it runs in.
    pub process: Process,
    /// Whether its consumer has seen the acknowledgements of a former engine (R14): what they
    /// promised must not be undone in silence (R10).
    pub resumed: bool,
    /// Version of the ISR that `members` shows.
    pub isr_version: IsrVersion,
    /// All replicas, at most 16.
    pub members: Vec<MemberSpec>,
}

/// One connection attempt to a replica; numbers are never reused within an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A change of the ISR that Raft must commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsrChange {
    /// Remove these replicas (R4).
    Shrink(Vec<ReplicaId>),
    /// Add this replica (R5).
    Grow(ReplicaId),
}

/// The committed ISR of this engine's epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrView {
    /// Its version.
    pub version: IsrVersion,
    /// Its members.
    pub isr: Vec<ReplicaId>,
}

/// What became of a proposed [`IsrChange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsrAnswer {
    /// Decided: this is the ISR now, whether the change was applied or lost its compare-and-set.
    View(IsrView),
    /// The epoch is over.
    Superseded,
    /// Not known; the engine proposes again.
    Unavailable,
}

/// One event.
#[derive(Clone, Debug)]
pub enum Input {
    /// Begin: connect and seal.
    Start,
    /// Raft committed `Activate` with this ISR: I/O may start.
    Activated(IsrView),
    /// A request of a front-end.
    Io {
        /// Repeated in [`Output::Complete`].
        id: IoId,
        /// The request.
        op: BlockOp,
    },
    /// The link is established and its [`Hello`] was sent.
    Connected {
        /// Which.
        link: LinkId,
    },
    /// The link failed or ended.
    Disconnected {
        /// Which.
        link: LinkId,
    },
    /// A reply came.
    Reply {
        /// On which link.
        link: LinkId,
        /// To which request.
        seq: u64,
        /// The answer.
        reply: Reply,
    },
    /// Answer to [`Output::Propose`].
    IsrAnswer {
        /// Which proposal.
        ticket: u64,
        /// What became of it.
        answer: IsrAnswer,
    },
    /// The replicas or their nodes' states changed in Raft: these are all that are ready. `in_isr` is
    /// ignored.
    Members(Vec<MemberSpec>),
    /// The volume was expanded (R25), in bytes.
    Resize(u64),
    /// The attachment was superseded: fail everything now.
    Fenced,
    /// Compare all in-sync replicas, block by block.
    Compare {
        /// Repeated in [`Output::Compared`].
        ticket: u64,
    },
    /// Take a snapshot (R26).
    Snapshot {
        /// Repeated in [`Output::Snapshot`].
        ticket: u64,
        /// Its id, never used before.
        snapshot: SnapshotId,
    },
    /// Copy a snapshot into this volume, which is new.
    Fill {
        /// Repeated in [`Output::Filled`].
        ticket: u64,
        /// What.
        source: FillSource,
    },
    /// Drain, flush, seal, close.
    Stop,
    /// The time of [`crate::Engine::next_timer`] has come.
    Tick,
}

/// A snapshot that every counting member has durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTaken {
    /// The epoch that it was taken under.
    pub epoch: Epoch,
    /// The version of the ISR then.
    pub isr_version: IsrVersion,
    /// Who has it: all members of the ISR, and perhaps one that is about to join it.
    pub holders: Vec<ReplicaId>,
    /// How long writes were held.
    pub pause: Duration,
}

/// Why no snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// An in-sync replica's pool has as many snapshots as it can have.
    #[error("the pool of replica {0} has no room for another snapshot")]
    Full(ReplicaId),
    /// It may well be taken if asked for again; for people.
    #[error("{0}")]
    Aborted(String),
}

/// Result of a comparison of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompareResult {
    /// Bytes compared.
    pub bytes: u64,
    /// 64 KiB blocks in which any two replicas differ.
    pub different: u64,
    /// Replicas compared.
    pub replicas: u32,
    /// Blocks of 4 KiB that one of them could not serve and that were rewritten from another.
    pub repaired: u64,
    /// Blocks that none of them could serve: reading them is an error. At least so many: of 64 KiB
    /// with such a block the rest is not looked at.
    pub unrepairable: u64,
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A front-end's request ended.
    Complete {
        /// Which.
        id: IoId,
        /// How.
        result: BlockResult,
    },
    /// Connect to a replica and send `hello`.
    Connect {
        /// The new link.
        link: LinkId,
        /// Where; `None` is the local store.
        address: Option<SocketAddr>,
        /// First message.
        hello: Hello,
    },
    /// Send a request.
    Send {
        /// On this link.
        link: LinkId,
        /// Its number.
        seq: u64,
        /// The request.
        request: Request,
    },
    /// Close a link; nothing comes from it any more.
    Disconnect {
        /// Which.
        link: LinkId,
    },
    /// Sealing and reconciliation are done: have Raft commit `Activate` with this ISR (R2).
    Activate {
        /// ISR'.
        isr: Vec<ReplicaId>,
    },
    /// Have Raft commit a change of the ISR.
    Propose {
        /// Repeated in the answer.
        ticket: u64,
        /// Compare-and-set on this version (R1).
        version: IsrVersion,
        /// The change.
        change: IsrChange,
    },
    /// A resync ended and its replica may be proposed for the ISR.
    Resynced {
        /// Which replica.
        replica: ReplicaId,
        /// What it cost.
        progress: Progress,
    },
    /// A replica reported a permanent failure (R11, R13).
    ReplicaFailed {
        /// Which.
        replica: ReplicaId,
        /// For people.
        reason: String,
    },
    /// Blocks of an in-sync replica did not match their checksum, or its disk could not read them.
    Repaired {
        /// Whose.
        replica: ReplicaId,
        /// Blocks of 4 KiB that were rewritten from another replica.
        repaired: u64,
        /// Blocks that no in-sync replica has.
        unrepairable: u64,
    },
    /// The scrub found 64 KiB blocks in which in-sync replicas differ although each can be read.
    ReplicasDiffer {
        /// How many.
        blocks: u64,
    },
    /// Answer to [`Input::Compare`]; `None` if it could not be done.
    Compared {
        /// Which.
        ticket: u64,
        /// The result.
        result: Option<CompareResult>,
    },
    /// Answer to [`Input::Snapshot`]; if it was aborted, what single members have of it is to be swept away.
    Snapshot {
        /// Which.
        ticket: u64,
        /// Who has it durably.
        result: Result<SnapshotTaken, SnapshotError>,
    },
    /// Answer to [`Input::Fill`]: everything is written, not yet flushed.
    Filled {
        /// Which.
        ticket: u64,
        /// How it ended, for people.
        result: Result<(), String>,
    },
    /// The engine failed; every request gets an error from here on.
    Failed {
        /// For people.
        reason: String,
    },
    /// The engine stopped; `clean` if all ISR members were flushed, sealed and closed (R20).
    Stopped {
        /// See above.
        clean: bool,
    },
}

/// Progress of a resync, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Size of the resync set (R19).
    pub total: u64,
    /// Compared so far.
    pub compared: u64,
    /// Copied so far.
    pub copied: u64,
}

/// State of a replica as its engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// "member", "resyncing" or "away".
    pub role: &'static str,
    /// Of the last or running resync.
    pub progress: Progress,
    /// Why its last link ended; empty if none did.
    pub link_lost: &'static str,
}

/// A snapshot for people and for the control API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The epoch.
    pub epoch: Epoch,
    /// Bytes.
    pub size: u64,
    /// Whether I/O is served.
    pub active: bool,
    /// Why everything fails, if it does.
    pub failed: Option<String>,
    /// The replicas.
    pub members: Vec<MemberStatus>,
    /// Requests completed without error.
    pub reads: u64,
    /// Likewise.
    pub writes: u64,
    /// Likewise.
    pub flushes: u64,
    /// Blocks of 4 KiB that a replica could not serve and that were rewritten from another.
    pub repaired: u64,
    /// Blocks that no replica could serve, each time one was found.
    pub unrepairable: u64,
    /// What comparisons have looked at.
    pub scrub: ScrubStatus,
}

/// What the scrub and comparisons by hand have looked at since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Bytes of the volume that were read and checked on every in-sync replica.
    pub checked: u64,
    /// 64 KiB blocks in which replicas differed although each could be read.
    pub different: u64,
    /// When the whole volume had last been looked at.
    pub finished: Option<Instant>,
}
