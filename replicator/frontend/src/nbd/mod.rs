//! One NBD client's connection to a volume, over any stream socket.
//!
//! Fixed newstyle negotiation, then requests with simple or structured replies. What a client can
//! make this end hold is bounded: a receive buffer, and [`MAX_REQUESTS`] requests of together
//! [`MAX_REQUEST`] payload bytes, counted until their answers are sent.

#[cfg(test)]
mod fuzz;
mod handshake;
mod proto;
mod requests;
#[cfg(test)]
mod tests;

use crate::{BlockDevice, Frontend, Status, index_of};
use handshake::{Handshake, Step};
use hostio::{Completion, Fd, Op, Ring, Token};
use proto::{EINVAL, REQUEST_LEN, Request, flag};
use requests::{Answer, Command, Refusal, Requests, check, refuse};
use std::time::Duration;
use types::{BlockResult, Buf, BufMut, Instant, IoId, MAX_IO};

/// Longest payload of one request, in bytes (32 MiB, what clients assume); handed to the device in
/// pieces of [`MAX_IO`].
const MAX_REQUEST: u32 = 32 << 20;
/// Requests of one connection.
const MAX_REQUESTS: usize = 128;
/// Receive buffer in bytes: small writes arrive in it whole, longer payloads past it.
const RECEIVE: usize = 64 << 10;
/// How long a client may take to negotiate.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the last answers of a closing connection may take to be read.
const LINGER: Duration = Duration::from_secs(5);

/// What every client is told; with structured replies there is one more.
pub const TRANSMISSION_FLAGS: u16 = flag::HAS_FLAGS
    | flag::SEND_FLUSH
    | flag::SEND_FUA
    | flag::SEND_TRIM
    | flag::SEND_WRITE_ZEROES
    | flag::CAN_MULTI_CONN;

const RECV: u32 = 0;
const RECV_PAYLOAD: u32 = 1;
const SEND: u32 = 2;

/// What a connection offers: one volume under its name; the empty name means it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The volume id.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

impl Export {
    fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

enum Phase {
    Handshake(Handshake),
    Transmission,
}

/// A write whose payload is being received.
struct Incoming {
    /// Where to hand it; `None` if it is read only to be thrown away.
    target: Option<Target>,
    /// What to answer when it has been thrown away.
    refusal: Option<Buf>,
    /// The current piece, filled up to `filled`. `None` while the ring fills it.
    piece: Option<BufMut>,
    piece_len: usize,
    filled: usize,
    /// Bytes after the current piece.
    after: usize,
}

struct Target {
    request: u32,
    offset: u64,
    fua: bool,
}

/// One accepted connection.
pub struct NbdConnection {
    owner: u32,
    fd: Fd,
    export: Export,
    phase: Phase,
    structured: bool,
    deadline: Option<Instant>,
    closing: bool,
    /// Nobody reads answers any more.
    dead: bool,
    /// The client is the kernel's driver; see [`NbdConnection::of_kernel`].
    kernel: bool,
    /// `None` while the ring fills it.
    receive: Option<BufMut>,
    /// Bytes of `receive` that have come and not been used.
    have: usize,
    receiving: Option<u32>,
    incoming: Option<Incoming>,
    requests: Requests,
    out: Vec<Buf>,
    /// Answers in `out`, then on their way: requests and payload bytes.
    queued: (usize, u64),
    sent: (usize, u64),
    sending: bool,
}

impl NbdConnection {
    /// Serves `export` on `fd`, a connected stream socket in blocking mode. `owner` marks its tokens
    /// and block requests. The client has 10 s from `now` to negotiate.
    #[must_use]
    pub fn new(owner: u32, fd: Fd, export: Export, now: Instant) -> Self {
        let mut greeting = Vec::new();
        let handshake = Handshake::new(&mut greeting);
        Self {
            owner,
            fd,
            export,
            phase: Phase::Handshake(handshake),
            structured: false,
            deadline: Some(now.after(HANDSHAKE)),
            closing: false,
            dead: false,
            kernel: false,
            receive: Some(BufMut::with_len(RECEIVE)),
            have: 0,
            receiving: None,
            incoming: None,
            requests: Requests::default(),
            out: vec![Buf::copy_of(&greeting)],
            queued: (0, 0),
            sent: (0, 0),
            sending: false,
        }
    }

