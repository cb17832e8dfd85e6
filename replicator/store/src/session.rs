//! Sessions: who may talk to a replica, seals and leases (R3, R8, R11).
//!
//! ```text
//!  Open ──▶ refused (reply 0, closed)
//!   │
//!   ▼  Seal: promise, close all others        record durable, I/O of others done,
//!  open ─────────────────────────▶ sealing ─── lease of others over ───▶ sealed ──▶ Close
//!                                    │
//!                                    └── a later Seal closes it
//! ```
//!
//! A reader of snapshots has no part in all that: nothing that it reads ever changes.
//!
//! A replica has at most one sealed session: a seal closes every other one that is not of a higher
//! epoch, also an earlier connection of the same engine, so nothing of an old connection can land
//! after something of the new one. The lease is waited for unless its holder is the very engine
//! that seals, or ended with the daemon that the sealing one's daemon succeeds.
//!
//! Every reply to a sealed session of an engine renews the lease, also while the engine treats the
//! replica as a resync target: once it is promoted its lease counts at once, and waiting for one
//! that nobody uses costs a seal at most [`types::LEASE`].

use types::plant::{Bug, planted};
use types::{EngineInstance, Epoch, Instant};
use wire::{Hello, Reply, Request, Role, SealInfo, WireError};

use crate::api::{Output, SessionId};
use crate::layout::{RecordSeq, ReplicaIndex};
use crate::op::{Op, OpKind, Wake};
use crate::record::Change;
use crate::slab::Key;
use crate::store::{MAX_SESSION_OPS, MAX_SESSIONS, Session, Store, failure_text};

/// A seal that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealWait {
    session: SessionId,
    seq: u64,
    record: RecordSeq,
}

impl SealWait {
    /// Session and sequence number of the request.
    pub(crate) fn request(&self) -> (SessionId, u64) {
        (self.session, self.seq)
    }
}

impl Store {
    pub(crate) fn open_session(&mut self, id: SessionId, hello: &Hello, out: &mut Vec<Output>) {
        match self.check_hello(hello) {
            Ok(replica) => {
                let session = Session {
                    replica,
                    epoch: hello.epoch,
                    instance: hello.instance,
                    process: hello.process,
                    role: hello.role,
                    sealed: false,
                    closing: false,
                    ops: 0,
                };
                self.sessions.insert(id, session);
            }
            Err(error) => {
                out.push(Output::Reply { session: id, seq: 0, reply: Reply::Failed(error) });
                out.push(Output::CloseSession { session: id });
            }
        }
    }

    fn check_hello(&self, hello: &Hello) -> Result<ReplicaIndex, WireError> {
        let failed = |reason: String| Err(WireError::ReplicaFailed { reason });
        if hello.cluster != self.superblock.cluster {
            let ours = self.superblock.cluster;
            let reason = format!("this is cluster {ours}, the session is of {}", hello.cluster);
            return Err(WireError::Refused { reason });
        }
        if self.sessions.len() >= MAX_SESSIONS {
            let reason = format!("{MAX_SESSIONS} sessions are open");
            return Err(WireError::Refused { reason });
        }
        let Some(index) = self.by_id.get(&hello.replica) else {
            return failed(format!("replica {} is not in this pool", hello.replica));
        };
        let state = &self.state.replicas[index];
        if state.volume != hello.volume {
            return failed(format!("it is of volume {}, not {}", state.volume, hello.volume));
        }
        if state.incarnation != hello.incarnation {
            let (ours, theirs) = (state.incarnation, hello.incarnation);
            return failed(format!("its incarnation is {ours}, not {theirs}"));
        }
        if state.sealed < hello.sealed && !planted(Bug::TrustOlderImage) {
            let (ours, known) = (state.sealed, hello.sealed);
            return failed(format!("it is an older image: it has sealed {ours}, and once {known}"));
        }
        if let Some(errno) = self.failure(state) {
            return failed(failure_text(errno));
        }
        if hello.role == Role::Reader {
            return Ok(*index);
        }
        if state.retired {
            return failed("it is kept for its snapshots only".to_owned());
        }
        self.check_epoch(*index, hello.epoch, hello.instance)?;
        Ok(*index)
    }

    fn check_epoch(
        &self,
        index: ReplicaIndex,
        epoch: Epoch,
        instance: EngineInstance,
    ) -> Result<(), WireError> {
        let state = &self.state.replicas[&index];
        if planted(Bug::AcceptOlderEpoch) {
            return Ok(());
        }
        if epoch < state.sealed || (epoch == state.sealed && instance != state.instance) {
            return Err(WireError::Fenced { sealed: state.sealed });
        }
        Ok(())
    }

