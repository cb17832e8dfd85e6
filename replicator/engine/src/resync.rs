//! Resync (R19): regions whose tag on source or target is above what both have sealed are compared
//! by hashes of 64 KiB blocks, and what differs is copied.
//!
//! ```text
//! Away ──▶ Syncing: Draining ─▶ Listing ─▶ Copying ──▶ Joining: Draining ─▶ Flushing ─▶ Ready ──▶ InSync
//!  ▲                 (older writes    (tags)   (regions      (writes that did not     (its disk)  (Grow
//!  │                  finish)                   under lock)   count finish)                        committed)
//!  └──────────── any failure: only the resync ends (R21), and starts over later
//! ```
//!
//! From the first step on the target gets every new write. A target that lacks snapshots is given those
//! before the first step; see [`crate::past`].

use crate::api::{Output, Progress};
use crate::core::{Engine, Phase};
use crate::flight::{Mask, Purpose};
use crate::member::{Join, Link, Member, RECONNECT, Standing};
use crate::past::Past;
use core::time::Duration;
use std::collections::BTreeSet;
use types::plant::{Bug, planted};
use types::{Era, REGION, Tag};
use wire::{Reply, Request};

/// Pause after the first resync that failed; doubled after each further one, up to eight times it.
const RETRY: Duration = Duration::from_secs(1);

/// A resync under way.
#[derive(Debug)]
pub(crate) struct Resync {
    /// Tells it from an earlier one, whose source may still answer.
    pub(crate) run: u64,
    pub(crate) source: usize,
    pub(crate) stage: Stage,
    /// While the target is given snapshots that it lacks.
    pub(crate) past: Option<Past>,
}

impl Resync {
    /// Whether the target gets new writes.
    pub(crate) fn receives(&self) -> bool {
        self.past.is_none()
    }
}

#[derive(Debug)]
pub(crate) enum Stage {
    /// Which snapshots have source and target?
    Asking,
    /// The target makes a snapshot of what it holds.
    Taking,
    /// Mutations below this number were launched without the target.
    Draining { watermark: u64 },
    /// Two lists are read, page by page.
    Listing { lists: u8, set: BTreeSet<u32> },
    /// Regions still to be taken up, last first, and how many are in work.
    Copying { queue: Vec<u32>, active: u32 },
}

impl Engine {
    pub(crate) fn start_resyncs(&mut self, out: &mut Vec<Output>) {
        if self.holds_writes() {
            // It would not see the snapshot that is being made.
            return;
        }
        let fit = |(_, m): &(usize, &Member)| m.in_sync() && m.is_up() && !m.unfit && !m.broken;
        let best = self.members.iter().enumerate().filter(fit).min_by_key(|(_, m)| !m.is_local());
        let Some((source, _)) = best else { return };
        for target in 0..self.members.len() {
            let member = &self.members[target];
            let away = matches!(member.standing, Standing::Away) && member.is_up();
            if away && member.resync_after <= self.now && !member.broken && !member.removed {
                self.start_resync(target, source, out);
            }
        }
    }

    pub(crate) fn start_resync(&mut self, target: usize, source: usize, out: &mut Vec<Output>) {
        let member = &mut self.members[target];
        member.progress = Progress::default();
        member.unfit = false;
        let (stage, past) = (Stage::Asking, Some(Past::default()));
        self.last_run += 1;
        let run = self.last_run;
        member.standing = Standing::Syncing(Box::new(Resync { run, source, stage, past }));
        // A member of the ISR has all snapshots that count, and may yet have to be the source itself:
        // its contents must not go back.
        if matches!(self.phase, Phase::Reconciling { .. }) {
            self.start_present(target, out);
        } else {
            self.start_past(target, source, out);
        }
    }

    /// The target has all snapshots: from here on it gets every new write.
    pub(crate) fn start_present(&mut self, target: usize, out: &mut Vec<Output>) {
        let watermark = self.flights.next();
        let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
        resync.past = None;
        resync.stage = Stage::Draining { watermark };
        self.poll_targets(out);
    }

