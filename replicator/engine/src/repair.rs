//! Repair of blocks that an in-sync replica has but cannot serve: they do not match their checksum,
//! or the disk cannot read them. What another in-sync replica has is written over them.
//!
//! ```text
//!            range lock (R16)
//!  ─▶ check a unit of 64 KiB on the bad replica ──good──▶ next unit ──▶ … ──▶ end
//!       │ bad block          ▲
//!       ▼                    │ Done: checked again
//!     read it from ─────▶ write it to
//!     another member       the bad one (tagged, R17)
//! ```
//!
//! A repair is a write of the current era: the era is not sealed before it ended (R18). One that has
//! written and cannot go on makes the bad replica leave the ISR: a restart of its daemon forgets the
//! checksums of regions that were written since the last sealed era, and with them what else is bad
//! there; only a resync tells.

use crate::api::{LinkId, Output};
use crate::core::{Engine, Phase};
use crate::flight::{Mask, Purpose};
use crate::member::Member;
use crate::region::{RegionJob, Task};
use types::{BLOCK, Buf, Era, HASH_BLOCK, crc32c};
use wire::{Reply, Request, WireError};

/// Repairs that reads have asked for, under way or waiting for their range. More are not begun: the
/// next read of the block, or the scrub, asks again.
const MAX_REPAIRS: usize = 8;
/// Rewrites of one unit: each of its blocks, and one more.
const MAX_TRIES: u32 = (HASH_BLOCK / BLOCK) as u32 + 1;

/// Whether `error`, the answer to a read or a hash, says that the replica cannot serve what it has.
pub(crate) fn is_unreadable(error: &WireError) -> bool {
    matches!(error, WireError::Checksum { .. } | WireError::Disk { .. })
}

/// Who waits for a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    Nobody,
    /// The comparison of this ticket.
    Scan(u64),
    /// The read of this number.
    Read(u64),
}

/// A repair under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repair {
    pub(crate) bad: usize,
    /// The bad replica's link: behind another one it may have forgotten what is bad.
    link: Option<LinkId>,
    /// Who waits for it.
    pub(crate) awaited: Awaited,
    /// The unit that is being checked, in bytes.
    at: u64,
    /// The range that is being rewritten: offset and length.
    fix: Option<(u64, u64)>,
    /// Who could not give its content.
    avoid: Mask,
    /// Rewrites of this unit so far.
    tries: u32,
    /// Era of the write under way.
    era: Option<Era>,
    repaired: u64,
    unrepairable: u64,
}

impl Engine {
    /// `bad` could not serve something of `offset..offset + len`, which it should have. Returns
    /// whether a repair was begun; nothing is, for a read, if nobody else could have it.
    pub(crate) fn start_repair(
        &mut self,
        bad: usize,
        (offset, len): (u64, u64),
        awaited: Awaited,
        out: &mut Vec<Output>,
    ) -> bool {
        let start = offset - offset % HASH_BLOCK;
        let end = (offset + len).next_multiple_of(HASH_BLOCK).min(self.config.size);
        if !matches!(self.phase, Phase::Active) || !self.may_be_repaired(bad) {
            return false;
        }
        if awaited == Awaited::Nobody {
            let repairs = self.jobs.values().filter_map(RegionJob::repair);
            let same = |job: &RegionJob| {
                job.repair().is_some_and(|repair| repair.bad == bad) && job.covers(start, end)
            };
            let full =
                repairs.filter(|repair| repair.awaited == Awaited::Nobody).count() >= MAX_REPAIRS;
            if full || self.jobs.values().any(same) || self.giver(Mask::one(bad)).is_none() {
                return false;
            }
        }
        let repair = Repair {
            bad,
            link: self.members[bad].link_id(),
            awaited,
            at: start,
            fix: None,
            avoid: Mask::default(),
            tries: 0,
            era: None,
            repaired: 0,
            unrepairable: 0,
        };
        self.start_job(Task::Repair(repair), Mask::one(bad), start, end - start, out);
        true
    }

