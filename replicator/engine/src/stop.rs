//! Stopping (R20): drain, flush, seal the last era, close, so that all replicas stay eligible.

use crate::api::Output;
use crate::core::{Engine, Phase};
use crate::flight::{Mask, Purpose};
use crate::member::{Member, Standing};
use core::time::Duration;
use types::plant::{Bug, planted};
use types::{Instant, IoError};
use wire::Request;

/// A stop that takes longer than this ends unclean.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Draining,
    Flushing,
    Sealing,
    Closing,
}

#[derive(Debug)]
pub(crate) struct Stopping {
    step: Step,
    since: Instant,
    /// Who is to be flushed, sealed and closed.
    members: Mask,
    /// None of them was lost on the way so far.
    clean: bool,
}

impl Stopping {
    /// Whether requests are still being finished, for which the ISR may have to shrink (R4). After
    /// that nothing is acknowledged any more: a member that goes makes the stop unclean, no more.
    pub(crate) fn is_draining(&self) -> bool {
        self.step == Step::Draining
    }
}

impl Engine {
    pub(crate) fn stop(&mut self, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Active => {}
            Phase::Stopping(_) => return,
            Phase::Stopped | Phase::Failed { .. } => {
                self.phase = Phase::Stopped;
                out.push(Output::Stopped { clean: false });
                return;
            }
            // Nothing was written under this epoch.
            _ => return self.stopped(false, out),
        }
        for target in 0..self.members.len() {
            if matches!(self.members[target].standing, Standing::Syncing(_) | Standing::Joining(_))
            {
                self.abandon_resync(target, out);
            }
        }
        self.era_state.restart(self.now);
        self.abandon_comparison(out);
        self.end_fill(Err("the volume is being detached".to_owned()), out);
        let (step, since) = (Step::Draining, self.now);
        let members = Mask::default();
        self.phase = Phase::Stopping(Stopping { step, since, members, clean: true });
        self.check_stopped(out);
    }

    pub(crate) fn check_stopped(&mut self, out: &mut Vec<Output>) {
        let Phase::Stopping(stopping) = &self.phase else { return };
        if self.now.since(stopping.since) > STOP_TIMEOUT {
            return self.stopped(false, out);
        }
        // A clean close may not come while anything else is in flight.
        let idle = |purpose| matches!(purpose, Purpose::Ping | Purpose::Seal);
        let busy = self.flights.iter().any(|(_, flight)| !idle(flight.purpose));
        if stopping.step == Step::Draining && !busy {
            let in_sync = self.mask_of(Member::in_sync);
            let up = self.mask_of(|m| m.in_sync() && m.is_up());
            if in_sync == up && self.proposal.is_none() {
                self.stop_send(Step::Flushing, out);
            }
        }
    }

    fn stop_send(&mut self, step: Step, out: &mut Vec<Output>) {
        let to = self.mask_of(|m| m.in_sync() && m.is_up());
        let Phase::Stopping(stopping) = &mut self.phase else { return };
        if step == Step::Flushing {
            stopping.members = to;
        }
        stopping.step = step;
        stopping.clean &= stopping.members == to;
        let clean = stopping.clean;
        let (purpose, request) = match step {
            Step::Draining => return,
            Step::Flushing => (Purpose::StopFlush, Request::Flush),
            Step::Sealing => (Purpose::StopSeal, Request::SealEra { era: self.era }),
            Step::Closing => (Purpose::StopClose, Request::Close { clean }),
        };
        if to.is_empty() {
            return self.stopped(false, out);
        }
        if step == Step::Flushing && planted(Bug::StopWithoutFlush) {
            return self.stop_send(Step::Closing, out);
        }
        self.send_internal(purpose, request, to, out);
    }

    pub(crate) fn stop_step(&mut self, purpose: Purpose, over: bool, out: &mut Vec<Output>) {
        let Phase::Stopping(stopping) = &self.phase else { return };
        if !over {
            return;
        }
        match (purpose, stopping.step, stopping.clean) {
            (Purpose::StopFlush, Step::Flushing, true) => self.stop_send(Step::Sealing, out),
            (Purpose::StopFlush, Step::Flushing, false) | (Purpose::StopSeal, Step::Sealing, _) => {
                self.stop_send(Step::Closing, out)
            }
            (Purpose::StopClose, Step::Closing, clean) => self.stopped(clean, out),
            _ => {}
        }
    }

    /// A member was lost before it answered a step.
    pub(crate) fn stop_step_lost(&mut self, purpose: Purpose, over: bool, out: &mut Vec<Output>) {
        if let Phase::Stopping(stopping) = &mut self.phase {
            stopping.clean = false;
        }
        self.stop_step(purpose, over, out);
    }

    fn stopped(&mut self, clean: bool, out: &mut Vec<Output>) {
        self.phase = Phase::Stopped;
        self.abandon_everything(IoError::Io, out);
        out.push(Output::Stopped { clean });
    }
}
