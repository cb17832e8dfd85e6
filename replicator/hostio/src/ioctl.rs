//! The ioctls that this crate makes, each behind a safe function.

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

mod raw {
    // linux/fs.h
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), nix::libc::c_int);
}

/// BLKSSZGET: a block device's logical block in bytes.
pub(crate) fn logical_block(device: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores one int through the pointer, which outlives the call.
    unsafe { raw::blksszget(device.as_fd().as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
