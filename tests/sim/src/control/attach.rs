//! Attaching and detaching; `control::attach::begin` and `control::attach::end`.

use super::Local;
use super::propose::After;
use crate::world::World;
use core::time::Duration;
use engine::{EngineConfig, Input as EngineInput, IsrView};
use metadata::{Attachment, Command, Done, Outcome as MetaOutcome, Refused, State};
use policy::attachment::{AfterRefusal, LOOK_AGAIN, after_refusal, is_ours, members, situation};
use std::collections::BTreeSet;
use std::sync::Arc;
use types::{EngineInstance, Epoch, Instant, IsrVersion, ReplicaId, VolumeId};
use uuid::Uuid;

const FENCE_WAIT: Duration = Duration::from_secs(60);
const RESUME_WAIT: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(15);
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(15);
/// Nobody waits for a copy for longer; the daemon has no such bound, and the engine gives up by itself.
const FILLING: Duration = Duration::from_secs(120);

/// What a consumer hears of its attach or detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device works, under this epoch.
    Attached(Epoch),
    /// It could not be attached.
    Failed,
    /// Refused because a live node holds it.
    Held,
    /// Nothing of it is left here.
    Detached,
}

/// For whom an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    Consumer(usize),
    /// The node itself, to fill replicas: no device (docs/decisions/0019).
    Nobody,
    /// Likewise, to copy what a new volume begins with.
    Filler,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The local half is being taken down; then whatever was wanted goes on.
    Stopping { until: Instant },
    /// `BeginAttach` is under way.
    Begin,
    /// Somebody else has to move first.
    Waiting { before: Arc<State>, until: Instant },
    /// The engine seals and reconciles.
    Starting { until: Instant, isr_version: IsrVersion },
    /// `Activate` is under way.
    Activating,
    /// `Detach` is under way.
    Releasing,
    /// An engine without a device fills replicas; there has been nothing to fill `since`.
    Tending { size: u64, since: Option<Instant> },
    /// An engine without a device copies a snapshot.
    Filling { until: Instant },
    /// `Filled` is under way.
    Recording,
}

/// One operation at a time per volume.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(super) whom: Whom,
    /// To attach; false when it only has to end, or has failed.
    pub(super) attach: bool,
    /// Somebody else wants the volume.
    pub(super) wanted: bool,
    /// What the volume begins with is in it.
    pub(super) filled: bool,
    failed: bool,
    held: bool,
    pub(super) deadline: Instant,
    pub(super) epoch: Epoch,
    pub(super) instance: EngineInstance,
    /// Engines one of which must still have the volume: for a device that outlived its daemon (R14).
    former: Option<BTreeSet<EngineInstance>>,
    /// The state that the last `BeginAttach` went by.
    looked: Option<Arc<State>>,
    /// What was taken down, and whether cleanly.
    pub(super) here: Option<(Epoch, EngineInstance, bool)>,
    pub(super) stage: Stage,
}

impl Operation {
    pub(super) fn new(whom: Whom, attach: bool) -> Self {
        Self {
            whom,
            attach,
            wanted: false,
            filled: false,
            failed: false,
            held: false,
            deadline: Instant(0),
            epoch: Epoch(0),
            instance: EngineInstance::default(),
            former: None,
            looked: None,
            here: None,
            stage: Stage::Begin,
        }
    }
}

impl World {
    /// `resume::resume`: the device of a consumer outlived its daemon on node `n`.
    pub(crate) fn resume(&mut self, n: usize, volume: VolumeId, client: usize) {
        let now = self.local(n);
        let instance = EngineInstance(Uuid::from_u128(self.rng.id()));
        // Before Raft hears of it: a successor must know this engine as one of the device's.
        let former = Some(self.clients[client].engines.clone());
        self.clients[client].engines.insert(instance);
        let Some(control) = self.control(n) else { return };
        let operation = Operation {
            deadline: now.after(RESUME_WAIT),
            instance,
            former,
            ..Operation::new(Whom::Consumer(client), true)
        };
        control.operations.insert(volume, operation);
        self.begin_epoch(n, volume);
    }

    fn operation(&mut self, n: usize, volume: VolumeId) -> Option<&mut Operation> {
        self.control(n)?.operations.get_mut(&volume)
    }