    pub(crate) fn request(
        &mut self,
        id: SessionId,
        seq: u64,
        request: Request,
        out: &mut Vec<Output>,
    ) {
        let Some(session) = self.sessions.get(&id) else { return };
        let index = session.replica;
        let state = &self.state.replicas[&index];
        if let Some(errno) = self.failure(state) {
            let reason = failure_text(errno);
            return self.reply(id, seq, Reply::Failed(WireError::ReplicaFailed { reason }), out);
        }
        let refusal = match request {
            _ if session.closing => Some("the session is being closed"),
            Request::Close { .. } => None,
            Request::Snapshots
            | Request::ReadSnapshot { .. }
            | Request::HashSnapshot { .. }
            | Request::Allocated { .. }
                if session.role == Role::Reader && session.ops < MAX_SESSION_OPS =>
            {
                None
            }
            _ if session.role == Role::Reader => Some("a reader only reads snapshots"),
            Request::Seal => None,
            _ if session.role == Role::Sealer => Some("a sealer only seals"),
            _ if !session.sealed => Some("the session has not sealed"),
            _ if session.ops >= MAX_SESSION_OPS => Some("too many requests in flight"),
            _ => None,
        };
        if let Some(reason) = refusal {
            return self.invalid(id, seq, reason, out);
        }
        let epoch = session.epoch;
        let tag = |era| types::Tag { epoch, era };
        match request {
            Request::Seal => self.seal(id, seq, out),
            Request::Close { clean } => self.close(id, seq, clean, out),
            Request::Ping => self.reply(id, seq, Reply::Done, out),
            Request::Write { offset, data, crc, era } => {
                self.write(id, seq, (offset, data, crc), tag(era), out);
            }
            Request::Discard { offset, len, era } | Request::WriteZeroes { offset, len, era } => {
                self.zeroes(id, seq, (offset, len), tag(era), out);
            }
            Request::Mark { offset, len, era } => {
                self.mark(id, seq, (offset, len), tag(era), out);
            }
            Request::Read { offset, len } => self.read(id, seq, None, offset, len, out),
            Request::Hash { offset, len } => self.hash(id, seq, None, offset, len, out),
            Request::ReadSnapshot { snapshot, offset, len } => {
                self.read(id, seq, Some(snapshot), offset, len, out);
            }
            Request::HashSnapshot { snapshot, offset, len } => {
                self.hash(id, seq, Some(snapshot), offset, len, out);
            }
            Request::Allocated { snapshot, first } => {
                self.allocated(id, seq, snapshot, first, out);
            }
            Request::Snapshot { snapshot, size } => self.snapshot(id, seq, snapshot, size, out),
            Request::Snapshots => {
                let held = self.list_snapshots(id);
                self.reply(id, seq, held, out);
            }
            Request::Tags { above, first } => self.tags(id, seq, above, first, out),
            Request::Flush => self.flush(id, seq, out),
            Request::SealEra { era } => self.seal_era(id, seq, tag(era), out),
        }
    }

    /// Registers a request of an open session.
    pub(crate) fn op(&mut self, session: SessionId, seq: u64, kind: OpKind) -> Option<Key> {
        let entry = self.sessions.get_mut(&session)?;
        entry.ops += 1;
        if kind.mutates()
            && let Some(replica) = self.replicas.get_mut(&entry.replica)
        {
            replica.mutations += 1;
        }
        Some(self.ops.insert(Op {
            session,
            seq,
            replica: entry.replica,
            kind,
            submitted: false,
            io: 0,
            record: RecordSeq(0),
            error: None,
            queued: false,
        }))
    }

