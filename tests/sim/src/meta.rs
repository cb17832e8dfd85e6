//! The metadata thread of a node, as `replicator/src/meta` has it: the same Raft driver, over a log
//! that outlives the daemon and an applied state that may not.

use crate::check::metadata::Logged;
use crate::clock::US;
use crate::node::Death;
use crate::world::{Event, World};
use core::cell::RefCell;
use metadata::{
    AppliedStore, Change, Changed, Command, Driver, DriverConfig, DriverError, Input, LogBatch,
    LogContents, LogStore, Output, RaftStatus, State, StoreError,
};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use types::{EngineInstance, NodeId};

#[derive(Debug, Default)]
struct Durable {
    log: Option<LogContents>,
    applied: Option<State>,
    /// The next write fails; then the batch is on the disk (true) or not.
    fail: Option<bool>,
}

/// What of the Raft member survives its process.
#[derive(Clone, Debug, Default)]
pub struct RaftDisk(Rc<RefCell<Durable>>);

impl RaftDisk {
    /// The log of a founding member, or an empty one for a node that joins.
    pub fn found(&self, voters: &[NodeId]) {
        let contents = LogContents::found(voters).unwrap_or_default();
        self.0.borrow_mut().log =
            Some(if voters.is_empty() { LogContents::default() } else { contents });
    }

    /// The next write of the log fails.
    pub fn fail_next(&self, kept: bool) {
        self.0.borrow_mut().fail = Some(kept);
    }

    /// Nothing is wrong with it any more.
    pub fn heal(&self) {
        self.0.borrow_mut().fail = None;
    }

    /// Entries in the log.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.borrow().log.as_ref().map_or(0, |log| log.entries.len())
    }

    /// Whether the log holds no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The term that is on the disk.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.0.borrow().log.as_ref().map_or(0, |log| log.hard_state.term)
    }

    /// Term and checksum of the entry at `index`, if the log still has it.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<Logged> {
        let durable = self.0.borrow();
        let log = durable.log.as_ref()?;
        let entries = &log.entries;
        let first = entries.first()?.index;
        if index == first && first <= log.snapshot.index {
            // Of the oldest one before a snapshot only the term is kept.
            return None;
        }
        let entry = entries.get(usize::try_from(index.checked_sub(first)?).ok()?)?;
        Some(Logged { term: entry.term, crc: types::crc32c(&entry.bytes) })
    }

    /// Whether the entry at `index` carries these bytes, as far as the log still has it.
    #[must_use]
    pub fn holds(&self, index: u64, bytes: &[u8]) -> bool {
        let durable = self.0.borrow();
        let Some(log) = durable.log.as_ref().filter(|log| index > log.snapshot.index) else {
            return true;
        };
        match log.entries.iter().find(|entry| entry.index == index) {
            Some(entry) => entry.bytes.windows(bytes.len()).any(|window| window == bytes),
            None => true,
        }
    }
}

/// The log as the driver writes it.
pub struct SimLog(RaftDisk);

impl SimLog {
    fn write(&self, change: impl FnOnce(&mut LogContents)) -> Result<(), StoreError> {
        let mut durable = self.0.0.borrow_mut();
        let fail = durable.fail.take();
        if fail != Some(false) {
            change(durable.log.get_or_insert_default());
        }
        if fail.is_some() { Err("the disk of the Raft log failed".into()) } else { Ok(()) }
    }
}

impl LogStore for SimLog {
    fn persist(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        self.write(|contents| {
            if let Some(hard_state) = batch.hard_state {
                contents.hard_state = hard_state;
            }
            if let Some(first) = batch.entries.first() {
                let keep = contents.entries.partition_point(|entry| entry.index < first.index);
                contents.entries.truncate(keep);
                contents.entries.extend(batch.entries.iter().cloned());
            }
        })
    }

    fn rewrite(&mut self, contents: &LogContents) -> Result<(), StoreError> {
        self.write(|kept| *kept = contents.clone())
    }
}

/// The applied state: only what was flushed survives. The driver's own state is shared, not copied.
pub struct SimApplied {
    disk: RaftDisk,
    /// Copies of the state are dear, so that only some runs keep it; the others find an old one.
    keeps: bool,
    now: Option<State>,
}

impl AppliedStore for SimApplied {
    fn write(&mut self, state: &State, _: &BTreeSet<Changed>) {
        self.now = self.keeps.then(|| state.clone());
    }

    fn replace(&mut self, state: &State) {
        self.now = self.keeps.then(|| state.clone());
    }

    fn flush(&mut self) {
        if let Some(state) = self.now.take() {
            self.disk.0.borrow_mut().applied = Some(state);
        }
    }
}

