//! Links to the replicas: connecting, sending, sending again, and giving up what a lost link owed.

use crate::api::{LinkId, Output};
use crate::core::{Engine, Phase};
use crate::flight::{Kind, Mask, Purpose};
use crate::member::{Link, Member, RECONNECT};
use types::Instant;
use types::plant::{Bug, planted};
use wire::{Hello, Request, Role};

impl Engine {
    // ---- links -------------------------------------------------------------------------------

    pub(crate) fn member_of(&self, link: LinkId) -> Option<usize> {
        self.members.iter().position(|member| member.link_id() == Some(link))
    }

    pub(crate) fn connect(&mut self, index: usize, out: &mut Vec<Output>) {
        self.next_link += 1;
        let link = LinkId(self.next_link);
        let member = &mut self.members[index];
        member.link = Link::Connecting { id: link, since: self.now };
        let hello = Hello {
            cluster: self.config.cluster,
            volume: self.config.volume,
            replica: member.spec.replica,
            incarnation: member.spec.incarnation,
            // What it has sealed for us Raft need not have heard of yet.
            sealed: member.info.map_or(member.spec.sealed, |info| info.epoch),
            epoch: self.config.epoch,
            instance: self.config.instance,
            process: self.config.process,
            role: Role::Engine,
        };
        out.push(Output::Connect { link, address: member.spec.address, hello });
    }

    pub(crate) fn connected(&mut self, link: LinkId, out: &mut Vec<Output>) {
        let Some(index) = self.member_of(link) else { return };
        let member = &mut self.members[index];
        member.link = Link::Sealing { id: link, since: self.now };
        member.heard = self.now;
        self.send_internal(Purpose::Seal, Request::Seal, Mask::one(index), out);
    }

    /// The link is gone or must go: everything that was asked there is asked again, or given up. `why` is for
    /// people.
    pub(crate) fn link_lost(&mut self, index: usize, why: &'static str, out: &mut Vec<Output>) {
        let member = &mut self.members[index];
        member.link_lost = why;
        if let Some(link) = member.link_id() {
            out.push(Output::Disconnect { link });
        }
        member.link = Link::Down { retry: self.now.after(RECONNECT) };
        member.lease = Instant(0);
        member.failures += 1;
        self.abandon_resync(index, out);
        self.abandon_resyncs_from(index, out);
        let affected: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, f)| f.launched && (f.waiting.has(index) || f.extra.has(index)))
            .map(|(seq, _)| seq)
            .collect();
        for seq in affected {
            self.flight_lost_member(seq, index, out);
        }
        match self.phase {
            Phase::Sealing { .. } => self.check_sealed(out),
            Phase::Reconciling { .. } => self.check_reconciled(out),
            _ => self.propose_if_needed(out),
        }
    }

    /// One request lost the member that it was sent to.
    fn flight_lost_member(&mut self, seq: u64, index: usize, out: &mut Vec<Output>) {
        let Some(flight) = self.flights.get_mut(seq) else { return };
        flight.extra.remove(index);
        match flight.purpose {
            // A counting member's answer stays needed until it is out of the ISR (R4): it is
            // sent again if the link comes back first.
            Purpose::Foreground(foreground) if foreground.kind != Kind::Read => {
                if planted(Bug::ShrinkAfterAck) {
                    flight.waiting.remove(index);
                }
                self.finish_if_done(seq, out);
            }
            Purpose::Foreground(_) => {
                flight.waiting.remove(index);
                self.read_elsewhere(seq, index, out);
            }
            purpose => {
                flight.waiting.remove(index);
                let over = flight.waiting.is_empty();
                if over {
                    self.flights.remove(seq);
                }
                self.internal_lost(purpose, index, over, out);
            }
        }
    }

    /// An internal request will get no answer from `index`; `over` if it waits for nobody else.
    pub(crate) fn internal_lost(
        &mut self,
        purpose: Purpose,
        index: usize,
        over: bool,
        out: &mut Vec<Output>,
    ) {
        match purpose {
            Purpose::Foreground(_) | Purpose::Seal | Purpose::Ping | Purpose::JoinFlush { .. } => {}
            Purpose::EraFlush | Purpose::EraSeal => self.era_lost(index, purpose, over, out),
            Purpose::Tags { target, run } | Purpose::Held { target, run } => {
                if self.resync(target, run).is_some() {
                    self.abandon_resync(target, out);
                }
            }
            Purpose::Past { target } => self.abandon_resync(target, out),
            Purpose::Snapshot { ticket } => self.snapshot_lost(ticket, out),
            Purpose::Region { job } => self.region_lost(job, index, out),
            Purpose::RollbackRead { write } => self.rollback_read_failed(write, index, out),
            Purpose::RollbackWrite { write } => {
                self.rollback_write_failed(write, index, over, out);
            }
            Purpose::StopFlush | Purpose::StopSeal | Purpose::StopClose => {
                self.stop_step_lost(purpose, over, out);
            }
        }
    }

    /// Sends again what a member that came back has not answered.
    pub(crate) fn resend(&mut self, index: usize, out: &mut Vec<Output>) {
        let Some(link) = self.members[index].link_id() else { return };
        let now = self.now;
        self.flights.for_each_mut(|seq, flight| {
            if flight.launched && flight.waiting.has(index) {
                // Answers to the first sending cannot come any more: that link is closed.
                flight.asked = now;
                out.push(Output::Send { link, seq, request: flight.request.clone() });
            }
        });
    }

    pub(crate) fn ping(&mut self, index: usize, out: &mut Vec<Output>) {
        self.members[index].pinged = self.now;
        self.send_internal(Purpose::Ping, Request::Ping, Mask::one(index), out);
    }

    // ---- sending -----------------------------------------------------------------------------

    /// Sends an internal request to `to` and returns its number.
    pub(crate) fn send_internal(
        &mut self,
        purpose: Purpose,
        request: Request,
        to: Mask,
        out: &mut Vec<Output>,
    ) -> u64 {
        let seq = self.flights.insert(self.now, purpose, request, to);
        self.launch(seq, to, Mask::default(), out);
        seq
    }

    /// Sends flight `seq`: answers of `waiting` are needed, `extra` get it too.
    pub(crate) fn launch(&mut self, seq: u64, waiting: Mask, extra: Mask, out: &mut Vec<Output>) {
        let now = self.now;
        let Some(flight) = self.flights.get_mut(seq) else { return };
        flight.launched = true;
        (flight.sent, flight.asked) = (now, now);
        flight.waiting = waiting;
        flight.extra = extra;
        let targets = waiting.with(extra);
        for index in targets.iter() {
            let Some(link) = self.members.get(index).and_then(Member::link_id) else { continue };
            // Only a seal may go out before the link is up; the rest is sent when it is.
            let early = matches!(flight.purpose, Purpose::Seal);
            if early || self.members[index].is_up() {
                out.push(Output::Send { link, seq, request: flight.request.clone() });
            }
        }
    }

    /// Members whose acknowledgement is needed.
    pub(crate) fn counting(&self) -> Mask {
        self.mask_of(Member::counts)
    }

    /// Those of them that can be reached and have nothing against them.
    pub(crate) fn in_order(&self) -> Mask {
        self.mask_of(|m| m.counts() && m.is_up() && !m.unfit && !m.broken)
    }

    pub(crate) fn mask_of(&self, wanted: impl Fn(&Member) -> bool) -> Mask {
        let mut mask = Mask::default();
        for (index, member) in self.members.iter().enumerate() {
            if wanted(member) {
                mask.add(index);
            }
        }
        mask
    }
}
