//! The faults of a plan: what each does to the cluster, and how it ends.

use crate::clock::{MS, SEC, Time};
use crate::disk::SimDisk;
use crate::net::Item;
use crate::node::{Death, Node};
use crate::plan::{Fault, Kind, Moment, Traffic, Whom};
use crate::rng::Rng;
use crate::world::{Event, World, index};
use types::{BLOCK, Buf};

/// A block whose content was damaged on purpose.
#[derive(Clone, Debug)]
pub struct Rotten {
    /// Where: node and pool offset.
    pub place: (usize, u64),
    /// What was there.
    pub good: Option<Buf>,
    /// What is there now.
    pub bad: Buf,
    /// Which fault did it.
    pub fault: usize,
}

impl World {
    fn paths(&self, kind: Kind) -> Vec<(usize, usize)> {
        let count = self.nodes.len();
        match kind {
            Kind::CutOneWay { from, to, .. } => vec![(from, to)],
            Kind::Cut { a, b, .. } | Kind::Slow { a, b, .. } | Kind::Loss { a, b, .. } => {
                vec![(a, b), (b, a)]
            }
            Kind::Isolate { node, hears, heard } => (0..count)
                .filter(|other| *other != node)
                .flat_map(|other| {
                    let out = (!heard).then_some((node, other));
                    let into = (!hears).then_some((other, node));
                    out.into_iter().chain(into)
                })
                .collect(),
            Kind::Split { side } => {
                let on = |n: usize| side >> n & 1 == 1;
                (0..count)
                    .flat_map(|a| (0..count).map(move |b| (a, b)))
                    .filter(|(a, b)| a != b && on(*a) != on(*b))
                    .collect()
            }
            Kind::Mute { node } => {
                (0..count).filter(|n| *n != node).flat_map(|n| [(node, n), (n, node)]).collect()
            }
            Kind::MuteAll => (0..count)
                .flat_map(|a| (0..count).map(move |b| (a, b)))
                .filter(|(a, b)| a != b)
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Nodes that a fault concerns.
    fn concerned(&self, kind: Kind) -> Vec<usize> {
        match kind {
            Kind::Kill { node }
            | Kind::Power { node }
            | Kind::CrashAtOutput { node, .. }
            | Kind::RaftDisk { node, .. }
            | Kind::Freeze { node }
            | Kind::SlowDisk { node, .. }
            | Kind::WriteError { node }
            | Kind::SyncError { node }
            | Kind::ReadError { node, .. }
            | Kind::Rot { node, .. }
            | Kind::Swap { node, .. } => vec![node],
            Kind::Break { a, b } => vec![a, b],
            Kind::PowerAll => (0..self.nodes.len()).collect(),
            Kind::Drift { .. } => vec![],
            _ => self.paths(kind).into_iter().flat_map(|(a, b)| [a, b]).collect(),
        }
    }

    /// Whether something was wrong with node `n` since `since`.
    pub(crate) fn was_impaired(&self, n: usize, since: Time) -> bool {
        let node = &self.nodes[n];
        node.troubled >= since || node.troubles > 0 || !node.is_running(self.now)
    }

    fn trouble(&mut self, kind: Kind, begins: bool) {
        let now = self.now;
        for n in self.concerned(kind) {
            let node = &mut self.nodes[n];
            node.troubled = now;
            node.troubles =
                if begins { node.troubles + 1 } else { node.troubles.saturating_sub(1) };
        }
    }

    /// The node that a fault is about.
    fn find(&mut self, whom: Whom) -> Option<usize> {
        let state = self.newest_state()?;
        if whom == Whom::Leader {
            let leads = |node: &Node| {
                let role = node.process.as_ref().map(|process| process.meta.status().role);
                role == Some(metadata::Role::Leader)
            };
            return self.nodes.iter().rposition(leads);
        }
        let held: Vec<&metadata::Volume> =
            state.volumes.values().filter(|v| v.attachment.holder().is_some()).collect();
        let pick = self.rng.below(held.len().max(1) as u64) as usize;
        let volume = held.get(pick)?;
        let holder = volume.attachment.holder()?;
        match whom {
            Whom::Holder => Some(index(holder)),
            _ => volume
                .isr
                .iter()
                .filter_map(|id| volume.replicas.get(id))
                .find(|replica| replica.node != holder)
                .map(|replica| index(replica.node)),
        }
    }

    /// Something happened that faults may wait for.
    pub(crate) fn moment(&mut self, moment: Moment) {
        if self.plan.armed.is_empty() {
            return;
        }
        let faults = &self.plan.faults;
        let fits = |number: &usize| faults[*number].when.is_some_and(|(what, _)| what == moment);
        let (due, armed): (Vec<usize>, Vec<usize>) =
            std::mem::take(&mut self.plan.armed).into_iter().partition(fits);
        self.plan.armed = armed;
        for number in due {
            let delay = self.plan.faults[number].when.take().map_or(0, |(_, delay)| delay);
            self.after(delay, Event::Fault { index: number });
        }
    }

    /// A fault of the plan begins, or begins to wait for its moment.
    pub(crate) fn begin_fault(&mut self, number: usize) {
        if self.plan.without[number] || self.healing {
            return;
        }
        if let Some(node) = self.plan.faults[number].whom.take().and_then(|whom| self.find(whom)) {
            self.plan.faults[number].kind.aim(node, self.nodes.len());
        }
        if self.plan.faults[number].when.is_some() {
            return self.plan.armed.push(number);
        }
        let fault = self.plan.faults[number];
        if !self.apply(number, fault) {
            return;
        }
        self.figures.faults += 1;
        self.trace.mix(self.now, 80, number as u64);
        self.note(|| format!("FAULT {number}: {:?} for {} ms", fault.kind, fault.lasts / MS));
        self.plan.begun[number] = true;
        self.trouble(fault.kind, true);
        self.after(fault.lasts, Event::Heal { index: number });
    }

    /// Carries a fault out; false if it makes no sense now.
    fn apply(&mut self, number: usize, fault: Fault) -> bool {
        let now = self.now;
        match fault.kind {
            Kind::Kill { node } => {
                if self.nodes[node].process.is_none() {
                    return false;
                }
                self.kill(node, Death::Kill);
            }
            Kind::Power { node } => {
                if !self.nodes[node].powered {
                    return false;
                }
                self.kill(node, Death::Power);
            }
            Kind::PowerAll => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].powered {
                        self.kill(node, Death::Power);
                    }
                }
            }
            Kind::CrashAtOutput { node, outputs, death } => {
                if self.nodes[node].process.is_none() {
                    return false;
                }
                self.nodes[node].doomed = Some((outputs, death));
            }
            Kind::RaftDisk { node, kept } => self.nodes[node].raft.fail_next(kept),
            Kind::CutOneWay { what, .. } | Kind::Cut { what, .. } => self.cut(fault.kind, what),
            Kind::Isolate { .. } | Kind::Split { .. } => self.cut(fault.kind, Traffic::All),
            Kind::Mute { .. } | Kind::MuteAll => self.cut(fault.kind, Traffic::Control),
            Kind::Slow { by, .. } => {
                for (from, to) in self.paths(fault.kind) {
                    self.net.path_mut(from, to).slow = by;
                }
            }
            Kind::Loss { percent, .. } => {
                for (from, to) in self.paths(fault.kind) {
                    self.net.path_mut(from, to).loss = percent;
                }
            }
            Kind::Break { a, b } => {
                for conn in self.net.between(a, b) {
                    for side in 0..2 {
                        self.net.clear(conn, side);
                        self.receive_item(conn, side, Item::Reset);
                    }
                }
            }
            Kind::Freeze { node } => {
                let until = now + fault.lasts;
                self.nodes[node].frozen = self.nodes[node].frozen.max(until);
                self.post(until, Event::Thaw { node });
            }
            Kind::SlowDisk { node, by } => self.nodes[node].slow_disk = by,
            Kind::WriteError { node } | Kind::SyncError { node } => {
                if !self.may_destroy(node) {
                    return false;
                }
                if matches!(fault.kind, Kind::WriteError { .. }) {
                    self.nodes[node].disk.write_errors += 1;
                } else {
                    self.nodes[node].disk.sync_errors += 1;
                }
            }
            Kind::ReadError { node, pick } | Kind::Rot { node, pick } => {
                return self.damage(number, node, pick, matches!(fault.kind, Kind::Rot { .. }));
            }
            Kind::Swap { node, how } => return self.swap(node, how),
            Kind::Image { node } => return self.take_image(node),
            Kind::Drift { node, ppm } => self.nodes[node].clock.set_drift(now, ppm),
        }
        true
    }

    fn cut(&mut self, kind: Kind, what: Traffic) {
        let now = self.now;
        for (from, to) in self.paths(kind) {
            let was = self.net.data_cut(from, to);
            let path = self.net.path_mut(from, to);
            match what {
                Traffic::All => path.cuts += 1,
                Traffic::Data => path.data_cuts += 1,
                Traffic::Control => path.control_cuts += 1,
            }
            if !was && self.net.data_cut(from, to) {
                self.net.path_mut(from, to).since = now;
                self.path_was_cut(from, to);
            }
        }
    }

    fn uncut(&mut self, kind: Kind, what: Traffic) {
        for (from, to) in self.paths(kind) {
            let was = self.net.data_cut(from, to);
            let path = self.net.path_mut(from, to);
            match what {
                Traffic::All => path.cuts -= 1,
                Traffic::Data => path.data_cuts -= 1,
                Traffic::Control => path.control_cuts -= 1,
            }
            if was && !self.net.data_cut(from, to) {
                self.path_was_healed(from, to);
                self.net.path_mut(from, to).since = self.now;
            }
        }
    }

    /// A fault of the plan ends.
    pub(crate) fn end_fault(&mut self, number: usize) {
        if !std::mem::take(&mut self.plan.begun[number]) {
            return;
        }
        let fault = self.plan.faults[number];
        self.note(|| format!("healed {number}: {:?}", fault.kind));
        self.trouble(fault.kind, false);
        match fault.kind {
            Kind::Kill { node } | Kind::Power { node } => self.start_later(node, MS),
            Kind::CrashAtOutput { node, .. } => {
                self.nodes[node].doomed = None;
                self.start_later(node, MS);
            }
            Kind::PowerAll => {
                for node in 0..self.nodes.len() {
                    let delay = self.rng.below(3_000) * MS;
                    self.start_later(node, delay);
                }
            }
            Kind::RaftDisk { node, .. } => self.nodes[node].raft.heal(),
            Kind::CutOneWay { what, .. } | Kind::Cut { what, .. } => self.uncut(fault.kind, what),
            Kind::Isolate { .. } | Kind::Split { .. } => self.uncut(fault.kind, Traffic::All),
            Kind::Mute { .. } | Kind::MuteAll => self.uncut(fault.kind, Traffic::Control),
            Kind::Slow { .. } => {
                for (from, to) in self.paths(fault.kind) {
                    self.net.path_mut(from, to).slow = 0;
                }
            }
            Kind::Loss { .. } => {
                for (from, to) in self.paths(fault.kind) {
                    self.net.path_mut(from, to).loss = 0;
                }
            }
            Kind::SlowDisk { node, .. } => self.nodes[node].slow_disk = 0,
            Kind::WriteError { node } | Kind::SyncError { node } => {
                self.nodes[node].disk.write_errors = 0;
                self.nodes[node].disk.sync_errors = 0;
            }
            Kind::ReadError { node, .. } => self.disk_of(node).heal(),
            Kind::Rot { .. } => self.repair(|rotten| rotten.fault == number),
            Kind::Swap { node, .. } => self.swap_back(node),
            Kind::Image { node } => self.restore(node),
            Kind::Break { .. } | Kind::Freeze { .. } | Kind::Drift { .. } => {}
        }
    }

    /// The pool's own disk, wherever it is.
    fn disk_of(&mut self, n: usize) -> &mut SimDisk {
        let node = &mut self.nodes[n];
        node.kept.as_mut().unwrap_or(&mut node.disk)
    }

    /// Everything is healed: no fault begins any more, those under way end.
    pub(crate) fn heal_all(&mut self) {
        self.healing = true;
        for number in 0..self.plan.faults.len() {
            self.end_fault(number);
        }
        self.repair(|_| true);
        for n in 0..self.nodes.len() {
            self.disk_of(n).heal();
            let node = &mut self.nodes[n];
            node.doomed = None;
            self.thaw(n);
            if self.nodes[n].process.is_none() {
                self.start_later(n, 5 * MS);
            }
        }
    }

    /// Whether a copy on node `n` may be destroyed for good: every volume with a copy there has
    /// another one that is in sync and in order, and pools remain for a replacement.
    pub(crate) fn may_destroy(&self, n: usize) -> bool {
        let good = self.nodes.iter().filter(|node| node.member && !node.pool_dead).count();
        let condemned = self
            .nodes
            .iter()
            .any(|node| node.disk.write_errors + node.disk.sync_errors > 0 && !node.pool_dead);
        let Some(state) = self.newest_state() else { return false };
        let id = self.nodes[n].id;
        let covered = state.volumes.values().all(|volume| {
            let here =
                volume.replicas.values().any(|r| r.node == id && volume.isr.contains(&r.replica));
            let elsewhere = volume.isr.iter().filter_map(|id| volume.replicas.get(id)).any(|r| {
                let at = index(r.node);
                let node = &self.nodes[at];
                r.node != id
                    && !node.pool_dead
                    && node.is_running(self.now)
                    && node.troubles == 0
                    && node.kept.is_none()
                    && r.state == metadata::ReplicaState::Ready
            });
            !here || (elsewhere && volume.isr.len() >= 2)
        });
        good > 2
            && !condemned
            && covered
            && !self.nodes[n].pool_dead
            && self.nodes[n].kept.is_none()
    }

    /// Damages blocks of one copy while another one is in sync.
    fn damage(&mut self, number: usize, n: usize, pick: u64, rot: bool) -> bool {
        let Some(state) = self.newest_state() else { return false };
        if self.nodes[n].process.is_none() || !self.rotten.is_empty() {
            return false;
        }
        let id = self.nodes[n].id;
        let mut rng = Rng::new(pick, 2);
        let mut done = false;
        for record in state.volumes.values() {
            let Some(volume) = self.checks.volume(record.volume) else { continue };
            let here =
                record.replicas.values().find(|r| r.node == id && record.isr.contains(&r.replica));
            let Some(replica) = here.map(|r| r.replica).filter(|_| record.isr.len() > 1) else {
                continue;
            };
            let written: Vec<u32> = self.checks.blocks[volume].written().collect();
            for _ in 0..rng.between(1, 6) {
                let Some(block) = rng.pick(&written) else { continue };
                let Some(process) = &self.nodes[n].process else { continue };
                let offset = u64::from(block) * BLOCK;
                let Some(Some(place)) = process.data.store.locate(replica, None, offset) else {
                    continue;
                };
                if !rot {
                    self.nodes[n].disk.make_unreadable(place.offset);
                    done = true;
                } else if place.verified && self.rotten.iter().all(|r| r.place != (n, place.offset))
                {
                    let good = self.nodes[n].disk.block(place.offset).cloned();
                    if self.nodes[n].disk.rot(place.offset, rng.bits())
                        && let Some(bad) = self.nodes[n].disk.block(place.offset).cloned()
                    {
                        let place = (n, place.offset);
                        let rotten = Rotten { place, good, bad, fault: number };
                        self.spoilt.push(rotten.clone());
                        self.rotten.push(rotten);
                        done = true;
                    }
                }
            }
        }
        done
    }

    /// Takes rot back where it still is.
    pub(crate) fn repair(&mut self, which: impl Fn(&Rotten) -> bool) {
        let (back, stay): (Vec<Rotten>, Vec<Rotten>) =
            std::mem::take(&mut self.rotten).into_iter().partition(which);
        self.rotten = stay;
        for Rotten { place: (n, _), good, bad, .. } in back {
            self.disk_of(n).replace(&bad, &good, |_| true);
        }
    }

    /// Rot in blocks whose checksum a restart made unknown could not be noticed: see
    /// docs/reliability.md. It is taken back.
    pub(crate) fn repair_unverified(&mut self, n: usize) {
        let Some(process) = &self.nodes[n].process else { return };
        let store = &process.data.store;
        let unknown: Vec<u64> = self
            .rotten
            .iter()
            .filter(|rotten| rotten.place.0 == n && !store.verifies(rotten.place.1))
            .map(|rotten| rotten.place.1)
            .collect();
        self.repair(|rotten| rotten.place.0 == n && unknown.contains(&rotten.place.1));
        // Likewise where it was copied to.
        let node = &mut self.nodes[n];
        let Some(process) = &node.process else { return };
        for Rotten { good, bad, .. } in self.spoilt.iter().filter(|spoilt| spoilt.place.0 == n) {
            node.disk.replace(bad, good, |offset| !process.data.store.verifies(offset));
        }
    }

    /// Whether a block on node `n` holds damage that was injected, or a copy of such a block.
    pub(crate) fn is_rotten(&self, n: usize, found: &Buf) -> bool {
        self.spoilt.iter().any(|spoilt| spoilt.place.0 == n && spoilt.bad == *found)
    }

    /// Whether these bytes are damage that was injected anywhere.
    pub(crate) fn was_spoilt(&self, found: &Buf) -> bool {
        self.spoilt.iter().any(|spoilt| spoilt.bad == *found)
    }

    /// How long all faults may take to end.
    #[must_use]
    pub fn last_fault(&self) -> Time {
        self.plan.end() + SEC
    }
}
