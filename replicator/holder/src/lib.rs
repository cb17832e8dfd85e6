//! The holder: a small process that keeps the /dev/fuse descriptors of a node's volumes open while
//! their daemon is away, so that the kernel devices survive its restart (R14).
//!
//! ```text
//!  daemon ──Keep(device, fd)──▶ holder          kill -9, crash or upgrade of the daemon:
//!    ✗                            │             the FUSE connection stays, requests wait in the kernel
//!  daemon' ◀──Next: device, fd────┘             daemon' attaches with the next epoch and has them sent again
//! ```
//!
//! It must never read or answer a request: what a request may do, only an engine under a granted
//! epoch may decide. What it holds is bounded in time: if no daemon connects within the grace
//! period, waiting I/O gets an error and the devices are removed, and the holder ends. It ends as
//! well when it holds nothing and nobody is connected.
#![forbid(unsafe_code)]

mod client;
mod message;
mod server;

pub use client::{Holder, HolderError};
pub use message::Device;
pub use server::{Life, serve};

use hostio::HostError;
use hostio::{fuse, loopdev};
use std::path::Path;

/// Removes a device, whoever serves it or has served it: waiting I/O fails first, so nothing here
/// hangs; then the loop devices, which keep the mount in use, and the mount with its directory. All
/// steps are tried; each may find nothing to do. Returns what went wrong.
pub fn remove_device(mount: &Path, backing: &Path) -> Vec<HostError> {
    let steps = [fuse::abort(mount), loopdev::detach_all(backing), fuse::remove(mount)];
    steps.into_iter().filter_map(Result::err).collect()
}