    /// Nobody can serve all of read `seq`, but its blocks may be bad on one member here and on
    /// another there: one of them is repaired, and the read is tried once more. Returns whether that
    /// was begun.
    pub(crate) fn repair_for_read(&mut self, seq: u64, out: &mut Vec<Output>) -> bool {
        let Some(flight) = self.flights.get_mut(seq) else { return false };
        let Request::Read { offset, len } = flight.request else { return false };
        if flight.repaired || u64::from(len) == BLOCK {
            return false;
        }
        flight.repaired = true;
        flight.avoid = Mask::default();
        let Some(bad) = self.giver(Mask::default()) else { return false };
        let others = self.giver(Mask::one(bad)).is_some();
        others && self.start_repair(bad, (offset, len.into()), Awaited::Read(seq), out)
    }

    /// A member that does not count is put right by its resync, a broken one by nobody.
    fn may_be_repaired(&self, bad: usize) -> bool {
        self.members.get(bad).is_some_and(|m| m.counts() && m.is_up() && !m.unfit && !m.broken)
    }

    fn is_same(&self, bad: usize, link: Option<LinkId>) -> bool {
        self.may_be_repaired(bad) && self.members[bad].link_id() == link
    }

    /// An in-sync member outside `avoid`.
    fn giver(&self, avoid: Mask) -> Option<usize> {
        let fit = |(index, m): &(usize, &Member)| {
            m.in_sync() && m.is_up() && !m.unfit && !m.broken && !avoid.has(*index)
        };
        let found = self.members.iter().enumerate().filter(fit).min_by_key(|(_, m)| !m.is_local());
        found.map(|(index, _)| index)
    }

    fn repair_of(&mut self, id: u64) -> Option<&mut Repair> {
        self.jobs.get_mut(&id).and_then(RegionJob::repair_mut)
    }

    /// Checks the next unit, or ends.
    pub(crate) fn repair_check(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some((_, end)) = self.jobs.get(&id).map(RegionJob::range) else { return };
        let Some(Repair { bad, link, at, .. }) = self.repair_of(id).copied() else { return };
        if !self.is_same(bad, link) {
            return self.abandon_repair(id, out);
        }
        if at >= end || !matches!(self.phase, Phase::Active) {
            return self.repair_ended(id, out);
        }
        let request = Request::Hash { offset: at, len: HASH_BLOCK.min(end - at) };
        self.send_internal(Purpose::Region { job: id }, request, Mask::one(bad), out);
    }

    /// An answer to a step of the repair.
    pub(crate) fn repair_reply(
        &mut self,
        id: u64,
        index: usize,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        let Some(repair) = self.repair_of(id) else { return };
        match reply {
            Reply::Hashes(_) if repair.fix.is_none() => {
                (repair.at, repair.tries) = (repair.at + HASH_BLOCK, 0);
                self.repair_check(id, out);
            }
            Reply::Data { data, crc } => match repair.fix {
                Some((_, len)) if data.len() as u64 == len && crc32c(data.as_slice()) == crc => {
                    self.repair_write(id, data, crc, out);
                }
                _ => self.repair_elsewhere(id, index, out),
            },
            Reply::Done => {
                if let Some((_, len)) = repair.fix.take() {
                    repair.repaired += len / BLOCK;
                }
                self.repair_era_over(id, out);
                self.repair_check(id, out);
            }
            _ => self.abandon_repair(id, out),
        }
    }

    /// `index` answered a step of the repair with an error.
    pub(crate) fn repair_refused(
        &mut self,
        id: u64,
        index: usize,
        error: &WireError,
        out: &mut Vec<Output>,
    ) {
        let Some((_, end)) = self.jobs.get(&id).map(RegionJob::range) else { return };
        let Some(repair) = self.repair_of(id) else { return };
        let unit = (repair.at, HASH_BLOCK.min(end - repair.at));
        if repair.era.is_some() || !is_unreadable(error) {
            return self.abandon_repair(id, out);
        }
        if index != repair.bad {
            return self.repair_elsewhere(id, index, out);
        }
        // The disk does not say which block it cannot read.
        let fix = match error {
            WireError::Checksum { offset } if (unit.0..unit.0 + unit.1).contains(offset) => {
                (offset - offset % BLOCK, BLOCK)
            }
            _ => unit,
        };
        repair.tries += 1;
        repair.fix = Some(fix);
        repair.avoid = Mask::one(repair.bad);
        if repair.tries > MAX_TRIES {
            return self.repair_impossible(id, out);
        }
        self.repair_read(id, out);
    }

