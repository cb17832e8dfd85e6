//! Commands from anywhere to whoever leads, until the outcome is known; `control::propose`, and the
//! calls between nodes, which may be lost on either way.

use super::leader::ReadFor;
use crate::clock::MS;
use crate::meta::MetaInput;
use crate::world::{Event, World, index};
use core::time::Duration;
use engine::IsrAnswer;
use metadata::{Command, Done, NodeInfo, Outcome, ProposeError, Refused};
use policy::attachment::decided;
use policy::leader::Key;
use policy::pool::Task;
use types::{Epoch, Instant, NodeId, ReplicaId, SnapshotId, VolumeId};

const ATTEMPT: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(50);

/// A message of the control plane.
#[derive(Clone, Debug)]
pub enum Call {
    /// A sign of life to the leader.
    Heartbeat {
        /// What the node says of itself.
        info: Box<NodeInfo>,
    },
    /// Carry this out, if you lead.
    Propose {
        /// For the answer: node, run of its daemon, number.
        from: (usize, u64, u64),
        /// What.
        command: Box<Command>,
    },
    /// Take a snapshot of a volume that you serve; nobody waits for an answer.
    TakeSnapshot {
        /// Of which volume.
        volume: VolumeId,
        /// Its id.
        snapshot: SnapshotId,
    },
    /// Fill the replicas of a volume that nobody has attached; nobody waits for an answer.
    Tend {
        /// Of which volume.
        volume: VolumeId,
    },
    /// Copy into a new volume what it begins with; nobody waits for an answer.
    Fill {
        /// Which.
        volume: VolumeId,
    },
    /// Somebody wants a volume that you have without a device.
    Yield {
        /// Which.
        volume: VolumeId,
    },
    /// Answer to `Propose`.
    Answer {
        /// Run that asked.
        run: u64,
        /// Its number.
        number: u64,
        /// The answer.
        answer: Box<CallAnswer>,
    },
}

/// See [`Call::Answer`].
#[derive(Clone, Debug)]
pub enum CallAnswer {
    /// Applied at that index.
    Done(u64, Outcome),
    /// Ask that one, if anybody.
    NotLeader(Option<NodeId>),
    /// Nothing is known.
    Failed,
}

/// What is done with an outcome.
#[derive(Clone, Debug)]
pub(crate) enum After {
    Nothing,
    Begin { volume: VolumeId },
    Activate { volume: VolumeId, isr: Vec<ReplicaId> },
    Release { volume: VolumeId },
    Filled { volume: VolumeId },
    Isr { volume: VolumeId, epoch: Epoch, ticket: u64 },
    Step(Key),
    Pool(ReplicaId),
    Snapshot { volume: VolumeId, snapshot: SnapshotId },
    Question(Task),
}

/// The outcome interests nobody.
pub(crate) const NOTHING: After = After::Nothing;

#[derive(Debug)]
enum Stage {
    /// Asked, here or there.
    Asked,
    Pause {
        until: Instant,
    },
    /// Waits until the index is applied here too.
    Applying {
        index: u64,
        outcome: Outcome,
    },
}

#[derive(Debug)]
pub(crate) struct Proposal {
    command: Command,
    deadline: Instant,
    attempt_until: Instant,
    /// Number of the present attempt.
    attempt: u64,
    hops: u32,
    stage: Stage,
    after: After,
}

/// For whom the metadata thread answers.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// A command; for an attempt here, or of another node's daemon.
    Command {
        for_node: Option<(usize, u64)>,
        number: u64,
        floor: u64,
        bytes: Vec<u8>,
    },
    Read {
        what: ReadFor,
        floor: u64,
    },
    Membership,
    Operator,
}

impl World {
    /// Has the leader carry out `command`, for at most `within`.
    pub(crate) fn propose(&mut self, n: usize, command: Command, within: Duration, after: After) {
        let now = self.local(n);
        let Some(control) = self.control(n) else { return };
        let id = control.number();
        let proposal = Proposal {
            command,
            deadline: now.after(within),
            attempt_until: now,
            attempt: 0,
            hops: 0,
            stage: Stage::Asked,
            after,
        };
        control.proposals.insert(id, proposal);
        self.attempt(n, id, None);
    }

