//! A pool's device or file, owned by one process.

use crate::ring::Fd;
use crate::{HostError, ioctl};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::uio::{pread, pwrite};
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::{BLOCK, Buf, BufMut};

/// A pool opened for direct I/O and locked (R12).
///
/// The lock (flock, and O_EXCL on a block device) is a property of the open file description that
/// all I/O goes through. The kernel keeps that description open for every request in flight, so a
/// killed process's lock falls only when its last write is over.
#[derive(Debug)]
pub struct PoolFile {
    file: Arc<OwnedFd>,
    path: PathBuf,
    size: u64,
    logical_block: u32,
    block_device: bool,
}

impl PoolFile {
    /// Opens and locks `path`, a regular file or a block device; never waits, never creates.
    ///
    /// # Errors
    /// [`HostError::InUse`] while anybody else holds it (a mounted device included) or a killed
    /// owner's writes are in flight; [`HostError::WrongKind`], [`HostError::NoDirectIo`], or what
    /// the kernel said.
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let metadata =
            std::fs::metadata(path).map_err(|error| HostError::sys("look at", path, error))?;
        let block_device = metadata.file_type().is_block_device();
        if !block_device && !metadata.is_file() {
            return Err(HostError::WrongKind { path: path.to_owned() });
        }
        let mut flags = OFlag::O_DIRECT | OFlag::O_CLOEXEC;
        flags.set(OFlag::O_EXCL, block_device);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits())
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) => HostError::InUse { path: path.to_owned() },
                Some(libc::EINVAL) => HostError::NoDirectIo { path: path.to_owned() },
                _ => HostError::sys("open", path, error),
            })?;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => HostError::InUse { path: path.to_owned() },
            std::fs::TryLockError::Error(error) => HostError::sys("lock", path, error),
        })?;
        let logical_block = if block_device {
            ioctl::logical_block(&file).map_err(|error| HostError::sys("examine", path, error))?
        } else {
            BLOCK as u32
        };
        if u64::from(logical_block) > BLOCK {
            return Err(HostError::NoDirectIo { path: path.to_owned() });
        }
        let end =
            file.seek(SeekFrom::End(0)).map_err(|error| HostError::sys("measure", path, error))?;
        let size = end - end % BLOCK;
        let file = Arc::new(OwnedFd::from(file));
        Ok(Self { file, path: path.to_owned(), size, logical_block, block_device })
    }

    /// The locked description, for [`crate::Op`]s.
    #[must_use]
    pub fn fd(&self) -> Fd {
        Arc::clone(&self.file)
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Usable bytes: whole 4096-byte blocks, as of opening.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The device's own block in bytes (512 to 4096); 4096 for a file.
    #[must_use]
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// Whether it is a block device rather than a file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Fills `buf` from `offset`, blocking; for formatting and recovery.
    ///
    /// # Errors
    /// A positive errno: EINVAL for what is not made of whole blocks, EIO at the end of the pool.
    pub fn read_at(&self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        whole_blocks(offset, buf.len())?;
        let mut rest = buf.as_mut_slice();
        let mut at = offset;
        while !rest.is_empty() {
            match pread(&self.file, rest, at as libc::off_t) {
                Ok(0) => return Err(libc::EIO),
                Ok(count) => {
                    rest = &mut rest[count..];
                    at += count as u64;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno as i32),
            }
        }
        Ok(())
    }

    /// Writes `data` at `offset`, blocking; for formatting and recovery.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    pub fn write_at(&self, offset: u64, data: &Buf) -> Result<(), i32> {
        whole_blocks(offset, data.len())?;
        let mut rest = data.as_slice();
        let mut at = offset;
        while !rest.is_empty() {
            match pwrite(&self.file, rest, at as libc::off_t) {
                Ok(0) => return Err(libc::EIO),
                Ok(count) => {
                    rest = &rest[count..];
                    at += count as u64;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno as i32),
            }
        }
        Ok(())
    }

    /// Makes every completed write durable, blocking. Never call it again after an error (R13).
    ///
    /// # Errors
    /// A positive errno.
    pub fn sync(&self) -> Result<(), i32> {
        nix::unistd::fdatasync(&self.file).map_err(|error| error as i32)
    }
}

fn whole_blocks(offset: u64, len: usize) -> Result<(), i32> {
    let whole = offset.is_multiple_of(BLOCK)
        && (len as u64).is_multiple_of(BLOCK)
        && offset.checked_add(len as u64).is_some_and(|end| i64::try_from(end).is_ok());
    if whole { Ok(()) } else { Err(libc::EINVAL) }
}
