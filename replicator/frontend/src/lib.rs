//! How the kernel and other clients reach a volume: FUSE with a loop device, and NBD.
//!
//! A front-end knows only a block device. It runs on the data thread: it never blocks, sleeps or
//! starts threads, and everything it queues is bounded. It must never know engines or replicas.
#![forbid(unsafe_code)]

mod fuse;
mod nbd;
pub mod select;

pub use fuse::Fuse;
pub use nbd::{Export, NbdConnection, TRANSMISSION_FLAGS};

use hostio::{Completion, Ring};
use types::{BlockOp, BlockResult, Instant, IoId};

/// A volume as a front-end sees it; implemented by the data thread.
pub trait BlockDevice {
    /// Size in bytes, a multiple of [`types::BLOCK`].
    fn size(&self) -> u64;

    /// Starts `op`. It is answered exactly once, by [`Frontend::on_block_done`] with the same
    /// `id`, never from within this call. The caller has checked bounds and alignment.
    fn submit(&mut self, id: IoId, op: BlockOp);
}

/// Whether a front-end is still of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Serving, or still waiting for something of its own.
    Open,
    /// Over: nothing of it is in the ring and no block request of it is in flight. Drop it.
    Closed,
}

/// One way in: a FUSE mount or one NBD connection, driven by the data thread.
///
/// All its ring operations carry its `owner` number in [`hostio::Token::owner`], and all its block
/// requests carry it in the upper 32 bits of their [`IoId`] ([`owner_of`]).
pub trait Frontend {
    /// Puts the first operations into `ring`.
    fn start(&mut self, ring: &mut Ring);

    /// Takes a completion whose token has this front-end's owner.
    fn on_completion(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        device: &mut dyn BlockDevice,
    ) -> Status;

    /// Takes the result of a block request that this front-end submitted.
    fn on_block_done(&mut self, id: IoId, result: BlockResult, ring: &mut Ring) -> Status;

    /// Announces the volume's new size in bytes; never smaller than before (R25).
    fn resize(&mut self, size: u64);

    /// Stops taking requests. [`Status::Closed`] follows from a later call, once what is in flight
    /// has ended.
    fn stop(&mut self, ring: &mut Ring);

    /// Requests taken and not yet answered.
    fn in_flight(&self) -> usize;

    /// When [`Frontend::tick`] wants to be called; `None` if never.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Lets time pass; to be called at or after [`Frontend::deadline`].
    fn tick(&mut self, now: Instant, ring: &mut Ring) {
        let _ = (now, ring);
    }
}

/// The owner number of the front-end that submitted `id`.
#[must_use]
pub const fn owner_of(id: IoId) -> u32 {
    (id.0 >> 32) as u32
}

pub(crate) const fn io_id(owner: u32, index: u32) -> IoId {
    IoId((owner as u64) << 32 | index as u64)
}

/// The low half of an [`IoId`].
pub(crate) const fn index_of(id: IoId) -> u32 {
    id.0 as u32
}
