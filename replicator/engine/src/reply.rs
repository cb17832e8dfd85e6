//! What replicas answer: leases, and the way of each answer to the part that asked.

use crate::api::{LinkId, Output};
use crate::core::Engine;
use crate::flight::Purpose;
use crate::member::Standing;
use types::{IoError, LEASE_ENGINE};
use wire::{Reply, Request, WireError};

impl Engine {
    pub(crate) fn reply(&mut self, link: LinkId, seq: u64, reply: Reply, out: &mut Vec<Output>) {
        let Some(index) = self.member_of(link) else { return };
        self.members[index].heard = self.now;
        if seq == 0 {
            if let Reply::Failed(error) = reply {
                self.member_error(index, &error, out);
            }
            return;
        }
        let Some(flight) = self.flights.get_mut(seq) else { return };
        if !flight.waiting.has(index) && !flight.extra.has(index) {
            return;
        }
        let (purpose, sent) = (flight.purpose, flight.sent);
        let failed = matches!(reply, Reply::Failed(_));
        // A seal's answer is not counted as a lease: it may have waited long for another's.
        if !failed && !matches!(purpose, Purpose::Seal) {
            let member = &mut self.members[index];
            member.lease = member.lease.max(sent.after(LEASE_ENGINE));
        }
        if let Reply::Failed(WireError::Fenced { sealed }) = &reply {
            let reason = format!("superseded: a replica sealed epoch {sealed}");
            self.fail(IoError::Fenced, &reason, out);
            return;
        }
        match purpose {
            Purpose::Foreground(foreground) => {
                self.foreground_reply(seq, index, foreground, reply, out);
            }
            _ => self.internal_reply(seq, index, purpose, reply, out),
        }
        if !self.parked.is_empty() && self.leases_held() {
            self.unpark(out);
        }
        if self.stay_asked.is_some() {
            self.propose_if_needed(out);
        }
    }

    fn internal_reply(
        &mut self,
        seq: u64,
        index: usize,
        purpose: Purpose,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        let Some(flight) = self.flights.get_mut(seq) else { return };
        flight.waiting.remove(index);
        let over = flight.waiting.is_empty();
        // A sector that cannot be read costs a resync or a comparison, not the replica: it may be
        // the only one (R13 speaks of writes and syncs).
        let reading = matches!(
            flight.request,
            Request::Read { .. }
                | Request::Hash { .. }
                | Request::Tags { .. }
                | Request::ReadSnapshot { .. }
                | Request::HashSnapshot { .. }
        );
        let request = if over { self.flights.remove(seq).map(|f| f.request) } else { None };
        if let Reply::Failed(error) = &reply {
            match purpose {
                Purpose::Region { job } => self.region_refused(job, index, error, out),
                Purpose::Snapshot { ticket } => self.snapshot_refused(ticket, index, error, out),
                _ => self.internal_lost(purpose, index, over, out),
            }
            let mild = match error {
                WireError::Disk { .. } => reading,
                WireError::ReplicaFailed { .. } | WireError::Fenced { .. } => false,
                // A copy without room or quiet for a snapshot is as good a copy as before.
                _ => matches!(purpose, Purpose::Region { .. } | Purpose::Snapshot { .. }),
            };
            if !mild {
                self.member_error(index, error, out);
            }
            return;
        }
        if matches!(purpose, Purpose::StopClose) {
            // The replica ends the session behind this answer.
            self.drop_link(index, out);
        }
        match purpose {
            Purpose::Foreground(_) | Purpose::Ping => {}
            Purpose::Seal => {
                if let Reply::Sealed(info) = reply {
                    self.sealed(index, info, out);
                }
            }
            Purpose::EraFlush => self.era_step(purpose, over, out),
            Purpose::EraSeal => {
                self.era_sealed(index);
                self.era_step(purpose, over, out);
            }
            Purpose::Tags { target, run } => self.tags((target, run), index, request, reply, out),
            Purpose::Region { job } => self.region_reply(job, index, reply, out),
            Purpose::Snapshot { ticket } => self.snapshot_made(ticket, over, out),
            Purpose::Held { target, run } => self.held_by((target, run), index, reply, out),
            Purpose::Past { target } => self.past_made(target, out),
            Purpose::JoinFlush { target } => self.join_flushed(target, out),
            Purpose::RollbackRead { write } => self.rollback_data(write, index, reply, out),
            Purpose::RollbackWrite { write } => {
                if over {
                    self.rollback_done(write, out);
                }
            }
            Purpose::StopFlush | Purpose::StopSeal | Purpose::StopClose => {
                self.stop_step(purpose, over, out);
            }
        }
    }

    /// A replica answered with an error that concerns more than the request.
    pub(crate) fn member_error(&mut self, index: usize, error: &WireError, out: &mut Vec<Output>) {
        match error {
            WireError::Fenced { sealed } => {
                let reason = format!("superseded: a replica sealed epoch {sealed}");
                self.fail(IoError::Fenced, &reason, out);
            }
            WireError::ReplicaFailed { .. } | WireError::Disk { .. } => {
                let reason = error.to_string();
                let member = &mut self.members[index];
                member.broken = true;
                if matches!(member.standing, Standing::Away) {
                    member.standing = Standing::Failed;
                }
                out.push(Output::ReplicaFailed {
                    replica: self.members[index].spec.replica,
                    reason,
                });
                self.link_lost(index, "it failed", out);
            }
            WireError::NoSpace
            | WireError::NoSnapshot
            | WireError::Checksum { .. }
            | WireError::Invalid { .. }
            | WireError::Refused { .. } => self.link_lost(index, "it refused a request", out),
        }
    }
}
