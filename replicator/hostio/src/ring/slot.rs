//! One operation in flight: it keeps everything the kernel may touch alive and in place.

use super::op::{Completion, Fd, Op, Token};
use io_uring::{opcode, squeue, types as ring};
use nix::libc;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use types::BufMut;

/// Longest single request to the kernel, in bytes; longer operations are resumed.
const CHUNK: usize = 1 << 30;
/// Buffers per sendmsg (the kernel's UIO_MAXIOV); more are resumed.
const MAX_IOV: usize = 1024;

pub(super) enum Work {
    /// Of a user of the ring.
    User(Token, Op),
    /// The ring's own read of its waker's counter.
    Wake(Fd, BufMut),
}

/// What a completion of the kernel means for the slot.
pub(super) enum Step {
    /// There is more to do: submit the slot's entry again.
    Again,
    /// The waker's counter was read.
    Woken,
    /// Over.
    Done(Completion),
}

/// Lives in a `Box` that is neither moved nor freed before the kernel's completion: the pointers in
/// its submission entry lead into it and into the buffers of its `work`.
pub(super) struct Slot {
    /// Distinguishes the slot's lives, so that a late completion cannot be taken for another's.
    pub(super) generation: u32,
    /// `None` while the slot is free.
    pub(super) work: Option<Work>,
    /// Set by a cancel: what is short is not resumed.
    pub(super) cancelled: bool,
    done: usize,
    punch: bool,
    iov: Vec<libc::iovec>,
    msg: libc::msghdr,
    addr: Option<SockaddrStorage>,
}

