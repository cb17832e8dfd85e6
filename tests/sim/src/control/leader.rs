//! What the Raft leader does beside Raft; `control::leader`.

use super::propose::{After, Call, Ticket, is_done};
use super::snapshots::Own;
use super::{Ended, Steps};
use crate::meta::MetaInput;
use crate::plan::Moment;
use crate::world::World;
use core::time::Duration;
use metadata::{Command, Outcome, ProposeError};
use policy::fence::{Action, Candidate, fence_instance};
use policy::leader::{Key, Roll, Step, register};
use policy::{replace, snapshot};
use std::collections::BTreeMap;
use types::{Epoch, Instant, NodeId, ReplicaId, VolumeId};
use wire::{Hello, Role, SealInfo, WireError};

const COMMAND: Duration = Duration::from_secs(3);
const READ: Duration = Duration::from_secs(1);

/// Why a read index was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFor {
    /// A new leader wants to know whether its state is current (R6).
    Current,
    /// A node is about to be declared lost.
    Lost(NodeId),
    /// A replica is about to be added or given up.
    Replace(replace::Action),
    /// Somebody asks for a volume.
    Get,
}

/// One leadership.
pub(crate) struct Leadership {
    term: u64,
    pub(crate) roll: Roll,
    current: bool,
    steps: Steps<Key>,
    /// Reads that were asked for or wait for their index, and until when.
    reads: Vec<(ReadFor, Instant, Option<u64>)>,
    /// Seals under way: number of the data thread, then what for.
    seals: BTreeMap<u64, (VolumeId, Epoch, ReplicaId)>,
    /// Snapshots that it is taking.
    own: Vec<Own>,
}

impl World {
    /// Begins and ends leaderships as Raft's status says.
    pub(crate) fn follow_leadership(&mut self, n: usize) {
        let (now, here) = (self.local(n), self.nodes[n].id);
        let replace_after = self.operator.replace_after;
        let Some(process) = &mut self.nodes[n].process else { return };
        let status = process.meta.status();
        let leads = status.leader == Some(here);
        let control = &mut process.control;
        let over = control.leading.as_ref().is_some_and(|l| !leads || l.term != status.term);
        if over {
            control.leading = None;
            self.drop_steps(n);
        }
        let Some(control) = self.control(n) else { return };
        if leads && control.leading.is_none() {
            control.leading = Some(Leadership {
                term: status.term,
                roll: Roll::new(now).replacing_after(replace_after),
                current: false,
                steps: Steps::new(),
                reads: Vec::new(),
                seals: BTreeMap::new(),
                own: Vec::new(),
            });
            self.moment(Moment::Elected);
            self.note(|| format!("node {} leads term {}", n + 1, status.term));
        }
    }

    /// Has the leader `n` take a snapshot; whether it leads.
    pub(crate) fn begin_snapshot(&mut self, n: usize, own: Own) -> bool {
        let Some(leading) = self.leading(n) else { return false };
        leading.roll.begin_snapshot(own.snapshot);
        leading.own.push(own);
        true
    }

    fn leading(&mut self, n: usize) -> Option<&mut Leadership> {
        self.control(n)?.leading.as_mut()
    }

    /// One round of the leader, if this node leads.
    pub(crate) fn lead(&mut self, n: usize) {
        let (now, here) = (self.local(n), self.nodes[n].id);
        let Some(process) = &mut self.nodes[n].process else { return };
        let Some(leading) = &mut process.control.leading else { return };
        let overdue: Vec<ReadFor> =
            leading.reads.iter().filter(|(_, until, _)| *until <= now).map(|(w, ..)| *w).collect();
        leading.reads.retain(|(_, until, _)| *until > now);
        let asks = leading.reads.iter().any(|(what, ..)| *what == ReadFor::Current);
        let current = leading.current;
        for what in overdue {
            self.read_failed(n, what);
        }
        if !current {
            if !asks {
                self.ask_read(n, ReadFor::Current);
            }
            return;
        }
        let Some(process) = &mut self.nodes[n].process else { return };
        let state = std::sync::Arc::clone(process.meta.state());
        let Some(leading) = &mut process.control.leading else { return };
        let (roll, own) = (&mut leading.roll, &mut leading.own);
        own.retain(|own| {
            own.until > now || {
                roll.end_snapshot(own.snapshot);
                false
            }
        });
        let mut due = Vec::new();
        for (key, step) in leading.roll.steps(&state, here, now) {
            if leading.steps.begin(key, now) {
                due.push((key, step));
            }
        }
        for (key, step) in due {
            self.take_step(n, key, step, &state);
        }
    }

