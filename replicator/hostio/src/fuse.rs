//! /dev/fuse: mounting, and the two system calls of its protocol.
//!
//! What the messages mean is the front-end's business. Everything that touches the mount point
//! (`stat`, `open`, loop ioctls) waits for answers of whoever serves the descriptor: call it from
//! another thread than that one.

use crate::HostError;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::uio::{readv, writev};
use std::fs::OpenOptions;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// linux/fuse.h
const NOTIFY_RESEND: u32 = 7;

/// Mounts a FUSE filesystem on the directory `at` and returns its /dev/fuse descriptor, in
/// non-blocking mode. It is visible to root only and shows up as type `fuse.holdfast`.
///
/// # Errors
/// [`HostError::Sys`]: ENOENT or ENODEV without /dev/fuse, EPERM without CAP_SYS_ADMIN.
pub fn mount_at(at: &Path, source: &str) -> Result<OwnedFd, HostError> {
    let device = Path::new("/dev/fuse");
    let fd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device)
        .map_err(|error| HostError::sys("open", device, error))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fd.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    mount(Some(source), at, Some("fuse.holdfast"), flags, Some(options.as_str()))
        .map_err(|error| HostError::sys("mount FUSE on", at, error))?;
    Ok(fd.into())
}

/// Unmounts what is mounted on `at`; `lazy` detaches it at once even if files on it are open.
/// Nothing mounted there is no error.
///
/// # Errors
/// [`HostError::Sys`], EBUSY among others.
pub fn unmount(at: &Path, lazy: bool) -> Result<(), HostError> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(at, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(HostError::sys("unmount", at, error)),
    }
}

/// Unmounts `at` at once, whoever still uses it, and removes the directory if it is empty.
///
/// # Errors
/// As [`unmount`].
pub fn remove(at: &Path) -> Result<(), HostError> {
    unmount(at, true)?;
    // Only an empty directory goes; one that is absent is as good.
    let _ = std::fs::remove_dir(at);
    Ok(())
}

/// Has the kernel send every request again that was read from the connection of `fuse` and not
/// answered (FUSE_NOTIFY_RESEND, since Linux 6.9): for who takes over from a dead server.
///
/// # Errors
/// [`HostError::Sys`]: EINVAL on an older kernel, ENODEV or EPERM if the connection is over.
pub fn resend(fuse: &impl AsFd) -> Result<(), HostError> {
    // struct fuse_out_header: a notification has the unique number 0 and its code as error.
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16u32.to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    write_reply(fuse, &[&message]).map_err(|errno| {
        let error = std::io::Error::from_raw_os_error(errno);
        HostError::sys("have requests sent again by", Path::new("/dev/fuse"), error)
    })
}

/// Makes every request waiting on the FUSE filesystem mounted on `at` fail at once, whether or not
/// anybody serves it. Nothing mounted there is no error.
///
/// # Errors
/// [`HostError::Sys`] if the mount table or the control file cannot be used.
pub fn abort(at: &Path) -> Result<(), HostError> {
    let Some(connection) = connection_of(at)? else { return Ok(()) };
    let control = PathBuf::from(format!("/sys/fs/fuse/connections/{connection}/abort"));
    if !control.exists() {
        let connections = Path::new("/sys/fs/fuse/connections");
        match mount(None::<&str>, connections, Some("fusectl"), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(HostError::sys("mount fusectl on", connections, error)),
        }
    }
    std::fs::write(&control, b"1").map_err(|error| HostError::sys("abort by", &control, error))
}

/// The connection number (the device's minor) of the FUSE filesystem mounted on `at`, read from
/// the mount table because a `stat` would wait for an answer.
fn connection_of(at: &Path) -> Result<Option<u32>, HostError> {
    let table = Path::new("/proc/self/mountinfo");
    let text =
        std::fs::read_to_string(table).map_err(|error| HostError::sys("read", table, error))?;
    Ok(text.lines().filter_map(|line| fuse_mount(line, at)).next_back())
}

/// The minor of a mountinfo line (`id parent major:minor root mountpoint options - type …`) if it
/// is a FUSE mount on `at`.
fn fuse_mount(line: &str, at: &Path) -> Option<u32> {
    let mut fields = line.split(' ');
    let (_, minor) = fields.nth(2)?.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    let kind = line.split_once(" - ")?.1.split(' ').next()?;
    (kind.starts_with("fuse") && Path::new(&mountpoint) == at).then(|| minor.parse().ok())?
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// What reading /dev/fuse gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseRead {
    /// A request of this many bytes in all.
    Request(usize),
    /// None waits; poll before the next read.
    Empty,
    /// The filesystem was unmounted or its connection aborted: nothing will come any more.
    Gone,
}

/// Reads one request without blocking: its first bytes into `head`, the rest into `payload`.
/// Together they must hold 8 KiB, and the header plus max_write.
///
/// # Errors
/// A positive errno: EINVAL for buffers that are too small.
pub fn read_request(
    fuse: &impl AsFd,
    head: &mut [u8],
    payload: &mut [u8],
) -> Result<FuseRead, i32> {
    loop {
        let mut parts = [IoSliceMut::new(head), IoSliceMut::new(payload)];
        match readv(fuse, &mut parts) {
            Ok(count) => return Ok(FuseRead::Request(count)),
            // ENOENT: the request was taken back while it was being read.
            Err(Errno::EINTR | Errno::ENOENT) => {}
            Err(Errno::EAGAIN) => return Ok(FuseRead::Empty),
            Err(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(FuseRead::Gone),
            Err(errno) => return Err(errno as i32),
        }
    }
}

/// Answers one request. The kernel takes it whole or not at all, without blocking.
///
/// # Errors
/// A positive errno: ENOENT if nobody waits for the answer any more, EINVAL if it is malformed.
pub fn write_reply(fuse: &impl AsFd, parts: &[&[u8]]) -> Result<(), i32> {
    let mut slices = [IoSlice::new(&[]); 3];
    if parts.len() > slices.len() {
        return Err(libc::EINVAL);
    }
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    loop {
        match writev(fuse, &slices[..parts.len()]) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno as i32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_lines_are_understood() {
        let fuse = "36 35 0:47 / /mnt/a\\040b rw,noatime - fuse.holdfast v rw,user_id=0";
        let ext4 = "37 35 254:1 / /mnt/a\\040b rw shared:1 - ext4 /dev/vda rw";
        for (line, at, expected) in [
            (fuse, "/mnt/a b", Some(47)),
            (fuse, "/mnt/a", None),
            (ext4, "/mnt/a b", None),
            ("36 35 0:x / /m rw - fuse v rw", "/m", None),
            ("36 35", "/m", None),
            ("", "", None),
        ] {
            assert_eq!(fuse_mount(line, Path::new(at)), expected, "{line}");
        }
    }

    #[test]
    fn nothing_mounted_is_no_error() {
        let nowhere = Path::new("/nonexistent/holdfast");
        assert!(abort(nowhere).is_ok());
        assert!(unmount(nowhere, true).is_ok());
    }
}
