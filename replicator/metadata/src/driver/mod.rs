//! Raft over raft-rs, as a state machine over [`LogStore`] and [`AppliedStore`].
//!
//! [`Driver::step`] takes in any number of inputs; [`Driver::flush`] then makes everything that
//! follows from them durable with one sync, and only after that gives out messages and answers.

mod api;
mod flush;
mod logger;
mod membership;
mod memory;
mod message;
mod open;

pub use api::{Change, ChangeError, Input, MAX_VOTERS, Output, ProposeError, RaftStatus, Role};

use crate::codec::{self, CodecError};
use crate::state::State;
use crate::storage::{AppliedStore, HardState, LogStore, StoreError};
use core::mem;
use memory::MemoryLog;
use raft::{RawNode, SnapshotStatus, StateRole};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;
use types::plant::{Bug, planted};
use types::{EngineInstance, NodeId};

/// Ticks without news from a leader before a node stands for election: 10 to 19 of them.
const ELECTION_TICKS: usize = 10;
/// Ticks between a leader's heartbeats.
const HEARTBEAT_TICKS: usize = 2;
/// Bytes of entries in one message, unless a single entry is larger.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Append messages under way to one follower.
const MESSAGES_IN_FLIGHT: usize = 64;
/// Bytes of uncommitted entries on a leader; beyond that proposals are refused as busy.
const UNCOMMITTED_BYTES: u64 = 8 << 20;
/// Ticks until a snapshot that was sent counts as lost.
const SNAPSHOT_TICKS: u32 = 50;
/// Entries that a learner may lack to be promoted.
const CAUGHT_UP: u64 = 16;

/// How to run one member.
#[derive(Clone, Copy, Debug)]
pub struct DriverConfig {
    /// This node; not 0.
    pub node: NodeId,
    /// One run of this member: tells its own proposals from those of an earlier run.
    pub instance: EngineInstance,
    /// Entries since the last snapshot before the next one.
    pub snapshot_entries: u64,
    /// Encoded bytes of entries since the last snapshot before the next one.
    pub snapshot_bytes: usize,
    /// Entries kept before a snapshot, for followers that lag a little.
    pub keep_entries: u64,
    /// Ticks (10-19) until an election in place of raft-rs' thread-local randomness, for tests and
    /// simulation.
    pub election_ticks: Option<usize>,
}

impl DriverConfig {
    /// Production's figures.
    #[must_use]
    pub const fn new(node: NodeId, instance: EngineInstance) -> Self {
        Self {
            node,
            instance,
            snapshot_entries: 4096,
            snapshot_bytes: 4 << 20,
            keep_entries: 512,
            election_ticks: None,
        }
    }
}

