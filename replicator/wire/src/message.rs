//! Messages as the state machines see them.

use thiserror::Error;
use types::{
    BootId, Buf, ClusterId, EngineInstance, Epoch, Era, Incarnation, Process, ReplicaId,
    SnapshotId, Tag, VolumeId,
};

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// An engine. What the replica counts for (ISR member, or resync target, R5) is the engine's to
    /// know, because it changes within the session.
    Engine = 0,
    /// Only seals, on behalf of the fencing of a lost engine (R7).
    Sealer = 1,
    /// Only reads snapshots, which never change: it needs no epoch, no seal and no lease, and seals of
    /// engines leave it alone.
    Reader = 2,
}

/// First message of a session: which replica is meant, and on whose behalf. It changes nothing
/// durable; the first request after it must be [`Request::Seal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster; a replica of another one refuses.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The replica of the volume on this node.
    pub replica: ReplicaId,
    /// The life of the replica that the sender knows from Raft (R11).
    pub incarnation: Incarnation,
    /// The epoch that the replica has sealed, as the sender knows from Raft: one that has sealed less is
    /// an older image of itself and refuses (R11).
    pub sealed: Epoch,
    /// Epoch that Raft granted to the sender.
    pub epoch: Epoch,
    /// The sender's engine (or, for [`Role::Sealer`], the fencing action).
    pub instance: EngineInstance,
    /// The daemon that the sender runs in: a lease of a former one on that node is over (R3).
    pub process: Process,
    /// What the session is for.
    pub role: Role,
}

/// A request within a session. Every request carries a sequence number beside it, unique in the
/// session, which its reply repeats. Requests may be answered in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Durably promise to refuse every epoch below that of the session's [`Hello`] (R3). The reply
    /// comes after older sessions are closed, their I/O has completed and their lease is over.
    /// Idempotent for the same (epoch, instance).
    Seal,
    /// Write `data` at `offset`; answered when the disk's write completed (R28).
    Write {
        /// Bytes from the start of the volume.
        offset: u64,
        /// Block-aligned payload, at most [`types::MAX_IO`].
        data: Buf,
        /// CRC32C of `data`, made once by the engine when the payload left the kernel (R15).
        crc: u32,
        /// Era of the write (R17).
        era: Era,
    },
    /// Read `len` bytes at `offset` (bytes).
    Read {
        /// Bytes from the start of the volume.
        offset: u64,
        /// At most [`types::MAX_IO`] bytes.
        len: u32,
    },
    /// Make everything that completed before this arrived durable (R29).
    Flush,
    /// Make a range read as zeros and give its space back (R24).
    Discard {
        /// Bytes from the start of the volume.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Era of the write.
        era: Era,
    },
    /// Make a range read as zeros (R24); whether space is given back is the store's choice.
    WriteZeroes {
        /// Bytes from the start of the volume.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Era of the write.
        era: Era,
    },
    /// Tag the regions of a range as written in `era` (R17), durably. For a resync target that already holds what
    /// a source has written there since: who left before that would not be compared with it otherwise (R19).
    Mark {
        /// Bytes from the start of the volume.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Era of the tag.
        era: Era,
    },
    /// Nothing but a reply, which renews the lease (R8).
    Ping,
    /// Era `era` of the session's epoch is complete and synced on every ISR member: remember it
    /// durably as the last sealed tag (R18). Sent only to ISR members.
    SealEra {
        /// The completed era.
        era: Era,
    },
    /// Which regions have a tag above `above`, from region `first` on (R19).
    Tags {
        /// Lower bound, exclusive.
        above: Tag,
        /// First region index of the answer; an answer holds at most [`types::MAX_IO`] / 4 regions.
        first: u32,
    },
    /// The [`types::content_hash`] of each 64 KiB block of a range whose bounds are multiples of 64 KiB or the
    /// volume's end, under the instance in the session's [`Hello`].
    Hash {
        /// Bytes from the start of the volume.
        offset: u64,
        /// Bytes, at most 64 MiB.
        len: u64,
    },
    /// Make what the volume holds now a snapshot, durably (R26). No write may be in flight on the session.
    /// Idempotent for the same id.
    Snapshot {
        /// Its id, never used before.
        snapshot: SnapshotId,
        /// Size of the volume at that time in bytes, not above the replica's.
        size: u64,
    },
    /// Which snapshots the replica has.
    Snapshots,
    /// As [`Request::Read`], of a snapshot.
    ReadSnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Bytes from the start of the volume.
        offset: u64,
        /// At most [`types::MAX_IO`] bytes.
        len: u32,
    },
    /// As [`Request::Hash`], of a snapshot.
    HashSnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Bytes from the start of the volume.
        offset: u64,
        /// Bytes, at most 64 MiB.
        len: u64,
    },
    /// Which regions of a snapshot may hold anything but zeros, from region `first` on; the answer, a
    /// [`Reply::Regions`], may end before the snapshot does.
    Allocated {
        /// Which.
        snapshot: SnapshotId,
        /// First region index of the answer.
        first: u32,
    },
    /// Last message: the engine stopped cleanly. Its lease is given back (R3); if `clean`,
    /// everything is flushed and identical on all ISR members (R20).
    Close {
        /// Whether all acknowledged writes were flushed and the last era sealed on all members.
        clean: bool,
    },
}

