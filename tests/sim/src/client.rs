//! Consumers: a pod that has a volume attached and does I/O on it. One that was cut off lives on
//! and goes on until it gets errors, as a real one would.

use crate::check::blocks::Moment;
use crate::check::epochs::{self, Asked};
use crate::clock::{MS, SEC, Time};
use crate::content::{Stamp, parse, payload};
use crate::control::AttachOutcome;
use crate::data::Work;
use crate::node::Death;
use crate::plan::Moment as PlanMoment;
use crate::world::{Event, World};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use types::{
    BLOCK, BlockOp, BlockResult, EngineInstance, Epoch, Instant, IoError, IoId, REGION, VolumeId,
};

/// Beyond the time that R4 states: two ticks of an engine's timer.
const SLACK: Duration = Duration::from_millis(1500);

/// Mean pause between requests of a consumer that is not slow.
const QUICK: Time = 120 * MS;
/// No consumer is quiet for longer.
const LONGEST: Time = 4 * SEC;
/// A device whose daemon is away this long is ended (`device_grace_seconds`).
const GRACE: Time = 30 * SEC;
const REGION_BLOCKS: u32 = (REGION / BLOCK) as u32;

/// Where a consumer is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Its volume is being attached.
    Attaching,
    /// It does I/O under this epoch.
    Active(Epoch),
    /// It waits for its I/O, then detaches.
    Leaving(Epoch),
    /// The daemon of its node is away, or resumes its device (R14); what it asked for waits in the
    /// kernel.
    Paused,
    /// Its volume is being detached.
    Detaching,
    /// It is gone.
    Over,
}

#[derive(Clone, Debug)]
enum Kind {
    Read { block: u32, count: u32 },
    Write { block: u32, count: u32, fua: bool },
    Flush { began: Moment },
}

#[derive(Clone, Debug)]
struct Op {
    kind: Kind,
    request: BlockOp,
    since: Instant,
    /// The newest active epoch when it was asked for.
    newest: Epoch,
}

/// See the module's text.
#[derive(Debug)]
pub struct Client {
    /// Index of its volume.
    pub volume: usize,
    /// Where it runs.
    pub node: usize,
    /// Run of the daemon there.
    pub run: u64,
    /// See [`Life`].
    pub life: Life,
    /// It got an error that says that the device is dead.
    pub failed: bool,
    /// Its last attach was refused because a live node holds the volume.
    pub held: bool,
    under_way: BTreeMap<IoId, Op>,
    /// Requests at a time, at most.
    depth: u64,
    /// Mean pause between requests.
    gap: Time,
    /// Requests that succeeded.
    pub served: u64,
    /// Changes that were acknowledged.
    pub changed: u64,
    /// Result of a comparison of all replicas that it asked for.
    pub compared: Option<Option<engine::CompareResult>>,
    began: Time,
    /// Engines of its device, by the note that the device carries.
    pub(crate) engines: BTreeSet<EngineInstance>,
    /// When its daemon went away.
    paused: Time,
}

impl World {
    /// A consumer of volume `volume` on node `n`; false if it cannot even ask.
    pub(crate) fn new_client(&mut self, volume: usize, n: usize) -> Option<usize> {
        let client = Client {
            volume,
            node: n,
            run: self.nodes[n].run,
            life: Life::Attaching,
            failed: false,
            held: false,
            under_way: BTreeMap::new(),
            depth: self.rng.between(1, 6),
            gap: self.rng.between(20, 120) * MS * self.operator.habits.slowness,
            served: 0,
            changed: 0,
            compared: None,
            began: self.now,
            engines: BTreeSet::new(),
            paused: 0,
        };
        let index = self.clients.len();
        self.clients.push(client);
        let id = self.checks.volumes[volume];
        if !self.attach(n, id, index) {
            self.clients[index].life = Life::Over;
            return None;
        }
        Some(index)
    }

