//! The control plane of a node: what `replicator/src/control` does over gRPC and tasks, done over
//! simulated calls and timers. What is decided comes from `policy`, as in the daemon; what is here
//! is only the carrying out, in the daemon's order. Each part names what it mirrors.

mod attach;
mod fill;
mod leader;
mod pool;
mod propose;
mod snapshots;
mod tend;

pub use attach::Outcome as AttachOutcome;
pub use propose::Call;
pub(crate) use propose::NOTHING;

use crate::clock::MS;
use crate::world::{World, index};
use attach::Operation;
use core::time::Duration;
use engine::{Input as EngineInput, MemberSpec};
use leader::Leadership;
use metadata::{Command, NodeInfo, PoolClass, PoolInfo};
use policy::attachment;
use propose::{After, Proposal, Ticket};
use std::collections::{BTreeMap, BTreeSet};
use types::{EngineInstance, Epoch, Instant, NodeId, ReplicaId, VolumeId};

/// The local half of an attachment; `control::attach::Local`.
#[derive(Clone, Debug)]
pub struct Local {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its engine.
    pub instance: EngineInstance,
    /// I/O may run.
    pub active: bool,
    /// Every I/O fails.
    pub failed: bool,
}

/// Steps that may be repeated: one at a time per key, again after a pause; `control::steps`.
#[derive(Debug)]
pub(crate) struct Steps<K> {
    running: BTreeSet<K>,
    not_before: BTreeMap<K, Instant>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    Again,
    Refused,
}

impl<K: Copy + Ord> Steps<K> {
    fn new() -> Self {
        Self { running: BTreeSet::new(), not_before: BTreeMap::new() }
    }

    /// Whether a step of `key` may begin now; if so it has begun.
    fn begin(&mut self, key: K, now: Instant) -> bool {
        let early = self.not_before.get(&key).is_some_and(|time| *time > now);
        !early && self.running.insert(key)
    }

    fn end(&mut self, key: K, ended: Ended, now: Instant) {
        self.running.remove(&key);
        let wait = match ended {
            Ended::Done => return,
            Ended::Again => Duration::from_millis(200),
            Ended::Refused => Duration::from_secs(1),
        };
        self.not_before.insert(key, now.after(wait));
    }
}

/// Everything that the parts of the control plane share.
pub struct Control {
    /// Attachments here.
    pub locals: BTreeMap<VolumeId, Local>,
    told: BTreeMap<VolumeId, Vec<MemberSpec>>,
    operations: BTreeMap<VolumeId, Operation>,
    proposals: BTreeMap<u64, Proposal>,
    tickets: BTreeMap<u64, Ticket>,
    next: u64,
    leading: Option<Leadership>,
    pool_steps: Steps<ReplicaId>,
    /// Applied index when [`World::published`] last looked.
    seen: u64,
    rounds: u64,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            locals: BTreeMap::new(),
            told: BTreeMap::new(),
            operations: BTreeMap::new(),
            proposals: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next: 0,
            leading: None,
            pool_steps: Steps::new(),
            seen: 0,
            rounds: 0,
        }
    }
}

impl World {
    /// A ticket for a change of membership that the operator wants.
    pub(crate) fn operator_ticket(&mut self, n: usize) -> Option<u64> {
        let control = self.control(n)?;
        let ticket = control.number();
        control.tickets.insert(ticket, Ticket::Operator);
        Some(ticket)
    }
}

impl Control {
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Data address of node index `n`; see `World::node_at`.
pub(crate) fn data_address(n: usize) -> String {
    format!("10.0.0.{}:7421", n + 1)
}

/// Control address of node index `n`.
pub(crate) fn control_address(n: usize) -> String {
    format!("10.0.0.{}:7420", n + 1)
}

impl World {
    pub(crate) fn control(&mut self, n: usize) -> Option<&mut Control> {
        self.nodes[n].process.as_mut().map(|process| &mut process.control)
    }

    /// What node `n` says of itself.
    pub(crate) fn node_info(&self, n: usize) -> Option<NodeInfo> {
        let node = &self.nodes[n];
        let process = node.process.as_ref()?;
        let stats = process.data.store.stats();
        Some(NodeInfo {
            node: node.id,
            name: format!("n{}", n + 1),
            control_address: control_address(n),
            data_address: data_address(n),
            pool: Some(PoolInfo { id: stats.pool, bytes: stats.capacity }),
            class: Some(PoolClass::Medium),
            zone: None,
            boot: node.boot,
            process: process.instance,
        })
    }

    /// Free bytes of the pool of node `n`.
    fn pool_free(&self, n: usize) -> u64 {
        self.nodes[n].process.as_ref().map_or(0, |process| process.data.store.stats().free)
    }

