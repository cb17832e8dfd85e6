//! One data connection: frames in, frames out, nothing else.

use hostio::{Completion, Fd, Op, Ring, Token};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use store::SessionId;
use types::{Buf, BufMut, Instant, VolumeId};
use wire::{DecodeError, Decoder, Encoded, Frame, HEADER, Receive};

/// Frames sent by one system call at most.
const BATCH: usize = 64;
/// Requests of one connection that may wait for their replies before we stop reading from it.
const OUTSTANDING: u32 = 1024;

const RECV: u32 = 0;
const SEND: u32 = 1;
const CONNECT: u32 = 2;

/// Whom a connection serves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// An engine of another node, once it said [`wire::Hello`].
    Inbound(Option<SessionId>),
    /// A link of an engine here.
    Engine { volume: VolumeId, link: engine::LinkId },
    /// A seal without an engine (R7).
    Sealer(u64),
}

/// What a completion meant.
#[derive(Debug)]
pub(super) enum Event {
    Connected,
    Frame(Frame),
    /// The peer sent what is not our protocol.
    Garbage(DecodeError),
}

/// State of one connection. It is dropped only once nothing of it is in the ring.
pub(super) struct Conn {
    pub(super) purpose: Purpose,
    /// Since when it is without a purpose: it began, or it is being drained.
    pub(super) since: Instant,
    owner: u32,
    fd: Fd,
    decoder: Decoder,
    connecting: bool,
    receiving: bool,
    sending: bool,
    queue: Vec<Encoded>,
    /// Requests read from here and not yet answered.
    outstanding: u32,
    /// Nothing more is read; closed once everything queued is sent.
    draining: bool,
    closed: bool,
}

impl Conn {
    pub(super) fn new(owner: u32, fd: Fd, purpose: Purpose, now: Instant) -> Self {
        // A peer that vanished without a word is noticed by the kernel; failure to set that only
        // makes it slower.
        let _ = setsockopt(&fd, sockopt::KeepAlive, &true);
        let _ = setsockopt(&fd, sockopt::TcpKeepIdle, &5);
        let _ = setsockopt(&fd, sockopt::TcpKeepInterval, &5);
        let _ = setsockopt(&fd, sockopt::TcpUserTimeout, &10_000);
        Self {
            purpose,
            since: now,
            owner,
            fd,
            decoder: Decoder::default(),
            connecting: false,
            receiving: false,
            sending: false,
            queue: Vec::new(),
            outstanding: 0,
            draining: false,
            closed: false,
        }
    }

    fn token(&self, op: u32) -> Token {
        Token { owner: self.owner, op }
    }

    pub(super) fn connect(&mut self, ring: &mut Ring, addr: SocketAddr) {
        self.connecting = true;
        ring.submit(self.token(CONNECT), Op::Connect { fd: Fd::clone(&self.fd), addr });
    }

    /// Reads on, unless the peer has too much unanswered already.
    pub(super) fn receive(&mut self, ring: &mut Ring) {
        let full = self.outstanding >= OUTSTANDING;
        if self.receiving || self.connecting || self.draining || self.closed || full {
            return;
        }
        self.receiving = true;
        let Receive { buf, start } = self.decoder.receive();
        let fd = Fd::clone(&self.fd);
        ring.submit(self.token(RECV), Op::Recv { fd, buf, start, all: false });
    }

    /// Queues a frame; [`Self::flush`] sends what is queued.
    pub(super) fn push(&mut self, frame: &Frame) {
        if matches!(frame, Frame::Reply { .. }) {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        if !self.closed {
            self.queue.push(wire::encode(frame));
        }
    }

    /// Sends the next batch if none is under way. Headers that follow one another go as one piece.
    pub(super) fn flush(&mut self, ring: &mut Ring) {
        if self.sending || self.connecting || self.closed {
            return;
        }
        if self.queue.is_empty() {
            if self.draining {
                self.close(ring);
            }
            return;
        }
        let count = self.queue.len().min(BATCH);
        let mut headers = BufMut::with_len(count * HEADER);
        for (slot, encoded) in headers.as_mut_slice().chunks_exact_mut(HEADER).zip(&self.queue) {
            slot.copy_from_slice(&encoded.header);
        }
        let headers = headers.freeze();
        let mut bufs: Vec<Buf> = Vec::with_capacity(count);
        let mut start = 0;
        for (index, encoded) in self.queue.drain(..count).enumerate() {
            if let Some(payload) = encoded.payload {
                let end = (index + 1) * HEADER;
                bufs.push(headers.slice(start..end));
                bufs.push(payload);
                start = end;
            }
        }
        if start < headers.len() {
            bufs.push(headers.slice(start..headers.len()));
        }
        self.sending = true;
        ring.submit(self.token(SEND), Op::Send { fd: Fd::clone(&self.fd), bufs });
    }

    /// Takes a completion; appends what it means.
    pub(super) fn completed(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        events: &mut Vec<Event>,
    ) {
        match completion.token.op {
            CONNECT => {
                self.connecting = false;
                match completion.result {
                    Ok(_) if !self.closed => events.push(Event::Connected),
                    _ => self.close(ring),
                }
            }
            SEND => {
                self.sending = false;
                match completion.result {
                    Ok(_) => self.flush(ring),
                    Err(_) => self.close(ring),
                }
            }
            _ => {
                self.receiving = false;
                let bytes = completion.result.unwrap_or(0) as usize;
                if let Some(buf) = completion.buf {
                    self.decoder.received(buf, bytes);
                }
                if bytes == 0 {
                    self.close(ring);
                }
                self.decode(ring, events);
            }
        }
    }

    fn decode(&mut self, ring: &mut Ring, events: &mut Vec<Event>) {
        while !self.closed && !self.draining {
            match self.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    self.outstanding += u32::from(matches!(frame, Frame::Request { .. }));
                    events.push(Event::Frame(frame));
                }
                Err(error) => {
                    events.push(Event::Garbage(error));
                    self.close(ring);
                }
            }
        }
    }

    /// Closes once everything queued is sent. The peer gets as long for taking it as for its first
    /// word (see `since`).
    pub(super) fn drain(&mut self, now: Instant, ring: &mut Ring) {
        self.since = now;
        self.draining = true;
        self.flush(ring);
    }

    /// Closes now; what is in the ring completes soon.
    pub(super) fn close(&mut self, ring: &mut Ring) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.queue.clear();
        if self.connecting {
            ring.cancel(self.token(CONNECT));
        }
        // Ends a receive and a send under way; an error means that it is not connected.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        if self.sending {
            ring.cancel(self.token(SEND));
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing of it is in the ring.
    pub(super) fn is_over(&self) -> bool {
        self.closed && !self.connecting && !self.receiving && !self.sending
    }
}