    /// What became of an attach or detach.
    pub(crate) fn client_told(&mut self, client: usize, outcome: AttachOutcome) {
        let (volume, node) = (self.clients[client].volume, self.clients[client].node + 1);
        self.note(|| format!("client {client} of volume {volume} on node {node}: {outcome:?}"));
        let (n, run) = (self.clients[client].node, self.clients[client].run);
        if !self.is_run(n, run) {
            // The daemon died between two outputs: nobody is there to be told.
            if self.clients[client].life != Life::Paused {
                self.clients[client].life = Life::Over;
            }
            return;
        }
        let resumes = self.clients[client].life == Life::Paused;
        match outcome {
            AttachOutcome::Attached(epoch) => {
                self.clients[client].life = Life::Active(epoch);
                self.after(0, Event::Client { client });
                if resumes {
                    self.ask_again(client, epoch);
                }
            }
            _ if resumes => self.end_client(client),
            AttachOutcome::Held => {
                self.clients[client].held = true;
                self.clients[client].life = Life::Over;
            }
            AttachOutcome::Failed | AttachOutcome::Detached => {
                self.clients[client].life = Life::Over;
            }
        }
    }

    /// The daemon of node `n` died. Devices in use live on if the kernel does, until their daemon is
    /// back (R14); the others are dead, and what was under way is never answered.
    pub(crate) fn clients_lose_node(&mut self, n: usize, death: Death) {
        for client in 0..self.clients.len() {
            let this = &mut self.clients[client];
            if this.node != n || this.life == Life::Over {
                continue;
            }
            let in_use = matches!(this.life, Life::Active(_) | Life::Paused) && !this.failed;
            if death == Death::Power || !in_use {
                self.end_client(client);
            } else if this.life != Life::Paused {
                (this.life, this.paused) = (Life::Paused, self.now);
            }
        }
    }

    fn end_client(&mut self, client: usize) {
        let this = &mut self.clients[client];
        this.life = Life::Over;
        let (volume, ops) = (this.volume, std::mem::take(&mut this.under_way));
        for (id, op) in ops {
            self.ios.remove(&id);
            if let Kind::Read { .. } = op.kind {
                self.checks.blocks[volume].read_fails(id.0);
            }
        }
    }

    /// A daemon runs on node `n` again: it takes over the devices of the former one.
    pub(crate) fn resume_clients(&mut self, n: usize) {
        for client in 0..self.clients.len() {
            if self.clients[client].node == n && self.clients[client].life == Life::Paused {
                self.clients[client].run = self.nodes[n].run;
                let id = self.checks.volumes[self.clients[client].volume];
                self.resume(n, id, client);
            }
        }
    }

    /// A device whose daemon stays away is ended.
    pub(crate) fn check_grace(&mut self, client: usize) {
        let this = &self.clients[client];
        let alone = this.life == Life::Paused && self.nodes[this.node].process.is_none();
        if alone && self.now > this.paused + GRACE {
            self.end_client(client);
        }
    }

    /// Whether `instance` is the engine of a device of `volume` that outlived its daemon.
    pub(crate) fn is_resuming(&self, volume: usize, instance: EngineInstance) -> bool {
        self.clients.iter().any(|client| {
            let paused = client.volume == volume && client.life == Life::Paused;
            paused && client.engines.contains(&instance)
        })
    }