/// What a replica tells when it has sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealInfo {
    /// The epoch now sealed.
    pub epoch: Epoch,
    /// Last tag sealed by [`Request::SealEra`] (R18, R19).
    pub last_sealed: Tag,
    /// False if the host booted since writes that were not flushed by a clean close: acknowledged
    /// unflushed writes may be lost (R9).
    pub unbroken: bool,
    /// True if the last engine closed cleanly and nothing was written since.
    pub clean: bool,
    /// Size of the replica in bytes.
    pub size: u64,
    /// Boot of the replica's host.
    pub boot: BootId,
}

/// A snapshot that a replica has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldSnapshot {
    /// Which.
    pub snapshot: SnapshotId,
    /// Size of the volume at that time in bytes.
    pub size: u64,
}

/// Answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Request::Seal`].
    Sealed(SealInfo),
    /// To requests without a result.
    Done,
    /// To [`Request::Read`].
    Data {
        /// The bytes.
        data: Buf,
        /// CRC32C of `data`.
        crc: u32,
    },
    /// To [`Request::Tags`] and [`Request::Allocated`]: ascending region indices; `next` is where to go on, `None`
    /// at the end.
    Regions {
        /// Those that were asked for.
        regions: Vec<u32>,
        /// First region index not covered by this answer.
        next: Option<u32>,
    },
    /// To [`Request::Hash`]: one per 64 KiB block, the last one of a shorter tail if any.
    Hashes(Vec<u128>),
    /// To [`Request::Snapshots`], oldest first.
    Snapshots(Vec<HeldSnapshot>),
    /// The request failed.
    Failed(WireError),
}

/// Why a replica refused or failed a request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The epoch of the session is below what the replica sealed; the session is over (R3).
    #[error("epoch superseded: the replica sealed {sealed}")]
    Fenced {
        /// What the replica sealed.
        sealed: Epoch,
    },
    /// The replica is missing, has another incarnation, is older than what it sealed, or had a permanent
    /// failure (R11, R13).
    #[error("the replica failed: {reason}")]
    ReplicaFailed {
        /// For people.
        reason: String,
    },
    /// The disk failed on this request; the replica is failed for good (R13).
    #[error("disk error {errno}")]
    Disk {
        /// The errno.
        errno: i32,
    },
    /// The replica does not have that snapshot.
    #[error("the replica does not have the snapshot")]
    NoSnapshot,
    /// The pool has no free slot; nothing was changed.
    #[error("the pool is full")]
    NoSpace,
    /// A checksum did not match: on the wire (write) or on the disk (read).
    #[error("checksum mismatch at {offset}")]
    Checksum {
        /// Bytes from the start of the volume.
        offset: u64,
    },
    /// The request is malformed for this replica (bounds, alignment, order).
    #[error("invalid request: {reason}")]
    Invalid {
        /// For people.
        reason: String,
    },
    /// Another cluster, or another protocol version.
    #[error("refused: {reason}")]
    Refused {
        /// For people.
        reason: String,
    },
}
