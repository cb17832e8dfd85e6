//! The log in memory, as raft-rs reads it. It mirrors what [`crate::LogStore`] holds durably and is
//! kept short by snapshots, so that reading never touches the disk.

use super::message;
use crate::state::Membership;
use crate::storage::{HardState, LogContents, LogSnapshot};
use core::cell::Cell;
use raft::prelude::{Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use raft_prost::Message as _;
use types::NodeId;

pub(super) struct MemoryLog {
    hard_state: HardState,
    /// Members as of the applied index; what raft-rs starts with.
    membership: Membership,
    snapshot: LogSnapshot,
    /// (index, term) just before `entries`.
    before: (u64, u64),
    entries: Vec<Entry>,
    /// Encoded bytes of the entries after the snapshot.
    bytes: usize,
    /// A follower needs a newer snapshot than there is.
    wanted: Cell<bool>,
}

/// Why contents of a log make no sense.
pub(super) type Broken = &'static str;

impl MemoryLog {
    /// From what the disk holds. Entries must be contiguous and reach at least to the snapshot.
    pub(super) fn new(contents: LogContents, membership: Membership) -> Result<Self, Broken> {
        let LogContents { hard_state, snapshot, entries: stored } = contents;
        let mut entries = Vec::with_capacity(stored.len());
        for entry in &stored {
            entries.push(message::decode_entry(entry).ok_or("an entry cannot be decoded")?);
        }
        let before = match entries.first() {
            Some(first) if first.index <= snapshot.index => {
                // The oldest one kept serves only to say its term.
                let first = entries.remove(0);
                (first.index, first.term)
            }
            _ => (snapshot.index, snapshot.term),
        };
        let contiguous = (before.0 + 1..).zip(&entries).all(|(index, entry)| entry.index == index);
        let terms_rise = entries.windows(2).all(|pair| pair[0].term <= pair[1].term);
        if !contiguous || !terms_rise {
            return Err("its entries are not contiguous");
        }
        let mut log = Self {
            hard_state,
            membership,
            snapshot,
            before,
            entries,
            bytes: 0,
            wanted: Cell::new(false),
        };
        if log.last().0 < log.snapshot.index {
            return Err("its entries end before its snapshot");
        }
        log.bytes = log.count_bytes();
        Ok(log)
    }

    fn count_bytes(&self) -> usize {
        self.after(self.snapshot.index).iter().map(raft_prost::Message::encoded_len).sum()
    }

    fn after(&self, index: u64) -> &[Entry] {
        let skip = usize::try_from(index.saturating_sub(self.before.0)).unwrap_or(usize::MAX);
        self.entries.get(skip..).unwrap_or_default()
    }

    pub(super) fn last(&self) -> (u64, u64) {
        self.entries.last().map_or(self.before, |entry| (entry.index, entry.term))
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        let at = index.checked_sub(self.before.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?).map(|entry| entry.term)
    }

    pub(super) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub(super) fn set_membership(&mut self, membership: Membership) {
        self.membership = membership;
    }

    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.index
    }

    /// Encoded bytes of the entries after the snapshot.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a newer snapshot was asked for since the last call.
    pub(super) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    /// Appends, replacing everything from the first new index on.
    pub(super) fn append(&mut self, new: Vec<Entry>) {
        let Some(first) = new.first() else { return };
        let keep = first.index.saturating_sub(self.before.0 + 1);
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        if keep < self.entries.len() {
            self.entries.truncate(keep);
            self.bytes = self.count_bytes();
        }
        self.bytes += new.iter().map(raft_prost::Message::encoded_len).sum::<usize>();
        self.entries.extend(new);
    }

    /// Puts a snapshot received from the leader in place of everything.
    pub(super) fn install(&mut self, snapshot: LogSnapshot) {
        self.before = (snapshot.index, snapshot.term);
        self.membership = snapshot.membership.clone();
        self.entries.clear();
        self.bytes = 0;
        self.snapshot = snapshot;
    }

    /// Takes a snapshot of our own state, and drops entries that lie more than `keep` before it.
    pub(super) fn compact(&mut self, snapshot: LogSnapshot, keep: u64) {
        let cut = snapshot.index.saturating_sub(keep);
        self.snapshot = snapshot;
        if let Some(term) = self.term_at(cut)
            && cut > self.before.0
        {
            let drop = usize::try_from(cut - self.before.0).unwrap_or(usize::MAX);
            self.entries.drain(..drop.min(self.entries.len()));
            self.before = (cut, term);
        }
        self.bytes = self.count_bytes();
    }

    /// Everything, for [`crate::LogStore::rewrite`].
    pub(super) fn contents(&self) -> LogContents {
        // The entry at `before` itself is gone, but its place and term must be known again.
        let marker = (self.before.0 < self.snapshot.index).then(|| Entry {
            index: self.before.0,
            term: self.before.1,
            ..Entry::default()
        });
        LogContents {
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            entries: marker.iter().chain(&self.entries).map(message::encode_entry).collect(),
        }
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = raft::prelude::HardState {
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            commit: self.hard_state.commit,
        };
        Ok(RaftState::new(hard_state, message::conf_state(&self.membership)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last().0 + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        let mut entries = self.after(low - 1);
        entries = &entries[..count.min(entries.len())];
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0u64;
        let fitting = entries.iter().take_while(|entry| {
            size = size.saturating_add(entry.encoded_len() as u64);
            size <= limit
        });
        let take = fitting.count().max(1).min(entries.len());
        Ok(entries[..take].to_vec())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if let Some(term) = self.term_at(index) {
            return Ok(term);
        }
        let error =
            if index < self.before.0 { StorageError::Compacted } else { StorageError::Unavailable };
        Err(raft::Error::Store(error))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A node ignores a snapshot of which it is no member: one that joined since needs another.
        let member = self.snapshot.membership.contains(NodeId(to));
        if self.snapshot.index == 0 || self.snapshot.index < request_index || !member {
            self.wanted.set(true);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot { data: self.snapshot.state.clone(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.snapshot.index;
        metadata.term = self.snapshot.term;
        metadata.set_conf_state(message::conf_state(&self.snapshot.membership));
        Ok(snapshot)
    }
}
