//! Work on one region under the range lock: copying what differs to a resync target (R19, R21),
//! comparing all in-sync replicas, or repairing what one of them cannot serve (see `repair`).

use crate::api::{CompareResult, Output};
use crate::core::{Engine, Phase};
use crate::flight::{Mask, Purpose};
use crate::member::Member;
use crate::repair::{Awaited, Repair, is_unreadable};
use crate::scrub::is_background;
use types::plant::{Bug, planted};
use types::{HASH_BLOCK, MAX_IO, REGION, SnapshotId, crc32c};
use wire::{Reply, Request, WireError};

/// Holders of the range lock with this bit are region jobs; the others are flights.
const JOB: u64 = 1 << 63;

/// Regions of a comparison in work at once.
const COMPARE_WINDOW: u32 = 4;

pub(crate) const fn is_job(holder: u64) -> bool {
    holder & JOB != 0
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Of the head, or of a snapshot that the target is to have.
    Copy {
        target: usize,
        source: usize,
        snapshot: Option<SnapshotId>,
    },
    Compare,
    Repair(Repair),
}

#[derive(Debug)]
pub(crate) struct RegionJob {
    task: Task,
    offset: u64,
    len: u64,
    locked: bool,
    asked: Mask,
    /// Who has answered; nothing from one that could not read what it has.
    hashes: Vec<(usize, Vec<u128>)>,
    /// Ranges (offset, length) still to be copied, last first.
    todo: Vec<(u64, u64)>,
}

impl RegionJob {
    pub(crate) fn repair(&self) -> Option<&Repair> {
        if let Task::Repair(repair) = &self.task { Some(repair) } else { None }
    }

    pub(crate) fn repair_mut(&mut self) -> Option<&mut Repair> {
        if let Task::Repair(repair) = &mut self.task { Some(repair) } else { None }
    }

    /// Start and end, in bytes.
    pub(crate) const fn range(&self) -> (u64, u64) {
        (self.offset, self.offset + self.len)
    }

    pub(crate) const fn covers(&self, start: u64, end: u64) -> bool {
        self.offset <= start && end <= self.offset + self.len
    }
}

/// A comparison under way, of the whole volume or a piece of it.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) ticket: u64,
    members: Mask,
    next: u64,
    end: u64,
    active: u32,
    pub(crate) result: CompareResult,
}

impl Engine {
    pub(crate) fn start_copy(
        &mut self,
        (target, source): (usize, usize),
        snapshot: Option<SnapshotId>,
        offset: u64,
        len: u64,
        out: &mut Vec<Output>,
    ) {
        let asked = Mask::one(target).with(Mask::one(source));
        self.start_job(Task::Copy { target, source, snapshot }, asked, offset, len, out);
    }

    pub(crate) fn start_job(
        &mut self,
        task: Task,
        asked: Mask,
        offset: u64,
        len: u64,
        out: &mut Vec<Output>,
    ) {
        self.next_job += 1;
        let id = JOB | self.next_job;
        let (hashes, todo) = (Vec::new(), Vec::new());
        // A snapshot does not change, and its target gets no writes yet: nothing has to be kept out.
        let alone = matches!(task, Task::Copy { snapshot: Some(_), .. });
        let job = RegionJob { task, offset, len, locked: false, asked, hashes, todo };
        self.jobs.insert(id, job);
        if alone {
            self.hash_both(id, out);
        } else if self.lock.lock(offset, offset + len, id) {
            self.region_locked(id, out);
        }
    }

    /// Asks source and target of a copied snapshot for their hashes.
    fn hash_both(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let (offset, len) = (job.offset, job.len);
        let Task::Copy { target, source, snapshot: Some(snapshot) } = job.task else { return };
        let purpose = Purpose::Region { job: id };
        let of_source = Request::HashSnapshot { snapshot, offset, len };
        self.send_internal(purpose, of_source, Mask::one(source), out);
        self.send_internal(purpose, Request::Hash { offset, len }, Mask::one(target), out);
    }

    pub(crate) fn region_locked(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.locked = true;
        if job.repair().is_some() {
            return self.repair_check(id, out);
        }
        let (asked, request) = (job.asked, Request::Hash { offset: job.offset, len: job.len });
        self.send_internal(Purpose::Region { job: id }, request, asked, out);
    }