/// What the metadata thread is asked for.
#[derive(Clone, Debug)]
pub enum MetaInput {
    /// A step of the driver.
    Step(Input),
    /// A command; the answer goes to [`World::proposed`].
    Propose(u64, Command),
    /// A read index; the answer goes to [`World::read_done`].
    Read(u64),
    /// A change of membership; the answer goes to [`World::changed`].
    Change(u64, Change),
}

/// See the module's text.
pub struct Meta {
    driver: Driver<SimLog, SimApplied>,
    inbox: Vec<MetaInput>,
    scheduled: bool,
}

impl Meta {
    /// Opens the member on `disk`.
    ///
    /// # Errors
    /// What the driver says of the log.
    pub fn open(
        node: NodeId,
        instance: EngineInstance,
        disk: &RaftDisk,
        ticks: usize,
        snapshot_entries: u64,
        keeps: bool,
    ) -> Result<Self, DriverError> {
        let config = DriverConfig {
            snapshot_entries,
            keep_entries: snapshot_entries / 8,
            election_ticks: Some(ticks),
            ..DriverConfig::new(node, instance)
        };
        let (contents, applied) = {
            let durable = disk.0.borrow();
            (durable.log.clone().unwrap_or_default(), durable.applied.clone())
        };
        let store = SimApplied { disk: disk.clone(), keeps, now: None };
        let driver = Driver::open(config, contents, applied, SimLog(disk.clone()), store)?;
        Ok(Self { driver, inbox: Vec::new(), scheduled: false })
    }

    /// The applied state.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        self.driver.state()
    }

    /// Raft as seen here.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        self.driver.status()
    }
}

impl World {
    /// The applied state of node `n`, if its daemon runs.
    #[must_use]
    pub fn state(&self, n: usize) -> Option<Arc<State>> {
        self.nodes[n].process.as_ref().map(|process| Arc::clone(process.meta.state()))
    }

    /// Something for the metadata thread of node `n`; it is worked off with what comes meanwhile.
    pub(crate) fn meta_input(&mut self, n: usize, input: MetaInput) {
        let delay = self.rng.between(20, 400) * US;
        let node = &mut self.nodes[n];
        let run = node.run;
        let Some(process) = &mut node.process else { return };
        process.meta.inbox.push(input);
        self.checks.bounds.meta_queue(process.meta.inbox.len());
        if !std::mem::replace(&mut process.meta.scheduled, true) {
            self.after(delay, Event::Meta { node: n, run });
        }
    }

    /// One round of the metadata thread: all inputs, one flush, then the answers.
    pub(crate) fn meta_work(&mut self, n: usize) {
        let run = self.nodes[n].run;
        let ticks = 10 + self.rng.below(10) as usize;
        let Some(process) = &mut self.nodes[n].process else { return };
        let meta = &mut process.meta;
        meta.scheduled = false;
        let mut out = Vec::new();
        let before = meta.driver.state().applied;
        meta.driver.set_election_ticks(ticks);
        let mut result = Ok(());
        for input in std::mem::take(&mut meta.inbox) {
            let input = match input {
                MetaInput::Step(input) => input,
                MetaInput::Propose(ticket, command) => Input::Propose { ticket, command },
                MetaInput::Read(ticket) => Input::ReadIndex { ticket },
                MetaInput::Change(ticket, change) => Input::ChangeMembership { ticket, change },
            };
            result = result.and_then(|()| meta.driver.step(input, &mut out));
        }
        let result = result.and_then(|()| meta.driver.flush(&mut out));
        if let Err(error) = result {
            // Fatal, and nothing of this flush may be sent: the daemon ends.
            self.note(|| format!("node {} metadata failed: {error}", n + 1));
            self.kill(n, Death::Kill);
            self.restart_later(n);
            return;
        }
        let (status, state) = (meta.driver.status(), Arc::clone(meta.driver.state()));
        let log = self.nodes[n].raft.clone();
        let found = self.checks.metadata.flushed(
            n,
            &status,
            out.iter().any(|output| matches!(output, Output::Send { .. })),
            before,
            &state,
            &log,
        );
        self.checks.bounds.log(log.len());
        if let Some(text) = found {
            return self.violation(text);
        }
        if before != state.applied {
            self.truth(&state);
        }
        self.published(n);
        for output in out {
            if self.nodes[n].run != run || !self.survives(n) {
                return;
            }
            match output {
                Output::Send { to, message } => self.send_raft(n, to, message),
                Output::Proposed { ticket, result } => self.proposed(n, ticket, result),
                Output::Read { ticket, result } => self.read_done(n, ticket, result),
                Output::Changed { ticket, result } => self.changed(n, ticket, result.is_ok()),
                Output::Event(event) => {
                    self.trace.line(self.now, || format!("node {} applied: {event:?}", n + 1));
                }
            }
        }
    }
}