    fn take_step(&mut self, n: usize, key: Key, step: Step, state: &metadata::State) {
        self.note(|| format!("leader {}: {step:?}", n + 1));
        match step {
            Step::Register(info) => self.step_command(n, key, register(state, info)),
            Step::Lost(node) => self.ask_read(n, ReadFor::Lost(node)),
            Step::Replace(action) => self.ask_read(n, ReadFor::Replace(action)),
            Step::Fencing(Action::Fence { volume, expected_epoch, .. }) => {
                self.figures.fences += 1;
                self.step_command(n, key, Command::Fence { volume, expected_epoch });
            }
            Step::Fencing(Action::Seal { volume, epoch, candidates }) => {
                self.seal_one(n, volume, epoch, candidates);
            }
            Step::Snapshot(snapshot::Action::Fill { volume, node }) => {
                self.have(n, node, Call::Fill { volume });
                // The record says whether it is under way.
                self.end_step(n, key, Ended::Refused);
            }
            Step::Snapshot(action) => match action.command() {
                Some(command) => self.step_command(n, key, command),
                None => self.end_step(n, key, Ended::Done),
            },
            Step::Membership(change) => {
                let Some(control) = self.control(n) else { return };
                let ticket = control.number();
                control.tickets.insert(ticket, Ticket::Membership);
                self.meta_input(n, MetaInput::Change(ticket, change));
            }
        }
    }

    fn step_command(&mut self, n: usize, key: Key, command: Command) {
        self.propose(n, command, COMMAND, After::Step(key));
    }

    fn end_step(&mut self, n: usize, key: Key, ended: Ended) {
        let now = self.local(n);
        if let Some(leading) = self.leading(n) {
            leading.steps.end(key, ended, now);
        }
    }

    pub(crate) fn step_concluded(&mut self, n: usize, key: Key, outcome: &Option<Outcome>) {
        let ended = match outcome {
            done if is_done(done) => Ended::Done,
            Some(_) => Ended::Refused,
            None => Ended::Again,
        };
        self.end_step(n, key, ended);
    }

    /// A change of membership came to its end.
    pub(crate) fn changed(&mut self, n: usize, ticket: u64, done: bool) {
        let Some(control) = self.control(n) else { return };
        match control.tickets.remove(&ticket) {
            Some(Ticket::Membership) => {
                self.end_step(n, Key::Membership, if done { Ended::Done } else { Ended::Again });
            }
            Some(Ticket::Operator) => self.operator_change_done(done),
            _ => {}
        }
    }

    // ---- reads -------------------------------------------------------------------------------

    /// Somebody asks whoever believes to lead for the state (R6).
    pub(crate) fn get(&mut self, n: usize) {
        if self.leading(n).is_some() {
            self.ask_read(n, ReadFor::Get);
        }
    }

    fn ask_read(&mut self, n: usize, what: ReadFor) {
        let now = self.local(n);
        let floor = self.checks.metadata.acknowledged;
        let Some(control) = self.control(n) else { return };
        let ticket = control.number();
        control.tickets.insert(ticket, Ticket::Read { what, floor });
        if let Some(leading) = &mut control.leading {
            leading.reads.push((what, now.after(READ), None));
        }
        self.meta_input(n, MetaInput::Read(ticket));
    }

    /// The metadata thread answers a read.
    pub(crate) fn read_done(&mut self, n: usize, ticket: u64, result: Result<u64, ProposeError>) {
        let Some(process) = &mut self.nodes[n].process else { return };
        let applied = process.meta.state().applied;
        let Some(Ticket::Read { what, floor }) = process.control.tickets.remove(&ticket) else {
            return;
        };
        match result {
            Ok(index) => {
                if index < floor {
                    return self.violation(format!(
                        "metadata: a read index of node {} is {index}, but {floor} had been acknowledged before",
                        n + 1
                    ));
                }
                if let Some(leading) = &mut process.control.leading {
                    for (of, _, at) in &mut leading.reads {
                        if *of == what {
                            *at = Some(index);
                        }
                    }
                }
                self.reads_applied(n, applied);
            }
            Err(_) => {
                if let Some(leading) = &mut process.control.leading {
                    leading.reads.retain(|(of, ..)| *of != what);
                }
                self.read_failed(n, what);
            }
        }
    }

