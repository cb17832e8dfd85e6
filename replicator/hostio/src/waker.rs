//! Waking a ring that waits, from any thread.

use crate::ring::Fd;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends a [`crate::Ring::wait`] from another thread; cloning is cheap.
///
/// What was made visible before [`Waker::wake`] (a message in a channel) is seen by the ring's
/// thread after the `wait` that this call ends.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: Fd,
    /// Set by the first wake, cleared by the ring when it has seen it: later wakes cost no call.
    pending: Arc<AtomicBool>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { fd: Arc::new(OwnedFd::from(fd)), pending: Arc::default() })
    }

    /// Wakes the ring; a wake that comes while none waits ends its next `wait` at once.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // Cannot fail: one pending wake at a time never fills the counter.
            let _ = nix::unistd::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn fd(&self) -> Fd {
        Arc::clone(&self.fd)
    }

    /// Called by the ring when it has read the counter, before `wait` returns.
    pub(crate) fn seen(&self) {
        self.pending.swap(false, Ordering::AcqRel);
    }
}
