//! One run: a cluster is founded, works under faults, is healed, and must come back.

use crate::check::Checks;
use crate::client::Life;
use crate::clock::{MS, SEC, Time};
use crate::control::Control;
use crate::data::Data;
use crate::disk::SimDisk;
use crate::meta::Meta;
use crate::net::Net;
use crate::node::{Node, Process};
use crate::operator::{Habits, Operator};
use crate::plan::{Plan, Theme};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::world::{Event, Figures, World};
use metadata::placement;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use store::{FormatOptions, OpenError, OpenOptions};
use types::plant::Bug;
use types::{BLOCK, ClusterId, EngineInstance, NodeId, VolumeId};
use uuid::Uuid;

/// Longest time from the last repair to a volume that can be written.
const WRITABLE: Time = 30 * SEC;
/// Longest time from then to identical copies.
const CONVERGED: Time = 60 * SEC;

/// Bytes of a pool that count as none: some slots of the largest size.
const FULL: u64 = 4 << 20;

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What must not be, if anything was.
    pub violation: Option<String>,
    /// See [`Figures`].
    pub figures: Figures,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// What happened last, if words were wanted.
    pub lines: Vec<String>,
    /// The plan that was followed.
    pub plan: Plan,
}

/// How to run a seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keep the last lines of the trace.
    pub words: bool,
    /// Faults of the plan to leave out, by number.
    pub without: Vec<bool>,
    /// The bug to plant, in a build that can.
    pub plant: Option<Bug>,
}

/// Runs a seed. A panic of a state machine is a violation, too.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Outcome {
    #[cfg(feature = "planted-bugs")]
    types::plant::plant(options.plant);
    let outcome = catch_unwind(|| run_world(seed, options));
    #[cfg(feature = "planted-bugs")]
    types::plant::plant(None);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        let violation = Some(format!("panic: {text}"));
        let plan = World::found(seed, options).plan;
        let figures = Figures { faults: plan.faults.len() as u64, ..Figures::default() };
        Outcome { seed, violation, figures, hash: 0, events: 0, lines: Vec::new(), plan }
    })
}

fn run_world(seed: u64, options: &Options) -> Outcome {
    let mut world = World::found(seed, options);
    let end = world.plan_end();
    world.run_until(end);
    world.conclude_run();
    world.outcome(seed)
}