    fn attempt(&mut self, n: usize, id: u64, hint: Option<NodeId>) {
        let now = self.local(n);
        let here = self.nodes[n].id;
        let members = self.all_ids();
        let random = self.net.rng().pick(&members);
        let run = self.nodes[n].run;
        let Some(process) = &mut self.nodes[n].process else { return };
        let leader = process.meta.status().leader;
        let control = &mut process.control;
        let number = control.number();
        let Some(proposal) = control.proposals.get_mut(&id) else { return };
        if hint.is_none() {
            proposal.attempt_until = proposal.deadline.min(now.after(ATTEMPT));
            proposal.hops = 0;
        }
        proposal.attempt = number;
        proposal.stage = Stage::Asked;
        let command = proposal.command.clone();
        let to = hint.or(leader).or(random).unwrap_or(here);
        if to == here {
            self.propose_here(n, None, number, command);
        } else {
            let call = Call::Propose { from: (n, run, number), command: Box::new(command) };
            if self.net.rng().one_in(15) {
                // Its connection broke behind it, and the client asked again on another one at once.
                let delay = self.net.rng().below(6_000) * MS;
                let (to, call) = (index(to), Box::new(call.clone()));
                self.after(delay, Event::LateCall { from: n, to, call });
            }
            self.send_call(n, index(to), call);
        }
    }

    fn propose_here(
        &mut self,
        n: usize,
        for_node: Option<(usize, u64)>,
        number: u64,
        command: Command,
    ) {
        let floor = self.checks.metadata.acknowledged;
        let bytes = metadata::encode(&command).unwrap_or_default();
        let Some(control) = self.control(n) else { return };
        let ticket = control.number();
        control.tickets.insert(ticket, Ticket::Command { for_node, number, floor, bytes });
        self.meta_input(n, MetaInput::Propose(ticket, command));
    }

    /// The metadata thread of node `n` knows how a command ended.
    pub(crate) fn proposed(
        &mut self,
        n: usize,
        ticket: u64,
        result: Result<(u64, Outcome), ProposeError>,
    ) {
        let Some(control) = self.control(n) else { return };
        let Some(Ticket::Command { for_node, number, floor, bytes }) =
            control.tickets.remove(&ticket)
        else {
            return;
        };
        if let Ok((at, _)) = &result
            && let Some(text) =
                self.checks.metadata.command_done(*at, floor, &bytes, &self.nodes[n].raft)
        {
            return self.violation(text);
        }
        let answer = match result {
            Ok((at, outcome)) => CallAnswer::Done(at, outcome),
            Err(ProposeError::NotLeader { leader }) => CallAnswer::NotLeader(leader),
            Err(_) => CallAnswer::Failed,
        };
        match for_node {
            None => self.answered(n, number, answer),
            Some((to, run)) => {
                self.send_call(n, to, Call::Answer { run, number, answer: Box::new(answer) });
            }
        }
    }

    /// A call leaves node `n`.
    pub(crate) fn send_call(&mut self, n: usize, to: usize, call: Call) {
        if to >= self.nodes.len() || to == n {
            return;
        }
        let call = Box::new(call);
        match self.net.message(self.now, n, to) {
            Some(at) if !self.net.rng().one_in(40) => self.post(at, Event::Call { to, call }),
            // It travels on a connection: lost segments are sent again while that lives, and who asked
            // may have asked elsewhere meanwhile.
            _ if self.net.rng().chance(40) => {
                let delay = self.net.rng().below(6_000) * MS;
                self.after(delay, Event::LateCall { from: n, to, call });
            }
            _ => {}
        }
    }

    /// Node `n` has node `at`, which may be itself, do something.
    pub(crate) fn have(&mut self, n: usize, at: NodeId, call: Call) {
        if index(at) == n {
            self.call(n, call);
        } else {
            self.send_call(n, index(at), call);
        }
    }

    /// A call arrives at node `n`.
    pub(crate) fn call(&mut self, n: usize, call: Call) {
        let here = self.nodes[n].id;
        match call {
            Call::Heartbeat { info } => self.heard(n, *info),
            Call::TakeSnapshot { volume, snapshot } => self.take_snapshot(n, volume, snapshot),
            Call::Tend { volume } => self.tend(n, volume),
            Call::Fill { volume } => self.fill(n, volume),
            Call::Yield { volume } => self.want_back(n, volume),
            Call::Propose { from: (from, run, number), command } => {
                let leader = match &self.nodes[n].process {
                    Some(process) => process.meta.status().leader,
                    // Refused at once, if the host is there to do it.
                    None if self.nodes[n].powered => None,
                    None => return,
                };
                if leader == Some(here) {
                    self.propose_here(n, Some((from, run)), number, *command);
                } else {
                    let answer = Box::new(CallAnswer::NotLeader(leader));
                    self.send_call(n, from, Call::Answer { run, number, answer });
                }
            }
            Call::Answer { run, number, answer } => {
                if self.is_run(n, run) {
                    self.answered(n, number, *answer);
                }
            }
        }
    }

