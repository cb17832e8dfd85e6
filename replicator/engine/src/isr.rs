//! Changes of the ISR: shrink before anything that the dropped replica missed is acknowledged
//! (R4), grow only for a target that has everything on its disk (R5).

use crate::api::{IsrAnswer, IsrChange, IsrView, MemberSpec, Output};
use crate::core::{Engine, Phase};
use crate::flight::{Foreground, Kind, Mask, Purpose};
use crate::member::{Join, Link, MAX_MEMBERS, Member, Standing};
use core::time::Duration;
use types::{Instant, IoError};

/// Pause before a proposal whose outcome is unknown is made again.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Proposal {
    ticket: u64,
    change: IsrChange,
    /// Set when the answer was "unknown": not before this time it is made again.
    retry: Option<Instant>,
}

impl Engine {
    /// Whether a `Grow` of this member may be committed without our knowing.
    pub(crate) fn grow_pending(&self, index: usize) -> bool {
        let replica = self.members[index].spec.replica;
        matches!(&self.proposal, Some(Proposal { change: IsrChange::Grow(add), .. }) if *add == replica)
    }

    pub(crate) fn propose_if_needed(&mut self, out: &mut Vec<Output>) {
        let may = match &self.phase {
            Phase::Active => true,
            Phase::Stopping(stopping) => stopping.is_draining(),
            _ => false,
        };
        if !may || self.now < self.propose_after {
            return;
        }
        if self.mask_of(|m| m.counts() && !m.unfit && !m.broken).is_empty() {
            return self.nobody_left(out);
        }
        if let Some(proposal) = &self.proposal {
            // The same change again: only its outcome tells what the ISR is.
            if proposal.retry.is_some_and(|at| at <= self.now) {
                let change = proposal.change.clone();
                self.propose(change, out);
            }
            return;
        }
        let leaves = |m: &Member| m.in_sync() && (m.unfit || m.broken || !m.is_up());
        let leaving = self.mask_of(leaves);
        let staying = self.mask_of(Member::in_sync).without(leaving);
        // The ISR is never empty (R4): the last member is waited for, until the I/O times out.
        if !leaving.is_empty() && !staying.is_empty() {
            if !self.one_stays(staying, out) {
                return;
            }
            let replicas = leaving.iter().map(|index| self.members[index].spec.replica).collect();
            return self.propose(IsrChange::Shrink(replicas), out);
        }
        self.stay_asked = None;
        if !matches!(self.phase, Phase::Active) {
            return;
        }
        let ready = |m: &&Member| matches!(m.standing, Standing::Joining(Join::Ready)) && m.is_up();
        if let Some(member) = self.members.iter().find(ready) {
            let change = IsrChange::Grow(member.spec.replica);
            self.propose(change, out);
        }
    }

    /// Whether one of those who would stay has spoken since somebody was found to leave. A link looks alive for
    /// a while after its host died, and whoever leaves may be the only one by then that has everything.
    fn one_stays(&mut self, staying: Mask, out: &mut Vec<Output>) -> bool {
        let asked = self.stay_asked.unwrap_or(self.now);
        if staying.iter().any(|i| self.members[i].is_local() || self.members[i].heard > asked) {
            self.stay_asked = None;
            return true;
        }
        if self.stay_asked.is_none() {
            self.stay_asked = Some(asked);
            for index in staying.iter() {
                self.ping(index, out);
            }
        }
        false
    }

    /// R10: no member is left that has surely all that was acknowledged, and the consumer is alive.
    fn nobody_left(&mut self, out: &mut Vec<Output>) {
        let counting = self.counting();
        let member = counting.iter().next().map(|index| &mut self.members[index]);
        let flushed = self.flushed_writes == self.completed_writes;
        match member {
            // All that was acknowledged had been flushed; the rest is sent again.
            Some(member) if flushed && counting.len() == 1 && !member.broken => {
                member.unfit = false;
            }
            _ => {
                let reason = "every in-sync replica failed or lost its memory while attached";
                self.fail(IoError::Io, reason, out);
            }
        }
    }

