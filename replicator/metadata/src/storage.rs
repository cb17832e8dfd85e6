//! What the driver needs from the disk, implemented on files by the daemon and in memory by tests.
//!
//! The log decides: the applied state may always be thrown away and made again from the log's
//! snapshot and entries.

use crate::apply::Changed;
use crate::state::{Membership, State};
use core::error::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Raft's durable promise: its term, its vote in it, and what it knows to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// Term.
    pub term: u64,
    /// Node voted for in `term`, 0 for none.
    pub vote: u64,
    /// Index known to be committed.
    pub commit: u64,
}

/// One log entry; `bytes` is raft-rs' own encoding of it, opaque here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Index.
    pub index: u64,
    /// Term.
    pub term: u64,
    /// The encoded entry.
    pub bytes: Vec<u8>,
}

/// The state as of one index, in place of all entries up to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSnapshot {
    /// Index of the last entry contained; 0: there is no snapshot.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Members as of `index`.
    pub membership: Membership,
    /// [`crate::encode`]d [`State`]; empty if `index` is 0.
    pub state: Vec<u8>,
}

/// Everything a log holds. Entries are contiguous, but may begin before `snapshot.index + 1`: some
/// older ones are kept for followers that lag a little.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogContents {
    /// The hard state.
    pub hard_state: HardState,
    /// The snapshot.
    pub snapshot: LogSnapshot,
    /// The entries.
    pub entries: Vec<LogEntry>,
}

/// One write to the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// Replaces the hard state.
    pub hard_state: Option<HardState>,
    /// Appended; an entry at or below the last index replaces it and everything after it.
    pub entries: Vec<LogEntry>,
}

/// An error of a store, its source kept.
pub type StoreError = Box<dyn Error + Send + Sync>;

/// The durable Raft log of one node.
pub trait LogStore {
    /// Makes `batch` durable. On return it survives a power cut; several entries cost one sync.
    ///
    /// # Errors
    /// Any error is fatal: the driver stops, since what is on the disk is no longer known (R13).
    fn persist(&mut self, batch: &LogBatch) -> Result<(), StoreError>;

    /// Replaces everything by `contents`, durably and atomically: truncation, or a snapshot that
    /// was received.
    ///
    /// # Errors
    /// As for [`Self::persist`].
    fn rewrite(&mut self, contents: &LogContents) -> Result<(), StoreError>;
}

/// The durable applied state of one node, an accelerator of restarts. It handles its own failures
/// by giving up: a stale or absent one is made again from the log.
pub trait AppliedStore {
    /// Records `state`, of which only `changed` (and the applied index) differs from the last call,
    /// atomically; not necessarily durably.
    fn write(&mut self, state: &State, changed: &BTreeSet<Changed>);

    /// Records `state` in place of everything.
    fn replace(&mut self, state: &State);

    /// Makes what was written durable; called before the log is truncated.
    fn flush(&mut self);
}