    fn seal(&mut self, id: SessionId, seq: u64, out: &mut Vec<Output>) {
        let session = &self.sessions[&id];
        let (index, epoch, instance) = (session.replica, session.epoch, session.instance);
        if session.sealed {
            let info = self.seal_info(index);
            return self.reply(id, seq, Reply::Sealed(info), out);
        }
        // Another session may have sealed since the Hello.
        if let Err(error) = self.check_epoch(index, epoch, instance) {
            self.reply(id, seq, Reply::Failed(error), out);
            return self.close_session(id, out);
        }
        let others: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(other, session)| {
                session.replica == index
                    && **other != id
                    && session.role != Role::Reader
                    && (session.epoch <= epoch || planted(Bug::AcceptOlderEpoch))
                    && !planted(Bug::SealKeepsSessions)
            })
            .map(|(other, _)| *other)
            .collect();
        for other in others {
            self.close_session(other, out);
        }
        let state = &self.state.replicas[&index];
        let record = if (state.sealed, state.instance) == (epoch, instance) {
            // Perhaps promised a moment ago by a session that is gone: durable all the same.
            self.log.appended()
        } else {
            let lowest = self.state.replicas[&index].sealed;
            let epoch = if planted(Bug::AcceptOlderEpoch) { epoch.max(lowest) } else { epoch };
            self.commit(index, &Change::Seal { epoch, instance })
        };
        if let Some(replica) = self.replicas.get_mut(&index) {
            replica.seal = Some(SealWait { session: id, seq, record });
        }
        if self.log.durable() >= record {
            self.try_seal(index, out);
        } else {
            self.when_durable(record, Wake::Seal(index));
        }
    }

    /// Answers the seal that waits, if nothing is in its way any more (R3).
    pub(crate) fn try_seal(&mut self, index: ReplicaIndex, out: &mut Vec<Output>) {
        let Some(replica) = self.replicas.get_mut(&index) else { return };
        let Some(wait) = replica.seal else { return };
        // A failed pool forgets its requests, but not all of their I/O has ended.
        let busy = replica.submitted > 0 && !planted(Bug::SealBeforeIoEnds);
        if self.failed.is_some() || self.log.durable() < wait.record || busy {
            return;
        }
        let Some(session) = self.sessions.get_mut(&wait.session) else {
            replica.seal = None;
            return;
        };
        let claimant = session.as_holder();
        let free = replica.lease_holder.is_some_and(|holder| claimant.frees(&holder));
        if self.now < replica.lease_until && !free && !planted(Bug::ForgetLeaseWait) {
            return out.push(Output::Timer(replica.lease_until));
        }
        replica.seal = None;
        session.sealed = true;
        // Not waited for: until it is on the disk, a restart only finds a lease of nobody knows whom.
        let process = claimant.process;
        if session.role == Role::Engine && self.state.replicas[&index].leased != Some(process) {
            let record = self.commit(index, &Change::Leased { process });
            self.log.want(record);
        }
        let info = self.seal_info(index);
        self.reply(wait.session, wait.seq, Reply::Sealed(info), out);
    }

    fn seal_info(&self, index: ReplicaIndex) -> SealInfo {
        let state = &self.state.replicas[&index];
        SealInfo {
            epoch: state.sealed,
            last_sealed: state.last_sealed,
            unbroken: state.in_use.is_none_or(|boot| boot == self.boot),
            clean: state.in_use.is_none(),
            size: state.size,
            boot: self.boot,
        }
    }

    pub(crate) fn tick(&mut self, out: &mut Vec<Output>) {
        let waiting: Vec<ReplicaIndex> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.seal.is_some())
            .map(|(index, _)| *index)
            .collect();
        for index in waiting {
            self.try_seal(index, out);
        }
    }

    /// Last request of a session: the lease is given back at once, and if the engine vouches for
    /// it the in-use mark goes after a sync (R9, R20).
    fn close(&mut self, id: SessionId, seq: u64, clean: bool, out: &mut Vec<Output>) {
        let session = &self.sessions[&id];
        let index = session.replica;
        let counts = clean && session.sealed && session.role == Role::Engine;
        if counts && session.ops > 0 {
            return self.invalid(id, seq, "a clean close while requests are in flight", out);
        }
        if !counts || self.state.replicas[&index].in_use.is_none() {
            self.reply(id, seq, Reply::Done, out);
            self.give_lease_back(id);
            return self.close_session(id, out);
        }
        let Some(key) = self.op(id, seq, OpKind::Close) else { return };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.closing = true;
        }
        self.submitted(key);
        if planted(Bug::StopWithoutFlush) {
            return self.continue_close(key, out);
        }
        self.when_synced(index, key, out);
    }

    /// After the sync of a clean close, and again after its record.
    pub(crate) fn continue_close(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        let (id, index) = (op.session, op.replica);
        if self.has_to_record(key) {
            let record = self.commit(index, &Change::Clean);
            if let Some(op) = self.ops.get_mut(key) {
                op.record = record;
            }
            return self.when_durable(record, Wake::Op(key));
        }
        self.finish(key, Reply::Done, out);
        self.give_lease_back(id);
        if self.sessions.contains_key(&id) {
            self.close_session(id, out);
        }
    }

    fn give_lease_back(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        if let Some(replica) = self.replicas.get_mut(&session.replica)
            && replica.lease_holder == Some(session.as_holder())
        {
            replica.lease_until = Instant::default();
        }
    }

    /// Ends a session from this side.
    pub(crate) fn close_session(&mut self, id: SessionId, out: &mut Vec<Output>) {
        out.push(Output::CloseSession { session: id });
        self.drop_session(id);
    }

    /// Forgets a session and its requests that submitted nothing yet.
    pub(crate) fn drop_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        let queued: Vec<Key> = self
            .ops
            .iter()
            .filter(|(_, op)| op.session == id && !op.submitted)
            .map(|(key, _)| key)
            .collect();
        for key in queued {
            self.ops.remove(key);
        }
        if let Some(replica) = self.replicas.get_mut(&session.replica) {
            replica.seal = replica.seal.filter(|wait| wait.session != id);
        }
    }
}
