//! Loop devices: a block device of the kernel over a file that a front-end serves.
//!
//! Every call but [`find_by_backing`] may wait for whoever serves the backing file: call them from
//! another thread than that one.

use crate::{HostError, ioctl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// LO_FLAGS_DIRECT_IO of linux/loop.h.
const DIRECT_IO: u32 = 16;
/// LO_FLAGS_READ_ONLY.
const READ_ONLY: u32 = 1;
/// How many devices may be snatched away by somebody else before attaching gives up.
const ATTEMPTS: u32 = 16;

/// An attached loop device. Dropping it leaves it attached; see [`LoopDevice::detach`].
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
    backing: PathBuf,
    direct_io: bool,
}

impl LoopDevice {
    /// Attaches a free loop device to `backing` with direct I/O and logical blocks of
    /// `block_size` bytes (512 to 4096).
    ///
    /// The kernel drops direct I/O silently where it cannot have it: ask [`Self::direct_io`].
    ///
    /// # Errors
    /// [`HostError::Sys`]: ENOENT without /dev/loop-control, EINVAL for a bad block size.
    pub fn attach(backing: &Path, block_size: u32) -> Result<Self, HostError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(backing)
            .map_err(|error| HostError::sys("open", backing, error))?;
        let control_path = Path::new("/dev/loop-control");
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open(control_path)
            .map_err(|error| HostError::sys("open", control_path, error))?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            // A free device stays "free" while another process configures it, which may take long:
            // after the first try, a new one.
            let index = if attempts == 1 {
                ioctl::loop_get_free(&control)
            } else {
                ioctl::loop_add(&control)
            }
            .map_err(|error| HostError::sys("get a loop device from", control_path, error))?;
            let path = PathBuf::from(format!("/dev/loop{index}"));
            // O_EXCL keeps others from claiming it between here and LOOP_CONFIGURE.
            let opened =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&path);
            let configured = opened.and_then(|device| {
                ioctl::loop_configure(&device, &file, block_size, DIRECT_IO, backing)?;
                Ok(device)
            });
            match configured {
                Ok(device) => {
                    let flags = match ioctl::loop_flags(&device) {
                        Ok(flags) => flags,
                        Err(error) => {
                            let _ = ioctl::loop_clear(&device);
                            return Err(HostError::sys("read the state of", &path, error));
                        }
                    };
                    // Reopened without O_EXCL, so that mkfs, mount and others may claim it.
                    drop(device);
                    let device = open_device(&path)?;
                    return Ok(Self {
                        file: device,
                        path,
                        backing: backing.to_owned(),
                        direct_io: flags & DIRECT_IO != 0 && flags & READ_ONLY == 0,
                    });
                }
                Err(error) if attempts < ATTEMPTS && is_taken(&error) => {}
                Err(error) => return Err(HostError::sys("configure", &path, error)),
            }
        }
    }

    /// Takes hold of an attached device, found by [`find_by_backing`]. Unlike LOOP_GET_STATUS, this
    /// asks nothing of the backing file, whose server may be dead.
    ///
    /// # Errors
    /// [`HostError::Sys`]: ENOENT if nothing is attached to it.
    pub fn open(path: &Path, backing: &Path) -> Result<Self, HostError> {
        let file = open_device(path)?;
        let name = path.file_name().unwrap_or_default();
        let state = Path::new("/sys/block").join(name).join("loop/dio");
        let direct_io = std::fs::read_to_string(&state)
            .map_err(|error| HostError::sys("read the state of", path, error))?
            .starts_with('1');
        Ok(Self { file, path: path.to_owned(), backing: backing.to_owned(), direct_io })
    }

    /// The device, `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the kernel really does direct I/O on the backing file, as read back from it.
    #[must_use]
    pub fn direct_io(&self) -> bool {
        self.direct_io
    }

    /// Makes the device as large as its backing file has become.
    ///
    /// # Errors
    /// [`HostError::Sys`].
    pub fn set_capacity(&self) -> Result<(), HostError> {
        // The kernel takes the size from its cache of the file, which this refreshes.
        std::fs::metadata(&self.backing)
            .map_err(|error| HostError::sys("look at", &self.backing, error))?;
        ioctl::loop_set_capacity(&self.file)
            .map_err(|error| HostError::sys("resize", &self.path, error))
    }

    /// Detaches the device; while others have it open, the kernel does so when the last one closes
    /// it. A device that is detached already is no error.
    ///
    /// # Errors
    /// [`HostError::Sys`].
    pub fn detach(self) -> Result<(), HostError> {
        clear(&self.file, &self.path)
    }
}

/// Detaches the device `path`, also one whose backing file does not answer any more: unlike
/// [`LoopDevice::open`] this asks the kernel nothing about it.
///
/// # Errors
/// As [`LoopDevice::detach`].
pub fn detach_at(path: &Path) -> Result<(), HostError> {
    clear(&open_device(path)?, path)
}

/// Detaches every loop device over `backing`, as [`detach_at`] does.
///
/// # Errors
/// As [`find_by_backing`] and [`LoopDevice::detach`].
pub fn detach_all(backing: &Path) -> Result<(), HostError> {
    for path in find_by_backing(backing)? {
        detach_at(&path)?;
    }
    Ok(())
}

fn clear(device: &File, path: &Path) -> Result<(), HostError> {
    match ioctl::loop_clear(device) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) => Err(HostError::sys("detach", path, error)),
    }
}

/// The loop devices attached to `backing`, whether or not it can still be reached. It goes by what the
/// kernel calls the file: its path, or, once the mount is gone through which it was opened (unmounted
/// lazily, or gone with the mount namespace of a process that ended), its path within its filesystem.
/// So the name of `backing` must be its own on this host.
///
/// # Errors
/// [`HostError::Sys`] if /sys/block cannot be read.
pub fn find_by_backing(backing: &Path) -> Result<Vec<PathBuf>, HostError> {
    let block = Path::new("/sys/block");
    let unmounted = backing.file_name().map(|name| Path::new("/").join(name));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(block).map_err(|error| HostError::sys("list", block, error))? {
        let Ok(entry) = entry else { continue };
        // Devices without a backing file have no such attribute.
        let Ok(text) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let text = text.trim_end_matches('\n');
        let text = text.strip_suffix(" (deleted)").unwrap_or(text);
        if Path::new(text) == backing || Some(Path::new(text)) == unmounted.as_deref() {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether somebody else configured or removed the device since it was found free.
fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENXIO | libc::ENODEV))
}

fn open_device(path: &Path) -> Result<File, HostError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| HostError::sys("open", path, error))
}
