//! What goes into a [`crate::Store`] and what comes out.

use types::{Buf, Epoch, Incarnation, Instant, PoolId, ReplicaId, SnapshotId, Tag, VolumeId};

use crate::StoreError;

/// One connection of an engine, or one local engine; chosen by the caller, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One disk operation in flight; chosen by the store. The low 32 bits are a small dense index, the
/// high ones make the number unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session begins. A refused one is answered with [`Output::Reply`] of sequence 0 and
    /// [`Output::CloseSession`]; an accepted one with nothing.
    Open {
        /// The new session.
        session: SessionId,
        /// What its engine said first.
        hello: wire::Hello,
    },
    /// A request arrived. Requests of closed or unknown sessions are ignored.
    Request {
        /// The session.
        session: SessionId,
        /// Repeated in the reply.
        seq: u64,
        /// The request.
        request: wire::Request,
    },
    /// The connection is gone: queued requests are dropped, submitted ones finish unanswered. The
    /// lease that its replies granted runs on (R3).
    Disconnected {
        /// The session.
        session: SessionId,
    },
    /// A disk operation ended.
    Io {
        /// Which one.
        id: IoId,
        /// How.
        result: IoResult,
    },
    /// An administrative operation, answered by [`Output::AdminDone`] once it is durable.
    Admin {
        /// Chosen by the caller, repeated in the answer.
        op: u64,
        /// What to do.
        admin: Admin,
    },
    /// Nothing but time; also what follows [`Output::Timer`].
    Tick,
}

/// How a disk operation ended; errors are positive errno values. A short transfer is an error.
#[derive(Clone, Debug)]
pub enum IoResult {
    /// Of [`Output::Read`]: exactly the bytes asked for.
    Read(Result<Buf, i32>),
    /// Of every other operation.
    Done(Result<(), i32>),
}

/// Administrative operations; repeating one that was done is a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Make an empty replica. One that was made and has grown since stays as it is.
    CreateReplica {
        /// The volume it is a copy of.
        volume: VolumeId,
        /// Its id, never used before.
        replica: ReplicaId,
        /// Its life (R11).
        incarnation: Incarnation,
        /// Bytes: a multiple of 4096, at most [`types::MAX_VOLUME`].
        size: u64,
    },
    /// Forget a replica and give its space back; sessions on it are closed.
    DeleteReplica {
        /// Which one. An unknown one is a success.
        replica: ReplicaId,
    },
    /// Forget a snapshot and give back the space that only it used.
    DropSnapshot {
        /// Of which replica. An unknown one is a success.
        replica: ReplicaId,
        /// Which one. An unknown one is a success.
        snapshot: SnapshotId,
    },
    /// Empty a replica for good, but for its snapshots; engines' sessions on it are closed and no
    /// more are accepted.
    RetireReplica {
        /// Which one.
        replica: ReplicaId,
    },
    /// Grow a replica (R25).
    ResizeReplica {
        /// Which one.
        replica: ReplicaId,
        /// New size in bytes, not below the present one.
        size: u64,
    },
}

/// What the caller has to do, in this order. Disk operations may complete in any order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a reply.
    Reply {
        /// To whom.
        session: SessionId,
        /// To which request; 0 for a refused [`Input::Open`].
        seq: u64,
        /// What.
        reply: wire::Reply,
    },
    /// The session is over: close its connection once its replies are sent.
    CloseSession {
        /// Which one.
        session: SessionId,
    },
    /// Read `len` bytes at pool offset `offset`.
    Read {
        /// For the completion.
        id: IoId,
        /// Bytes from the start of the pool.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data` at pool offset `offset`.
    Write {
        /// For the completion.
        id: IoId,
        /// Bytes from the start of the pool.
        offset: u64,
        /// 4096-aligned in memory and length.
        data: Buf,
        /// Durable before it completes (RWF_DSYNC). It says nothing about earlier writes.
        durable: bool,
    },
    /// Make every write and zeroing completed before this durable.
    Sync {
        /// For the completion.
        id: IoId,
    },
    /// Make a range read as zeros. EOPNOTSUPP is understood: the store writes zeros from then on.
    Zero {
        /// For the completion.
        id: IoId,
        /// Bytes from the start of the pool.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// An administrative operation ended.
    AdminDone {
        /// Which one.
        op: u64,
        /// How.
        result: Result<(), StoreError>,
    },
    /// Give an [`Input::Tick`] at this time, or later.
    Timer(Instant),
    /// Tell people.
    Event(Event),
}

/// What people and the control plane should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write found no free slot; said once until space is given back.
    PoolFull,
    /// A sync or metadata write failed: every replica of the pool is failed for good (R13).
    PoolFailed {
        /// The errno.
        errno: i32,
    },
    /// A replica is failed for good (R13).
    ReplicaFailed {
        /// Its volume.
        volume: VolumeId,
        /// Which one.
        replica: ReplicaId,
        /// For people.
        reason: String,
    },
    /// The disk could not read; the replica stays, its engine can read the other copy.
    ReadError {
        /// Which replica.
        replica: ReplicaId,
        /// Bytes from the start of the volume.
        offset: u64,
        /// The errno.
        errno: i32,
    },
    /// A block did not match its checksum and was not served.
    ChecksumMismatch {
        /// Which replica.
        replica: ReplicaId,
        /// Bytes from the start of the volume.
        offset: u64,
    },
}

/// A replica as the control plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Its volume.
    pub volume: VolumeId,
    /// Its id.
    pub replica: ReplicaId,
    /// Its life (R11).
    pub incarnation: Incarnation,
    /// Bytes.
    pub size: u64,
    /// Bytes of the pool that it and its snapshots occupy.
    pub allocated: u64,
    /// Highest epoch promised by a seal (R3).
    pub sealed: Epoch,
    /// Last sealed tag (R18).
    pub last_sealed: Tag,
    /// Whether the last engine closed cleanly and nothing was written since.
    pub clean: bool,
    /// Why it is failed for good, if it is (R13).
    pub failed: Option<String>,
    /// Its snapshots, oldest first (R26).
    pub snapshots: Vec<SnapshotId>,
    /// It is kept for its snapshots only.
    pub retired: bool,
}

/// Where a block lies; see [`crate::Store::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the start of the pool.
    pub offset: u64,
    /// Its checksum is known and settled: damage would be noticed, also after a restart.
    pub verified: bool,
}

/// Numbers of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Its id.
    pub pool: PoolId,
    /// Bytes usable for data.
    pub capacity: u64,
    /// Bytes not in use, ready for writing or not.
    pub free: u64,
    /// Bytes per slot.
    pub slot_size: u64,
    /// Free slots that are zeroed and can take a first write at once.
    pub ready_slots: u64,
    /// Slots that failed and are no longer used.
    pub retired_slots: u64,
    /// Sum of the replicas' sizes in bytes.
    pub provisioned: u64,
    /// Flush requests answered.
    pub flushes: u64,
    /// Syncs of the device.
    pub syncs: u64,
    /// Log blocks written.
    pub log_blocks: u64,
    /// Checkpoints completed since the pool was opened.
    pub checkpoints: u64,
    /// Whether a sync or metadata write failed (R13).
    pub failed: bool,
}
