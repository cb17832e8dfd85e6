//! Metadata: what Raft decided is one sequence.
//!
//! Checked: at most one leader per term; no member speaks in a term before that, and with it the
//! vote, is on its disk; every node applies the same entry at the same index, and
//! arrives at the same volumes, nodes and members; an applied index never goes back in a process;
//! a command that was acknowledged is at its index, and that is above everything acknowledged
//! before it was proposed; a read index is not below anything acknowledged before it was asked for.
//! At the end of the run all states are equal in full.
//!
//! Not checked here: damage of the log's file (the WAL's own tests), and that events are told once.

use crate::meta::RaftDisk;
use metadata::{RaftStatus, Role, State};
use std::collections::BTreeMap;

/// An entry as a log holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its term.
    pub term: u64,
    /// CRC32C of all of it.
    pub crc: u32,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Metadata {
    leaders: BTreeMap<u64, usize>,
    entries: BTreeMap<u64, Logged>,
    states: BTreeMap<u64, u32>,
    /// The highest index that was acknowledged to anybody.
    pub acknowledged: u64,
}

fn digest(state: &State) -> u32 {
    let mut crc = state.last_event as u32;
    let mut take = |bytes: Result<Vec<u8>, metadata::CodecError>| {
        crc = types::crc32c_append(crc, &bytes.unwrap_or_default());
    };
    take(metadata::encode(&state.volumes));
    take(metadata::encode(&state.nodes));
    take(metadata::encode(&state.membership));
    take(metadata::encode(&state.retired));
    crc
}

impl Metadata {
    /// Node `n` flushed; it had applied up to `before`, and `speaks` to others next. Returns what is wrong.
    pub fn flushed(
        &mut self,
        n: usize,
        status: &RaftStatus,
        speaks: bool,
        before: u64,
        state: &State,
        log: &RaftDisk,
    ) -> Option<String> {
        if speaks && log.term() < status.term {
            let (node, term, durable) = (n + 1, status.term, log.term());
            return Some(format!(
                "metadata: node {node} speaks in term {term}, but only {durable} is on its disk"
            ));
        }
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(n);
            if leader != n {
                let (a, b, term) = (leader + 1, n + 1, status.term);
                return Some(format!("metadata: nodes {a} and {b} both lead term {term}"));
            }
        }
        if state.applied < before {
            return Some(format!(
                "metadata: node {} went back from {before} to {}",
                n + 1,
                state.applied
            ));
        }
        for index in before + 1..=state.applied {
            // Not there if it came with a snapshot.
            let Some(entry) = log.entry(index) else { continue };
            let known = *self.entries.entry(index).or_insert(entry);
            if known != entry {
                return Some(format!(
                    "metadata: node {} applied another entry at {index}: {entry:?}, not {known:?}",
                    n + 1
                ));
            }
        }
        if state.applied > before {
            let digest = digest(state);
            let known = *self.states.entry(state.applied).or_insert(digest);
            if known != digest {
                return Some(format!(
                    "metadata: node {} has another state at {}",
                    n + 1,
                    state.applied
                ));
            }
        }
        None
    }

    /// A command, encoded as `bytes`, was acknowledged at `index` by the node with this log; when it
    /// was proposed, `floor` had been acknowledged. Returns what is wrong.
    pub fn command_done(
        &mut self,
        index: u64,
        floor: u64,
        bytes: &[u8],
        log: &RaftDisk,
    ) -> Option<String> {
        self.acknowledged = self.acknowledged.max(index);
        if index <= floor {
            return Some(format!(
                "metadata: a command is at {index}, not above {floor} acknowledged before"
            ));
        }
        if !log.holds(index, bytes) {
            return Some(format!("metadata: the command acknowledged at {index} is not there"));
        }
        None
    }
}
