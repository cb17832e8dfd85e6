//! The engine's state, its one entry, and what all its parts share: sending, links, time.

use crate::api::{EngineConfig, Input, LinkId, MemberStatus, Output, Status};
use crate::era::EraState;
use crate::flight::{Flights, Kind, Mask, Purpose};
use crate::isr::Proposal;
use crate::lock::IntervalLock;
use crate::member::{CONNECT_TIMEOUT, Link, Member, PING, RECONNECT, SILENCE, STUCK, Standing};
use crate::pace::Pace;
use crate::region::{Comparison, RegionJob};
use crate::stop::Stopping;
use core::time::Duration;
use std::collections::BTreeMap;
use types::{Era, IO_TIMEOUT, Instant, IoError, IoId, IsrVersion, LEASE_ENGINE};
use wire::{Hello, Reply, Request, Role, WireError};

/// If the caller did not come back for this long, the process was not running: what peers seem
/// to owe is then our own fault.
const STALL: Duration = Duration::from_millis(1000);

#[derive(Debug)]
pub(crate) enum Phase {
    New,
    /// Waiting for seals (R2, R3).
    Sealing {
        since: Instant,
    },
    /// Several members sealed after an unclean end: small differences go before the first I/O.
    Reconciling {
        until: Instant,
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
    pub(crate) comparison: Option<Comparison>,
    pub(crate) era: Era,
    pub(crate) era_state: EraState,
    pub(crate) proposal: Option<Proposal>,
    pub(crate) next_ticket: u64,
    pub(crate) propose_after: Instant,
    /// Reads whose data came while a lease was over; asked again when all leases are back (R8).
    pub(crate) parked: Vec<u64>,
    pub(crate) completed_writes: u64,
    pub(crate) flushed_writes: u64,
    pub(crate) counters: Counters,
    pub(crate) pace: Pace,
    next_link: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

impl Engine {
    /// An engine for an epoch that Raft has granted. Nothing happens before [`Input::Start`].
    #[must_use]
    pub fn new(mut config: EngineConfig) -> Self {
        config.members.truncate(16);
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
            comparison: None,
            era: Era(1),
            era_state: EraState::default(),
            proposal: None,
            next_ticket: 0,
            propose_after: Instant(0),
            parked: Vec::new(),
            completed_writes: 0,
            flushed_writes: 0,
            counters: Counters::default(),
            pace: Pace::default(),
            next_link: 0,
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
            Input::Connected { link } => self.connected(link, out),
            Input::Disconnected { link } => {
                if let Some(member) = self.member_of(link) {
                    self.link_lost(member, out);
                }
            }
            Input::Reply { link, seq, reply } => self.reply(link, seq, reply, out),
            Input::IsrAnswer { ticket, answer } => self.isr_answer(ticket, answer, out),
            Input::Members(specs) => self.update_members(specs, out),
            Input::Resize(size) => self.config.size = self.config.size.max(size),
            Input::Fenced => self.fail(IoError::Fenced, "superseded by a later epoch", out),
            Input::Compare { ticket } => self.start_comparison(ticket, out),
            Input::Stop => self.stop(out),
            Input::Tick => self.tick(out),
        }
    }

    /// When [`Input::Tick`] is due next, if ever.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        match self.phase {
            Phase::New | Phase::Failed { .. } | Phase::Stopped => None,
            Phase::Sealing { .. } | Phase::Reconciling { .. } | Phase::Stopping(_) => {
                Some(self.now.after(Duration::from_millis(20)))
            }
            Phase::Activating => Some(self.now.after(Duration::from_millis(200))),
            Phase::Active => {
                let quick = self.proposal.is_some() || !self.parked.is_empty();
                Some(self.now.after(Duration::from_millis(if quick { 50 } else { 250 })))
            }
        }
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
        }
    }

    /// After a freeze of this process (SIGSTOP, a starved machine) the peers' answers may still
    /// lie in our sockets: their silence is counted from now. Leases are not forgiven (R8).
    fn forgive_stall(&mut self, now: Instant) {
        if self.now != Instant(0) && now.since(self.now) > STALL {
            for member in &mut self.members {
                member.heard = now;
            }
        }
    }

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
            epoch: self.config.epoch,
            instance: self.config.instance,
            node: self.config.node,
            role: Role::Member,
        };
        out.push(Output::Connect { link, address: member.spec.address, hello });
    }

    fn connected(&mut self, link: LinkId, out: &mut Vec<Output>) {
        let Some(index) = self.member_of(link) else { return };
        let member = &mut self.members[index];
        member.link = Link::Sealing { id: link, since: self.now };
        member.heard = self.now;
        self.send_internal(Purpose::Seal, Request::Seal, Mask::one(index), out);
    }

    /// The link is gone or must go: everything that was asked there is asked again, or given up.
    pub(crate) fn link_lost(&mut self, index: usize, out: &mut Vec<Output>) {
        let member = &mut self.members[index];
        if let Some(link) = member.link_id() {
            out.push(Output::Disconnect { link });
        }
        member.link = Link::Down { retry: self.now.after(RECONNECT) };
        member.lease = Instant(0);
        member.failures += 1;
        self.abandon_resync(index, out);
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
            Phase::Active => self.propose_if_needed(out),
            _ => {}
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
    fn internal_lost(&mut self, purpose: Purpose, index: usize, over: bool, out: &mut Vec<Output>) {
        match purpose {
            Purpose::Foreground(_) | Purpose::Seal | Purpose::Ping | Purpose::JoinFlush { .. } => {}
            Purpose::EraFlush | Purpose::EraSeal => self.era_lost(index, purpose, over, out),
            Purpose::Tags { target } => self.abandon_resync(target, out),
            Purpose::Region { job } => self.region_failed(job, out),
            Purpose::RollbackRead { write } | Purpose::RollbackWrite { write } => {
                self.rollback_failed(write, index, out);
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
                flight.sent = now;
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
        flight.sent = now;
        flight.waiting = waiting;
        flight.extra = extra;
        let targets = Mask(waiting.0 | extra.0);
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

    pub(crate) fn mask_of(&self, wanted: impl Fn(&Member) -> bool) -> Mask {
        let mut mask = Mask::default();
        for (index, member) in self.members.iter().enumerate() {
            if wanted(member) {
                mask.add(index);
            }
        }
        mask
    }

    // ---- replies -----------------------------------------------------------------------------

    fn reply(&mut self, link: LinkId, seq: u64, reply: Reply, out: &mut Vec<Output>) {
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
        let request = if over { self.flights.remove(seq).map(|f| f.request) } else { None };
        if let Reply::Failed(error) = &reply {
            if let Purpose::Region { job } = purpose
                && !matches!(error, WireError::Disk { .. } | WireError::ReplicaFailed { .. })
            {
                self.region_failed(job, out);
            } else {
                self.internal_lost(purpose, index, over, out);
                self.member_error(index, error, out);
            }
            return;
        }
        match purpose {
            Purpose::Foreground(_) | Purpose::Ping => {}
            Purpose::Seal => {
                if let Reply::Sealed(info) = reply {
                    self.sealed(index, info, out);
                }
            }
            Purpose::EraFlush | Purpose::EraSeal => self.era_step(purpose, over, out),
            Purpose::Tags { target } => self.tags(target, index, request, reply, out),
            Purpose::Region { job } => self.region_reply(job, index, reply, out),
            Purpose::JoinFlush { target } => self.join_flushed(target, out),
            Purpose::RollbackRead { write } => self.rollback_data(write, reply, out),
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
                self.members[index].broken = true;
                out.push(Output::ReplicaFailed {
                    replica: self.members[index].spec.replica,
                    reason,
                });
                self.link_lost(index, out);
            }
            WireError::NoSpace
            | WireError::Checksum { .. }
            | WireError::Invalid { .. }
            | WireError::Refused { .. } => self.link_lost(index, out),
        }
    }

    // ---- failure and time --------------------------------------------------------------------

    /// Ends everything: all requests get `error`, now and from here on (R4).
    pub(crate) fn fail(&mut self, error: IoError, reason: &str, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::Failed { .. } | Phase::Stopped) {
            return;
        }
        let stopping = matches!(self.phase, Phase::Stopping(_));
        self.phase = Phase::Failed { reason: reason.to_owned(), error };
        let flights = core::mem::take(&mut self.flights);
        for (_, flight) in flights.iter() {
            if let Purpose::Foreground(foreground) = flight.purpose
                && !flight.completed
            {
                out.push(Output::Complete { id: foreground.id, result: Err(error) });
            }
        }
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
        if let Some(comparison) = self.comparison.take() {
            out.push(Output::Compared { ticket: comparison.ticket, result: None });
        }
        out.push(Output::Failed { reason: reason.to_owned() });
        if stopping {
            out.push(Output::Stopped { clean: false });
        }
    }

    pub(crate) fn complete_error(&self, id: IoId, error: IoError, out: &mut Vec<Output>) {
        out.push(Output::Complete { id, result: Err(error) });
    }

    fn tick(&mut self, out: &mut Vec<Output>) {
        if matches!(self.phase, Phase::New | Phase::Failed { .. } | Phase::Stopped) {
            return;
        }
        self.tick_links(out);
        self.tick_timeouts(out);
        match self.phase {
            Phase::Sealing { .. } => self.check_sealed(out),
            Phase::Reconciling { .. } => self.check_reconciled(out),
            Phase::Active => {
                self.start_resyncs(out);
                self.propose_if_needed(out);
                self.tick_era(out);
                if !self.parked.is_empty() && self.leases_held() {
                    self.unpark(out);
                }
            }
            Phase::Stopping(_) => self.check_stopped(out),
            _ => {}
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
                        self.link_lost(index, out);
                    }
                }
                Link::Sealing { since, .. } => {
                    // A seal may wait for a lease (R3), never longer.
                    if self.now.since(since) > types::LEASE + CONNECT_TIMEOUT {
                        self.link_lost(index, out);
                    }
                }
                Link::Up { .. } => {
                    if self.now.since(member.heard) > SILENCE {
                        self.link_lost(index, out);
                    } else if self.now.since(member.heard.max(member.pinged)) >= PING {
                        self.ping(index, out);
                    }
                }
            }
        }
    }

    fn wants_link(&self, member: &Member) -> bool {
        match (&self.phase, &member.standing) {
            (_, Standing::Failed) => false,
            (_, _) if member.broken || member.unfit => false,
            (Phase::Active, _) | (_, Standing::InSync | Standing::Syncing(_)) => true,
            _ => false,
        }
    }

    /// R4: what cannot be finished in the stated time fails the engine; a member that sits on
    /// one request while others are answered is dropped before that.
    fn tick_timeouts(&mut self, out: &mut Vec<Output>) {
        let mut stuck = Mask::default();
        let mut overdue = false;
        for (_, flight) in self.flights.iter() {
            if self.now.since(flight.arrived) < STUCK {
                continue;
            }
            let foreground = matches!(flight.purpose, Purpose::Foreground(_)) && !flight.completed;
            overdue |= foreground && self.now.since(flight.arrived) >= IO_TIMEOUT;
            let waits = flight.launched && !matches!(flight.purpose, Purpose::Seal);
            if waits && self.now.since(flight.sent) >= STUCK {
                stuck.0 |= flight.waiting.0 | flight.extra.0;
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
        for index in stuck.iter() {
            if self.members[index].is_up() {
                self.link_lost(index, out);
            }
        }
    }
}