impl World {
    /// The cluster of a seed.
    #[must_use]
    fn found(seed: u64, options: &Options) -> Self {
        let mut rng = Rng::new(seed, 1);
        let count = [3, 3, 3, 4, 4, 5, 5, 7][rng.below(8) as usize];
        let founders = if count > 3 { rng.between(3, count.min(5)) } else { 3 };
        let cluster = ClusterId(Uuid::from_u128(rng.id()));
        let small_slots = rng.chance(70);
        let length = rng.between(90, 240) * SEC;
        let mut plan = Plan::random(count as usize, 6 * SEC, length, &mut Rng::new(seed, 2));
        // In a tight pool slots are used again as soon as they are free.
        let tight = match plan.theme {
            Theme::Reuse => 100,
            Theme::Promises => 20,
            _ => 5,
        };
        let tight = rng.chance(tight);
        let small = tight || rng.chance(15);
        let reuse = plan.theme == Theme::Reuse;
        let slot_size = if small_slots && !reuse { 64 << 10 } else { 256 << 10 };
        let pool_bytes = match (reuse, small) {
            (true, _) => 16 << 20,
            (_, true) => 20 << 20,
            _ => 48 << 20,
        };
        let voters: Vec<NodeId> = (1..=founders).map(NodeId).collect();
        let mut nodes = Vec::new();
        for id in 1..=count {
            let mut node = Node::new(id, SimDisk::new(pool_bytes), &mut rng);
            let options = FormatOptions { cluster, pool: node.pool, slot_size, force: false };
            // A new disk that is large enough: it cannot fail.
            let _ = store::format(&mut node.disk, &options);
            node.raft.found(if id <= founders { &voters } else { &[] });
            node.member = id <= founders;
            node.start_clock(0, &mut rng);
            nodes.push(node);
        }
        let habits = Habits::random(plan.theme, &mut rng);
        let mut operator = Operator { habits, ..Operator::default() };
        if tight {
            let discards = if reuse { rng.between(5, 40) } else { 60 };
            operator.habits = Habits { slowness: 1, discards, ..operator.habits };
        }
        operator.restless = rng.chance(30) || operator.habits.rests > 0;
        let snapshots = if plan.theme == Theme::Snapshots { 100 } else { 40 };
        operator.snapshots = !small && Rng::new(seed, 5).chance(snapshots);
        operator.replace_after = core::time::Duration::from_secs(rng.between(4, 60));
        let mut checks = Checks::default();
        for _ in 0..if tight { 1 } else { rng.between(1, 2) } {
            let id = VolumeId(Uuid::from_u128(rng.id()));
            let size = match plan.theme {
                // More than there is: whoever gives a slot back gives it to somebody who waits for it.
                Theme::Reuse => 48,
                _ if tight => 16,
                _ => rng.between(4, 16),
            } << 20;
            let repl = if rng.chance(75) { 2 } else { 3 };
            let hot = match (tight, small) {
                (true, _) => 900,
                (_, true) => 120,
                _ => rng.between(4, 24) * operator.habits.places,
            };
            operator.want(id, size, repl, hot, &mut rng);
            checks.blocks.push(Default::default());
            checks.volumes.push(id);
        }
        operator.joiners =
            (founders..count).map(|n| (n as usize, rng.between(1, 60) * SEC)).collect();
        if count > 3 && rng.chance(30) {
            let at = rng.between(5, 70) * SEC;
            operator.leaver = Some((rng.below(count) as usize, at));
        }
        checks.bounds.snapshot = rng.between(40, 400) as usize;
        for (without, left_out) in plan.without.iter_mut().zip(&options.without) {
            *without = *left_out;
        }
        let net = Net::new(nodes.len(), Rng::new(seed, 3));
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            rng: Rng::new(seed, 4),
            net,
            nodes,
            clients: Vec::new(),
            operator,
            checks,
            trace: Trace::new(options.words),
            cluster,
            figures: Figures::default(),
            plan,
            healing: false,
            rotten: Vec::new(),
            put_back: BTreeMap::new(),
            spoilt: Vec::new(),
            ios: Default::default(),
            next_io: 0,
        };
        for number in 0..world.plan.faults.len() {
            let at = world.plan.faults[number].at;
            world.post(at, Event::Fault { index: number });
        }
        for n in 0..founders as usize {
            let delay = world.rng.below(1_000) * MS;
            world.start_later(n, delay);
        }
        world.post(2 * SEC, Event::Operator);
        world
    }

    fn plan_end(&self) -> Time {
        self.plan.faults.last().map_or(60 * SEC, |fault| fault.at) + 2 * SEC
    }

    /// The daemon of node `n` starts, in the order of `replicator/src/daemon.rs`.
    pub(crate) fn start(&mut self, n: usize) {
        let now = self.now;
        if self.nodes[n].process.is_some() || !self.nodes[n].member {
            return;
        }
        if !self.nodes[n].powered {
            self.nodes[n].power_on(now, &mut self.rng);
        }
        let process = EngineInstance(Uuid::from_u128(self.rng.id()));
        let instance = EngineInstance(Uuid::from_u128(self.rng.id()));
        let ticks = self.rng.between(10, 19) as usize;
        let keeps = self.rng.one_in(8);
        let snapshot = self.checks.bounds.snapshot as u64;
        let node = &mut self.nodes[n];
        let meta = match Meta::open(node.id, instance, &node.raft, ticks, snapshot, keeps) {
            Ok(meta) => meta,
            Err(error) => {
                let text = format!("metadata: the member of node {} cannot start: {error}", n + 1);
                return self.violation(text);
            }
        };
        // A pool that holds replicas cannot be swapped for another (R11).
        let expected_pool = policy::pool::expected(meta.state(), node.id);
        let options = OpenOptions { cluster: self.cluster, expected_pool, boot: node.boot };
        let store = match store::open(&mut node.disk, &options) {
            Ok(store) => store,
            Err(error) => return self.pool_refused(n, &error),
        };
        let swapped = node.kept.is_some() && expected_pool.is_some();
        let data = Data::new(store);
        node.process = Some(Process { instance: process, data, meta, control: Control::default() });
        let run = node.run;
        let boot = self.nodes[n].boot;
        self.note(|| format!("node {} starts, boot {boot}", n + 1));
        if swapped {
            return self
                .violation(format!("identity: node {} opened a disk that is not its pool", n + 1));
        }
        self.repair_unverified(n);
        self.check_returned(n);
        self.check_slots(n);
        self.resume_clients(n);
        for (delay, event) in [
            (self.rng.below(100), Event::Tick { node: n, run }),
            (self.rng.below(50), Event::Round { node: n, run }),
            (self.rng.below(300), Event::Heartbeat { node: n, run }),
        ] {
            self.after(delay * MS, event);
        }
        self.work_off(n);
    }

    fn pool_refused(&mut self, n: usize, error: &OpenError) {
        self.note(|| format!("node {}: the pool is refused: {error}", n + 1));
        if let OpenError::OtherPool { expected, .. } = error
            && *expected != self.nodes[n].pool
        {
            // While another disk was in its place all replicas were given up and that one was
            // registered; now the first one is back. A person has to choose: the node stays down.
            self.nodes[n].pool_dead = true;
            self.nodes[n].member = false;
            return;
        }
        let excused = self.nodes[n].kept.is_some() || matches!(error, OpenError::Io { .. });
        if !excused {
            let text = format!("recovery: node {} refuses its own pool: {error}", n + 1);
            return self.violation(text);
        }
        self.start_later(n, 2 * SEC);
    }

    /// Heals everything; the cluster must be writable soon, and its copies identical.
    fn conclude_run(&mut self) {
        if !self.checks.violations.is_empty() {
            return;
        }
        self.note(|| "everything is healed".to_owned());
        self.heal_all();
        let begun = self.now;
        let before: Vec<u64> = self.changes();
        let mut writable = vec![false; before.len()];
        while self.now < begun + WRITABLE && writable.contains(&false) {
            self.run_until(self.now + SEC / 2);
            for (volume, now) in self.changes().into_iter().enumerate() {
                writable[volume] |= now > before[volume] + 2 || self.is_destroyed(volume);
            }
            if !self.checks.violations.is_empty() {
                return;
            }
        }
        if let Some(volume) = writable.iter().position(|writable| !writable) {
            let clients: Vec<_> = self
                .clients
                .iter()
                .filter(|client| client.volume == volume && client.life != Life::Over)
                .map(|client| (client.node + 1, client.life, client.failed, client.changed))
                .collect();
            let text = format!(
                "liveness: volume {volume} cannot be written {} s after all was healed: {clients:?}",
                WRITABLE / SEC
            );
            return self.violation(text);
        }
        self.converge(begun);
        if self.checks.violations.is_empty() {
            self.last_looks();
        }
    }

    /// Changes that were acknowledged, by volume.
    fn changes(&self) -> Vec<u64> {
        let mut counts = vec![0; self.checks.volumes.len()];
        for client in &self.clients {
            counts[client.volume] += client.changed;
        }
        counts
    }

    /// Whether every copy was destroyed by faults of disks: nothing can be asked of it.
    fn is_destroyed(&mut self, volume: usize) -> bool {
        let Some(state) = self.newest_state() else { return false };
        let Some(record) = state.volumes.get(&self.checks.volumes[volume]) else { return false };
        let alive = record.isr.iter().filter_map(|id| record.replicas.get(id)).any(|replica| {
            replica.state == metadata::ReplicaState::Ready
                && !self.nodes[crate::world::index(replica.node)].pool_dead
        });
        !record.isr.is_empty() && !alive
    }

    /// Waits until every volume has all its copies in sync, then compares them.
    fn converge(&mut self, begun: Time) {
        while self.now < begun + CONVERGED + WRITABLE {
            self.run_until(self.now + SEC);
            if !self.checks.violations.is_empty() {
                return;
            }
            let open: Vec<usize> = (0..self.checks.volumes.len())
                .filter(|volume| !self.is_converged(*volume))
                .collect();
            if open.is_empty() {
                return;
            }
        }
        let state = self.newest_state();
        let text = (0..self.checks.volumes.len()).find(|volume| !self.is_converged(*volume)).map(
            |volume| {
                let record =
                    state.and_then(|s| s.volumes.get(&self.checks.volumes[volume]).cloned());
                let record = record.map(|r| (r.epoch, r.isr, r.replicas, r.attachment));
                format!("liveness: volume {volume} has not all its copies in sync: {record:?}")
            },
        );
        if let Some(text) = text {
            self.violation(text);
        }
    }

    fn is_converged(&mut self, volume: usize) -> bool {
        if self.is_destroyed(volume) {
            return true;
        }
        let Some(state) = self.newest_state() else { return false };
        let Some(record) = state.volumes.get(&self.checks.volumes[volume]) else { return false };
        // A node keeps the record of a copy that failed there until there are enough others: it takes
        // no second one (R27).
        let usable = |node: &&Node| {
            let spent = record.replicas.values().any(|replica| {
                let over = metadata::ReplicaState::Failed == replica.state
                    || metadata::ReplicaState::Deleting == replica.state;
                replica.node == node.id && over
            });
            node.member && !node.pool_dead && !spent
        };
        let pools = self.nodes.iter().filter(usable).count();
        let wanted = (record.repl as usize).min(pools);
        let owner = self.operator.volumes[volume].owner.map(|client| &self.clients[client]);
        let served = owner.is_some_and(|client| {
            let here = self.nodes[client.node].id;
            matches!(client.life, Life::Active(_)) && record.attachment.holder() == Some(here)
        });
        // What does not fit cannot be made in sync.
        let full = record.replicas.values().any(|replica| {
            let process = &self.nodes[crate::world::index(replica.node)].process;
            process.as_ref().is_some_and(|process| process.data.store.stats().free < FULL)
        });
        // Nor can what nobody has room for.
        let request = placement::Request {
            size: record.reserved(),
            repl: 1,
            exclude: record.replicas.values().map(|replica| replica.node).collect(),
            free: self.free(),
            ..placement::Request::default()
        };
        let settled = record.replicas.values().all(|replica| {
            record.isr.contains(&replica.replica) || replica.state != metadata::ReplicaState::Ready
        });
        let nowhere = settled && placement::place(&state, &request).is_err();
        served && (record.isr.len() >= wanted || full || nowhere)
    }

    /// Free bytes of the pools whose daemons run.
    fn free(&self) -> placement::Free {
        let of = |node: &Node| Some((node.id, node.process.as_ref()?.data.store.stats().free));
        self.nodes.iter().filter_map(of).collect()
    }

    /// Everything is read once more, copies are compared, states too.
    fn last_looks(&mut self) {
        for volume in 0..self.checks.volumes.len() {
            if self.is_destroyed(volume) {
                self.figures.destroyed += 1;
                continue;
            }
            let owner = self.operator.volumes[volume].owner;
            let Some(client) = owner.filter(|c| matches!(self.clients[*c].life, Life::Active(_)))
            else {
                continue;
            };
            let blocks: Vec<u32> = self.checks.blocks[volume].written().collect();
            let (n, id) = (self.clients[client].node, self.checks.volumes[volume]);
            let size = self.nodes[n]
                .process
                .as_ref()
                .and_then(|p| p.data.volumes.get(&id))
                .map_or(0, |v| v.engine.status().size);
            for (number, block) in blocks.into_iter().enumerate() {
                if (u64::from(block) + 1) * BLOCK <= size {
                    self.ask(client, Some((block, 1)));
                }
                if number % 32 == 31 {
                    self.run_until(self.now + 5 * MS);
                    // Reads may have to wait until the ISR has changed; no front-end has thousands of them.
                    let end = self.now + 15 * SEC;
                    while self.is_asked_for(client, 1_000) && self.now < end {
                        self.run_until(self.now + 5 * MS);
                    }
                }
            }
            self.ask(client, None);
        }
        for volume in 0..self.checks.volumes.len() {
            if !self.is_destroyed(volume) {
                self.compare_copies(volume);
            }
        }
        let wait = self.now + 12 * SEC;
        self.run_until(wait);
        self.compare_states();
        if let Some(state) = self.newest_state() {
            self.check_snapshots(&state, true);
        }
        if let Some(text) = self.checks.bounds.exceeded() {
            self.violation(text);
        }
    }

    /// The engine compares all in-sync copies. Whoever was cut off before all was healed may be fenced
    /// just now, and a copy that is to leave may leave: it is asked again then.
    fn compare_copies(&mut self, volume: usize) {
        let mut result = None;
        for _ in 0..8 {
            let Some(client) = self.operator.volumes[volume].owner else {
                return self.violation(format!("liveness: nobody has volume {volume} at the end"));
            };
            self.compare(client);
            for _ in 0..14 {
                if self.clients[client].compared.is_none() {
                    self.run_until(self.now + SEC);
                }
            }
            result = self.clients[client].compared;
            if !self.checks.violations.is_empty() || matches!(result, Some(Some(_))) {
                break;
            }
            self.run_until(self.now + SEC);
        }
        match result {
            Some(Some(result)) if result.different == 0 => {}
            result => {
                self.violation(format!("convergence: the copies of volume {volume}: {result:?}"));
            }
        }
    }

    /// All daemons have the same state in full.
    fn compare_states(&mut self) {
        let states: Vec<_> =
            (0..self.nodes.len()).filter_map(|n| Some((n, self.state(n)?))).collect();
        for (n, state) in &states {
            let equal = |other: &&(usize, std::sync::Arc<metadata::State>)| {
                other.1.applied == state.applied && other.1 != *state
            };
            if let Some((other, _)) = states.iter().find(equal) {
                return self.violation(format!(
                    "metadata: nodes {} and {} differ in full",
                    n + 1,
                    other + 1
                ));
            }
        }
    }

    fn outcome(self, seed: u64) -> Outcome {
        Outcome {
            seed,
            violation: self.checks.violations.first().cloned(),
            figures: self.figures,
            hash: self.trace.hash(),
            events: self.trace.events(),
            lines: self.trace.into_lines(),
            plan: self.plan,
        }
    }
}