    /// A consumer wants `volume` on node `n`. False while another operation is under way there.
    pub(crate) fn attach(&mut self, n: usize, volume: VolumeId, client: usize) -> bool {
        let now = self.local(n);
        let instance = EngineInstance(Uuid::from_u128(self.rng.id()));
        let Some(process) = &mut self.nodes[n].process else { return false };
        if let Some(operation) = process.control.operations.get_mut(&volume) {
            operation.wanted = true;
            return false;
        }
        let state = process.meta.state();
        let healthy = process.control.locals.get(&volume).is_some_and(|local| {
            local.active
                && !local.failed
                && is_ours(state, volume, local.epoch, local.instance)
                && process.data.volumes.get(&volume).is_some_and(|v| v.engine.is_active())
        });
        if healthy {
            let epoch = process.control.locals[&volume].epoch;
            self.client_told(client, Outcome::Attached(epoch));
            return true;
        }
        let operation = Operation {
            deadline: now.after(FENCE_WAIT),
            instance,
            ..Operation::new(Whom::Consumer(client), true)
        };
        process.control.operations.insert(volume, operation);
        self.clients[client].engines.insert(instance);
        self.tear_down(n, volume);
        true
    }

    /// A consumer gives `volume` up on node `n`. False while another operation is under way there.
    pub(crate) fn detach(&mut self, n: usize, volume: VolumeId, client: usize) -> bool {
        let now = self.local(n);
        let Some(control) = self.control(n) else { return false };
        if control.operations.contains_key(&volume) {
            return false;
        }
        let operation = Operation {
            deadline: now.after(FENCE_WAIT),
            ..Operation::new(Whom::Consumer(client), false)
        };
        control.operations.insert(volume, operation);
        self.tear_down(n, volume);
        true
    }

    /// `end::tear_down`: removes the local half, whatever state it is in.
    pub(super) fn tear_down(&mut self, n: usize, volume: VolumeId) {
        let now = self.local(n);
        let Some(process) = &mut self.nodes[n].process else { return };
        let state = Arc::clone(process.meta.state());
        let control = &mut process.control;
        let Some(local) = control.locals.get(&volume).cloned() else {
            return self.torn_down(n, volume);
        };
        let failed = local.failed || !is_ours(&state, volume, local.epoch, local.instance);
        let Some(operation) = control.operations.get_mut(&volume) else { return };
        operation.here = Some((local.epoch, local.instance, !failed));
        operation.stage = Stage::Stopping { until: now.after(STOP) };
        if failed {
            self.engine_command(n, volume, EngineInput::Fenced);
        }
        let known = self.data_mut(n).is_some_and(|data| data.volumes.contains_key(&volume));
        if known {
            self.engine_command(n, volume, EngineInput::Stop);
        } else {
            self.engine_stopped(n, volume, false);
        }
    }

    /// The engine of `volume` is gone.
    pub(crate) fn engine_stopped(&mut self, n: usize, volume: VolumeId, clean: bool) {
        let Some(control) = self.control(n) else { return };
        control.locals.remove(&volume);
        if let Some(operation) = control.operations.get_mut(&volume)
            && matches!(operation.stage, Stage::Stopping { .. })
        {
            if let Some(here) = &mut operation.here {
                here.2 &= clean;
            }
            self.torn_down(n, volume);
        }
    }

    fn torn_down(&mut self, n: usize, volume: VolumeId) {
        let Some(operation) = self.operation(n, volume) else { return };
        if operation.attach {
            self.begin_epoch(n, volume);
        } else if operation.filled {
            self.record_filled(n, volume);
        } else {
            self.release(n, volume);
        }
    }

    /// `begin::begin_epoch`.
    pub(super) fn begin_epoch(&mut self, n: usize, volume: VolumeId) {
        let here = self.nodes[n].id;
        let Some(state) = self.state(n) else { return };
        let Some(operation) = self.operation(n, volume) else { return };
        operation.stage = Stage::Begin;
        operation.looked = Some(Arc::clone(&state));
        let (instance, internal) =
            (operation.instance, !matches!(operation.whom, Whom::Consumer(_)));
        let holder = state.volumes.get(&volume).and_then(|record| record.attachment.instance());
        if let Some(former) = &operation.former
            && !holder.is_some_and(|holder| former.contains(&holder))
        {
            // Taken over meanwhile.
            return self.give_up(n, volume);
        }
        let expected_epoch = state.volumes.get(&volume).map_or(Epoch(0), |record| record.epoch);
        let begin = Command::BeginAttach { volume, node: here, instance, expected_epoch, internal };
        self.propose(n, begin, COMMAND, After::Begin { volume });
    }

