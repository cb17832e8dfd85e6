//! What a ring is asked to do and what it answers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use types::{Buf, BufMut};

/// A file description, kept open while an operation on it is in flight: the pool's lock lives on
/// the very description that writes go through (R12).
pub type Fd = Arc<OwnedFd>;

/// Names an operation to whoever submitted it; the ring never interprets it. Tokens of operations
/// in flight at the same time should differ, or [`crate::Ring::cancel`] hits them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Which part of the thread it belongs to (a connection, the pool, a front-end).
    pub owner: u32,
    /// Which of the owner's operations.
    pub op: u32,
}

/// One operation. It owns its buffers and a share of its descriptor until it has completed.
///
/// Sockets must be in blocking mode ([`crate::net::into_ring`]): the ring does the waiting.
#[derive(Debug)]
pub enum Op {
    /// Fills `buf` from `offset` (bytes). Completes with the bytes read; fewer than asked only at
    /// the end of the file.
    ReadAt {
        /// File or device.
        fd: Fd,
        /// Bytes from the start.
        offset: u64,
        /// Filled; comes back in [`Completion::buf`].
        buf: BufMut,
    },
    /// Writes all of `data` at `offset` (bytes); completes with its length, never with less.
    WriteAt {
        /// File or device.
        fd: Fd,
        /// Bytes from the start.
        offset: u64,
        /// What to write.
        data: Buf,
        /// RWF_DSYNC: durable when it completes.
        dsync: bool,
    },
    /// fdatasync: covers every write that completed before it was submitted.
    Sync {
        /// File or device.
        fd: Fd,
    },
    /// The range reads as zeros afterwards and the size stays: FALLOC_FL_ZERO_RANGE, then
    /// FALLOC_FL_PUNCH_HOLE where that is not known. EOPNOTSUPP if neither is: write zeros then.
    Zero {
        /// File or device.
        fd: Fd,
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Accepts one connection; it comes back, close-on-exec, in [`Completion::fd`].
    Accept {
        /// A listening socket.
        fd: Fd,
    },
    /// Connects a socket made by [`crate::net::tcp_socket`].
    Connect {
        /// The socket.
        fd: Fd,
        /// Where to.
        addr: SocketAddr,
    },
    /// One recv into `buf[start..]`. Completes with the bytes received; 0 is the end of the stream.
    Recv {
        /// A connected socket.
        fd: Fd,
        /// Filled from `start`; comes back in [`Completion::buf`].
        buf: BufMut,
        /// Where to begin, in bytes.
        start: usize,
        /// MSG_WAITALL: completes when the rest of `buf` is full, or short at the end of the stream.
        all: bool,
    },
    /// Sends every byte of `bufs` in order; completes with their sum, never with less. The caller
    /// keeps to one `Send` at a time per socket: two in flight may interleave.
    Send {
        /// A connected socket.
        fd: Fd,
        /// What to send.
        bufs: Vec<Buf>,
    },
    /// Completes with the poll events once the descriptor is readable, hung up or in error.
    PollIn {
        /// Anything that can be polled.
        fd: Fd,
    },
}

/// How an operation ended. Every submitted operation completes exactly once.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// Bytes (or poll events), or a positive errno; ECANCELED after [`crate::Ring::cancel`].
    pub result: Result<u32, i32>,
    /// The buffer of a `ReadAt` or `Recv`, also after an error.
    pub buf: Option<BufMut>,
    /// The connection of a successful `Accept`.
    pub fd: Option<OwnedFd>,
}