    fn propose(&mut self, change: IsrChange, out: &mut Vec<Output>) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        out.push(Output::Propose { ticket, version: self.isr_version, change: change.clone() });
        self.proposal = Some(Proposal { ticket, change, retry: None });
    }

    pub(crate) fn isr_answer(&mut self, ticket: u64, answer: IsrAnswer, out: &mut Vec<Output>) {
        let Some(proposal) = &mut self.proposal else { return };
        if proposal.ticket != ticket {
            return;
        }
        match answer {
            IsrAnswer::Superseded => {
                self.fail(IoError::Fenced, "superseded by a later epoch", out);
            }
            IsrAnswer::Unavailable => proposal.retry = Some(self.now.after(RETRY)),
            IsrAnswer::View(view) => {
                let change = proposal.change.clone();
                self.proposal = None;
                self.apply_view(&view, out);
                self.check_applied(&change, &view, out);
                self.propose_if_needed(out);
            }
        }
    }

    /// A change that was decided against is not made again at once: something else must move first.
    fn check_applied(&mut self, change: &IsrChange, view: &IsrView, out: &mut Vec<Output>) {
        let refused = match change {
            IsrChange::Shrink(remove) => remove.iter().any(|replica| view.isr.contains(replica)),
            IsrChange::Grow(add) => !view.isr.contains(add),
        };
        if refused {
            self.propose_after = self.now.after(RETRY);
            if let IsrChange::Grow(add) = change
                && let Some(index) = self.members.iter().position(|m| m.spec.replica == *add)
            {
                self.abandon_resync(index, out);
            }
        }
    }

    /// The committed ISR, learned from Raft.
    pub(crate) fn apply_view(&mut self, view: &IsrView, out: &mut Vec<Output>) {
        self.isr_version = view.version;
        let mut left = Mask::default();
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            let inside = view.isr.contains(&member.spec.replica);
            match (&member.standing, inside) {
                (Standing::InSync, true) => {}
                (Standing::Joining(_), true) => {
                    member.standing = Standing::InSync;
                    // What it has now is worth a seal, even if nothing is written (R19).
                    self.era_state.mark_dirty();
                }
                (Standing::InSync, false) => {
                    member.standing = if member.broken { Standing::Failed } else { Standing::Away };
                    member.unfit = false;
                    left.add(index);
                }
                // Raft counts on a member that lacks writes: it must leave before we acknowledge.
                (_, true) => {
                    self.abandon_resync(index, out);
                    self.drop_link(index, out);
                    let member = &mut self.members[index];
                    member.standing = Standing::InSync;
                    member.unfit = true;
                }
                // A grow that was refused, of a target that is still complete: tried again. One
                // that was lost meanwhile starts over.
                (Standing::Joining(_), false) => {
                    if !member.is_up() {
                        self.abandon_resync(index, out);
                    }
                }
                (_, false) => {}
            }
        }
        for index in left.iter() {
            // A new link, so that its next seal tells where its resync starts.
            self.drop_link(index, out);
            self.abandon_resyncs_from(index, out);
            self.forget_in_flights(index, out);
        }
        if self.leases_held() {
            self.unpark(out);
        }
    }

    pub(crate) fn drop_link(&mut self, index: usize, out: &mut Vec<Output>) {
        if let Some(link) = self.members[index].link_id() {
            out.push(Output::Disconnect { link });
            self.members[index].link = Link::Down { retry: self.now };
        }
    }

    /// Nobody waits for this member's answers any more.
    pub(crate) fn forget_in_flights(&mut self, index: usize, out: &mut Vec<Output>) {
        let mut concerned = Vec::new();
        self.flights.for_each_mut(|seq, flight| {
            if flight.launched && (flight.waiting.has(index) || flight.extra.has(index)) {
                flight.waiting.remove(index);
                flight.extra.remove(index);
                concerned.push((seq, flight.purpose));
            }
        });
        for (seq, purpose) in concerned {
            match purpose {
                Purpose::Foreground(Foreground { kind: Kind::Read, .. }) => {
                    self.read_elsewhere(seq, index, out);
                }
                Purpose::Foreground(_) => self.finish_if_done(seq, out),
                _ => {
                    let over = self.flights.get_mut(seq).is_some_and(|f| f.waiting.is_empty());
                    if over {
                        self.flights.remove(seq);
                    }
                    self.internal_lost(purpose, index, over, out);
                }
            }
        }
    }

    /// Raft's replicas changed: new ones appear, addresses and liveness are refreshed, and those that
    /// are not there any more are not resynced any longer. The ISR is left to its own way (R4).
    pub(crate) fn update_members(&mut self, specs: Vec<MemberSpec>, out: &mut Vec<Output>) {
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            member.removed = specs.iter().all(|spec| spec.replica != member.spec.replica);
            if member.removed && !member.counts() {
                self.abandon_resync(index, out);
                self.drop_link(index, out);
                self.forget_in_flights(index, out);
            }
        }
        for spec in specs {
            let known = self.members.iter().position(|m| m.spec.replica == spec.replica);
            match known {
                Some(index) => {
                    let member = &mut self.members[index];
                    let moved = member.spec.address != spec.address;
                    member.spec = MemberSpec { in_isr: member.spec.in_isr, ..spec };
                    if moved && member.link_id().is_some() {
                        self.link_lost(index, "its address changed", out);
                    }
                }
                None => {
                    let member = Member::new(MemberSpec { in_isr: false, ..spec });
                    match self.vacant_place() {
                        Some(place) => self.members[place] = member,
                        None if self.members.len() < MAX_MEMBERS => self.members.push(member),
                        None => {}
                    }
                }
            }
        }
    }

    /// The place of a member that was removed and that no request remembers.
    fn vacant_place(&self) -> Option<usize> {
        let remembered = self.flights.iter().fold(Mask::default(), |mask, (_, f)| {
            [f.waiting, f.extra, f.acked, f.nospace, f.avoid].into_iter().fold(mask, Mask::with)
        });
        let vacant = |index: &usize| {
            let member = &self.members[*index];
            let idle = matches!(member.standing, Standing::Away | Standing::Failed);
            let free = member.removed && idle && member.link_id().is_none();
            free && !remembered.has(*index)
        };
        (0..self.members.len()).find(vacant)
    }
}
