//! Time: pings, silence, stuck requests, and the end of patience (R4).

use crate::api::Output;
use crate::core::{Engine, Phase};
use crate::flight::{Mask, Purpose};
use crate::member::{
    CONNECT_TIMEOUT, Link, Member, PING, PING_WANTED, SILENCE, STUCK, Standing, TARGET_STUCK,
};
use core::time::Duration;
use types::{IO_TIMEOUT, Instant, IoError};

/// If the caller did not come back for this long, the process was not running: what peers seem
/// to owe is then our own fault.
const STALL: Duration = Duration::from_millis(1000);

impl Engine {
    /// When [`Input::Tick`] is due next, if ever.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        let period = match self.phase {
            Phase::New | Phase::Failed { .. } | Phase::Stopped => return None,
            Phase::Sealing { .. } | Phase::Reconciling { .. } | Phase::Stopping(_) => 20,
            Phase::Activating => 200,
            Phase::Active if self.taking.is_some() => 20,
            Phase::Active if self.proposal.is_some() || !self.parked.is_empty() => 50,
            Phase::Active => 250,
        };
        // From the last tick, not from the last event: a busy volume must have its ticks too.
        Some(self.ticked.after(Duration::from_millis(period)))
    }

    /// After a freeze of this process (SIGSTOP, a starved machine) the peers' answers may still
    /// lie in our sockets: their silence is counted from now. Leases are not forgiven (R8).
    pub(crate) fn forgive_stall(&mut self, now: Instant) {
        if self.now != Instant(0) && now.since(self.now) > STALL {
            for member in &mut self.members {
                member.heard = now;
            }
            self.resumed = now;
        }
    }

    pub(crate) fn tick(&mut self, out: &mut Vec<Output>) {
        self.ticked = self.now;
        if matches!(self.phase, Phase::New | Phase::Failed { .. } | Phase::Stopped) {
            return;
        }
        self.tick_links(out);
        self.tick_timeouts(out);
        match self.phase {
            Phase::Sealing { .. } => self.check_sealed(out),
            Phase::Reconciling { .. } => self.check_reconciled(out),
            Phase::Active => {
                self.tick_pace();
                self.start_resyncs(out);
                self.propose_if_needed(out);
                self.tick_era(out);
                self.tick_scrub(out);
                self.tick_fill(out);
                if !self.parked.is_empty() && self.leases_held() {
                    self.unpark(out);
                }
            }
            Phase::Stopping(_) => {
                self.propose_if_needed(out);
                self.check_stopped(out);
            }
            _ => {}
        }
    }

    /// What the foreground's latency is without resync, is learned while there is none (R21).
    fn tick_pace(&mut self) {
        if !self.members.iter().any(|m| matches!(m.standing, Standing::Syncing(_))) {
            self.pace.window(self.now, false);
        }
    }

    fn tick_links(&mut self, out: &mut Vec<Output>) {
        for index in 0..self.members.len() {
            let member = &self.members[index];
            match member.link {
                Link::Down { retry } => {
                    if retry <= self.now && self.wants_link(member) {
                        self.connect(index, out);
                    }
                }
                Link::Connecting { since, .. } => {
                    if self.now.since(since) > CONNECT_TIMEOUT {
                        self.link_lost(index, "it could not be connected to in time", out);
                    }
                }
                Link::Sealing { since, .. } => {
                    // A seal may wait for a lease (R3), never longer.
                    if self.now.since(since) > types::LEASE + CONNECT_TIMEOUT {
                        self.link_lost(index, "it did not seal in time", out);
                    }
                }
                Link::Up { .. } => {
                    if self.now.since(member.heard) > SILENCE {
                        self.link_lost(index, "it was silent for too long", out);
                    } else {
                        // A read that waits for the lease need not wait for the next turn.
                        let wanted = !self.parked.is_empty() && member.lease <= self.now;
                        let last =
                            if wanted { member.pinged } else { member.heard.max(member.pinged) };
                        if self.now.since(last) >= if wanted { PING_WANTED } else { PING } {
                            self.ping(index, out);
                        }
                    }
                }
            }
        }
    }

    fn wants_link(&self, member: &Member) -> bool {
        if member.broken || member.unfit || (member.removed && !member.counts()) {
            return false;
        }
        match (&self.phase, &member.standing) {
            (Phase::New | Phase::Failed { .. } | Phase::Stopped, _) => false,
            (Phase::Active, standing) => !matches!(standing, Standing::Failed),
            (_, standing) => matches!(standing, Standing::InSync | Standing::Joining(_)),
        }
    }

    /// R4: what cannot be finished in the stated time fails the engine; a member that sits on
    /// one request while others are answered is dropped before that.
    fn tick_timeouts(&mut self, out: &mut Vec<Output>) {
        let mut stuck = Mask::default();
        let mut overdue = false;
        let mut slow = Vec::new();
        for (_, flight) in self.flights.iter() {
            let age = self.now.since(flight.arrived.max(self.resumed));
            if age < TARGET_STUCK {
                continue;
            }
            if self.now.since(flight.asked.max(self.resumed)) >= TARGET_STUCK {
                if let Purpose::Region { job } = flight.purpose {
                    // A repair works on members that count: those may take longer.
                    if self.jobs.get(&job).is_none_or(|job| job.repair().is_none()) {
                        slow.push(job);
                    }
                } else if !flight.rolling_back {
                    stuck = stuck.with(flight.extra);
                }
            }
            if age < STUCK {
                continue;
            }
            let foreground = matches!(flight.purpose, Purpose::Foreground(_)) && !flight.completed;
            overdue |= foreground && age >= IO_TIMEOUT;
            let waits = flight.launched && !matches!(flight.purpose, Purpose::Seal);
            if waits && self.now.since(flight.asked.max(self.resumed)) >= STUCK {
                stuck = stuck.with(flight.waiting).with(flight.extra);
            }
        }
        if overdue {
            let reason = format!(
                "an I/O could not be finished in {} s: the in-sync set could neither be reached \
                 nor changed",
                IO_TIMEOUT.as_secs()
            );
            self.fail(IoError::Io, &reason, out);
            return;
        }
        for job in slow {
            self.region_failed(job, out);
        }
        for index in stuck.iter() {
            if self.members[index].is_up() {
                self.link_lost(index, "it did not answer a request in time", out);
            }
        }
    }
}
