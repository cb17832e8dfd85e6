//! The ioctls that this crate makes, each behind a safe function.

use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

const NO_INFO: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

mod raw {
    use super::{LoopConfig, LoopInfo};
    use nix::libc::c_int;

    // linux/fs.h
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), c_int);
    // linux/loop.h
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo);
    nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
    nix::ioctl_write_int_bad!(loop_ctl_add, 0x4C80);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
}

/// BLKSSZGET: a block device's logical block in bytes.
pub(crate) fn logical_block(device: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores one int through the pointer, which outlives the call.
    unsafe { raw::blksszget(device.as_fd().as_raw_fd(), &raw mut bytes) }?;
    u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// LOOP_CTL_GET_FREE: the number of a free loop device, made if need be.
pub(crate) fn loop_get_free(control: &File) -> io::Result<u32> {
    // SAFETY: takes no argument and touches no memory of this process.
    let index = unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// LOOP_CTL_ADD: the number of a loop device that did not exist before.
pub(crate) fn loop_add(control: &File) -> io::Result<u32> {
    // SAFETY: takes a number (negative: the next unused one) and touches no memory of this process.
    let index = unsafe { raw::loop_ctl_add(control.as_raw_fd(), -1) }?;
    u32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// LOOP_CONFIGURE. `name` is what tools show, cut to 63 bytes.
pub(crate) fn loop_configure(
    device: &File,
    backing: &File,
    block_size: u32,
    flags: u32,
    name: &Path,
) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd())
        .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let mut config =
        LoopConfig { fd, block_size, info: LoopInfo { flags, ..NO_INFO }, reserved: [0; 8] };
    for (to, from) in config.info.file_name[..63].iter_mut().zip(name.as_os_str().as_bytes()) {
        *to = *from;
    }
    // SAFETY: the kernel reads one loop_config, whose layout LoopConfig has (asserted above), and
    // keeps no pointer to it.
    unsafe { raw::loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// LOOP_GET_STATUS64: the flags in force. ENXIO if nothing is attached.
pub(crate) fn loop_flags(device: &File) -> io::Result<u32> {
    let mut info = NO_INFO;
    // SAFETY: the kernel stores one loop_info64, whose layout LoopInfo has (asserted above).
    unsafe { raw::loop_get_status64(device.as_raw_fd(), &raw mut info) }?;
    Ok(info.flags)
}

/// LOOP_SET_CAPACITY: takes over the size of the backing file.
pub(crate) fn loop_set_capacity(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument and touches no memory of this process.
    unsafe { raw::loop_set_capacity(device.as_raw_fd()) }?;
    Ok(())
}

/// LOOP_CLR_FD: detaches, or does so at the last close.
pub(crate) fn loop_clear(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument and touches no memory of this process.
    unsafe { raw::loop_clr_fd(device.as_raw_fd()) }?;
    Ok(())
}