    /// The kernel sends again what was not answered.
    fn ask_again(&mut self, client: usize, epoch: Epoch) {
        let volume = self.clients[client].volume;
        let ops = std::mem::take(&mut self.clients[client].under_way);
        for (id, op) in ops {
            if let Kind::Read { .. } = op.kind {
                self.checks.blocks[volume].read_fails(id.0);
            }
            let zeros = matches!(op.request, BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. });
            self.submit(client, id, epoch, op.kind, zeros, op.request);
        }
    }

    /// A consumer's next request is due.
    pub(crate) fn client_due(&mut self, client: usize) {
        let this = &self.clients[client];
        let Life::Active(epoch) = this.life else { return };
        let (n, run, gap, depth) = (this.node, this.run, this.gap, this.depth);
        if !self.is_run(n, run) {
            return;
        }
        // At the end it is asked whether writes succeed, not how often somebody writes.
        let gap = if self.healing { gap.min(QUICK) } else { gap };
        let pause =
            if self.rng.one_in(40) { self.rng.below(40 * gap) } else { self.rng.below(2 * gap) };
        let burst = if self.rng.one_in(10) { self.rng.between(2, 6) } else { 1 };
        self.after(pause.min(LONGEST) + 1, Event::Client { client });
        for _ in 0..burst {
            if (self.clients[client].under_way.len() as u64) < depth && !self.clients[client].failed
            {
                self.random_request(client, epoch);
            }
        }
    }

    fn random_request(&mut self, client: usize, epoch: Epoch) {
        let volume = self.clients[client].volume;
        let (block, count) = self.operator.pick(volume, &mut self.rng);
        let (offset, len) = (u64::from(block) * BLOCK, u64::from(count) * BLOCK);
        let write = |fua| Kind::Write { block, count, fua };
        self.next_io += 1;
        let id = IoId(self.next_io);
        let discards = self.operator.habits.discards;
        let (kind, op) = match self.rng.below(99 + discards) {
            0..42 => (Kind::Read { block, count }, BlockOp::Read { offset, len: len as u32 }),
            42..84 => {
                let fua = self.rng.chance(6);
                let stamp = Stamp {
                    volume: volume as u32,
                    block,
                    write: id.0,
                    epoch: epoch.0 as u32,
                    client: client as u32,
                };
                (write(fua), BlockOp::Write { offset, data: payload(stamp, count), fua })
            }
            84..94 => (Kind::Flush { began: self.checks.blocks[volume].tick() }, BlockOp::Flush),
            94..97 => (write(false), BlockOp::Discard { offset, len }),
            97 | 99.. => {
                // Whole slots: they are given back. All of a region, so that it is as new.
                let unit = if self.rng.chance(50) { REGION_BLOCKS } else { 64 };
                let block = block / unit * unit;
                let count = unit.min(self.operator.blocks(volume) - block);
                let (offset, len) = (u64::from(block) * BLOCK, u64::from(count) * BLOCK);
                (Kind::Write { block, count, fua: false }, BlockOp::Discard { offset, len })
            }
            _ => (write(false), BlockOp::WriteZeroes { offset, len, fua: false }),
        };
        let zeros = matches!(op, BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. });
        self.submit(client, id, epoch, kind, zeros, op);
    }

    fn submit(
        &mut self,
        client: usize,
        id: IoId,
        epoch: Epoch,
        kind: Kind,
        zeros: bool,
        op: BlockOp,
    ) {
        let (volume, n) = (self.clients[client].volume, self.clients[client].node);
        let blocks = &mut self.checks.blocks[volume];
        match &kind {
            Kind::Write { block, count, .. } => {
                blocks.write_begins(id.0, *block..block + count, zeros, epoch);
            }
            Kind::Read { .. } => blocks.read_begins(id.0),
            Kind::Flush { .. } => {}
        }
        let newest = blocks.newest();
        let since = self.local(n);
        let request = op.clone();
        self.clients[client].under_way.insert(id, Op { kind, request, since, newest });
        self.ios.insert(id, client);
        let volume = self.checks.volumes[volume];
        self.data_input(n, Work::Engine(volume, engine::Input::Io { id, op }));
    }

    /// Reads, writes or flushes on purpose, for the end of a run.
    pub(crate) fn ask(&mut self, client: usize, read: Option<(u32, u32)>) {
        let Life::Active(epoch) = self.clients[client].life else { return };
        self.next_io += 1;
        let id = IoId(self.next_io);
        let volume = self.clients[client].volume;
        let (kind, op) = match read {
            Some((block, count)) => (
                Kind::Read { block, count },
                BlockOp::Read { offset: u64::from(block) * BLOCK, len: count * BLOCK as u32 },
            ),
            None => (Kind::Flush { began: self.checks.blocks[volume].tick() }, BlockOp::Flush),
        };
        self.submit(client, id, epoch, kind, false, op);
    }

    /// A request was answered.
    pub(crate) fn front_done(&mut self, n: usize, _: VolumeId, id: IoId, result: BlockResult) {
        let Some(client) = self.ios.remove(&id) else { return };
        let Some(op) = self.clients[client].under_way.remove(&id) else { return };
        let (Life::Active(epoch) | Life::Leaving(epoch)) = self.clients[client].life else {
            return;
        };
        let volume = self.clients[client].volume;
        self.trace.mix(self.now, 60 + u64::from(result.is_ok()), id.0);
        match result {
            Ok(data) => {
                let asked =
                    if matches!(op.kind, Kind::Read { .. }) { Asked::Read } else { Asked::Change };
                let now = self.checks.blocks[volume].newest();
                if let Some(text) = epochs::wrong(asked, epoch, op.newest, now) {
                    return self.violation(format!("{text} (volume {volume}, node {})", n + 1));
                }
                if self.checks.isr.is_poisoned(self.checks.volumes[volume], epoch) {
                    return self.violation(format!(
                        "isr: epoch {epoch} serves volume {volume} to whom acknowledged writes were lost (R10)"
                    ));
                }
                self.clients[client].served += 1;
                if asked == Asked::Change {
                    self.clients[client].changed += 1;
                }
                self.succeeded(client, id, epoch, &op, data.as_ref());
            }
            Err(error) => self.failed_request(client, id, &op, error),
        }
    }

    fn succeeded(
        &mut self,
        client: usize,
        id: IoId,
        epoch: Epoch,
        op: &Op,
        data: Option<&types::Buf>,
    ) {
        let volume = self.clients[client].volume;
        match op.kind {
            Kind::Read { block, count } => {
                let bytes = data.map(types::Buf::as_slice).unwrap_or_default();
                if bytes.len() != count as usize * BLOCK as usize {
                    return self.violation(format!(
                        "blocks: a read of {count} blocks returned {} bytes",
                        bytes.len()
                    ));
                }
                for (bytes, block) in bytes.chunks_exact(BLOCK as usize).zip(block..) {
                    let checked = parse(bytes, volume as u32, block).and_then(|found| {
                        self.checks.blocks[volume].read_finds(id.0, block, found)
                    });
                    if let Err(text) = checked {
                        let node = self.clients[client].node + 1;
                        return self.violation(format!(
                            "blocks: a read of block {block} of volume {volume} on node {node} under {epoch} returned {text}"
                        ));
                    }
                }
                self.checks.blocks[volume].read_ends(id.0);
                self.figures.operations += u64::from(count);
            }
            Kind::Write { block, count, fua } => {
                self.moment(PlanMoment::Acked);
                self.checks.blocks[volume].write_ends(id.0, true, fua);
                self.check_acknowledged(volume, epoch, block..block + count);
                self.figures.operations += u64::from(count);
            }
            Kind::Flush { began } => {
                self.moment(PlanMoment::Flushed);
                self.checks.blocks[volume].flushed(began);
            }
        }
    }

    fn failed_request(&mut self, client: usize, id: IoId, op: &Op, error: IoError) {
        self.figures.errors += 1;
        let this = &self.clients[client];
        let (volume, n) = (this.volume, this.node);
        self.note(|| format!("client {client}: request {} failed: {error}", id.0));
        let uuid = self.checks.volumes[volume];
        let alive = self.nodes[n].process.as_ref().is_some_and(|process| {
            process.data.volumes.get(&uuid).is_some_and(|v| v.engine.is_active())
        });
        match op.kind {
            Kind::Read { .. } => self.checks.blocks[volume].read_fails(id.0),
            // An engine that goes on has dealt with it; what a dead one sent may still land.
            Kind::Write { .. } if alive => {
                self.checks.blocks[volume].write_ends(id.0, false, false)
            }
            _ => {}
        }
        if !alive {
            self.clients[client].failed = true;
        }
    }

    /// No request may wait longer than R4 allows, as far as its host ran.
    pub(crate) fn check_patience(&mut self, client: usize) {
        let this = &self.clients[client];
        let n = this.node;
        let paused = this.life == Life::Paused;
        if paused || !self.is_run(n, this.run) || !self.nodes[n].is_running(self.now) {
            return;
        }
        let (now, resumed) = (self.local(n), self.nodes[n].resumed);
        let bound = types::IO_TIMEOUT + SLACK;
        let late = this.under_way.iter().find(|(_, op)| now.since(op.since.max(resumed)) > bound);
        if let Some((id, op)) = late {
            let text = format!(
                "bounds: request {} of client {client} on node {} waits: {op:?}",
                id.0,
                n + 1
            );
            self.violation(text);
        }
    }

    /// Whether so many of its requests are under way.
    pub(crate) fn is_asked_for(&self, client: usize, many: usize) -> bool {
        self.clients[client].under_way.len() >= many
    }

    /// Whether nothing of a consumer is under way.
    pub(crate) fn is_idle(&self, client: usize) -> bool {
        self.clients[client].under_way.is_empty()
    }

    /// How long a consumer has lived.
    pub(crate) fn age(&self, client: usize) -> Time {
        self.now - self.clients[client].began
    }

    /// The answer to a comparison.
    pub(crate) fn compared(
        &mut self,
        n: usize,
        id: VolumeId,
        _: u64,
        result: Option<engine::CompareResult>,
    ) {
        for client in &mut self.clients {
            if client.node == n && self.checks.volumes[client.volume] == id {
                client.compared = Some(result);
            }
        }
    }
}