    /// Serves the kernel's own driver on `fd`, which does not negotiate: it was told
    /// [`TRANSMISSION_FLAGS`].
    ///
    /// It sends a request again on another connection once it has shut down the one that the request
    /// went out on. What it may still have put into that one must not be taken then: a write would
    /// land after the ones that followed its repetition.
    #[must_use]
    pub fn of_kernel(owner: u32, fd: Fd, export: Export, now: Instant) -> Self {
        let mut connection = Self::new(owner, fd, export, now);
        connection.phase = Phase::Transmission;
        connection.deadline = None;
        connection.kernel = true;
        connection.out.clear();
        connection
    }

    /// Whether what has come may not be used any more. All connections of a volume are served by one
    /// thread, so what is passed on after this has said no is ahead of every repetition.
    fn is_abandoned(&self) -> bool {
        self.kernel && hostio::net::is_shut_down(&*self.fd)
    }

    fn token(&self, op: u32) -> Token {
        Token { owner: self.owner, op }
    }

    /// Whether another request of `bytes` payload may be taken; one alone always may.
    fn has_room(&self, bytes: u32) -> bool {
        let held = self.requests.bytes() + self.queued.1 + self.sent.1;
        let count = self.in_flight();
        count == 0 || count < MAX_REQUESTS && held + u64::from(bytes) <= u64::from(MAX_REQUEST)
    }

    /// Uses up what has come, then asks for more.
    fn advance(&mut self, ring: &mut Ring, device: &mut dyn BlockDevice) {
        if self.receiving.is_none() {
            if self.have > 0 && !self.closing && self.is_abandoned() {
                self.give_up();
            }
            if let Some(mut receive) = self.receive.take() {
                let mut used = 0;
                while !self.closing {
                    match self.take(&receive.as_slice()[used..self.have], device) {
                        Some(0) | None => break,
                        Some(count) => used += count,
                    }
                }
                receive.as_mut_slice().copy_within(used..self.have, 0);
                self.have -= used;
                self.receive = Some(receive);
            }
            self.ask(ring);
        }
        self.flush(ring);
    }

    /// Takes one message off the front of `input`: the bytes used, `None` if that needs more input
    /// or room.
    fn take(&mut self, input: &[u8], device: &mut dyn BlockDevice) -> Option<usize> {
        if self.incoming.is_some() {
            return self.take_payload(input, device);
        }
        if let Phase::Handshake(handshake) = &mut self.phase {
            // One answer at a time: a client that does not read gets no more of them.
            if !self.out.is_empty() || self.sending {
                return None;
            }
            let mut answer = Vec::new();
            let step = handshake.step(input, &self.export, &mut answer);
            if !answer.is_empty() {
                self.out.push(Buf::copy_of(&answer));
            }
            return match step {
                Step::More => None,
                Step::Used(count) => Some(count),
                Step::Transmit(count) => {
                    self.structured = handshake.structured();
                    self.phase = Phase::Transmission;
                    self.deadline = None;
                    Some(count)
                }
                Step::Close => {
                    self.close();
                    None
                }
            };
        }
        let Some(request) = Request::decode(input.first_chunk::<REQUEST_LEN>()?) else {
            tracing::debug!(self.owner, "an NBD client sent no request where one was due");
            self.close();
            return None;
        };
        let checked = check(&request, self.export.size, self.structured);
        let payload = request.command == proto::cmd::WRITE;
        let bytes = match checked {
            Ok(Command::Read | Command::Write { .. }) => request.len,
            _ => 0,
        };
        if !self.has_room(bytes) {
            return None;
        }
        match checked {
            Ok(Command::Disconnect) => self.close(),
            Ok(Command::Write { fua }) => {
                let target = Target {
                    request: self.requests.begin_write(&request),
                    offset: request.offset,
                    fua,
                };
                self.expect(Some(target), None, request.len);
            }
            Ok(command) => self.requests.start(self.owner, &request, command, device),
            Err(Refusal::Errno(errno)) => {
                let answer = refuse(&request, errno, self.structured);
                if payload && request.len > 0 {
                    self.expect(None, Some(answer), request.len);
                } else {
                    self.answer(Answer { bufs: vec![answer], bytes: 0 });
                }
            }
            Err(Refusal::TooLong) => {
                let answer = refuse(&request, EINVAL, self.structured);
                self.answer(Answer { bufs: vec![answer], bytes: 0 });
                self.close();
            }
        }
        Some(REQUEST_LEN)
    }