    fn repair_elsewhere(&mut self, id: u64, index: usize, out: &mut Vec<Output>) {
        if let Some(repair) = self.repair_of(id) {
            repair.avoid.add(index);
        }
        self.repair_read(id, out);
    }

    fn repair_read(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(Repair { fix: Some((offset, len)), avoid, .. }) = self.repair_of(id).copied()
        else {
            return self.abandon_repair(id, out);
        };
        let Some(giver) = self.giver(avoid) else { return self.repair_impossible(id, out) };
        let request = Request::Read { offset, len: len as u32 };
        self.send_internal(Purpose::Region { job: id }, request, Mask::one(giver), out);
    }

    /// `index` was lost while it was asked.
    pub(crate) fn repair_lost(&mut self, id: u64, index: usize, out: &mut Vec<Output>) {
        let Some(repair) = self.repair_of(id).copied() else { return };
        if index == repair.bad {
            return self.abandon_repair(id, out);
        }
        if self.giver(repair.avoid.with(Mask::one(index))).is_some() {
            return self.repair_elsewhere(id, index, out);
        }
        // Who could give it may come back: the block is found again. The bad one may be all that is
        // left meanwhile, and stays.
        if self.scan(repair.awaited).is_some() {
            self.abandon_comparison(out);
        }
        self.repair_ended(id, out);
    }

    /// Nobody has it: it stays an error, and the rest of its unit is left as it is.
    fn repair_impossible(&mut self, id: u64, out: &mut Vec<Output>) {
        if let Some(repair) = self.repair_of(id) {
            if let Some((_, len)) = repair.fix.take() {
                repair.unrepairable += len / BLOCK;
            }
            (repair.at, repair.tries) = (repair.at + HASH_BLOCK, 0);
        }
        self.repair_check(id, out);
    }

    fn repair_write(&mut self, id: u64, data: Buf, crc: u32, out: &mut Vec<Output>) {
        let era = self.era;
        let Some(repair) = self.repair_of(id).copied() else { return };
        let (bad, link, Some((offset, _))) = (repair.bad, repair.link, repair.fix) else { return };
        if !self.is_same(bad, link) {
            return self.abandon_repair(id, out);
        }
        if let Some(repair) = self.repair_of(id) {
            repair.era = Some(era);
        }
        self.era_state.launched();
        let request = Request::Write { offset, data, crc, era };
        self.send_internal(Purpose::Region { job: id }, request, Mask::one(bad), out);
    }

    fn repair_era_over(&mut self, id: u64, out: &mut Vec<Output>) {
        if let Some(era) = self.repair_of(id).and_then(|repair| repair.era.take()) {
            self.era_finished(era, out);
        }
    }

    /// The repair cannot go on: its bad replica is gone, or refuses.
    pub(crate) fn abandon_repair(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(repair) = self.repair_of(id).copied() else { return };
        if self.scan(repair.awaited).is_some() {
            self.abandon_comparison(out);
        }
        self.repair_era_over(id, out);
        self.repair_ended(id, out);
        if repair.era.is_some() || repair.repaired > 0 {
            self.expel(repair.bad, out);
        }
    }

    fn repair_ended(&mut self, id: u64, out: &mut Vec<Output>) {
        let Some(repair) = self.repair_of(id).copied() else { return };
        let Repair { bad, awaited, repaired, unrepairable, .. } = repair;
        self.counters.repaired += repaired;
        self.counters.unrepairable += unrepairable;
        if repaired + unrepairable > 0 {
            let replica = self.members[bad].spec.replica;
            out.push(Output::Repaired { replica, repaired, unrepairable });
        }
        if let Some(comparison) = self.scan(awaited) {
            comparison.result.repaired += repaired;
            comparison.result.unrepairable += unrepairable;
        }
        self.end_job(id, out);
        if let Awaited::Read(seq) = awaited {
            self.launch_read(seq, out);
        }
    }
}
