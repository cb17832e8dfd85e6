//! Taking a snapshot of the volume (R26).
//!
//! ```text
//! seal the era ──▶ hold new writes, drain ──▶ every counting member makes it durable ──▶ release, answer
//!  (writes go on)  └──────────────── the pause that the consumer sees ────────────────┘
//! ```
//!
//! The era is sealed first so that little is left to sync within the pause. A member that is lost, or
//! refuses, aborts the snapshot: what others have made of it is not part of any record and is swept away.
//! A resync target that does not count yet will find that it lacks the snapshot, and starts over.

use crate::api::{Output, SnapshotError, SnapshotTaken};
use crate::core::{Engine, Phase};
use crate::flight::{Mask, Purpose};
use crate::member::{Member, Standing};
use core::time::Duration;
use types::plant::{Bug, planted};
use types::{Instant, ReplicaId, SnapshotId};
use wire::{Request, WireError};

/// How long the volume may take to become quiet enough to begin.
const READY: Duration = Duration::from_secs(10);
/// How long writes may be held.
const HOLD: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Sealing,
    Draining,
    Snapshotting,
}

/// A snapshot being taken.
#[derive(Debug)]
pub(crate) struct Taking {
    ticket: u64,
    snapshot: SnapshotId,
    step: Step,
    since: Instant,
    /// Who was asked for it: by name, since the place of one that is removed is given to another one.
    asked: Vec<ReplicaId>,
}

impl Taking {
    fn holds(&self) -> bool {
        self.step != Step::Sealing
    }
}

impl Engine {
    pub(crate) fn take_snapshot(
        &mut self,
        ticket: u64,
        snapshot: SnapshotId,
        out: &mut Vec<Output>,
    ) {
        let refused = match &self.phase {
            Phase::Active if self.taking.is_none() => None,
            Phase::Active => Some("another snapshot of the volume is being taken"),
            _ => Some("the volume is not active"),
        };
        if let Some(reason) = refused {
            let result = Err(SnapshotError::Aborted(reason.to_owned()));
            return out.push(Output::Snapshot { ticket, result });
        }
        let (step, since, asked) = (Step::Sealing, self.now, Vec::new());
        self.taking = Some(Taking { ticket, snapshot, step, since, asked });
        self.seal_era_now(out);
    }

    /// Whether new writes have to wait.
    pub(crate) fn holds_writes(&self) -> bool {
        self.taking.as_ref().is_some_and(Taking::holds) && !planted(Bug::SnapshotWithoutHold)
    }

    /// Called after every event: takes the next step as soon as it can be taken.
    pub(crate) fn advance_snapshot(&mut self, out: &mut Vec<Output>) {
        let Some(taking) = &self.taking else { return };
        let (step, waited) = (taking.step, self.now.since(taking.since));
        if !matches!(self.phase, Phase::Active) {
            return self.abort_snapshot("the volume is not active any more", out);
        }
        let counting = self.counting();
        match step {
            Step::Sealing
                if self.era_is_sealed()
                    && self.proposal.is_none()
                    && counting == self.in_order() =>
            {
                self.hold(out);
            }
            Step::Sealing if waited > READY => {
                self.abort_snapshot("not every in-sync copy could be reached in time", out);
            }
            Step::Draining | Step::Snapshotting if waited > HOLD => {
                let reason = format!("an in-sync copy did not answer within {} s", HOLD.as_secs());
                self.abort_snapshot(&reason, out);
            }
            Step::Draining if !self.is_writing() => self.send_snapshot(counting, out),
            _ => {}
        }
    }

    fn hold(&mut self, out: &mut Vec<Output>) {
        for target in 0..self.members.len() {
            if matches!(self.members[target].standing, Standing::Syncing(_)) {
                self.abandon_resync(target, out);
            }
        }
        if let Some(taking) = &mut self.taking {
            (taking.step, taking.since) = (Step::Draining, self.now);
        }
        self.advance_snapshot(out);
    }

    /// Whether any write is under way anywhere.
    fn is_writing(&self) -> bool {
        let writes = |request: &Request| {
            matches!(
                request,
                Request::Write { .. } | Request::Discard { .. } | Request::WriteZeroes { .. }
            )
        };
        self.flights.iter().any(|(_, flight)| flight.launched && writes(&flight.request))
    }

    fn send_snapshot(&mut self, members: Mask, out: &mut Vec<Output>) {
        let size = self.config.size;
        let Some(taking) = &mut self.taking else { return };
        taking.step = Step::Snapshotting;
        taking.asked = members.iter().map(|index| self.members[index].spec.replica).collect();
        let request = Request::Snapshot { snapshot: taking.snapshot, size };
        let purpose = Purpose::Snapshot { ticket: taking.ticket };
        self.send_internal(purpose, request, members, out);
    }

    /// A member has it durably; `over` if it was the last.
    pub(crate) fn snapshot_made(&mut self, ticket: u64, over: bool, out: &mut Vec<Output>) {
        let Some(taking) = self.snapshotting(ticket) else { return };
        if !over {
            return;
        }
        let counts = |replica: &&ReplicaId| {
            self.members.iter().any(|m| m.spec.replica == **replica && m.counts())
        };
        let holders = taking.asked.iter().filter(counts).copied().collect();
        let taken = SnapshotTaken {
            epoch: self.config.epoch,
            isr_version: self.isr_version,
            holders,
            pause: self.now.since(taking.since),
        };
        self.end_snapshot(Ok(taken), out);
    }

    /// A member was lost: the snapshot is not the same everywhere.
    pub(crate) fn snapshot_lost(&mut self, ticket: u64, out: &mut Vec<Output>) {
        if self.snapshotting(ticket).is_some() {
            self.abort_snapshot("an in-sync copy was lost", out);
        }
    }

    /// A member refused, and stays as good a copy as it was.
    pub(crate) fn snapshot_refused(
        &mut self,
        ticket: u64,
        index: usize,
        error: &WireError,
        out: &mut Vec<Output>,
    ) {
        if self.snapshotting(ticket).is_none() {
            return;
        }
        let replica = self.members[index].spec.replica;
        if *error == WireError::NoSpace {
            return self.end_snapshot(Err(SnapshotError::Full(replica)), out);
        }
        self.abort_snapshot(&format!("replica {replica}: {error}"), out);
    }

    /// The attempt with this ticket, if its members are at it.
    fn snapshotting(&self, ticket: u64) -> Option<&Taking> {
        let asked = |taking: &&Taking| {
            let own = taking.ticket == ticket || planted(Bug::LateSnapshotAnswer);
            taking.step == Step::Snapshotting && own
        };
        self.taking.as_ref().filter(asked)
    }

    /// Ends one that is being taken, if any, without result.
    pub(crate) fn abort_snapshot(&mut self, reason: &str, out: &mut Vec<Output>) {
        self.end_snapshot(Err(SnapshotError::Aborted(reason.to_owned())), out);
    }

    /// Answers, and lets the held writes go.
    fn end_snapshot(
        &mut self,
        result: Result<SnapshotTaken, SnapshotError>,
        out: &mut Vec<Output>,
    ) {
        let Some(Taking { ticket, .. }) = self.taking.take() else { return };
        out.push(Output::Snapshot { ticket, result });
        for seq in core::mem::take(&mut self.held) {
            self.launch_mutation(seq, out);
        }
    }

    /// Members that get new writes although they do not count yet.
    pub(crate) fn receiving(&self) -> Mask {
        self.mask_of(|member: &Member| {
            member.is_up()
                && matches!(&member.standing, Standing::Syncing(resync) if resync.receives())
        })
    }
}