    /// An attempt of node `n` has its answer.
    fn answered(&mut self, n: usize, number: u64, answer: CallAnswer) {
        let now = self.local(n);
        let Some(process) = &mut self.nodes[n].process else { return };
        let applied = process.meta.state().applied;
        let found = process.control.proposals.iter_mut().find(|(_, p)| p.attempt == number);
        let Some((id, proposal)) = found else { return };
        let id = *id;
        if !matches!(proposal.stage, Stage::Asked) {
            return;
        }
        match answer {
            CallAnswer::Done(at, outcome) => {
                proposal.stage = Stage::Applying { index: at, outcome };
                if applied >= at {
                    self.proposals_applied(n, applied);
                }
            }
            CallAnswer::NotLeader(Some(leader))
                if proposal.hops < 3 && now < proposal.attempt_until =>
            {
                proposal.hops += 1;
                self.attempt(n, id, Some(leader));
            }
            CallAnswer::NotLeader(_) | CallAnswer::Failed => {
                proposal.stage = Stage::Pause { until: now.after(PAUSE) };
            }
        }
    }

    /// Index `applied` is applied here: outcomes may be looked at.
    pub(crate) fn proposals_applied(&mut self, n: usize, applied: u64) {
        let Some(control) = self.control(n) else { return };
        let ready =
            |p: &Proposal| matches!(&p.stage, Stage::Applying { index, .. } if *index <= applied);
        let ids: Vec<u64> =
            control.proposals.iter().filter(|(_, p)| ready(p)).map(|(id, _)| *id).collect();
        for id in ids {
            self.conclude(n, id);
        }
        self.reads_applied(n, applied);
    }

    fn conclude(&mut self, n: usize, id: u64) {
        let Some(proposal) = self.control(n).and_then(|control| control.proposals.remove(&id))
        else {
            return;
        };
        if let Stage::Applying { outcome, .. } = proposal.stage {
            self.concluded(n, proposal.after, Some(outcome));
        }
    }

    pub(crate) fn proposal_timers(&mut self, n: usize) {
        let now = self.local(n);
        let Some(control) = self.control(n) else { return };
        let mut over = Vec::new();
        let mut again = Vec::new();
        for (id, proposal) in &mut control.proposals {
            match &proposal.stage {
                _ if now >= proposal.deadline => over.push(*id),
                Stage::Pause { until } if *until <= now => again.push(*id),
                Stage::Asked if now >= proposal.attempt_until => {
                    proposal.stage = Stage::Pause { until: now.after(PAUSE) };
                }
                _ => {}
            }
        }
        for id in again {
            self.attempt(n, id, None);
        }
        for id in over {
            // Also what was decided, but is not applied here in time.
            if let Some(proposal) = self.control(n).and_then(|c| c.proposals.remove(&id)) {
                self.concluded(n, proposal.after, None);
            }
        }
    }

    /// Forgets the proposals of a leadership that is over.
    pub(crate) fn drop_steps(&mut self, n: usize) {
        if let Some(control) = self.control(n) {
            control.proposals.retain(|_, p| !matches!(p.after, After::Step(_)));
        }
    }

    /// A command came to its end; `None` if nobody knows how.
    fn concluded(&mut self, n: usize, after: After, outcome: Option<Outcome>) {
        match after {
            After::Nothing => {}
            After::Begin { volume } => self.begun(n, volume, outcome),
            After::Activate { volume, isr } => self.activated(n, volume, isr, outcome),
            After::Release { volume } => self.released(n, volume, &outcome),
            After::Filled { volume } => self.release(n, volume),
            After::Isr { volume, epoch, ticket } => {
                let answer = match outcome {
                    Some(Err(Refused::Superseded { .. } | Refused::NoVolume { .. })) => {
                        IsrAnswer::Superseded
                    }
                    Some(_) => match self.state(n) {
                        Some(state) => decided(&state, volume, epoch),
                        None => return,
                    },
                    None => IsrAnswer::Unavailable,
                };
                self.note(|| format!("node {} epoch {epoch}: {answer:?}", n + 1));
                self.engine_command(n, volume, engine::Input::IsrAnswer { ticket, answer });
            }
            After::Step(key) => self.step_concluded(n, key, &outcome),
            After::Pool(replica) => self.pool_reported(n, replica, &outcome),
            After::Snapshot { volume, snapshot } => {
                self.snapshot_created(n, volume, snapshot, &outcome);
            }
            After::Question(task) => self.pool_answered(n, task, &outcome),
        }
    }
}

/// Whether a command was carried out.
pub(crate) fn is_done(outcome: &Option<Outcome>) -> bool {
    matches!(
        outcome,
        Some(Ok(Done::Ok
            | Done::Isr { .. }
            | Done::Epoch { .. }
            | Done::Size { .. }
            | Done::Volume { .. }
            | Done::Deleting { .. }))
    )
}