    /// `control::heartbeat`.
    pub(crate) fn heartbeat(&mut self, n: usize) {
        let Some(info) = self.node_info(n) else { return };
        if self.rng.one_in(3) {
            self.get(n);
        }
        let (now, free) = (self.local(n), self.pool_free(n));
        let here = self.nodes[n].id;
        let Some(process) = &mut self.nodes[n].process else { return };
        let leader = process.meta.status().leader;
        if leader == Some(here) {
            if let Some(leading) = &mut process.control.leading {
                leading.roll.introduce(info, free, now);
            }
            return;
        }
        // Without a known leader the client asks one after the other.
        let to = match leader {
            Some(leader) => index(leader),
            None => self.net.rng().below(self.nodes.len() as u64) as usize,
        };
        self.send_call(n, to, Call::Heartbeat { info: Box::new(info) });
    }

    /// A heartbeat arrived at node `n`; `control::peer`.
    pub(crate) fn heard(&mut self, n: usize, info: NodeInfo) {
        let (now, free) = (self.local(n), self.pool_free(index(info.node)));
        let here = self.nodes[n].id;
        let Some(process) = &mut self.nodes[n].process else { return };
        if process.meta.status().leader == Some(here)
            && let Some(leading) = &mut process.control.leading
        {
            leading.roll.introduce(info, free, now);
        }
    }

    /// The applied state or Raft's status may have changed; what waits for that looks again.
    pub(crate) fn published(&mut self, n: usize) {
        let Some(process) = &mut self.nodes[n].process else { return };
        let applied = process.meta.state().applied;
        let changed = std::mem::replace(&mut process.control.seen, applied) != applied;
        self.follow_leadership(n);
        if changed {
            self.proposals_applied(n, applied);
            self.follow_state(n);
            self.attachments_changed(n);
            self.reconcile_pool(n);
        }
    }

    /// Timers of the control plane.
    pub(crate) fn round(&mut self, n: usize) {
        let Some(control) = self.control(n) else { return };
        control.rounds += 1;
        let (second, looks) = (control.rounds.is_multiple_of(2), control.rounds.is_multiple_of(40));
        self.proposal_timers(n);
        self.attach_timers(n);
        self.tend_timers(n);
        self.fill_timers(n);
        if looks {
            self.release_dead(n);
        }
        if second {
            self.lead(n);
            self.reconcile_pool(n);
        }
    }

    /// `control::attach::watch::follow`: fails superseded engines, tells the others of members.
    fn follow_state(&mut self, n: usize) {
        let here = self.nodes[n].id;
        let Some(process) = &mut self.nodes[n].process else { return };
        let state = std::sync::Arc::clone(process.meta.state());
        let control = &mut process.control;
        control.told.retain(|volume, _| control.locals.contains_key(volume));
        let mut inputs = Vec::new();
        for (volume, local) in &mut control.locals {
            if !attachment::is_ours(&state, *volume, local.epoch, local.instance) {
                if !std::mem::replace(&mut local.failed, true) {
                    inputs.push((*volume, EngineInput::Fenced));
                }
                continue;
            }
            let Some(record) = state.volumes.get(volume) else { continue };
            let mut members = attachment::members(&state, record, here);
            members.iter_mut().for_each(|member| member.in_isr = false);
            if control.told.get(volume) != Some(&members) {
                inputs.push((*volume, EngineInput::Members(members.clone())));
                control.told.insert(*volume, members);
            }
            let size = record.size;
            inputs.push((*volume, EngineInput::Resize(size)));
        }
        for (volume, input) in inputs {
            self.engine_command(n, volume, input);
        }
    }

    /// For an engine, if there is one.
    pub(crate) fn engine_command(&mut self, n: usize, volume: VolumeId, input: EngineInput) {
        let known = self.data_mut(n).is_some_and(|data| data.volumes.contains_key(&volume));
        if known {
            self.data_input(n, crate::data::Work::Engine(volume, input));
        }
    }

    /// `control::isr::follow`, for changes of an ISR.
    pub(crate) fn propose_isr(
        &mut self,
        n: usize,
        volume: VolumeId,
        epoch: Epoch,
        ticket: u64,
        isr_version: types::IsrVersion,
        change: engine::IsrChange,
    ) {
        let command = match change {
            engine::IsrChange::Shrink(remove) => {
                Command::ShrinkIsr { volume, epoch, isr_version, remove }
            }
            engine::IsrChange::Grow(add) => Command::GrowIsr { volume, epoch, isr_version, add },
        };
        self.propose(n, command, Duration::from_secs(4), After::Isr { volume, epoch, ticket });
    }

    /// `control::isr::follow`, for failed replicas.
    pub(crate) fn replica_failed(&mut self, n: usize, replica: ReplicaId, reason: String) {
        let command = Command::ReplicaFailed { replica, reason };
        self.propose(n, command, Duration::from_secs(10), After::Nothing);
    }

    /// A node of which some daemon is likely to hear: for the operator.
    pub(crate) fn any_running(&mut self) -> Option<usize> {
        let now = self.now;
        let running: Vec<usize> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].is_running(now)).collect();
        self.rng.pick(&running)
    }

    /// The daemon of node `n` starts again by itself, as a unit of systemd would.
    pub(crate) fn restart_later(&mut self, n: usize) {
        let delay = self.rng.between(50, 2_000) * MS;
        self.start_later(n, delay);
    }

    /// Node ids of the cluster that a member may know without having been told.
    pub(crate) fn all_ids(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|node| node.member).map(|node| node.id).collect()
    }
}
