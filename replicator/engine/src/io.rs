//! The foreground: requests of the front-ends, from submission to completion.

use crate::api::Output;
use crate::core::{Engine, Phase};
use crate::flight::{Foreground, Kind, Mask, Purpose};
use crate::member::{Member, Standing};
use crate::region::is_job;
use crate::repair::{Awaited, is_unreadable};
use types::plant::{Bug, planted};
use types::{BlockOp, Era, Instant, IoError, IoId, MAX_IO, crc32c, in_bounds};
use wire::{Reply, Request, WireError};

impl Engine {
    pub(crate) fn submit(&mut self, id: IoId, op: BlockOp, out: &mut Vec<Output>) {
        match &self.phase {
            Phase::Active => {}
            Phase::Failed { error, .. } => return self.complete_error(id, *error, out),
            _ => return self.complete_error(id, IoError::Io, out),
        }
        let era = Era(0); // Set when the write gets its range.
        let (start, len, max, fua, request) = match op {
            BlockOp::Flush => return self.submit_flush(id, out),
            BlockOp::Read { offset, len } => {
                (offset, u64::from(len), MAX_IO, None, Request::Read { offset, len })
            }
            BlockOp::Write { offset, data, fua } => {
                let len = data.len() as u64;
                // R15: the one checksum, made before the payload goes anywhere.
                let crc = crc32c(data.as_slice());
                (offset, len, MAX_IO, Some(fua), Request::Write { offset, data, crc, era })
            }
            BlockOp::Discard { offset, len } => {
                (offset, len, u64::MAX, Some(false), Request::Discard { offset, len, era })
            }
            BlockOp::WriteZeroes { offset, len, fua } => {
                (offset, len, u64::MAX, Some(fua), Request::WriteZeroes { offset, len, era })
            }
        };
        if !in_bounds(start, len, self.config.size) || len > max {
            return self.complete_error(id, IoError::Invalid, out);
        }
        let end = start + len;
        let kind = fua.map_or(Kind::Read, |fua| Kind::Mutation { start, end, fua });
        let purpose = Purpose::Foreground(Foreground { id, kind });
        let seq = self.flights.insert(self.now, purpose, request, Mask::default());
        if kind == Kind::Read {
            self.launch_read(seq, out);
        } else if self.lock.lock(start, end, seq) {
            self.launch_mutation(seq, out);
        }
    }

    fn submit_flush(&mut self, id: IoId, out: &mut Vec<Output>) {
        let covers = self.completed_writes;
        // R29: nothing was written since the last good one.
        if self.flushed_writes >= covers && self.leases_held() {
            self.counters.flushes += 1;
            return self.answer(id, Ok(None), out);
        }
        self.flush_for(id, covers, self.now, out);
    }

    fn flush_for(&mut self, id: IoId, covers: u64, arrived: Instant, out: &mut Vec<Output>) {
        let purpose = Purpose::Foreground(Foreground { id, kind: Kind::Flush { covers } });
        let to = self.counting();
        let seq = self.send_internal(purpose, Request::Flush, to, out);
        if let Some(flight) = self.flights.get_mut(seq) {
            flight.arrived = arrived;
        }
    }

    /// The range is ours (R16): from here on the write belongs to the current era (R17).
    pub(crate) fn launch_mutation(&mut self, seq: u64, out: &mut Vec<Output>) {
        if self.holds_writes() {
            return self.held.push(seq);
        }
        let now_era = self.era;
        let Some(flight) = self.flights.get_mut(seq) else { return };
        flight.era = Some(now_era);
        if let Request::Write { era, .. }
        | Request::Discard { era, .. }
        | Request::WriteZeroes { era, .. } = &mut flight.request
        {
            *era = now_era;
        }
        self.era_state.launched();
        self.launch(seq, self.counting(), self.receiving(), out);
    }

    // ---- reads -------------------------------------------------------------------------------