    fn read_failed(&mut self, n: usize, what: ReadFor) {
        match what {
            ReadFor::Current | ReadFor::Get => {}
            ReadFor::Lost(node) => self.end_step(n, Key::Lost(node), Ended::Again),
            ReadFor::Replace(action) => self.end_step(n, Key::of(&action), Ended::Again),
        }
    }

    pub(crate) fn reads_applied(&mut self, n: usize, applied: u64) {
        let now = self.local(n);
        let Some(leading) = self.leading(n) else { return };
        let ready = |at: &Option<u64>| at.is_some_and(|at| at <= applied);
        let done: Vec<ReadFor> =
            leading.reads.iter().filter(|(.., at)| ready(at)).map(|(what, ..)| *what).collect();
        leading.reads.retain(|(.., at)| !ready(at));
        for what in done {
            match what {
                ReadFor::Current => {
                    if let Some(leading) = self.leading(n) {
                        leading.current = true;
                    }
                }
                ReadFor::Get => {}
                ReadFor::Lost(node) => {
                    // It may have spoken meanwhile.
                    let silent = self.leading(n).is_some_and(|l| l.roll.is_silent(node, now));
                    if silent {
                        self.step_command(n, Key::Lost(node), Command::NodeLost { node });
                    } else {
                        self.end_step(n, Key::Lost(node), Ended::Again);
                    }
                }
                ReadFor::Replace(action) => self.replace_replica(n, action),
            }
        }
    }

    /// Adds or gives up a replica, if that is still due (R27).
    fn replace_replica(&mut self, n: usize, action: replace::Action) {
        let now = self.local(n);
        let Some(state) = self.state(n) else { return };
        let due =
            self.leading(n).is_some_and(|l| l.roll.replacements(&state, now).contains(&action));
        let key = Key::of(&action);
        if !due {
            return self.end_step(n, key, Ended::Again);
        }
        if let replace::Action::Tend { volume, node, .. } = action {
            self.have(n, node, Call::Tend { volume });
            // The record says whether it is under way.
            return self.end_step(n, key, Ended::Refused);
        }
        match action.command(|node| self.new_replica(node)) {
            Some(command) => self.step_command(n, key, command),
            None => self.end_step(n, key, Ended::Done),
        }
    }

    // ---- seals -------------------------------------------------------------------------------

    fn seal_one(&mut self, n: usize, volume: VolumeId, epoch: Epoch, candidates: Vec<Candidate>) {
        for candidate in candidates {
            let hello = Hello {
                cluster: self.cluster,
                volume,
                replica: candidate.replica,
                incarnation: candidate.incarnation,
                sealed: candidate.sealed,
                epoch,
                instance: fence_instance(volume, epoch),
                process: self.nodes[n].identity(),
                role: Role::Sealer,
            };
            let id = self.start_seal(n, hello, candidate.address);
            if let Some(leading) = self.leading(n) {
                leading.seals.insert(id, (volume, epoch, candidate.replica));
            }
        }
        self.work_off(n);
    }

    /// The data thread of node `n` ended a seal.
    pub(crate) fn sealed(&mut self, n: usize, id: u64, result: &Result<SealInfo, WireError>) {
        let Some(leading) = self.leading(n) else { return };
        let Some((volume, epoch, replica)) = leading.seals.remove(&id) else { return };
        if result.is_ok() {
            // The first one is enough; the others are not waited for.
            leading.seals.retain(|_, (of, ..)| *of != volume);
            let command = Command::FenceSealed { volume, epoch, replica };
            self.step_command(n, Key::Volume(volume), command);
        } else if !leading.seals.values().any(|(of, ..)| *of == volume) {
            self.end_step(n, Key::Volume(volume), Ended::Again);
        }
    }
}