impl Slot {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            generation: 0,
            work: None,
            cancelled: false,
            done: 0,
            punch: false,
            iov: Vec::new(),
            // SAFETY: msghdr is integers and pointers, for which all-zero is a valid value.
            msg: unsafe { std::mem::zeroed() },
            addr: None,
        })
    }

    /// Begins a new life.
    pub(super) fn fill(&mut self, work: Work) {
        self.generation = self.generation.wrapping_add(1);
        self.work = Some(work);
        self.cancelled = false;
        self.done = 0;
        self.punch = false;
    }

    /// The entry of what is left to do. Its pointers stay valid until `work` is taken out.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let Self { work, done, iov, msg, addr, .. } = self;
        let done = *done;
        match work {
            None => opcode::Nop::new().build(),
            Some(Work::Wake(fd, buf)) => {
                opcode::Read::new(raw(fd), buf.as_mut_slice().as_mut_ptr(), 8).build()
            }
            Some(Work::User(_, op)) => match op {
                Op::ReadAt { fd, offset, buf } => {
                    let rest = &mut buf.as_mut_slice()[done..];
                    opcode::Read::new(raw(fd), rest.as_mut_ptr(), chunk(rest.len()))
                        .offset(offset.wrapping_add(done as u64))
                        .build()
                }
                Op::WriteAt { fd, offset, data, dsync } => {
                    let rest = &data.as_slice()[done..];
                    opcode::Write::new(raw(fd), rest.as_ptr(), chunk(rest.len()))
                        .offset(offset.wrapping_add(done as u64))
                        .rw_flags(if *dsync { libc::RWF_DSYNC } else { 0 })
                        .build()
                }
                Op::Sync { fd } => {
                    opcode::Fsync::new(raw(fd)).flags(ring::FsyncFlags::DATASYNC).build()
                }
                Op::Zero { fd, offset, len } => {
                    let how = if self.punch {
                        libc::FALLOC_FL_PUNCH_HOLE
                    } else {
                        libc::FALLOC_FL_ZERO_RANGE
                    };
                    opcode::Fallocate::new(raw(fd), *len)
                        .offset(*offset)
                        .mode(how | libc::FALLOC_FL_KEEP_SIZE)
                        .build()
                }
                Op::Accept { fd } => {
                    opcode::Accept::new(raw(fd), std::ptr::null_mut(), std::ptr::null_mut())
                        .flags(libc::SOCK_CLOEXEC)
                        .build()
                }
                Op::Connect { fd, addr: to } => {
                    let addr = addr.insert(SockaddrStorage::from(*to));
                    opcode::Connect::new(raw(fd), addr.as_ptr(), addr.len()).build()
                }
                Op::Recv { fd, buf, start, all } => {
                    let rest = &mut buf.as_mut_slice()[*start..];
                    opcode::Recv::new(raw(fd), rest.as_mut_ptr(), chunk(rest.len()))
                        .flags(if *all { libc::MSG_WAITALL } else { 0 })
                        .build()
                }
                Op::Send { fd, bufs } => {
                    iov.clear();
                    let mut skip = done;
                    for buf in bufs.iter() {
                        let bytes = buf.as_slice();
                        if skip >= bytes.len() {
                            skip -= bytes.len();
                            continue;
                        }
                        let rest = &bytes[skip..];
                        skip = 0;
                        iov.push(libc::iovec {
                            // sendmsg only reads through it.
                            iov_base: rest.as_ptr().cast_mut().cast(),
                            iov_len: rest.len(),
                        });
                        if iov.len() == MAX_IOV {
                            break;
                        }
                    }
                    msg.msg_iov = iov.as_mut_ptr();
                    msg.msg_iovlen = iov.len() as _;
                    opcode::SendMsg::new(raw(fd), std::ptr::from_ref(msg))
                        .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
                        .build()
                }
                Op::PollIn { fd } => opcode::PollAdd::new(raw(fd), libc::POLLIN as u32).build(),
            },
        }
    }

    /// Takes the kernel's answer (bytes, or a negative errno). `None` if the slot was free.
    pub(super) fn step(&mut self, answer: i32) -> Option<Step> {
        let (token, op) = match self.work.take()? {
            Work::Wake(fd, buf) => {
                if answer == -libc::ECANCELED {
                    return None;
                }
                self.work = Some(Work::Wake(fd, buf));
                return Some(Step::Woken);
            }
            Work::User(token, op) => (token, op),
        };
        let result = match u32::try_from(answer) {
            Ok(count) => self.progress(&op, count as usize),
            Err(_) => {
                let retry = matches!(op, Op::Zero { .. })
                    && answer == -libc::EOPNOTSUPP
                    && !self.punch
                    && !self.cancelled;
                self.punch |= retry;
                match answer {
                    _ if retry => None,
                    // A request that had begun in a kernel worker is cancelled by a signal.
                    _ if self.cancelled && answer == -libc::EINTR => Some(Err(libc::ECANCELED)),
                    _ => Some(Err(answer.wrapping_neg())),
                }
            }
        };
        let Some(result) = result else {
            self.work = Some(Work::User(token, op));
            return Some(Step::Again);
        };
        let (buf, fd) = match op {
            Op::ReadAt { buf, .. } | Op::Recv { buf, .. } => (Some(buf), None),
            Op::Accept { .. } if answer >= 0 => {
                // SAFETY: a successful accept answers with a new descriptor that nobody else owns;
                // it is taken here only once, as `work` is gone.
                (None, Some(unsafe { OwnedFd::from_raw_fd(answer) }))
            }
            _ => (None, None),
        };
        let result = if fd.is_some() { Ok(0) } else { result };
        Some(Step::Done(Completion { token, result, buf, fd }))
    }

    /// `None` if the operation has to go on after `count` more bytes.
    fn progress(&mut self, op: &Op, count: usize) -> Option<Result<u32, i32>> {
        let (whole, at_zero) = match op {
            Op::ReadAt { buf, .. } => (buf.len(), None),
            Op::WriteAt { data, .. } => (data.len(), Some(libc::EIO)),
            Op::Send { bufs, .. } => (total(bufs), Some(libc::EPIPE)),
            _ => return Some(Ok(count as u32)),
        };
        self.done += count;
        match at_zero {
            _ if self.done >= whole => Some(Ok(self.done as u32)),
            _ if self.cancelled => Some(Err(libc::ECANCELED)),
            None if count == 0 => Some(Ok(self.done as u32)),
            Some(errno) if count == 0 => Some(Err(errno)),
            _ => None,
        }
    }
}

/// Whether the kernel has anything to do for `op`: its answer without asking, otherwise.
pub(super) fn immediate(op: &Op) -> Option<Result<u32, i32>> {
    match op {
        Op::Send { bufs, .. } => match total(bufs) {
            0 => Some(Ok(0)),
            len if u32::try_from(len).is_err() => Some(Err(libc::EINVAL)),
            _ => None,
        },
        Op::ReadAt { buf, .. } if u32::try_from(buf.len()).is_err() => Some(Err(libc::EINVAL)),
        Op::WriteAt { data, .. } if data.is_empty() => Some(Ok(0)),
        Op::WriteAt { data, .. } if u32::try_from(data.len()).is_err() => Some(Err(libc::EINVAL)),
        // A recv of nothing would look like the end of the stream.
        Op::Recv { buf, start, .. } if *start >= buf.len() => Some(Err(libc::EINVAL)),
        _ => None,
    }
}

fn total(bufs: &[types::Buf]) -> usize {
    bufs.iter().map(types::Buf::len).sum()
}

fn raw(fd: &Fd) -> ring::Fd {
    ring::Fd(fd.as_raw_fd())
}

fn chunk(len: usize) -> u32 {
    len.min(CHUNK) as u32
}
