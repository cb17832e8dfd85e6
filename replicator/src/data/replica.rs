//! The replica side: sessions of engines and the store's effects.

use super::command::{DataError, DataEvent};
use super::conn::{Conn, Event, Purpose};
use super::thread::{Owner, POOL, SessionEnd, Thread, Work};
use hostio::{Completion, Fd, Op, Token};
use std::os::fd::OwnedFd;
use store::{Input, IoId, IoResult, Output, SessionId};
use tracing::{info, warn};
use types::{BufMut, VolumeId};
use wire::{Frame, Hello, Reply, Request};

/// What the store waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolIo {
    id: IoId,
    /// Bytes that must be transferred, if it is a read.
    read: Option<u32>,
}

impl Thread {
    pub(super) fn step_store(&mut self, input: Input) {
        let mut outputs = std::mem::take(&mut self.store_outputs);
        self.store.step(self.now, input, &mut outputs);
        for output in outputs.drain(..) {
            self.store_output(output);
        }
        self.store_outputs = outputs;
    }

    fn store_output(&mut self, output: Output) {
        match output {
            Output::Reply { session, seq, reply } => self.store_reply(session, seq, reply),
            Output::CloseSession { session } => self.store_closed(session),
            Output::Read { id, offset, len } => {
                let buf = BufMut::with_len(len as usize);
                let fd = Fd::clone(&self.pool_fd);
                self.pool_io(id, Some(len), Op::ReadAt { fd, offset, buf });
            }
            Output::Write { id, offset, data, durable } => {
                let fd = Fd::clone(&self.pool_fd);
                self.pool_io(id, None, Op::WriteAt { fd, offset, data, dsync: durable });
            }
            Output::Sync { id } => {
                let fd = Fd::clone(&self.pool_fd);
                self.pool_io(id, None, Op::Sync { fd });
            }
            Output::Zero { id, offset, len } => {
                let fd = Fd::clone(&self.pool_fd);
                self.pool_io(id, None, Op::Zero { fd, offset, len });
            }
            Output::AdminDone { op, result } => {
                if let Some(answer) = self.admin.remove(&op) {
                    let _ = answer.send(result.map_err(DataError::Store));
                }
            }
            Output::Timer(at) => {
                self.store_timer = Some(self.store_timer.map_or(at, |earlier| earlier.min(at)));
            }
            Output::Event(event) => self.store_event(&event),
        }
    }

    fn pool_io(&mut self, id: IoId, read: Option<u32>, op: Op) {
        let index = id.0 as u32;
        let slot = index as usize;
        if self.pool_ios.len() <= slot {
            self.pool_ios.resize(slot + 1, None);
        }
        self.pool_ios[slot] = Some(PoolIo { id, read });
        self.ring.submit(Token { owner: POOL, op: index }, op);
    }

    pub(super) fn pool_completed(&mut self, completion: Completion) {
        let slot = completion.token.op as usize;
        let Some(io) = self.pool_ios.get_mut(slot).and_then(Option::take) else { return };
        let result = match (io.read, completion.buf) {
            (Some(len), Some(buf)) => IoResult::Read(match completion.result {
                Ok(bytes) if bytes == len => Ok(buf.freeze()),
                // The pool ended before the replica did: its device shrank.
                Ok(_) => Err(EIO),
                Err(errno) => Err(errno),
            }),
            (Some(_), None) => IoResult::Read(Err(EIO)),
            (None, _) => IoResult::Done(completion.result.map(|_| ())),
        };
        self.work.push_back(Work::Store(Input::Io { id: io.id, result }));
    }

    fn store_reply(&mut self, session: SessionId, seq: u64, reply: Reply) {
        match self.sessions.get(&session) {
            Some(SessionEnd::Conn(owner)) => {
                let owner = *owner;
                self.push_frame(owner, &Frame::Reply { seq, reply });
            }
            Some(SessionEnd::Engine { volume, link }) => {
                let input = engine::Input::Reply { link: *link, seq, reply };
                self.work.push_back(Work::Engine(*volume, input));
            }
            Some(SessionEnd::Sealer(id)) => {
                let id = *id;
                self.sealer_reply(id, reply);
            }
            None => {}
        }
    }

