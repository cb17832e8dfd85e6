//! The event loop's engine: io_uring behind operations that own what they use.

mod op;
mod slot;
#[cfg(test)]
mod tests;

pub use op::{Completion, Fd, Op, Token};

use crate::Waker;
use io_uring::{IoUring, opcode, squeue, types as ring};
use nix::libc;
use slot::{Slot, Step, Work, immediate};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::{Duration, Instant};
use types::BufMut;

/// User data of the ring's own cancel requests, whose answers mean nothing.
const CANCEL: u64 = u64::MAX;
/// How long a dropped ring waits for its operations before it leaks their memory instead.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// An io_uring of one thread. It neither polls nor starts threads: it sleeps in [`Ring::wait`].
///
/// Dropping it cancels what is in flight and waits for it, disk writes included; what the kernel
/// has not given back after five seconds is leaked rather than freed under it.
pub struct Ring {
    uring: IoUring,
    /// Boxed, because the kernel holds pointers into slots while the vector grows.
    #[allow(clippy::vec_box)]
    slots: Vec<Box<Slot>>,
    free: Vec<u32>,
    /// Entries that found the submission queue full; bounded by what the callers submit.
    backlog: VecDeque<squeue::Entry>,
    /// Completions that needed no kernel.
    ready: VecDeque<Completion>,
    waker: Waker,
    /// A single-issuer ring belongs to the thread that made it.
    _thread: PhantomData<Rc<()>>,
}

impl Ring {
    /// A ring with a submission queue of `entries` (rounded up to a power of two) and four times
    /// as many completions. More operations than that may be in flight.
    ///
    /// # Errors
    /// The kernel's: ENOSYS or EPERM where io_uring is missing or forbidden, ENOMEM; EOPNOTSUPP
    /// if it is older than 5.11 (no timeouts in `wait`).
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = build(entries)?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let waker = Waker::new()?;
        let mut ring = Self {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            ready: VecDeque::new(),
            waker,
            _thread: PhantomData,
        };
        let wake = Work::Wake(ring.waker.fd(), BufMut::zeroed(8));
        ring.start(wake);
        Ok(ring)
    }

    /// Wakes this ring from other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Operations submitted and not yet completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        // One slot is the waker's.
        (self.slots.len() - self.free.len()).saturating_sub(1) + self.ready.len()
    }

    /// Queues `op`; it starts at the next [`Ring::wait`]. The queue has no bound of its own.
    pub fn submit(&mut self, token: Token, op: Op) {
        if let Some(result) = immediate(&op) {
            let buf = match op {
                Op::ReadAt { buf, .. } | Op::Recv { buf, .. } => Some(buf),
                _ => None,
            };
            self.ready.push_back(Completion { token, result, buf, fd: None });
        } else {
            self.start(Work::User(token, op));
        }
    }

    /// Asks that every operation in flight under `token` ends early. It still completes exactly
    /// once: with ECANCELED, or as if nothing had been asked if it was too late (file I/O that
    /// has reached the disk cannot be taken back).
    pub fn cancel(&mut self, token: Token) {
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if matches!(&slot.work, Some(Work::User(found, _)) if *found == token) {
                slot.cancelled = true;
                let data = user_data(index, slot.generation);
                self.push(opcode::AsyncCancel::new(data).build().user_data(CANCEL));
            }
        }
    }

    /// Starts what was queued and appends to `out` what has completed, after sleeping until there
    /// is something, a [`Waker`] wakes it or `timeout` has passed. It may return early with
    /// nothing.
    ///
    /// # Errors
    /// Only if the ring itself is broken; operations report their own errors.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        self.push_backlog();
        let timeout = if self.ready.is_empty() { timeout } else { Some(Duration::ZERO) };
        let entered = match timeout {
            Some(timeout) => {
                let timeout = ring::Timespec::from(timeout);
                let args = ring::SubmitArgs::new().timespec(&timeout);
                self.uring.submitter().submit_with_args(1, &args)
            }
            None => self.uring.submit_and_wait(1),
        };
        match entered {
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        out.extend(self.ready.drain(..));
        self.reap(out);
        Ok(())
    }

    fn start(&mut self, work: Work) {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => {
                self.slots.push(Slot::new());
                self.slots.len() - 1
            }
        };
        self.slots[index].fill(work);
        self.push_slot(index);
    }

    fn push_slot(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let data = user_data(index, slot.generation);
        let entry = slot.entry().user_data(data);
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.push_backlog();
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the entry's pointers lead into a boxed slot and the buffers of its `work`,
            // which stay put until the kernel's completion (or are leaked by `drop`).
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                self.backlog.pop_front();
            } else if self.uring.submit().is_err() {
                // The completion queue is full: `wait` makes room and comes back here.
                return;
            }
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        loop {
            let Some(entry) = self.uring.completion().next() else { return };
            let (data, answer) = (entry.user_data(), entry.result());
            if data == CANCEL {
                continue;
            }
            let index = data as u32 as usize;
            let Some(slot) = self.slots.get_mut(index) else { continue };
            if slot.generation != (data >> 32) as u32 {
                continue;
            }
            match slot.step(answer) {
                Some(Step::Again) => self.push_slot(index),
                Some(Step::Woken) => {
                    self.waker.seen();
                    self.push_slot(index);
                }
                Some(Step::Done(completion)) => {
                    self.free.push(index as u32);
                    out.push(completion);
                }
                None => self.free.push(index as u32),
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What never reached the kernel needs no waiting.
        for entry in self.backlog.drain(..) {
            let index = entry.get_user_data() as u32;
            if let Some(slot) = self.slots.get_mut(index as usize) {
                slot.work = None;
            }
        }
        for slot in &mut self.slots {
            slot.cancelled = true;
        }
        let deadline = Instant::now() + DROP_WAIT;
        let mut out = Vec::new();
        while self.slots.iter().any(|slot| slot.work.is_some()) && Instant::now() < deadline {
            let all = ring::CancelBuilder::any();
            self.push(opcode::AsyncCancel2::new(all).build().user_data(CANCEL));
            if self.wait(Some(Duration::from_millis(100)), &mut out).is_err() {
                break;
            }
            out.clear();
        }
        for slot in self.slots.drain(..) {
            if slot.work.is_some() {
                // The kernel may still use it.
                std::mem::forget(slot);
            }
        }
    }
}

/// The best ring that this kernel has: with task work run only when this thread enters it.
fn build(entries: u32) -> io::Result<IoUring> {
    let completions = entries.saturating_mul(4).max(64);
    let mut best = IoUring::builder();
    best.setup_clamp().setup_cqsize(completions).setup_submit_all();
    let (mut single, mut coop) = (best.clone(), best.clone());
    single.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
    coop.setup_coop_taskrun();
    let mut plain = IoUring::builder();
    plain.setup_clamp().setup_cqsize(completions);
    let mut last = None;
    for builder in [single, coop, plain] {
        match builder.build(entries) {
            Ok(uring) => return Ok(uring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// Errors of `io_uring_enter` that mean "reap and come back": timeout, signal, a full completion
/// queue, a moment without memory.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

fn user_data(index: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | index as u64
}
