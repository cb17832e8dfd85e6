//! Attach (R2): seal the ISR members that can be reached, choose the source, reconcile the rest,
//! then ask for activation.

use crate::api::{IsrView, Output};
use crate::core::{Engine, Phase};
use crate::flight::Mask;
use crate::member::{Join, Link, Member, Standing};
use core::time::Duration;
use types::plant::{Bug, planted};
use types::{IO_TIMEOUT, IoError, LEASE};
use wire::{SealInfo, WireError};

/// How long a member that was connected may take to seal: it may have to wait for a lease (R3).
const SEAL_WAIT: Duration = Duration::from_millis(LEASE.as_millis() as u64 + 2000);

/// How much reconciliation may delay the first I/O (R20).
const RECONCILE: Duration = Duration::from_millis(1000);

impl Engine {
    pub(crate) fn start(&mut self, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::New) {
            return;
        }
        self.phase = Phase::Sealing { since: self.now };
        for index in 0..self.members.len() {
            if self.members[index].in_sync() {
                self.connect(index, out);
            }
        }
        if self.mask_of(Member::in_sync).is_empty() {
            self.fail(IoError::Io, "the committed in-sync set names no known replica", out);
        }
    }

    /// A replica has sealed our epoch.
    pub(crate) fn sealed(&mut self, index: usize, info: SealInfo, out: &mut Vec<Output>) {
        let size = self.config.size;
        let member = &mut self.members[index];
        let Some(id) = member.link_id() else { return };
        member.link = Link::Up { id };
        member.failures = 0;
        let before = member.info.replace(info);
        if let Some(before) = before
            && info.last_sealed < before.last_sealed
        {
            let (found, known) = (info.last_sealed, before.last_sealed);
            let reason = format!(
                "it is an older image: it has sealed epoch {}, era {}, and once epoch {}, era {}",
                found.epoch, found.era.0, known.epoch, known.era.0
            );
            return self.member_error(index, &WireError::ReplicaFailed { reason }, out);
        }
        // Until the source is chosen, what a seal says about itself is all that matters.
        let counts = member.counts()
            && !matches!(self.phase, Phase::Sealing { .. } | Phase::Reconciling { .. });
        let rebooted = counts
            && before.is_some_and(|before| before.boot != info.boot)
            && !planted(Bug::KeepIsrAfterReboot);
        if member.unfit {
            return self.link_lost(index, "it must be resynced", out);
        }
        if info.size < size {
            // It missed an expansion: its node's reconciler will grow it; ask again later. The
            // next seal will not show a reboot any more, so it counts as one.
            self.members[index].unfit |= rebooted;
            return self.link_lost(index, "it is smaller than the volume", out);
        }
        match self.phase {
            Phase::Sealing { .. } => self.check_sealed(out),
            _ if rebooted => self.boot_lost(index, out),
            _ if counts => self.resend(index, out),
            Phase::Active => self.start_resyncs(out),
            _ => {}
        }
    }

    /// A member that counts came back on another boot: it may have lost acknowledged writes (R9).
    /// What the seal says about itself is not asked: `unbroken` may be about an earlier epoch.
    fn boot_lost(&mut self, index: usize, out: &mut Vec<Output>) {
        self.members[index].unfit = true;
        // What it acknowledged and may have lost is owed again, until it is out of the ISR (R4).
        self.flights.for_each_mut(|_, flight| {
            if flight.era.is_some()
                && !flight.completed
                && !flight.rolling_back
                && flight.acked.has(index)
            {
                flight.acked.remove(index);
                flight.waiting.add(index);
            }
        });
        // No link while it is unfit: it gets nothing, and no era is sealed on it.
        self.link_lost(index, "its host lost its memory", out);
    }

    pub(crate) fn check_sealed(&mut self, out: &mut Vec<Output>) {
        let Phase::Sealing { since } = self.phase else { return };
        let waited = self.now.since(since);
        let sealed = self.mask_of(|m| m.in_sync() && m.is_up());
        // A member that cannot be reached is waited for only while all others may have lost writes.
        let unbroken = |i: usize| self.members[i].info.is_some_and(|info| info.unbroken);
        let doubtful = !sealed.iter().any(unbroken);
        let awaited = |m: &Member| !m.spec.lost && !m.broken && (doubtful || m.failures == 0);
        let pending = self.mask_of(|m| m.in_sync() && !m.is_up() && awaited(m));
        if sealed.is_empty() {
            if waited > IO_TIMEOUT {
                self.fail(IoError::Io, "no in-sync replica could be sealed", out);
            }
        } else if pending.is_empty() || waited > SEAL_WAIT {
            self.choose_source(sealed, out);
        }
    }

    /// R20: after a clean detach all are identical; otherwise one is the truth and the others are
    /// made so.
    fn choose_source(&mut self, sealed: Mask, out: &mut Vec<Output>) {
        let unbroken = |m: &Member| m.info.is_some_and(|info| info.unbroken);
        let whole = sealed.common(self.mask_of(unbroken));
        if self.config.resumed && whole.is_empty() {
            let reason = "poisoned (R10): every in-sync copy that could be reached may have lost \
                          writes that its user still relies on";
            return self.fail(IoError::Io, reason, out);
        }
        let clean = sealed.iter().all(|i| self.members[i].info.is_some_and(|info| info.clean));
        if clean {
            self.flushed_writes = self.completed_writes;
        }
        if clean || planted(Bug::SkipReconcile) {
            return self.request_activation(sealed, out);
        }
        let unbroken = |index: &usize| whole.has(*index) || planted(Bug::AnySource);
        let rank = |index: &usize| (!unbroken(index), !self.members[*index].is_local());
        let Some(source) = sealed.iter().min_by_key(rank) else { return };
        self.phase = Phase::Reconciling { source, until: self.now.after(RECONCILE), asked: None };
        for target in sealed.without(Mask::one(source)).iter() {
            // One that may have lost acknowledged writes must not look whole by what we copy while
            // it is still in the committed ISR: it is left out, and resynced behind.
            if unbroken(&target) {
                self.start_resync(target, source, out);
            }
        }
        self.check_reconciled(out);
    }

    pub(crate) fn check_reconciled(&mut self, out: &mut Vec<Output>) {
        let Phase::Reconciling { source, until, asked } = self.phase else { return };
        if !self.members[source].is_up() {
            // The source went away before anything was acknowledged by us: seal and choose again.
            self.phase = Phase::Sealing { since: self.now };
            for index in 0..self.members.len() {
                let member = &mut self.members[index];
                let resynced =
                    matches!(member.standing, Standing::Syncing(_) | Standing::Joining(_));
                if member.spec.in_isr && !matches!(member.standing, Standing::Failed) {
                    member.standing = Standing::InSync;
                    member.unfit = false;
                }
                if resynced {
                    self.cancel_copies(index, out);
                    // A write of a copy may still be under way there: its seal waits for that (R3).
                    self.drop_link(index, out);
                    self.forget_in_flights(index, out);
                }
            }
            return;
        }
        let ready =
            self.mask_of(|m| m.is_up() && matches!(m.standing, Standing::Joining(Join::Ready)));
        let busy = self.mask_of(|m| {
            matches!(m.standing, Standing::Syncing(_))
                || matches!(m.standing, Standing::Joining(join) if join != Join::Ready)
        });
        if busy.is_empty() || self.now >= until {
            let isr = Mask::one(source).with(ready);
            let left_out = self.mask_of(|m| m.spec.in_isr).without(isr);
            // Whoever is left out may be the only other whole copy: a source that lost its memory since it
            // sealed must be noticed before, and its link may look alive for a while (found by the
            // simulation). One on this host ends with us.
            match asked {
                _ if left_out.is_empty() || self.members[source].is_local() => {}
                Some(at) if self.members[source].heard > at => {}
                Some(_) => return,
                None => {
                    self.phase = Phase::Reconciling { source, until, asked: Some(self.now) };
                    return self.ping(source, out);
                }
            }
            self.request_activation(isr, out);
        }
    }

    fn request_activation(&mut self, isr: Mask, out: &mut Vec<Output>) {
        self.phase = Phase::Activating;
        let isr = isr.iter().map(|index| self.members[index].spec.replica).collect();
        out.push(Output::Activate { isr });
    }

    /// Raft has committed the activation: the first I/O may come.
    pub(crate) fn activated(&mut self, view: &IsrView, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::Activating) {
            return;
        }
        self.phase = Phase::Active;
        self.era_state.start(self.now);
        self.start_scrub();
        self.apply_view(view, out);
        if self.mask_of(|m| m.in_sync() && !m.unfit).is_empty() {
            return self.fail(IoError::Io, "no in-sync replica outlived the attach", out);
        }
        for index in 0..self.members.len() {
            // Leases start with the first answer after the seal.
            if self.members[index].is_up() {
                self.ping(index, out);
            }
        }
        self.propose_if_needed(out);
    }
}
