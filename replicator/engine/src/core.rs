//! The engine's state, its one entry, and what all its parts share: sending, links, time.

use crate::api::{EngineConfig, Input, MemberStatus, Output, Status};
use crate::era::EraState;
use crate::fill::Fill;
use crate::flight::{Flights, Purpose};
use crate::isr::Proposal;
use crate::lock::IntervalLock;
use crate::member::{Link, MAX_MEMBERS, Member, Standing};
use crate::pace::Pace;
use crate::region::{Comparison, RegionJob};
use crate::scrub::Scrub;
use crate::snapshot::Taking;
use crate::stop::Stopping;
use std::collections::BTreeMap;
use types::{Era, Instant, IoError, IoId, IsrVersion};

#[derive(Debug)]
pub(crate) enum Phase {
    New,
    /// Waiting for seals (R2, R3).
    Sealing {
        since: Instant,
    },
    /// Several members sealed after an unclean end: small differences to `source` go before the
    /// first I/O.
    Reconciling {
        source: usize,
        until: Instant,
        /// When the source was asked whether it is still there, at the end.
        asked: Option<Instant>,
    },
    /// `Activate` is being committed.
    Activating,
    Active,
    Stopping(Stopping),
    Failed {
        reason: String,
        error: IoError,
    },
    Stopped,
}

/// The attach side of one volume under one epoch. See the crate's text.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) phase: Phase,
    pub(crate) now: Instant,
    pub(crate) isr_version: IsrVersion,
    pub(crate) members: Vec<Member>,
    pub(crate) flights: Flights,
    pub(crate) lock: IntervalLock,
    pub(crate) jobs: BTreeMap<u64, RegionJob>,
    pub(crate) next_job: u64,
    /// Of the last resync that was begun.
    pub(crate) last_run: u64,
    pub(crate) comparison: Option<Comparison>,
    pub(crate) scrub: Scrub,
    pub(crate) taking: Option<Taking>,
    /// Writes that have their range and wait for the end of a snapshot.
    pub(crate) held: Vec<u64>,
    pub(crate) fill: Option<Fill>,
    /// Counts the engine's own writes.
    pub(crate) last_own: u64,
    pub(crate) era: Era,
    pub(crate) era_state: EraState,
    pub(crate) proposal: Option<Proposal>,
    pub(crate) next_ticket: u64,
    pub(crate) propose_after: Instant,
    /// Since when those who would stay in the ISR are asked whether they are still there.
    pub(crate) stay_asked: Option<Instant>,
    /// Reads whose data came while a lease was over; asked again when all leases are back (R8).
    pub(crate) parked: Vec<u64>,
    /// Starts at one for what an earlier engine may have acknowledged and not flushed: the kernel's
    /// device may have survived that engine (R14), and its next flush covers those writes too.
    pub(crate) completed_writes: u64,
    pub(crate) flushed_writes: u64,
    pub(crate) counters: Counters,
    pub(crate) pace: Pace,
    pub(crate) next_link: u64,
    /// When [`Input::Tick`] was last handled.
    pub(crate) ticked: Instant,
    /// When the process last came back from not running: patience counts from then.
    pub(crate) resumed: Instant,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) repaired: u64,
    pub(crate) unrepairable: u64,
}

impl Engine {
    /// An engine for an epoch that Raft has granted. Nothing happens before [`Input::Start`].
    #[must_use]
    pub fn new(mut config: EngineConfig) -> Self {
        config.members.truncate(MAX_MEMBERS);
        Self {
            members: config.members.iter().cloned().map(Member::new).collect(),
            isr_version: config.isr_version,
            config,
            phase: Phase::New,
            now: Instant(0),
            flights: Flights::default(),
            lock: IntervalLock::default(),
            jobs: BTreeMap::new(),
            next_job: 0,
            last_run: 0,
            comparison: None,
            scrub: Scrub::default(),
            taking: None,
            held: Vec::new(),
            fill: None,
            last_own: 0,
            era: Era(1),
            era_state: EraState::default(),
            proposal: None,
            next_ticket: 0,
            propose_after: Instant(0),
            stay_asked: None,
            parked: Vec::new(),
            completed_writes: 1,
            flushed_writes: 0,
            counters: Counters::default(),
            pace: Pace::default(),
            next_link: 0,
            ticked: Instant(0),
            resumed: Instant(0),
        }
    }