    /// The store ended a session.
    fn store_closed(&mut self, session: SessionId) {
        match self.sessions.remove(&session) {
            Some(SessionEnd::Conn(owner)) => {
                if let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) {
                    conn.purpose = Purpose::Inbound(None);
                    conn.drain(self.now, &mut self.ring);
                }
            }
            Some(SessionEnd::Engine { volume, link }) => {
                let input = engine::Input::Disconnected { link };
                self.work.push_back(Work::Engine(volume, input));
            }
            Some(SessionEnd::Sealer(_)) | None => {}
        }
    }

    fn store_event(&mut self, event: &store::Event) {
        match event {
            store::Event::PoolFull => {
                warn!("the pool is full: writes that need new space get ENOSPC");
                self.tell(DataEvent::PoolFull);
            }
            store::Event::PoolFailed { errno } => {
                warn!(errno, "the pool failed: every replica in it is failed for good");
                for info in self.store.replicas() {
                    let reason = format!("the pool failed with errno {errno}");
                    self.tell(DataEvent::ReplicaFailed { replica: info.replica, reason });
                }
            }
            store::Event::ReplicaFailed { volume, replica, reason } => {
                warn!(%volume, %replica, reason, "a replica failed for good");
                let reason = reason.clone();
                self.tell(DataEvent::ReplicaFailed { replica: *replica, reason });
            }
            store::Event::ReadError { replica, offset, errno } => {
                warn!(%replica, offset, errno, "the disk could not read; another copy is used");
            }
            store::Event::ChecksumMismatch { replica, offset } => {
                warn!(%replica, offset, "a block did not match its checksum and was not served");
            }
        }
    }

    // ---- sessions ----------------------------------------------------------------------------

    pub(super) fn open_session(&mut self, end: SessionEnd, hello: Hello) -> SessionId {
        self.next_session += 1;
        let session = SessionId(self.next_session);
        self.sessions.insert(session, end);
        self.work.push_back(Work::Store(Input::Open { session, hello }));
        session
    }

    pub(super) fn request(&mut self, session: SessionId, seq: u64, request: Request) {
        self.work.push_back(Work::Store(Input::Request { session, seq, request }));
    }

    pub(super) fn end_session(&mut self, session: SessionId) {
        if self.sessions.remove(&session).is_some() {
            self.work.push_back(Work::Store(Input::Disconnected { session }));
        }
    }

    // ---- connections -------------------------------------------------------------------------

    pub(super) fn accepted(&mut self, fd: OwnedFd) {
        let inbound = self.owners.values().filter(|owner| matches!(owner, Owner::Conn(_))).count();
        if inbound >= super::thread::MAX_CONNECTIONS {
            warn!(inbound, "too many data connections; one was refused");
            return;
        }
        let Ok(fd) = hostio::net::into_ring(fd) else { return };
        let _ = hostio::net::set_nodelay(&fd);
        let owner = self.new_owner();
        let mut conn = Conn::new(owner, fd, Purpose::Inbound(None), self.now);
        conn.receive(&mut self.ring);
        self.owners.insert(owner, Owner::Conn(conn));
    }

    pub(super) fn push_frame(&mut self, owner: u32, frame: &Frame) {
        if let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) {
            conn.push(frame);
            self.unflushed.push(owner);
        }
    }

    pub(super) fn conn_completed(&mut self, owner: u32, completion: Completion) {
        let mut events = std::mem::take(&mut self.conn_events);
        let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) else { return };
        conn.completed(completion, &mut self.ring, &mut events);
        for event in events.drain(..) {
            self.conn_event(owner, event);
        }
        self.conn_events = events;
        self.settle_conn(owner);
    }

    /// Reads on, or reports and forgets a connection that is over.
    pub(super) fn settle_conn(&mut self, owner: u32) {
        let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) else { return };
        conn.receive(&mut self.ring);
        if !conn.is_closed() {
            return;
        }
        let purpose = std::mem::replace(&mut conn.purpose, Purpose::Inbound(None));
        if conn.is_over() {
            self.owners.remove(&owner);
        }
        match purpose {
            Purpose::Inbound(Some(session)) => self.end_session(session),
            Purpose::Inbound(None) => {}
            Purpose::Engine { volume, link } => {
                let input = engine::Input::Disconnected { link };
                self.work.push_back(Work::Engine(volume, input));
            }
            Purpose::Sealer(id) => self.sealer_lost(id),
        }
    }

    fn conn_event(&mut self, owner: u32, event: Event) {
        let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) else { return };
        match (conn.purpose, event) {
            // What was queued while it connected goes out first; it begins with a Hello.
            (Purpose::Engine { volume, link }, Event::Connected) => {
                self.unflushed.push(owner);
                self.work.push_back(Work::Engine(volume, engine::Input::Connected { link }));
            }
            (Purpose::Sealer(_), Event::Connected) => self.unflushed.push(owner),
            (Purpose::Inbound(None), Event::Frame(Frame::Hello(hello))) => {
                let session = self.open_session(SessionEnd::Conn(owner), hello);
                if let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) {
                    conn.purpose = Purpose::Inbound(Some(session));
                }
            }
            (Purpose::Inbound(Some(session)), Event::Frame(Frame::Request { seq, request })) => {
                self.request(session, seq, request);
            }
            (Purpose::Engine { volume, link }, Event::Frame(Frame::Reply { seq, reply })) => {
                self.work
                    .push_back(Work::Engine(volume, engine::Input::Reply { link, seq, reply }));
            }
            (Purpose::Sealer(id), Event::Frame(Frame::Reply { reply, .. })) => {
                self.sealer_reply(id, reply);
            }
            (_, Event::Garbage(error)) => {
                info!(%error, "closed a data connection");
            }
            (_, Event::Frame(_) | Event::Connected) => {
                info!("closed a data connection: a frame came out of turn");
                conn.close(&mut self.ring);
            }
        }
    }

    /// Closes a connection, once its queue is sent if `drain`. Whoever asks needs no report.
    pub(super) fn close_conn(&mut self, owner: u32, drain: bool) {
        if let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) {
            conn.purpose = Purpose::Inbound(None);
            if drain {
                conn.drain(self.now, &mut self.ring);
            } else {
                conn.close(&mut self.ring);
            }
            if conn.is_over() {
                self.owners.remove(&owner);
            }
        }
    }

    pub(super) fn forget_volume_links(&mut self, volume: VolumeId) {
        let owners: Vec<u32> = self
            .owners
            .iter()
            .filter_map(|(owner, entry)| match entry {
                Owner::Conn(conn) => match conn.purpose {
                    Purpose::Engine { volume: of, .. } if of == volume => Some(*owner),
                    _ => None,
                },
                _ => None,
            })
            .collect();
        for owner in owners {
            self.close_conn(owner, true);
        }
    }
}

const EIO: i32 = nix::libc::EIO;
