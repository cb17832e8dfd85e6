//! Attach (R2): seal the ISR members that can be reached, choose the source, reconcile the rest,
//! then ask for activation.

use crate::api::{IsrView, Output};
use crate::core::{Engine, Phase};
use crate::flight::Mask;
use crate::member::{Join, Link, Member, Standing};
use core::time::Duration;
use types::{IO_TIMEOUT, IoError, LEASE};
use wire::SealInfo;

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
        member.info = Some(info);
        if info.size < size {
            // It missed an expansion: its node's reconciler will grow it; ask again later.
            return self.link_lost(index, out);
        }
        match self.phase {
            Phase::Sealing { .. } => self.check_sealed(out),
            Phase::Active if self.members[index].counts() => {
                if info.unbroken {
                    self.resend(index, out);
                } else {
                    self.boot_lost(index, out);
                }
            }
            Phase::Active => self.start_resyncs(out),
            _ => {}
        }
    }

    /// A member of the ISR came back on another boot: it may have lost acknowledged writes (R9).
    fn boot_lost(&mut self, index: usize, out: &mut Vec<Output>) {
        let others = self.mask_of(Member::in_sync).without(Mask::one(index));
        if others.is_empty() {
            // R10: nobody is left who has them all, and the consumer is alive.
            let reason = "the only in-sync replica's host rebooted while the volume was attached";
            self.fail(IoError::Io, reason, out);
        } else {
            self.members[index].unfit = true;
            self.propose_if_needed(out);
        }
    }

    pub(crate) fn check_sealed(&mut self, out: &mut Vec<Output>) {
        let Phase::Sealing { since } = self.phase else { return };
        let waited = self.now.since(since);
        let sealed = self.mask_of(|m| m.in_sync() && m.is_up());
        let pending = self
            .mask_of(|m| m.in_sync() && !m.is_up() && !m.spec.lost && !m.broken && m.failures == 0);
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
        let clean = sealed.iter().all(|i| self.members[i].info.is_some_and(|info| info.clean));
        if clean || sealed.len() == 1 {
            return self.request_activation(sealed, out);
        }
        let rank = |index: &usize| {
            let member = &self.members[*index];
            let broken = !member.info.is_some_and(|info| info.unbroken);
            (broken, !member.is_local())
        };
        let Some(source) = sealed.iter().min_by_key(rank) else { return };
        self.phase = Phase::Reconciling { until: self.now.after(RECONCILE) };
        for target in sealed.without(Mask::one(source)).iter() {
            self.start_resync(target, source, out);
        }
        self.check_reconciled(out);
    }

    pub(crate) fn check_reconciled(&mut self, out: &mut Vec<Output>) {
        let Phase::Reconciling { until } = self.phase else { return };
        let source = self.mask_of(|m| m.in_sync() && m.is_up());
        if source.is_empty() {
            // The source went away before anything was written by us: seal and choose again.
            for member in &mut self.members {
                if member.spec.in_isr && !matches!(member.standing, Standing::Failed) {
                    member.standing = Standing::InSync;
                }
            }
            self.phase = Phase::Sealing { since: self.now };
            return;
        }
        let ready =
            self.mask_of(|m| m.is_up() && matches!(m.standing, Standing::Joining(Join::Ready)));
        let busy = self.mask_of(|m| {
            matches!(m.standing, Standing::Syncing(_))
                || matches!(m.standing, Standing::Joining(join) if join != Join::Ready)
        });
        if busy.is_empty() || self.now >= until {
            self.request_activation(Mask(source.0 | ready.0), out);
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
        self.era_state.restart(self.now);
        self.apply_view(view, out);
        for index in 0..self.members.len() {
            // Leases start with the first answer after the seal.
            self.members[index].pinged = types::Instant(0);
            if self.members[index].is_up() {
                self.ping(index, out);
            }
        }
        self.propose_if_needed(out);
    }
}