    /// R8: whether every ISR member still grants us its lease.
    pub(crate) fn leases_held(&self) -> bool {
        // One whose `Grow` may have been committed could be the source of a later epoch already.
        let grown = |index| self.grow_pending(index);
        if planted(Bug::ForgetReadLease) {
            return true;
        }
        self.members
            .iter()
            .enumerate()
            .all(|(index, m)| m.lease > self.now || !(m.in_sync() || grown(index)))
    }

    pub(crate) fn launch_read(&mut self, seq: u64, out: &mut Vec<Output>) {
        let Some(flight) = self.flights.get_mut(seq) else { return };
        let avoid = flight.avoid;
        let fit = |(index, m): &(usize, &Member)| {
            let member = m.in_sync()
                || planted(Bug::ReadFromTarget) && matches!(m.standing, Standing::Syncing(_));
            member && m.is_up() && !m.unfit && !m.broken && !avoid.has(*index)
        };
        let source = self.members.iter().enumerate().filter(fit).min_by_key(|(_, m)| !m.is_local());
        match source {
            Some((index, _)) => self.launch(seq, Mask::one(index), Mask::default(), out),
            None => self.parked.push(seq),
        }
    }

    /// `index` could not answer this read.
    pub(crate) fn read_elsewhere(&mut self, seq: u64, index: usize, out: &mut Vec<Output>) {
        let in_sync = self.mask_of(Member::in_sync);
        let Some(flight) = self.flights.get_mut(seq) else { return };
        flight.launched = false;
        flight.waiting = Mask::default();
        if in_sync.without(flight.avoid).is_empty() {
            if self.repair_for_read(seq, out) {
                return;
            }
            // Nobody has a readable copy.
            let Some(flight) = self.flights.get_mut(seq) else { return };
            if let Purpose::Foreground(foreground) = flight.purpose {
                self.complete_error(foreground.id, IoError::Io, out);
            }
            self.flights.remove(seq);
        } else if self.members[index].is_up() {
            self.launch_read(seq, out);
        } else {
            // Its link just broke: the ISR may have to change before any read may be answered.
            self.parked.push(seq);
        }
    }

    pub(crate) fn unpark(&mut self, out: &mut Vec<Output>) {
        for seq in core::mem::take(&mut self.parked) {
            self.launch_read(seq, out);
        }
    }

    fn read_reply(
        &mut self,
        seq: u64,
        index: usize,
        id: IoId,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        let leases = self.leases_held();
        let Some(flight) = self.flights.get_mut(seq) else { return };
        let Request::Read { offset, len } = flight.request else { return };
        let error = match reply {
            Reply::Data { data, crc } => {
                let good = self.members[index].is_local() || crc32c(data.as_slice()) == crc;
                if data.len() == len as usize && good {
                    if leases {
                        self.flights.remove(seq);
                        self.counters.reads += 1;
                        self.answer(id, Ok(Some(data)), out);
                    } else {
                        flight.launched = false;
                        flight.waiting = Mask::default();
                        self.parked.push(seq);
                    }
                    return;
                }
                WireError::Checksum { offset }
            }
            Reply::Failed(error) => error,
            _ => WireError::Invalid { reason: "a read was answered by another reply".into() },
        };
        flight.avoid.add(index);
        if is_unreadable(&error) {
            self.start_repair(index, (offset, len.into()), Awaited::Nobody, out);
        }
        self.read_elsewhere(seq, index, out);
        if let WireError::ReplicaFailed { .. } = error {
            self.member_error(index, &error, out);
        }
    }

    // ---- writes and flushes ------------------------------------------------------------------

