//! Persist, send, apply: in this order.

use super::{
    ChangeError, Driver, DriverError, Output, Pending, ProposeError, memory::MemoryLog, message,
};
use crate::codec;
use crate::command::Command;
use crate::outcome::Outcome;
use crate::state::State;
use crate::storage::{AppliedStore, HardState, LogBatch, LogSnapshot, LogStore};
use raft::prelude::{Entry, EntryType, Message, Snapshot};
use std::collections::BTreeSet;
use std::sync::Arc;
use types::NodeId;
use types::plant::{Bug, planted};

impl<L: LogStore, A: AppliedStore> Driver<L, A> {
    /// Does everything that follows from the inputs so far. Entries and hard state are durable
    /// before a message or an answer that rests on them is given out.
    ///
    /// # Errors
    /// [`DriverError`]; the driver must not be used any more, and what is in `out` from this call
    /// must not be sent.
    pub fn flush(&mut self, out: &mut Vec<Output>) -> Result<(), DriverError> {
        self.drop_superseded(out);
        self.start_reads(out);
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let hard_state =
                ready.hs().map(|hs| HardState { term: hs.term, vote: hs.vote, commit: hs.commit });
            if let Some(hard_state) = hard_state {
                self.raw.mut_store().set_hard_state(hard_state);
            }
            let snapshot = ready.snapshot().clone();
            if snapshot.is_empty() {
                self.persist(ready.take_entries(), ready.must_sync())?;
            } else {
                let entries = ready.take_entries();
                self.install(snapshot, entries, out)?;
            }
            send(ready.take_messages(), out);
            send(ready.take_persisted_messages(), out);
            for read in ready.take_read_states() {
                let number = self.number(&read.request_ctx);
                for ticket in number.and_then(|n| self.reads.remove(&n)).unwrap_or_default() {
                    out.push(Output::Read { ticket, result: Ok(read.index) });
                }
            }
            self.apply(ready.take_committed_entries(), out)?;

            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                // Not worth a sync: it goes to the disk with the next one.
                let hard_state = HardState { commit, ..self.raw.store().hard_state() };
                self.raw.mut_store().set_hard_state(hard_state);
            }
            send(light.take_messages(), out);
            self.apply(light.take_committed_entries(), out)?;
            self.raw.advance_apply();
        }
        self.drop_superseded(out);
        self.start_reads(out);
        self.compact()
    }

    fn persist(&mut self, entries: Vec<Entry>, must_sync: bool) -> Result<(), DriverError> {
        if (!must_sync || planted(Bug::ForgetVote)) && entries.is_empty() {
            return Ok(());
        }
        let hard_state = self.raw.store().hard_state();
        let batch = LogBatch {
            hard_state: (hard_state != self.durable).then_some(hard_state),
            entries: entries.iter().map(message::encode_entry).collect(),
        };
        self.log.persist(&batch).map_err(DriverError::Log)?;
        self.durable = hard_state;
        self.raw.mut_store().append(entries);
        Ok(())
    }

    /// Puts a leader's snapshot in place of log and state.
    fn install(
        &mut self,
        snapshot: Snapshot,
        entries: Vec<Entry>,
        out: &mut Vec<Output>,
    ) -> Result<(), DriverError> {
        let metadata = snapshot.get_metadata();
        let (index, term) = (metadata.index, metadata.term);
        let state: State = codec::decode(&snapshot.data)
            .map_err(|source| DriverError::Unreadable { index, source })?;
        let membership = message::membership(metadata.get_conf_state());
        if state.applied != index || state.membership != membership {
            return Err(DriverError::BrokenLog("a snapshot received is of another index"));
        }
        let log = self.raw.mut_store();
        log.install(LogSnapshot { index, term, membership, state: snapshot.data });
        log.append(entries);
        self.rewrite()?;
        self.applied_store.replace(&state);
        let seen = self.state.last_event;
        out.extend(state.events_after(seen).cloned().map(Output::Event));
        self.state = Arc::new(state);
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), DriverError> {
        let contents = self.raw.store().contents();
        self.log.rewrite(&contents).map_err(DriverError::Log)?;
        self.durable = contents.hard_state;
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>, out: &mut Vec<Output>) -> Result<(), DriverError> {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            let pending = self.number(&entry.context).and_then(|n| self.pending.remove(&n));
            let unreadable = |source| DriverError::Unreadable { index, source };
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {
                    Arc::make_mut(&mut self.state).apply_empty(index, term, None);
                    self.applied_store.write(&self.state, &BTreeSet::new());
                    // Raft turns a second change of membership into an empty entry.
                    if let Some(pending) = pending {
                        let result = Err(ChangeError::InProgress);
                        out.push(Output::Changed { ticket: pending.ticket, result });
                    }
                }
                EntryType::EntryNormal => {
                    let command: Command = codec::decode(&entry.data).map_err(unreadable)?;
                    let applied = Arc::make_mut(&mut self.state).apply(index, term, &command);
                    self.applied_store.write(&self.state, &applied.changed);
                    out.extend(applied.events.into_iter().map(Output::Event));
                    answer(pending, index, applied.outcome, out);
                }
                EntryType::EntryConfChange => {
                    let change = message::decode_conf_change(&entry.data)
                        .ok_or_else(|| codec::CodecError::Malformed("membership change".into()))
                        .map_err(unreadable)?;
                    let conf = self.raw.apply_conf_change(&change).map_err(DriverError::Raft)?;
                    let membership = message::membership(&conf);
                    self.raw.mut_store().set_membership(membership.clone());
                    Arc::make_mut(&mut self.state).apply_empty(index, term, Some(membership));
                    self.applied_store.write(&self.state, &BTreeSet::new());
                    if let Some(pending) = pending {
                        out.push(Output::Changed { ticket: pending.ticket, result: Ok(index) });
                    }
                }
                EntryType::EntryConfChangeV2 => {
                    let source = codec::CodecError::Malformed("joint membership change".into());
                    return Err(unreadable(source));
                }
            }
        }
        Ok(())
    }

    /// Proposals of a leadership that is over: they may still be committed by a later leader, or
    /// never.
    fn drop_superseded(&mut self, out: &mut Vec<Output>) {
        if self.pending.is_empty() {
            return;
        }
        let (leads, term) = (self.leads(), self.raw.raft.term);
        self.pending.retain(|_, pending| {
            let current = leads && pending.term == term;
            if !current {
                let ticket = pending.ticket;
                out.push(if pending.change {
                    let result = Err(ChangeError::Propose(ProposeError::Dropped));
                    Output::Changed { ticket, result }
                } else {
                    Output::Proposed { ticket, result: Err(ProposeError::Dropped) }
                });
            }
            current
        });
    }

    /// Puts a snapshot in place of old entries once there are enough of them.
    fn compact(&mut self) -> Result<(), DriverError> {
        let log: &MemoryLog = self.raw.store();
        let entries = self.state.applied.saturating_sub(log.snapshot_index());
        let due = log.take_wanted()
            || entries >= self.config.snapshot_entries
            || log.bytes() >= self.config.snapshot_bytes;
        if !due || entries == 0 {
            return Ok(());
        }
        let state = &self.state;
        let index = state.applied;
        let snapshot = LogSnapshot {
            index,
            term: state.applied_term,
            membership: state.membership.clone(),
            state: codec::encode(&**state)
                .map_err(|source| DriverError::Unreadable { index, source })?,
        };
        // The accelerator first: should the log be lost behind it, that is noticed.
        self.applied_store.flush();
        self.raw.mut_store().compact(snapshot, self.config.keep_entries);
        self.rewrite()
    }
}

fn answer(pending: Option<Pending>, index: u64, outcome: Outcome, out: &mut Vec<Output>) {
    if let Some(pending) = pending {
        out.push(Output::Proposed { ticket: pending.ticket, result: Ok((index, outcome)) });
    }
}

fn send(messages: Vec<Message>, out: &mut Vec<Output>) {
    out.extend(messages.iter().map(|message| Output::Send {
        to: NodeId(message.to),
        message: message::encode_message(message),
    }));
}