    fn expect(&mut self, target: Option<Target>, refusal: Option<Buf>, len: u32) {
        let piece_len = (len as usize).min(MAX_IO as usize);
        self.incoming = Some(Incoming {
            target,
            refusal,
            piece: Some(BufMut::with_len(piece_len)),
            piece_len,
            filled: 0,
            after: len as usize - piece_len,
        });
    }

    /// Moves payload that came along with its header into the piece it belongs to.
    fn take_payload(&mut self, input: &[u8], device: &mut dyn BlockDevice) -> Option<usize> {
        let incoming = self.incoming.as_mut()?;
        let piece = incoming.piece.as_mut()?;
        let count = input.len().min(incoming.piece_len - incoming.filled);
        piece.as_mut_slice()[incoming.filled..incoming.filled + count]
            .copy_from_slice(&input[..count]);
        incoming.filled += count;
        self.piece_filled(device);
        Some(count)
    }

    /// Passes on the current piece if it is complete, and begins the next.
    fn piece_filled(&mut self, device: &mut dyn BlockDevice) {
        let Some(mut incoming) = self.incoming.take() else { return };
        if incoming.filled < incoming.piece_len {
            self.incoming = Some(incoming);
            return;
        }
        let Some(piece) = incoming.piece.take() else { return };
        let next = incoming.after.min(MAX_IO as usize);
        if let Some(target) = &mut incoming.target {
            let (offset, data) = (target.offset, piece.freeze());
            target.offset += data.len() as u64;
            self.requests.write_piece(self.owner, target.request, offset, data, target.fua, device);
        }
        if next > 0 {
            // Exactly as long as the piece: a receive must not reach into the next request.
            incoming.piece = Some(BufMut::with_len(next));
            incoming.piece_len = next;
            incoming.after -= next;
            incoming.filled = 0;
            self.incoming = Some(incoming);
            return;
        }
        if let Some(target) = incoming.target {
            let answer = self.requests.end_write(target.request, self.structured);
            answer.into_iter().for_each(|answer| self.answer(answer));
        }
        if let Some(refusal) = incoming.refusal {
            self.answer(Answer { bufs: vec![refusal], bytes: 0 });
        }
    }

    /// Receives what is wanted next: the rest of a payload right into its piece, or anything.
    fn ask(&mut self, ring: &mut Ring) {
        if self.closing || self.receiving.is_some() {
            return;
        }
        let fd = self.fd.clone();
        if let Some(incoming) = &mut self.incoming {
            if let Some(buf) = incoming.piece.take() {
                let (start, token) = (incoming.filled, self.token(RECV_PAYLOAD));
                self.receiving = Some(RECV_PAYLOAD);
                ring.submit(token, Op::Recv { fd, buf, start, all: true });
            }
        } else if self.wants_input()
            && let Some(buf) = self.receive.take()
        {
            self.receiving = Some(RECV);
            let op = Op::Recv { fd, buf, start: self.have, all: false };
            ring.submit(self.token(RECV), op);
        }
    }