    pub(crate) fn begun(&mut self, n: usize, volume: VolumeId, outcome: Option<MetaOutcome>) {
        let now = self.local(n);
        let Some(state) = self.state(n) else { return };
        let Some(operation) = self.operation(n, volume) else { return };
        match outcome {
            Some(Ok(Done::Epoch { epoch, .. })) => {
                operation.epoch = epoch;
                let instance = operation.instance;
                let local = Local { epoch, instance, active: false, failed: false };
                if let Some(control) = self.control(n) {
                    control.locals.insert(volume, local);
                }
                self.serve(n, volume, epoch, instance);
            }
            Some(Err(refused)) => match after_refusal(&refused) {
                AfterRefusal::LookAgain if now < operation.deadline => self.begin_epoch(n, volume),
                AfterRefusal::Wait => {
                    // From the state that was looked at before: what the refusal was about may have
                    // changed before its answer came.
                    let before = operation.looked.take().unwrap_or(state);
                    let until = operation.deadline.min(now.after(LOOK_AGAIN));
                    operation.stage = Stage::Waiting { before, until };
                    if let Refused::HeldInternally { node, .. } = refused {
                        self.ask_back(n, volume, node);
                    }
                    self.attachments_changed(n);
                }
                _ => {
                    operation.held = matches!(refused, Refused::HeldBy { .. });
                    self.give_up(n, volume);
                }
            },
            _ => self.give_up(n, volume),
        }
    }

    /// `begin::serve`: seals, reconciles, activates.
    fn serve(&mut self, n: usize, volume: VolumeId, epoch: Epoch, instance: EngineInstance) {
        let (now, here) = (self.local(n), self.nodes[n].id);
        let Some(state) = self.state(n) else { return };
        let resumed = self.operation(n, volume).is_some_and(|o| o.former.is_some());
        let Some(record) = state.volumes.get(&volume) else { return self.give_up(n, volume) };
        let config = EngineConfig {
            cluster: self.cluster,
            volume,
            size: record.size,
            epoch,
            instance,
            process: self.nodes[n].identity(),
            resumed,
            isr_version: record.isr_version,
            members: members(&state, record, here),
        };
        let (until, isr_version) = (now.after(START), record.isr_version);
        if let Some(operation) = self.operation(n, volume) {
            operation.stage = Stage::Starting { until, isr_version };
        }
        if !self.start_engine(n, config) {
            self.give_up(n, volume);
        }
    }

    /// The engine sealed and reconciled, or failed.
    pub(crate) fn engine_started(
        &mut self,
        n: usize,
        volume: VolumeId,
        result: Result<Vec<ReplicaId>, String>,
    ) {
        let Some(operation) = self.operation(n, volume) else { return };
        let Stage::Starting { isr_version, .. } = operation.stage else { return };
        match result {
            Ok(isr) => {
                operation.stage = Stage::Activating;
                let (epoch, instance) = (operation.epoch, operation.instance);
                let after = After::Activate { volume, isr: isr.clone() };
                let activate = Command::Activate { volume, epoch, instance, isr, isr_version };
                self.propose(n, activate, COMMAND, after);
            }
            Err(_) => self.give_up(n, volume),
        }
    }

    pub(crate) fn activated(
        &mut self,
        n: usize,
        volume: VolumeId,
        isr: Vec<ReplicaId>,
        outcome: Option<MetaOutcome>,
    ) {
        let now = self.local(n);
        let size = self.state(n).and_then(|s| s.volumes.get(&volume).map(|v| v.size)).unwrap_or(0);
        let Some(control) = self.control(n) else { return };
        let Some(operation) = control.operations.get_mut(&volume) else { return };
        if !matches!(operation.stage, Stage::Activating) {
            return;
        }
        let Some(Ok(Done::Isr { isr_version })) = outcome else { return self.give_up(n, volume) };
        let (whom, epoch) = (operation.whom, operation.epoch);
        match whom {
            Whom::Consumer(_) => drop(control.operations.remove(&volume)),
            Whom::Nobody => operation.stage = Stage::Tending { size, since: None },
            Whom::Filler => operation.stage = Stage::Filling { until: now.after(FILLING) },
        }
        if let Some(local) = control.locals.get_mut(&volume) {
            local.active = true;
        }
        let view = IsrView { version: isr_version, isr };
        self.note(|| format!("node {} epoch {epoch}: active, {view:?}", n + 1));
        self.engine_command(n, volume, EngineInput::Activated(view));
        match whom {
            Whom::Consumer(client) => {
                self.figures.attachments += 1;
                self.client_told(client, Outcome::Attached(epoch));
            }
            Whom::Nobody => self.figures.tendings += 1,
            Whom::Filler => self.begin_fill(n, volume),
        }
    }