    pub(crate) fn region_reply(
        &mut self,
        id: u64,
        index: usize,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.repair().is_some() {
            return self.repair_reply(id, index, reply, out);
        }
        match reply {
            Reply::Hashes(hashes) => {
                if hashes.len() as u64 != job.len.div_ceil(HASH_BLOCK) {
                    return self.region_failed(id, out);
                }
                self.hashes_came(id, index, hashes, out);
            }
            Reply::Data { data, crc } => {
                let Task::Copy { target, .. } = job.task else { return };
                let Some((offset, len)) = job.todo.last().copied() else { return };
                if data.len() as u64 != len || crc32c(data.as_slice()) != crc {
                    return self.region_failed(id, out);
                }
                let request = Request::Write { offset, data, crc, era: self.era };
                self.send_internal(Purpose::Region { job: id }, request, Mask::one(target), out);
            }
            Reply::Done => {
                let Task::Copy { target, .. } = job.task else { return };
                match job.todo.pop() {
                    Some((_, len)) => {
                        self.members[target].progress.copied += len;
                        self.copy_next(id, out);
                    }
                    // It was marked.
                    None => self.end_job(id, out),
                }
            }
            _ => self.region_failed(id, out),
        }
    }

    /// `index` refused a request of the job, or lost it.
    pub(crate) fn region_refused(
        &mut self,
        id: u64,
        index: usize,
        error: &WireError,
        out: &mut Vec<Output>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (range, hashing) = ((job.offset, job.len), job.todo.is_empty());
        match job.task {
            Task::Repair(_) => return self.repair_refused(id, index, error, out),
            // What cannot be read there is about to be overwritten, or is repaired afterwards.
            Task::Copy { target, .. } if index == target && hashing && is_unreadable(error) => {
                return self.hashes_came(id, index, Vec::new(), out);
            }
            Task::Compare if is_unreadable(error) => {
                return self.hashes_came(id, index, Vec::new(), out);
            }
            // The next attempt finds it repaired, if anybody has it.
            Task::Copy { source, snapshot: None, .. }
                if index == source && is_unreadable(error) =>
            {
                self.start_repair(source, range, Awaited::Nobody, out);
            }
            Task::Copy { .. } | Task::Compare => {}
        }
        self.region_failed(id, out);
    }

    fn hashes_came(&mut self, id: u64, index: usize, hashes: Vec<u128>, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.hashes.push((index, hashes));
        if job.hashes.len() as u32 == job.asked.len() {
            self.hashed(id, out);
        }
    }

    fn hashed(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (range, count) = ((job.offset, job.len), job.len.div_ceil(HASH_BLOCK) as usize);
        let (hashes, unreadable): (Vec<_>, Vec<_>) = core::mem::take(&mut job.hashes)
            .into_iter()
            .partition(|(_, hashes)| !hashes.is_empty());
        let differs = |block: usize| hashes.iter().any(|(_, h)| h[block] != hashes[0].1[block]);
        let copying = matches!(job.task, Task::Copy { .. });
        let all = copying && !unreadable.is_empty();
        let different = (0..count).filter(|block| all || differs(*block));
        match job.task {
            Task::Repair(_) => {}
            Task::Compare => {
                let (count, len) = (different.count() as u64, job.len);
                if let Some(comparison) = &mut self.comparison {
                    comparison.result.different += count;
                    comparison.result.bytes += len;
                }
                let Some(ticket) = self.comparison.as_ref().map(|c| c.ticket) else { return };
                for (bad, _) in unreadable {
                    if !self.start_repair(bad, range, Awaited::Scan(ticket), out) {
                        return self.abandon_comparison(out);
                    }
                    if let Some(comparison) = &mut self.comparison {
                        comparison.active += 1;
                    }
                }
                self.end_job(id, out);
            }
            Task::Copy { target, snapshot, .. } => {
                let (offset, len) = range;
                let end = offset + len;
                for block in different {
                    let start = offset + block as u64 * HASH_BLOCK;
                    let len = HASH_BLOCK.min(end - start);
                    match job.todo.last_mut() {
                        Some((s, l)) if *s + *l == start && *l + len <= MAX_IO => *l += len,
                        _ => job.todo.push((start, len)),
                    }
                }
                job.todo.reverse();
                if job.todo.is_empty() && snapshot.is_none() && !planted(Bug::EqualUntagged) {
                    // What the source has written since somebody left is here, under an older tag.
                    let request = Request::Mark { offset, len, era: self.era };
                    let purpose = Purpose::Region { job: id };
                    self.send_internal(purpose, request, Mask::one(target), out);
                } else {
                    self.copy_next(id, out);
                }
            }
        }
    }

    fn copy_next(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Task::Copy { source, snapshot, .. } = job.task else { return };
        match job.todo.last() {
            Some((offset, len)) => {
                let (offset, len) = (*offset, *len as u32);
                let request = match snapshot {
                    None => Request::Read { offset, len },
                    Some(snapshot) => Request::ReadSnapshot { snapshot, offset, len },
                };
                self.send_internal(Purpose::Region { job: id }, request, Mask::one(source), out);
            }
            None => self.end_job(id, out),
        }
    }