    /// Nothing is received beyond what there is room for.
    fn wants_input(&self) -> bool {
        match &self.phase {
            Phase::Handshake(_) => self.out.is_empty() && !self.sending,
            Phase::Transmission => self.have < REQUEST_LEN,
        }
    }

    fn answer(&mut self, answer: Answer) {
        if self.dead {
            return;
        }
        self.out.extend(answer.bufs);
        self.queued.0 += 1;
        self.queued.1 += u64::from(answer.bytes);
    }

    /// Sends what waits to be sent, all at once.
    fn flush(&mut self, ring: &mut Ring) {
        if !self.sending && !self.out.is_empty() {
            self.sending = true;
            self.sent = std::mem::take(&mut self.queued);
            let bufs = std::mem::take(&mut self.out);
            ring.submit(self.token(SEND), Op::Send { fd: self.fd.clone(), bufs });
        }
    }

    /// No more input; answers that are due are still sent, for a while.
    fn close(&mut self) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.deadline = Some(hostio::clock::boottime().after(LINGER));
        if let Some(target) = self.incoming.as_mut().and_then(|incoming| incoming.target.take()) {
            let answer = self.requests.abandon_write(target.request, self.kernel, self.structured);
            answer.into_iter().for_each(|answer| self.answer(answer));
        }
    }

    /// Closes, and gives up on answers too.
    fn give_up(&mut self) {
        self.close();
        self.dead = true;
        self.deadline = None;
        self.out.clear();
        self.queued = (0, 0);
    }

    fn cancel_receive(&self, ring: &mut Ring) {
        if let Some(op) = self.receiving {
            ring.cancel(self.token(op));
        }
    }

    fn status(&self) -> Status {
        let over = self.closing
            && self.receiving.is_none()
            && !self.sending
            && self.out.is_empty()
            && self.requests.at_device() == 0;
        if over { Status::Closed } else { Status::Open }
    }
}

impl Frontend for NbdConnection {
    fn start(&mut self, ring: &mut Ring) {
        self.flush(ring);
        self.ask(ring);
    }

    fn on_completion(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        device: &mut dyn BlockDevice,
    ) -> Status {
        let ended = !matches!(completion.result, Ok(count) if count > 0);
        let count = completion.result.unwrap_or(0) as usize;
        match completion.token.op {
            RECV => {
                self.receiving = None;
                self.receive = completion.buf;
                self.have += count;
            }
            RECV_PAYLOAD => {
                self.receiving = None;
                if let Some(incoming) = &mut self.incoming {
                    incoming.piece = completion.buf;
                    incoming.filled += count;
                }
                if !self.closing && self.is_abandoned() {
                    self.give_up();
                }
                if !self.closing {
                    self.piece_filled(device);
                }
            }
            SEND => {
                self.sending = false;
                self.sent = (0, 0);
            }
            _ => {}
        }
        if ended {
            if completion.token.op == SEND { self.give_up() } else { self.close() }
        }
        self.advance(ring, device);
        if self.closing {
            self.cancel_receive(ring);
        }
        self.status()
    }

    fn on_block_done(&mut self, id: IoId, result: BlockResult, ring: &mut Ring) -> Status {
        if let Some(answer) = self.requests.done(index_of(id), result, self.structured) {
            self.answer(answer);
        }
        self.flush(ring);
        self.status()
    }

    fn resize(&mut self, size: u64) {
        self.export.size = size;
    }

    fn stop(&mut self, ring: &mut Ring) {
        self.close();
        self.cancel_receive(ring);
    }

    fn in_flight(&self) -> usize {
        self.requests.count() + self.queued.0 + self.sent.0
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn tick(&mut self, now: Instant, ring: &mut Ring) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        if !self.closing {
            tracing::debug!(self.owner, "an NBD client took too long to negotiate");
        }
        self.give_up();
        self.cancel_receive(ring);
        if self.sending {
            ring.cancel(self.token(SEND));
        }
    }
}