    /// Handles one event at time `now` and appends what must be done. `now` never goes back.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        self.forgive_stall(now);
        self.now = self.now.max(now);
        match input {
            Input::Start => self.start(out),
            Input::Activated(view) => self.activated(&view, out),
            Input::Io { id, op } => self.submit(id, op, out),
            Input::Connected { link } if self.fills(link) => self.fill_connected(out),
            Input::Connected { link } => self.connected(link, out),
            Input::Disconnected { link } if self.fills(link) => self.fill_link_lost(out),
            Input::Disconnected { link } => {
                if let Some(member) = self.member_of(link) {
                    self.link_lost(member, "the connection ended", out);
                }
            }
            Input::Reply { link, seq, reply } if self.fills(link) => {
                self.fill_reply(seq, reply, out);
            }
            Input::Reply { link, seq, reply } => self.reply(link, seq, reply, out),
            Input::IsrAnswer { ticket, answer } => self.isr_answer(ticket, answer, out),
            Input::Members(specs) => self.update_members(specs, out),
            Input::Resize(size) => self.config.size = self.config.size.max(size),
            Input::Fenced => self.fail(IoError::Fenced, "superseded by a later epoch", out),
            Input::Compare { ticket } => self.start_comparison(ticket, out),
            Input::Snapshot { ticket, snapshot } => self.take_snapshot(ticket, snapshot, out),
            Input::Fill { ticket, source } => self.start_fill(ticket, source, out),
            Input::Stop => self.stop(out),
            Input::Tick => self.tick(out),
        }
        self.advance_snapshot(out);
    }

    /// Whether requests are served.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        let failed = match &self.phase {
            Phase::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let member = |member: &Member| MemberStatus {
            replica: member.spec.replica,
            node: member.spec.node,
            role: match member.standing {
                Standing::InSync => "member",
                Standing::Syncing(_) | Standing::Joining(_) => "resyncing",
                Standing::Away => "away",
                Standing::Failed => "failed",
            },
            progress: member.progress,
            link_lost: member.link_lost,
        };
        Status {
            epoch: self.config.epoch,
            size: self.config.size,
            active: self.is_active(),
            failed,
            members: self.members.iter().map(member).collect(),
            reads: self.counters.reads,
            writes: self.counters.writes,
            flushes: self.counters.flushes,
            repaired: self.counters.repaired,
            unrepairable: self.counters.unrepairable,
            scrub: self.scrub_status(),
        }
    }

    /// Ends everything: all requests get `error`, now and from here on (R4).
    pub(crate) fn fail(&mut self, error: IoError, reason: &str, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Failed { .. } | Phase::Stopped) {
            return;
        }
        let stopping = matches!(self.phase, Phase::Stopping(_));
        self.phase = Phase::Failed { reason: reason.to_owned(), error };
        self.abandon_everything(error, out);
        out.push(Output::Failed { reason: reason.to_owned() });
        if stopping {
            out.push(Output::Stopped { clean: false });
        }
    }

    /// Nothing is under way afterwards: requests got `error`, links are closed.
    pub(crate) fn abandon_everything(&mut self, error: IoError, out: &mut Vec<Output>) {
        for (_, flight) in core::mem::take(&mut self.flights).iter() {
            if let Purpose::Foreground(foreground) = flight.purpose
                && !flight.completed
            {
                self.answer(foreground.id, Err(error), out);
            }
        }
        self.held.clear();
        self.abort_snapshot("the engine ended", out);
        self.end_fill(Err("the engine ended".to_owned()), out);
        for member in &mut self.members {
            if let Some(link) = member.link_id() {
                out.push(Output::Disconnect { link });
            }
            member.link = Link::Down { retry: self.now };
            member.lease = Instant(0);
        }
        self.lock = IntervalLock::default();
        self.jobs.clear();
        self.parked.clear();
        self.proposal = None;
        self.end_comparison(false, out);
    }

    pub(crate) fn complete_error(&mut self, id: IoId, error: IoError, out: &mut Vec<Output>) {
        self.answer(id, Err(error), out);
    }
}