    /// The job is done: its range is released, and the next one is taken up.
    pub(crate) fn end_job(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.unlock(job.offset, id, out);
        match job.task {
            Task::Copy { target, .. } => self.region_synced(target, job.len, out),
            Task::Compare => {
                if let Some(comparison) = &mut self.comparison {
                    comparison.active -= 1;
                }
                self.fill_comparison(out);
            }
            Task::Repair(Repair { awaited, .. }) => {
                if let Some(comparison) = self.scan(awaited) {
                    comparison.active -= 1;
                    self.fill_comparison(out);
                }
            }
        }
    }

    /// The job cannot be done; it fails only the resync or the comparison that it is part of.
    pub(crate) fn region_failed(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(job) = self.jobs.get(&id) else { return };
        match job.task {
            Task::Copy { target, .. } => self.abandon_resync(target, out),
            Task::Compare => self.abandon_comparison(out),
            Task::Repair(_) => self.abandon_repair(id, out),
        }
    }

    /// `index` was lost while it was asked.
    pub(crate) fn region_lost(&mut self, id: u64, index: usize, out: &mut Vec<Output>) {
        match self.jobs.get(&id).map(|job| job.task) {
            Some(Task::Repair(_)) => self.repair_lost(id, index, out),
            _ => self.region_failed(id, out),
        }
    }

    /// The comparison that a repair was made for, if it still goes on.
    pub(crate) fn scan(&mut self, awaited: Awaited) -> Option<&mut Comparison> {
        self.comparison.as_mut().filter(|comparison| Awaited::Scan(comparison.ticket) == awaited)
    }

    pub(crate) fn abandon_comparison(&mut self, out: &mut Vec<Output>) {
        self.end_comparison(false, out);
        self.cancel_jobs(|job| matches!(job.task, Task::Compare), out);
    }

    pub(crate) fn cancel_copies(&mut self, of: usize, out: &mut Vec<Output>) {
        let copies =
            |job: &RegionJob| matches!(job.task, Task::Copy { target, .. } if target == of);
        self.cancel_jobs(copies, out);
    }

    fn cancel_jobs(&mut self, concerned: impl Fn(&RegionJob) -> bool, out: &mut Vec<Output>) {
        let ids: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| concerned(job)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(job) = self.jobs.remove(&id) else { continue };
            if job.locked {
                self.unlock(job.offset, id, out);
            } else {
                let mut ready = Vec::new();
                self.lock.withdraw(id, &mut ready);
                self.launch_ready(ready, out);
            }
        }
    }

    // ---- comparison --------------------------------------------------------------------------

    /// By hand: it goes before the scrub's own.
    pub(crate) fn start_comparison(&mut self, ticket: u64, out: &mut Vec<Output>) {
        if self.comparison.as_ref().is_some_and(|running| is_background(running.ticket)) {
            self.abandon_comparison(out);
        }
        let nobody = self.mask_of(|m| m.in_sync() && m.is_up()).is_empty();
        if !matches!(self.phase, Phase::Active) || self.comparison.is_some() || nobody {
            out.push(Output::Compared { ticket, result: None });
            return;
        }
        self.compare_range(ticket, 0, self.config.size, out);
    }

    pub(crate) fn compare_range(
        &mut self,
        ticket: u64,
        start: u64,
        end: u64,
        out: &mut Vec<Output>,
    ) {
        let members = self.mask_of(|m| m.in_sync() && m.is_up());
        let result = CompareResult { replicas: members.len(), ..CompareResult::default() };
        let (next, active) = (start, 0);
        self.comparison = Some(Comparison { ticket, members, next, end, active, result });
        self.fill_comparison(out);
    }

    /// Tells who asked.
    pub(crate) fn end_comparison(&mut self, complete: bool, out: &mut Vec<Output>) {
        let Some(Comparison { ticket, result, .. }) = self.comparison.take() else { return };
        let result = complete.then_some(result);
        self.scrubbed(ticket, result);
        let different = result.map_or(0, |result| result.different);
        if !is_background(ticket) {
            out.push(Output::Compared { ticket, result });
        } else if different > 0 {
            out.push(Output::ReplicasDiffer { blocks: different });
        }
    }

    fn fill_comparison(&mut self, out: &mut Vec<Output>) {
        let in_sync = self.mask_of(Member::in_sync);
        loop {
            let Some(comparison) = &mut self.comparison else { return };
            let (offset, end) = (comparison.next, comparison.end);
            if offset >= end {
                if comparison.active == 0 {
                    self.end_comparison(true, out);
                }
                return;
            }
            if comparison.active >= COMPARE_WINDOW {
                return;
            }
            let members = comparison.members;
            if !members.without(in_sync).is_empty() {
                return self.abandon_comparison(out);
            }
            let len = REGION.min(end - offset);
            comparison.next += len;
            comparison.active += 1;
            self.start_job(Task::Compare, members, offset, len, out);
        }
    }
}