/// Why a member cannot start or go on. All are final.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The log contradicts itself.
    #[error("the Raft log makes no sense: {0}")]
    BrokenLog(&'static str),
    /// The applied state has seen entries that the log has lost: promises of this node are
    /// forgotten, it must come back under a new id.
    #[error("index {applied} was applied, but the log ends at {last}: entries are lost")]
    LogLost {
        /// What was applied.
        applied: u64,
        /// What is left.
        last: u64,
    },
    /// A snapshot or a committed command cannot be read by this software; skipping it would make
    /// this node differ from the others.
    #[error("entry or snapshot {index} cannot be read")]
    Unreadable {
        /// Its index.
        index: u64,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Raft refused its own configuration or input.
    #[error("Raft failed")]
    Raft(#[source] raft::Error),
    /// The log could not be written.
    #[error("the Raft log could not be written")]
    Log(#[source] StoreError),
}

struct Pending {
    ticket: u64,
    term: u64,
    change: bool,
}

/// One member of the metadata group.
pub struct Driver<L, A> {
    config: DriverConfig,
    raw: RawNode<MemoryLog>,
    log: L,
    applied_store: A,
    state: Arc<State>,
    /// The hard state as last made durable.
    durable: HardState,
    /// Proposals by their number.
    pending: BTreeMap<u64, Pending>,
    last_number: u64,
    /// Reads that wait for this leader to be able to serve them.
    reads_waiting: Vec<u64>,
    /// Reads under way by their number, and the term in which Raft was asked.
    reads: BTreeMap<u64, Vec<u64>>,
    reads_term: u64,
    /// Ticks since a snapshot went to a follower.
    snapshots_sent: BTreeMap<u64, u32>,
}

impl<L: LogStore, A: AppliedStore> Driver<L, A> {
    /// Takes in one input. Answers that need nothing durable come at once.
    ///
    /// # Errors
    /// [`DriverError`]; the driver must not be used any more.
    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) -> Result<(), DriverError> {
        match input {
            Input::Tick => {
                self.raw.tick();
                self.give_up_lost_snapshots();
            }
            Input::Message(bytes) => self.receive(&bytes),
            Input::Propose { ticket, command } => {
                if let Err(error) = self.propose(ticket, &command) {
                    out.push(Output::Proposed { ticket, result: Err(error) });
                }
            }
            Input::ReadIndex { ticket } => {
                if self.leads() {
                    self.reads_waiting.push(ticket);
                } else {
                    let result = Err(self.not_leader());
                    out.push(Output::Read { ticket, result });
                }
            }
            Input::ChangeMembership { ticket, change } => {
                if let Some(result) = self.change_membership(ticket, change).transpose() {
                    out.push(Output::Changed { ticket, result });
                }
            }
            Input::TransferLeadership(to) => {
                if self.leads() && to != self.config.node {
                    self.raw.transfer_leader(to.0);
                }
            }
            Input::Unreachable(node) => self.raw.report_unreachable(node.0),
            Input::Campaign => self.raw.campaign().map_err(DriverError::Raft)?,
        }
        if let Some(ticks) = self.config.election_ticks {
            self.raw.raft.set_randomized_election_timeout(ticks);
        }
        Ok(())
    }

    /// Replaces [`DriverConfig::election_ticks`] from the next step on.
    pub fn set_election_ticks(&mut self, ticks: usize) {
        self.config.election_ticks = Some(ticks);
    }

    /// The state as of the last applied entry.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Raft as seen here.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let raft = &self.raw.raft;
        let leader = raft.leader_id;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.state.membership.learners.contains(&self.config.node) => {
                Role::Learner
            }
            StateRole::Follower => Role::Follower,
        };
        RaftStatus {
            node: self.config.node,
            leader: (leader != 0).then_some(NodeId(leader)),
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: self.state.applied,
            role,
            membership: self.state.membership.clone(),
        }
    }

    /// The log store, for tests.
    pub fn log_store(&self) -> &L {
        &self.log
    }

    /// The stores, when the driver is no longer needed.
    pub fn into_stores(self) -> (L, A) {
        (self.log, self.applied_store)
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn not_leader(&self) -> ProposeError {
        let leader = self.raw.raft.leader_id;
        let known = leader != 0 && leader != self.config.node.0;
        ProposeError::NotLeader { leader: known.then_some(NodeId(leader)) }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let Some(message) = message::decode_message(bytes) else {
            tracing::warn!(bytes = bytes.len(), "a Raft message cannot be read, dropped");
            return;
        };
        if message.to != self.config.node.0 {
            tracing::warn!(
                to = message.to,
                from = message.from,
                "a Raft message for another node, dropped"
            );
            return;
        }
        // A snapshot that this software cannot read must not become the log.
        if let Some(snapshot) = &message.snapshot
            && !snapshot.is_empty()
            && let Err(error) = codec::decode::<State>(&snapshot.data)
        {
            tracing::error!(from = message.from, %error, "a snapshot cannot be read, dropped");
            return;
        }
        let from = message.from;
        if let Err(error) = self.raw.step(message) {
            // Unknown peers and the like: Raft changed nothing.
            tracing::debug!(from, %error, "Raft did not take a message");
        }
    }

    /// The number goes with the entry, so that its outcome finds the proposer.
    fn context(&self, number: u64) -> Vec<u8> {
        let mut context = self.config.instance.as_bytes().to_vec();
        context.extend_from_slice(&number.to_le_bytes());
        context
    }

    /// The number in a context that [`Self::context`] of this run made.
    fn number(&self, context: &[u8]) -> Option<u64> {
        let rest = context.strip_prefix(self.config.instance.as_bytes().as_slice())?;
        rest.try_into().ok().map(u64::from_le_bytes)
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn propose(&mut self, ticket: u64, command: &crate::Command) -> Result<(), ProposeError> {
        if !self.leads() {
            return Err(self.not_leader());
        }
        // While leadership is handed over nothing is accepted.
        if self.raw.raft.lead_transferee.is_some() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        // Commands hold nothing that cannot be encoded; should one do, it is not proposed.
        let Ok(data) = codec::encode(command) else { return Err(ProposeError::Busy) };
        let number = self.next_number();
        let context = self.context(number);
        self.raw.propose(context, data).map_err(|_| ProposeError::Busy)?;
        let term = self.raw.raft.term;
        self.pending.insert(number, Pending { ticket, term, change: false });
        Ok(())
    }

    /// Asks Raft for all waiting reads at once, when this leader may serve them.
    fn start_reads(&mut self, out: &mut Vec<Output>) {
        if !self.leads() {
            let error = self.not_leader();
            let waiting = mem::take(&mut self.reads_waiting);
            let asked = mem::take(&mut self.reads).into_values().flatten();
            for ticket in waiting.into_iter().chain(asked) {
                out.push(Output::Read { ticket, result: Err(error) });
            }
            return;
        }
        let term = self.raw.raft.term;
        if self.reads_term != term {
            // Raft has forgotten those of an earlier leadership.
            self.reads_waiting.extend(mem::take(&mut self.reads).into_values().flatten());
            self.reads_term = term;
        }
        // A leader knows what is committed only after an entry of its own term is.
        let known = self.raw.raft.commit_to_current_term();
        if planted(Bug::StaleReadIndex) {
            let index = self.raw.raft.raft_log.committed;
            let answer = |ticket| Output::Read { ticket, result: Ok(index) };
            out.extend(mem::take(&mut self.reads_waiting).into_iter().map(answer));
        }
        if self.reads_waiting.is_empty() || !known {
            return;
        }
        let number = self.next_number();
        self.reads.insert(number, mem::take(&mut self.reads_waiting));
        let context = self.context(number);
        self.raw.read_index(context);
    }

    /// raft-rs sends nothing more to a follower while a snapshot is on its way. The transport may
    /// have lost it, so after a time it counts as failed and goes out again.
    fn give_up_lost_snapshots(&mut self) {
        let waiting: Vec<u64> = if self.leads() {
            let prs = self.raw.raft.prs().iter();
            let mut ids: Vec<u64> = prs
                .filter(|(_, progress)| progress.state == raft::ProgressState::Snapshot)
                .map(|(id, _)| *id)
                .collect();
            ids.sort_unstable();
            ids
        } else {
            Vec::new()
        };
        self.snapshots_sent.retain(|id, _| waiting.contains(id));
        for id in waiting {
            let ticks = self.snapshots_sent.entry(id).or_insert(0);
            *ticks += 1;
            if *ticks >= SNAPSHOT_TICKS {
                *ticks = 0;
                self.raw.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }
}

#[cfg(test)]
mod tests;