    /// Called when a request is done: targets may have waited for it.
    pub(crate) fn poll_targets(&mut self, out: &mut Vec<Output>) {
        for target in 0..self.members.len() {
            match &self.members[target].standing {
                Standing::Syncing(resync) => {
                    if let Stage::Draining { watermark } = resync.stage
                        && self.drained(watermark)
                    {
                        self.list_tags(target, out);
                    }
                }
                Standing::Joining(Join::Draining) => {
                    let busy = self.flights.iter().any(|(_, flight)| flight.extra.has(target));
                    if !busy {
                        self.members[target].standing = Standing::Joining(Join::Flushing);
                        if planted(Bug::JoinWithoutFlush) {
                            self.join_flushed(target, out);
                            continue;
                        }
                        let purpose = Purpose::JoinFlush { target };
                        self.send_internal(purpose, Request::Flush, Mask::one(target), out);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether every mutation that was launched below `watermark` is done.
    fn drained(&self, watermark: u64) -> bool {
        !self
            .flights
            .iter()
            .take_while(|(seq, _)| *seq < watermark)
            .any(|(_, flight)| flight.launched && flight.era.is_some())
    }

    /// Resync `run` of `target`, if it is still under way.
    pub(crate) fn resync(&mut self, target: usize, run: u64) -> Option<&mut Resync> {
        match &mut self.members[target].standing {
            Standing::Syncing(resync) if resync.run == run => Some(resync),
            _ => None,
        }
    }

    pub(crate) fn list_tags(&mut self, target: usize, out: &mut Vec<Output>) {
        let Standing::Syncing(resync) = &self.members[target].standing else { return };
        let source = resync.source;
        let sealed = |index: usize| self.members[index].info.map(|info| info.last_sealed);
        let (Some(of_source), Some(of_target)) = (sealed(source), sealed(target)) else { return };
        // What one side alone has sealed, both had synced before (R18): the lower seal is a second line of
        // defence, and what lies between the two is compared in vain.
        let above = if planted(Bug::DirtySinceAttach) {
            Tag { epoch: self.config.epoch, era: Era(0) }
        } else {
            of_source.min(of_target)
        };
        let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
        resync.stage = Stage::Listing { lists: 2, set: BTreeSet::new() };
        let purpose = Purpose::Tags { target, run: resync.run };
        for asked in [source, target] {
            let request = Request::Tags { above, first: 0 };
            self.send_internal(purpose, request, Mask::one(asked), out);
        }
    }

    /// A page of tags from `asked`.
    pub(crate) fn tags(
        &mut self,
        (target, run): (usize, u64),
        asked: usize,
        request: Option<Request>,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        let size = self.config.size;
        let Some(resync) = self.resync(target, run) else { return };
        let (Reply::Regions { regions, next }, Some(Request::Tags { above, first })) =
            (reply, request)
        else {
            return self.abandon_resync(target, out);
        };
        let Stage::Listing { lists, set } = &mut resync.stage else { return };
        if !(planted(Bug::SourceTagsOnly) && asked == target) {
            set.extend(regions.into_iter().filter(|region| u64::from(*region) * REGION < size));
        }
        match next {
            Some(next) if next > first => {
                let request = Request::Tags { above, first: next };
                self.send_internal(Purpose::Tags { target, run }, request, Mask::one(asked), out);
            }
            Some(_) => self.abandon_resync(target, out),
            None => {
                *lists -= 1;
                if *lists == 0 {
                    let set = core::mem::take(set);
                    match &mut resync.past {
                        Some(past) => {
                            past.dirty = set;
                            self.copy_oldest(target, out);
                        }
                        None => self.copy_regions(target, set, size, out),
                    }
                }
            }
        }
    }

    /// Begins to copy these regions of the first `size` bytes.
    pub(crate) fn copy_regions(
        &mut self,
        target: usize,
        set: BTreeSet<u32>,
        size: u64,
        out: &mut Vec<Output>,
    ) {
        let mut queue: Vec<u32> = set.into_iter().rev().collect();
        if planted(Bug::JoinBeforeCopied) {
            queue.clear();
        }
        let total: u64 = queue.iter().map(|region| region_len(*region, size)).sum();
        let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
        resync.stage = Stage::Copying { queue, active: 0 };
        self.members[target].progress.total += total;
        self.fill_window(target, out);
    }

    /// Takes up more regions as far as the foreground allows, or ends the copying.
    pub(crate) fn fill_window(&mut self, target: usize, out: &mut Vec<Output>) {
        let window = self.pace.window(self.now, true);
        loop {
            let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
            let source = resync.source;
            let oldest = resync.past.as_ref().and_then(Past::oldest);
            let size = oldest.map_or(self.config.size, |held| held.size);
            let Stage::Copying { queue, active } = &mut resync.stage else { return };
            if *active >= window {
                return;
            }
            let Some(region) = queue.pop() else {
                if *active == 0 && oldest.is_some() {
                    self.make_oldest(target, out);
                } else if *active == 0 {
                    self.members[target].standing = Standing::Joining(Join::Draining);
                    self.poll_targets(out);
                }
                return;
            };
            *active += 1;
            let offset = u64::from(region) * REGION;
            let (snapshot, len) = (oldest.map(|held| held.snapshot), region_len(region, size));
            self.start_copy((target, source), snapshot, offset, len, out);
        }
    }

    /// A region of this target's set is identical now.
    pub(crate) fn region_synced(&mut self, target: usize, len: u64, out: &mut Vec<Output>) {
        self.members[target].progress.compared += len;
        if let Standing::Syncing(resync) = &mut self.members[target].standing
            && let Stage::Copying { active, .. } = &mut resync.stage
        {
            *active -= 1;
        }
        self.fill_window(target, out);
    }

    pub(crate) fn join_flushed(&mut self, target: usize, out: &mut Vec<Output>) {
        let member = &mut self.members[target];
        if !matches!(member.standing, Standing::Joining(Join::Flushing)) {
            return;
        }
        member.standing = Standing::Joining(Join::Ready);
        member.resync_failures = 0;
        let (replica, progress) = (member.spec.replica, member.progress);
        out.push(Output::Resynced { replica, progress });
        match self.phase {
            Phase::Reconciling { .. } => self.check_reconciled(out),
            _ => self.propose_if_needed(out),
        }
    }

    /// Ends a resync without result: its link is closed, so that nothing of it is still under
    /// way when the next one starts. Does nothing to a member that is not being resynced, nor to
    /// one whose `Grow` may have been committed.
    pub(crate) fn abandon_resync(&mut self, target: usize, out: &mut Vec<Output>) {
        let resyncing =
            matches!(self.members[target].standing, Standing::Syncing(_) | Standing::Joining(_));
        if !resyncing || self.grow_pending(target) {
            return;
        }
        let now = self.now;
        let member = &mut self.members[target];
        member.standing = if member.broken { Standing::Failed } else { Standing::Away };
        member.unfit = false;
        member.resync_after = now.after(RETRY * (1 << member.resync_failures.min(3)));
        member.resync_failures += 1;
        if let Some(link) = member.link_id() {
            out.push(Output::Disconnect { link });
            member.link = Link::Down { retry: now.after(RECONNECT) };
        }
        self.cancel_copies(target, out);
        self.forget_in_flights(target, out);
        if matches!(self.phase, Phase::Reconciling { .. }) {
            self.check_reconciled(out);
        }
    }

    /// `source` is no source any more.
    pub(crate) fn abandon_resyncs_from(&mut self, source: usize, out: &mut Vec<Output>) {
        for target in 0..self.members.len() {
            if let Standing::Syncing(resync) = &self.members[target].standing
                && resync.source == source
            {
                self.abandon_resync(target, out);
            }
        }
    }
}

fn region_len(region: u32, size: u64) -> u64 {
    REGION.min(size - u64::from(region) * REGION)
}
