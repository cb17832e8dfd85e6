//! Starting a member from what the disk holds.

use super::memory::MemoryLog;
use super::{
    Driver, DriverConfig, DriverError, ELECTION_TICKS, HEARTBEAT_TICKS, MESSAGE_BYTES,
    MESSAGES_IN_FLIGHT, UNCOMMITTED_BYTES, logger,
};
use crate::codec::{self, CodecError};
use crate::state::{Membership, State};
use crate::storage::{AppliedStore, HardState, LogContents, LogSnapshot, LogStore};
use raft::{Config, RawNode, ReadOnlyOption};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::NodeId;

impl LogContents {
    /// The log of a founding member: the membership as a snapshot at index 1, the same on all of
    /// them. Nodes that join later begin with an empty log and so get it as a snapshot.
    ///
    /// # Errors
    /// [`CodecError`] if the state cannot be encoded.
    pub fn found(voters: &[NodeId]) -> Result<Self, CodecError> {
        let membership =
            Membership { voters: voters.iter().copied().collect(), learners: Default::default() };
        let state = State {
            applied: 1,
            applied_term: 1,
            membership: membership.clone(),
            ..State::default()
        };
        Ok(Self {
            hard_state: HardState { term: 1, vote: 0, commit: 1 },
            snapshot: LogSnapshot { index: 1, term: 1, membership, state: codec::encode(&state)? },
            entries: Vec::new(),
        })
    }
}

/// The state that the log's snapshot holds.
fn snapshot_state(snapshot: &LogSnapshot) -> Result<State, DriverError> {
    if snapshot.index == 0 {
        return Ok(State::default());
    }
    let state: State = codec::decode(&snapshot.state)
        .map_err(|source| DriverError::Unreadable { index: snapshot.index, source })?;
    if state.applied != snapshot.index || state.membership != snapshot.membership {
        return Err(DriverError::BrokenLog("its snapshot is of another index or membership"));
    }
    Ok(state)
}

impl<L: LogStore, A: AppliedStore> Driver<L, A> {
    /// Starts from `contents` of the log and, if it survived, the applied state. An applied state
    /// that does not fit the log is replaced by the log's own; see [`AppliedStore::replace`].
    ///
    /// # Errors
    /// [`DriverError`] if the log makes no sense or has lost entries that were applied.
    pub fn open(
        config: DriverConfig,
        contents: LogContents,
        applied: Option<State>,
        log: L,
        mut applied_store: A,
    ) -> Result<Self, DriverError> {
        let mut state = snapshot_state(&contents.snapshot)?;
        let snapshot_index = contents.snapshot.index;
        let mut memory =
            MemoryLog::new(contents, Membership::default()).map_err(DriverError::BrokenLog)?;
        let (last, last_term) = memory.last();
        if let Some(applied) = &applied
            && applied.applied > last
        {
            return Err(DriverError::LogLost { applied: applied.applied, last });
        }
        match applied {
            Some(applied)
                if applied.applied >= snapshot_index
                    && memory.term_at(applied.applied) == Some(applied.applied_term) =>
            {
                state = applied;
            }
            stale => {
                if let Some(stale) = stale {
                    let index = stale.applied;
                    tracing::warn!(index, snapshot_index, "applied state does not fit the log");
                }
                applied_store.replace(&state);
            }
        }
        let durable = memory.hard_state();
        if durable.commit > last || durable.term < last_term {
            return Err(DriverError::BrokenLog("its hard state does not fit its entries"));
        }
        // Applied means committed, whatever the last hard state written says.
        let commit = durable.commit.max(state.applied);
        memory.set_hard_state(HardState { commit, ..durable });
        memory.set_membership(state.membership.clone());

        let raft_config = Config {
            id: config.node.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: state.applied,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: MESSAGES_IN_FLIGHT,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MESSAGE_BYTES,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            ..Config::default()
        };
        raft_config.validate().map_err(DriverError::Raft)?;
        let mut raw =
            RawNode::new(&raft_config, memory, &logger::logger()).map_err(DriverError::Raft)?;
        if let Some(ticks) = config.election_ticks {
            raw.raft.set_randomized_election_timeout(ticks);
        }
        Ok(Self {
            config,
            raw,
            log,
            applied_store,
            state: Arc::new(state),
            durable,
            pending: BTreeMap::new(),
            last_number: 0,
            reads_waiting: Vec::new(),
            reads: BTreeMap::new(),
            reads_term: 0,
            snapshots_sent: BTreeMap::new(),
        })
    }
}
