//! Bugs that can be planted in the state machines, to prove that the simulator finds them.
//!
//! With the feature `planted-bugs` the simulator chooses one for its thread; each call of [`planted`]
//! stands where the code would go wrong. Without the feature it is `false` at compile time and leaves
//! nothing behind. The daemon refuses to be compiled with it (see `replicator/src/lib.rs`).

/// Whether this build can plant bugs.
pub const ENABLED: bool = cfg!(feature = "planted-bugs");

/// A fault in the code's own logic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A write or flush is acknowledged when the first member has answered (R4, R28).
    AckBeforePeer,
    /// A lost member is not waited for, although the ISR was not shrunk yet (R4).
    ShrinkAfterAck,
    /// Reads are answered without leases (R8).
    ForgetReadLease,
    /// A resync target is read like a member (R5).
    ReadFromTarget,
    /// Overlapping writes go out at the same time (R16).
    NoIntervalLock,
    /// The resync set is what was written in this epoch, not since the last seal (R19).
    DirtySinceAttach,
    /// An era is sealed on whom it reaches, although Raft counts others too (R18).
    SealEraAlone,
    /// What a resync found to be equal keeps its older tag on the target (R19).
    EqualUntagged,
    /// The resync set is what the source wrote, not what the target wrote (R19).
    SourceTagsOnly,
    /// A member that comes back on another boot stays in the ISR (R9).
    KeepIsrAfterReboot,
    /// A target joins the ISR without a sync of its disk (R5).
    JoinWithoutFlush,
    /// A target joins the ISR before its regions are copied (R5).
    JoinBeforeCopied,
    /// A write without room on one member stays on the others.
    SkipRollback,
    /// After an unclean end all that sealed stay in the ISR as they are (R20).
    SkipReconcile,
    /// The source of an attach is the local copy, even if it lost its memory (R20).
    AnySource,
    /// Resync copies without the range lock (R21).
    CopyWithoutLock,
    /// A stop claims to be clean and nothing was synced for it, neither by the engine's flush, nor by its
    /// seal, nor by the replica before it notes so (R20): each of the three is enough.
    StopWithoutFlush,
    /// A replica takes sessions of epochs below its seal (R3).
    AcceptOlderEpoch,
    /// A seal leaves older sessions open (R3).
    SealKeepsSessions,
    /// A seal is acknowledged while older sessions' I/O is under way (R3).
    SealBeforeIoEnds,
    /// A seal does not wait for the lease that was granted (R3).
    ForgetLeaseWait,
    /// Data are written before their tag is durable (R17).
    TagAfterData,
    /// Nothing says that a replica was written under this boot (R9).
    NoInUseMark,
    /// A first write is acknowledged before the record of its slot is written.
    AckBeforeMap,
    /// A flush is answered without a sync (R29).
    FlushWithoutSync,
    /// A flush is answered by a sync that was running when it arrived (R29).
    SyncSharesPast,
    /// A sync that failed is tried again (R13).
    RetrySync,
    /// Another pool of the same cluster is taken for one's own (R11).
    TrustSwappedPool,
    /// An older image of the node's own pool is taken for what the pool was (R11).
    TrustOlderImage,
    /// A slot is given to a new owner with its earlier owner's bytes (R23).
    ServeDirtySlots,
    /// A slot is used again before the record that freed it is durable (R23).
    ReuseBeforeUnmapped,
    /// What a disk returns is not compared with its checksum (R23).
    SkipChecksums,
    /// GrowIsr does not compare the ISR's version (R1).
    GrowStaleVersion,
    /// ShrinkIsr is accepted from an earlier epoch (R1).
    ShrinkStaleEpoch,
    /// Copies are compared by the blocks' CRC32C (R19).
    CompareByCrc,
    /// A snapshot is taken while writes go on, and no replica refuses it for that (R26).
    SnapshotWithoutHold,
    /// An answer to an attempt at a snapshot that was given up counts for the next one (R26).
    LateSnapshotAnswer,
    /// A slot that a snapshot uses is written in place (R26).
    OverwriteSnapshot,
    /// A vote is sent before it is durable.
    ForgetVote,
    /// A leader answers a read index by what it knows, without asking a majority (R6).
    StaleReadIndex,
}

impl Bug {
    /// All of them, by name.
    pub const ALL: &[(Self, &str)] = &[
        (Self::AckBeforePeer, "ack-before-peer"),
        (Self::ShrinkAfterAck, "shrink-after-ack"),
        (Self::ForgetReadLease, "forget-read-lease"),
        (Self::ReadFromTarget, "read-from-target"),
        (Self::NoIntervalLock, "no-interval-lock"),
        (Self::DirtySinceAttach, "dirty-since-attach"),
        (Self::SealEraAlone, "seal-era-alone"),
        (Self::EqualUntagged, "equal-untagged"),
        (Self::SourceTagsOnly, "source-tags-only"),
        (Self::KeepIsrAfterReboot, "keep-isr-after-reboot"),
        (Self::JoinWithoutFlush, "join-without-flush"),
        (Self::JoinBeforeCopied, "join-before-copied"),
        (Self::SkipRollback, "skip-rollback"),
        (Self::SkipReconcile, "skip-reconcile"),
        (Self::AnySource, "any-source"),
        (Self::CopyWithoutLock, "copy-without-lock"),
        (Self::StopWithoutFlush, "stop-without-flush"),
        (Self::AcceptOlderEpoch, "accept-older-epoch"),
        (Self::SealKeepsSessions, "seal-keeps-sessions"),
        (Self::SealBeforeIoEnds, "seal-before-io-ends"),
        (Self::ForgetLeaseWait, "forget-lease-wait"),
        (Self::TagAfterData, "tag-after-data"),
        (Self::NoInUseMark, "no-in-use-mark"),
        (Self::AckBeforeMap, "ack-before-map"),
        (Self::FlushWithoutSync, "flush-without-sync"),
        (Self::SyncSharesPast, "sync-shares-past"),
        (Self::RetrySync, "retry-sync"),
        (Self::TrustSwappedPool, "trust-swapped-pool"),
        (Self::TrustOlderImage, "trust-older-image"),
        (Self::ServeDirtySlots, "serve-dirty-slots"),
        (Self::ReuseBeforeUnmapped, "reuse-before-unmapped"),
        (Self::SkipChecksums, "skip-checksums"),
        (Self::GrowStaleVersion, "grow-stale-version"),
        (Self::ShrinkStaleEpoch, "shrink-stale-epoch"),
        (Self::CompareByCrc, "compare-by-crc"),
        (Self::SnapshotWithoutHold, "snapshot-without-hold"),
        (Self::LateSnapshotAnswer, "late-snapshot-answer"),
        (Self::OverwriteSnapshot, "overwrite-snapshot"),
        (Self::ForgetVote, "forget-vote"),
        (Self::StaleReadIndex, "stale-read-index"),
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: core::cell::Cell<Option<Bug>> = const { core::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or none.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted here.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted here: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn planted(bug: Bug) -> bool {
    let _ = bug;
    false
}
