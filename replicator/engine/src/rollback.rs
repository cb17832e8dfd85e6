//! ENOSPC on some replicas only: the write is answered with ENOSPC, and the replicas must be
//! identical again before its range is released. The old content is put back where the write was
//! done; that range is allocated there, so it cannot fail for space.

use crate::api::Output;
use crate::core::Engine;
use crate::flight::{Mask, Purpose};
use crate::member::Standing;
use core::mem::replace;
use types::{IoError, crc32c};
use wire::{Reply, Request};

impl Engine {
    /// Everybody has answered write `seq`, some without room.
    pub(crate) fn roll_back(&mut self, seq: u64, out: &mut Vec<Output>) {
        let counting = self.counting();
        // Who has all there is, but may not be in the ISR, is not read (R5).
        let readable = self.mask_of(|m| m.in_sync() && !m.unfit);
        let Some(flight) = self.flights.get_mut(seq) else { return };
        let (acked, nospace) = (flight.acked, flight.nospace);
        let again = replace(&mut flight.rolling_back, true);
        if let Request::Write { offset, ref data, .. } = flight.request
            && let Some(from) = nospace.common(readable).iter().next()
        {
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let purpose = Purpose::RollbackRead { write: seq };
            self.send_internal(purpose, Request::Read { offset, len }, Mask::one(from), out);
            return;
        }
        // Nobody can be asked what was there; zeroing may cover more than can be put back. The
        // smaller evil leaves instead.
        if acked.common(counting).is_empty() {
            for target in acked.iter() {
                self.abandon_resync(target, out);
            }
            return self.rollback_done(seq, out);
        }
        flight.nospace = Mask::default();
        if !again {
            // Their answer stays owed until they are out of the ISR (R4).
            flight.rolling_back = false;
            flight.waiting = nospace;
        }
        for index in nospace.iter() {
            self.expel(index, out);
        }
        // Whom it was asked of in vain is out of step as well, and not owed: the write failed.
        if again {
            self.rollback_done(seq, out);
        }
    }

    pub(crate) fn rollback_data(
        &mut self,
        write: u64,
        from: usize,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        // Who left the ISR meanwhile is put right by its resync.
        let here = self.mask_of(|m| m.counts() || matches!(m.standing, Standing::Syncing(_)));
        let Some(flight) = self.flights.get_mut(write) else { return };
        let Request::Write { offset, data: ref written, .. } = flight.request else { return };
        let (to, era) = (flight.acked.common(here), flight.era.unwrap_or(self.era));
        match reply {
            Reply::Data { data, crc }
                if data.len() == written.len() && crc32c(data.as_slice()) == crc =>
            {
                if to.is_empty() {
                    return self.rollback_done(write, out);
                }
                let purpose = Purpose::RollbackWrite { write };
                self.send_internal(purpose, Request::Write { offset, data, crc, era }, to, out);
            }
            _ => self.rollback_read_failed(write, from, out),
        }
    }

    pub(crate) fn rollback_done(&mut self, write: u64, out: &mut Vec<Output>) {
        let Some(flight) = self.flights.get_mut(write) else { return };
        let Purpose::Foreground(foreground) = flight.purpose else { return };
        if !flight.completed {
            flight.completed = true;
            self.complete_error(foreground.id, IoError::NoSpace, out);
        }
        self.retire(write, out);
    }

    /// `index` cannot say what was there: it must leave and resync. Another member without room is
    /// asked; if there is none, those that did the write agree with each other.
    pub(crate) fn rollback_read_failed(&mut self, write: u64, index: usize, out: &mut Vec<Output>) {
        if let Some(flight) = self.flights.get_mut(write) {
            flight.nospace.remove(index);
            self.expel(index, out);
            self.roll_back(write, out);
        }
    }

    /// `index` did not do its part of a rollback: it differs, so it must leave and resync.
    pub(crate) fn rollback_write_failed(
        &mut self,
        write: u64,
        index: usize,
        over: bool,
        out: &mut Vec<Output>,
    ) {
        self.expel(index, out);
        if over {
            self.rollback_done(write, out);
        }
    }

    /// This member's content is not what it should be: if it is in the ISR it must leave.
    pub(crate) fn expel(&mut self, index: usize, out: &mut Vec<Output>) {
        if self.members[index].counts() {
            self.members[index].unfit = true;
        }
        if self.members[index].link_id().is_some() {
            self.link_lost(index, "a write could not be taken back there", out);
        }
    }
}
