//! Eras (R18): about every 30 s the writes so far are drained, synced on all ISR members, and the
//! seal is broadcast, so that a replica lost later has little to catch up.
//!
//! A replica that has sealed an era is not compared below it (R19). So whoever may be the source of a
//! later attach must have that era on its disk: every member that Raft may count, also one that is
//! out of reach until the ISR has shrunk, and one whose `Grow` is not decided. If one of them is lost
//! before its sync, the seal is given up and begun again as soon as all that count are in order.

use crate::api::Output;
use crate::core::Engine;
use crate::flight::{Mask, Purpose};
use crate::member::Member;
use types::plant::{Bug, planted};
use types::{ERA, Era, Instant, Tag};
use wire::Request;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    /// New writes use the next era, older ones finish.
    Draining,
    Flushing,
    Sealing,
}

/// Progress of the current seal. Only members that were in the ISR from the beginning to the
/// broadcast are told: the others may lack writes of the era.
#[derive(Debug, Default)]
pub(crate) struct EraState {
    step: Step,
    since: Instant,
    sealing: Era,
    members: Mask,
    /// One of them was lost before it had synced.
    unsynced: bool,
    /// Mutations under way in the current era, and in the one being sealed.
    current: u64,
    old: u64,
    dirty: bool,
}

impl EraState {
    pub(crate) fn launched(&mut self) {
        self.current += 1;
        self.dirty = true;
    }

    /// A new epoch: its first era also covers what the attach made identical.
    pub(crate) fn start(&mut self, now: Instant) {
        self.restart(now);
        self.dirty = true;
    }

    /// There is something to seal.
    pub(crate) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Restarts the clock of the current era, giving up a seal under way.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.step = Step::Idle;
        self.since = now;
    }

    /// The seal under way comes to nothing: another one is due.
    fn give_up(&mut self) {
        self.step = Step::Idle;
        self.dirty = true;
    }
}

impl Engine {
    pub(crate) fn tick_era(&mut self, out: &mut Vec<Output>) {
        if self.now.since(self.era_state.since) >= ERA {
            self.seal_era_now(out);
        }
    }

    /// Whether no seal is under way.
    pub(crate) fn era_is_sealed(&self) -> bool {
        self.era_state.step == Step::Idle
    }

    /// Begins to seal the current era, unless that is under way, there is nothing to seal, or not
    /// every member is in order.
    pub(crate) fn seal_era_now(&mut self, out: &mut Vec<Output>) {
        if self.era_state.step != Step::Idle || !self.era_state.dirty {
            return;
        }
        let Some(members) = self.era_members() else { return };
        self.era_state = EraState {
            step: Step::Draining,
            since: self.era_state.since,
            sealing: self.era,
            members,
            unsynced: false,
            current: 0,
            old: self.era_state.current,
            dirty: false,
        };
        self.era = self.era.next();
        self.era_drained(out);
    }

    /// A mutation of `era` is done on everybody.
    pub(crate) fn era_finished(&mut self, era: Era, out: &mut Vec<Output>) {
        if era == self.era {
            self.era_state.current -= 1;
        } else {
            self.era_state.old -= 1;
            self.era_drained(out);
        }
    }

    /// Who has to sync an era: the in-sync members, if all that Raft may count are in order.
    fn era_members(&self) -> Option<Mask> {
        let members = self.mask_of(Member::in_sync);
        let complete = members == self.counting() && members == self.in_order();
        (complete || planted(Bug::SealEraAlone)).then_some(members.common(self.in_order()))
    }

    fn era_drained(&mut self, out: &mut Vec<Output>) {
        if self.era_state.step != Step::Draining || self.era_state.old != 0 {
            return;
        }
        // Who begins to count after this syncs what is drained by now before it does.
        match self.era_members() {
            Some(members) if members == self.era_state.members || planted(Bug::SealEraAlone) => {
                self.era_state.step = Step::Flushing;
                self.era_send(Purpose::EraFlush, Request::Flush, members, out);
            }
            _ => self.era_state.give_up(),
        }
    }

    fn era_send(&mut self, purpose: Purpose, request: Request, to: Mask, out: &mut Vec<Output>) {
        self.era_state.members = to;
        if to.is_empty() {
            self.era_state.give_up();
        } else {
            self.send_internal(purpose, request, to, out);
        }
    }

    /// A member has remembered the seal.
    pub(crate) fn era_sealed(&mut self, index: usize) {
        let tag = Tag { epoch: self.config.epoch, era: self.era_state.sealing };
        if let Some(info) = &mut self.members[index].info {
            info.last_sealed = info.last_sealed.max(tag);
        }
    }

    /// A member answered; `over` if it was the last.
    pub(crate) fn era_step(&mut self, purpose: Purpose, over: bool, out: &mut Vec<Output>) {
        if !over {
            return;
        }
        match (purpose, self.era_state.step) {
            (Purpose::EraFlush, Step::Flushing) if self.era_state.unsynced => {
                self.era_state.give_up();
            }
            (Purpose::EraFlush, Step::Flushing) => {
                self.era_state.step = Step::Sealing;
                let still = self.mask_of(|member| member.in_sync() && member.is_up());
                let to = self.era_state.members.common(still);
                let request = Request::SealEra { era: self.era_state.sealing };
                self.era_send(Purpose::EraSeal, request, to, out);
            }
            (Purpose::EraSeal, Step::Sealing) => self.era_state.restart(self.now),
            _ => {}
        }
    }

    /// A member was lost on the way: it is not told of the seal. Unless it left the ISR it must have
    /// synced before anybody is told.
    pub(crate) fn era_lost(
        &mut self,
        index: usize,
        purpose: Purpose,
        over: bool,
        out: &mut Vec<Output>,
    ) {
        self.era_state.members.remove(index);
        let owed = matches!(purpose, Purpose::EraFlush) && self.members[index].in_sync();
        self.era_state.unsynced |= owed && !planted(Bug::SealEraAlone);
        self.era_step(purpose, over, out);
    }
}