    pub(crate) fn foreground_reply(
        &mut self,
        seq: u64,
        index: usize,
        foreground: Foreground,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        if foreground.kind == Kind::Read {
            return self.read_reply(seq, index, foreground.id, reply, out);
        }
        let Some(flight) = self.flights.get_mut(seq) else { return };
        let counted = flight.waiting.has(index);
        let mutates = flight.era.is_some();
        match reply {
            Reply::Done => {
                flight.acked.add(index);
                flight.waiting.remove(index);
                if planted(Bug::AckBeforePeer) {
                    flight.waiting = Mask::default();
                }
                flight.extra.remove(index);
                self.finish_if_done(seq, out);
            }
            Reply::Failed(WireError::NoSpace) if mutates && counted => {
                flight.nospace.add(index);
                flight.waiting.remove(index);
                self.finish_if_done(seq, out);
            }
            Reply::Failed(WireError::NoSpace) if !counted => self.abandon_resync(index, out),
            // Its answer stays owed until it gives a better one or is out of the ISR (R4).
            Reply::Failed(error) => self.member_error(index, &error, out),
            _ => self.link_lost(index, "its answer does not fit the request", out),
        }
    }

    /// Completes the request once nobody's answer is missing, and forgets it once the resync
    /// targets have it too.
    pub(crate) fn finish_if_done(&mut self, seq: u64, out: &mut Vec<Output>) {
        let now = self.now;
        let Some(flight) = self.flights.get_mut(seq) else { return };
        let Purpose::Foreground(foreground) = flight.purpose else { return };
        if !flight.launched || flight.rolling_back || !flight.waiting.is_empty() {
            return;
        }
        if !flight.completed {
            let (acked, nospace) = (flight.acked, flight.nospace);
            let latency = now.since(flight.arrived);
            if !nospace.is_empty() {
                // Targets that had room must be rolled back as well: their answers are needed.
                if !flight.extra.is_empty() {
                    return;
                }
                if !acked.is_empty() && !planted(Bug::SkipRollback) {
                    return self.roll_back(seq, out);
                }
            }
            flight.completed = true;
            let arrived = flight.arrived;
            self.pace.sample(latency);
            if nospace.is_empty() {
                self.complete(foreground, arrived, out);
            } else {
                self.complete_error(foreground.id, IoError::NoSpace, out);
            }
        }
        self.retire(seq, out);
    }

    fn complete(&mut self, foreground: Foreground, arrived: Instant, out: &mut Vec<Output>) {
        match foreground.kind {
            Kind::Mutation { fua, .. } => {
                self.completed_writes += 1;
                if fua {
                    return self.flush_for(foreground.id, self.completed_writes, arrived, out);
                }
                self.counters.writes += 1;
            }
            Kind::Flush { covers } => {
                self.flushed_writes = self.flushed_writes.max(covers);
                self.counters.flushes += 1;
            }
            Kind::Read => {}
        }
        self.answer(foreground.id, Ok(None), out);
    }

    /// Forgets a completed request and hands its range on.
    pub(crate) fn retire(&mut self, seq: u64, out: &mut Vec<Output>) {
        let Some(flight) = self.flights.get_mut(seq) else { return };
        if !flight.completed || !flight.extra.is_empty() {
            return;
        }
        let Some(flight) = self.flights.remove(seq) else { return };
        if let Purpose::Foreground(Foreground { kind: Kind::Mutation { start, .. }, .. }) =
            flight.purpose
        {
            if let Some(era) = flight.era {
                self.era_finished(era, out);
            }
            self.unlock(start, seq, out);
        }
        self.poll_targets(out);
    }

    /// Releases a range and starts whoever waited for it.
    pub(crate) fn unlock(&mut self, start: u64, holder: u64, out: &mut Vec<Output>) {
        let mut ready = Vec::new();
        self.lock.unlock(start, holder, &mut ready);
        self.launch_ready(ready, out);
    }

    pub(crate) fn launch_ready(&mut self, ready: Vec<u64>, out: &mut Vec<Output>) {
        for holder in ready {
            if is_job(holder) {
                self.region_locked(holder, out);
            } else {
                self.launch_mutation(holder, out);
            }
        }
    }
}