    /// `end::give_up`: the engine goes, the record is released if it can be.
    fn give_up(&mut self, n: usize, volume: VolumeId) {
        let Some(control) = self.control(n) else { return };
        let Some(operation) = control.operations.get_mut(&volume) else { return };
        operation.attach = false;
        operation.failed = true;
        operation.here = None;
        let begun = operation.epoch != Epoch(0);
        if begun {
            self.tear_down(n, volume);
        } else {
            self.finish(n, volume);
        }
    }

    /// `end::release`.
    pub(super) fn release(&mut self, n: usize, volume: VolumeId) {
        let here = self.nodes[n].id;
        let Some(state) = self.state(n) else { return };
        let Some(operation) = self.operation(n, volume) else { return };
        let held = state.volumes.get(&volume).and_then(|record| match record.attachment {
            Attachment::Attaching { node, instance } | Attachment::Attached { node, instance }
                if node == here =>
            {
                Some((record.epoch, instance, false))
            }
            _ => None,
        });
        let Some((epoch, instance, clean)) = operation.here.or(held) else {
            return self.finish(n, volume);
        };
        operation.stage = Stage::Releasing;
        let clean = clean && !operation.failed;
        let detach = Command::Detach { volume, epoch, instance, clean };
        self.propose(n, detach, COMMAND, After::Release { volume });
    }

    pub(crate) fn released(&mut self, n: usize, volume: VolumeId, outcome: &Option<MetaOutcome>) {
        if outcome.is_none()
            && let Some(operation) = self.operation(n, volume)
        {
            // If nobody answers, the next attach takes over by the epoch, or a fence does.
            operation.failed = true;
        }
        self.finish(n, volume);
    }

    fn finish(&mut self, n: usize, volume: VolumeId) {
        let Some(operation) = self.control(n).and_then(|c| c.operations.remove(&volume)) else {
            return;
        };
        let Whom::Consumer(client) = operation.whom else { return };
        let told = match operation {
            Operation { held: true, .. } => Outcome::Held,
            Operation { failed: true, .. } => Outcome::Failed,
            _ => Outcome::Detached,
        };
        self.client_told(client, told);
    }

    /// The engine failed: every I/O gets an error.
    pub(crate) fn engine_failed(&mut self, n: usize, volume: VolumeId, epoch: Epoch, _: &str) {
        if let Some(local) = self.control(n).and_then(|control| control.locals.get_mut(&volume))
            && local.epoch == epoch
        {
            local.failed = true;
        }
    }

    pub(crate) fn attach_timers(&mut self, n: usize) {
        let now = self.local(n);
        let Some(control) = self.control(n) else { return };
        let overdue = |operation: &Operation| match operation.stage {
            Stage::Stopping { until }
            | Stage::Starting { until, .. }
            | Stage::Waiting { until, .. } => until <= now,
            _ => false,
        };
        let volumes: Vec<VolumeId> = control
            .operations
            .iter()
            .filter(|(_, operation)| overdue(operation))
            .map(|(volume, _)| *volume)
            .collect();
        for volume in volumes {
            let Some(operation) = self.operation(n, volume) else { continue };
            match operation.stage {
                Stage::Stopping { .. } => {
                    // The engine did not close in time.
                    self.engine_command(n, volume, EngineInput::Fenced);
                    self.engine_stopped(n, volume, false);
                }
                Stage::Waiting { .. } if now < operation.deadline => self.begin_epoch(n, volume),
                _ => self.give_up(n, volume),
            }
        }
    }

    /// A newer state is applied: attaches that wait or are superseded move.
    pub(crate) fn attachments_changed(&mut self, n: usize) {
        let here = self.nodes[n].id;
        let Some(process) = &mut self.nodes[n].process else { return };
        let state = Arc::clone(process.meta.state());
        let mut again = Vec::new();
        let mut lost = Vec::new();
        for (volume, operation) in &process.control.operations {
            match &operation.stage {
                Stage::Waiting { before, .. }
                    if situation(before, *volume, here) != situation(&state, *volume, here) =>
                {
                    again.push(*volume);
                }
                Stage::Starting { .. }
                    if !is_ours(&state, *volume, operation.epoch, operation.instance) =>
                {
                    lost.push(*volume);
                }
                _ => {}
            }
        }
        for volume in again {
            self.begin_epoch(n, volume);
        }
        for volume in lost {
            self.give_up(n, volume);
        }
    }
}
