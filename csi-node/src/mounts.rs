//! Mounting and unmounting, bounded in time.

use crate::Error;
use crate::bounded::Bounded;
use crate::mountinfo::{DeviceNumber, Mount, MountTable};
use crate::options::{Options, repeated};
use core::time::Duration;
use csi_common::FsType;
use nix::errno::Errno;
use nix::libc::{O_CLOEXEC, O_EXCL};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// How long a device may be claimed by somebody who only tries.
const CLAIMED: Duration = Duration::from_secs(1);

/// A mount may replay a journal, each I/O of which may take as long as R4 allows.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// Unmounting from a live device writes out what is dirty.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);

/// Unmounting from a dead device: nothing is to be saved, so nothing is to be waited for.
const DEAD_LIMIT: Duration = Duration::from_secs(3);

/// Looking at paths; only a dead mount on the way makes this take any time.
const PATH_LIMIT: Duration = Duration::from_secs(5);

const KEEP: MntFlags = MntFlags::UMOUNT_NOFOLLOW;

/// Whether a device can still save what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Its attachment works: unmounting waits for dirty data, and a mount in use is left alone.
    Alive,
    /// Its epoch is over, or nobody serves it: unmounting never waits.
    Dead,
}

/// Number and name (`loop7`) of the block device at `path`.
///
/// # Errors
/// [`Error::Io`] if there is none.
pub fn device_number(path: &Path) -> Result<(DeviceNumber, PathBuf), Error> {
    let rdev = std::fs::metadata(path).map_err(Error::io("look at", path))?.rdev();
    let number =
        DeviceNumber { major: nix::sys::stat::major(rdev), minor: nix::sys::stat::minor(rdev) };
    Ok((number, PathBuf::from(path.file_name().unwrap_or_default())))
}

/// `path` as the mount table spells it: with the links of its parents followed. The last part must not be
/// a link. A path whose parent does not exist is returned as it is.
///
/// # Errors
/// FAILED_PRECONDITION for a link, [`Error::Io`].
pub async fn resolve(path: &Path, bounded: &Bounded) -> Result<PathBuf, Error> {
    let path = path.to_owned();
    let work = move || {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(path);
        };
        let resolved = match parent.canonicalize() {
            Ok(parent) => parent.join(name),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(Error::io("resolve", parent)(error)),
        };
        match resolved.read_link() {
            Ok(_) => Err(Error::Precondition(format!(
                "{}: is a symbolic link; accepted: a directory, or for a block volume a file",
                path.display()
            ))),
            Err(_) => Ok(resolved),
        }
    };
    bounded.run("path lookup", PATH_LIMIT, work).await
}

/// Creates the directory `path`; `parents` too if wanted. One that exists is fine.
///
/// # Errors
/// FAILED_PRECONDITION if something else is there or the parent is missing; [`Error::Io`].
pub async fn make_directory(path: &Path, parents: bool, bounded: &Bounded) -> Result<(), Error> {
    let path = path.to_owned();
    let work = move || match std::fs::DirBuilder::new().recursive(parents).create(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(cannot_create(&path, error, "a directory")),
    };
    bounded.run("mkdir", PATH_LIMIT, work).await
}

/// Creates the empty file `path`. An empty file that exists is fine.
///
/// # Errors
/// As [`make_directory`].
pub async fn make_file(path: &Path, bounded: &Bounded) -> Result<(), Error> {
    let path = path.to_owned();
    let work = move || match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            match std::fs::symlink_metadata(&path) {
                Ok(found) if found.is_file() && found.len() == 0 => Ok(()),
                _ => Err(cannot_create(&path, error, "an empty file")),
            }
        }
        Err(error) => Err(cannot_create(&path, error, "an empty file")),
    };
    bounded.run("create", PATH_LIMIT, work).await
}

fn cannot_create(path: &Path, error: std::io::Error, what: &str) -> Error {
    match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotFound | ErrorKind::NotADirectory => {
            Error::Precondition(format!(
                "{}: {error}; wanted: {what}, or nothing there and its parent directory",
                path.display()
            ))
        }
        _ => Error::io("create", path)(error),
    }
}

/// Removes the directory or file that a publish made: only if empty. What is gone already is fine.
///
/// # Errors
/// [`Error::Io`].
pub async fn remove_target(path: &Path, bounded: &Bounded) -> Result<(), Error> {
    let path = path.to_owned();
    let work = move || {
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => std::fs::remove_dir(&path),
            Ok(found) if found.is_file() && found.len() == 0 => std::fs::remove_file(&path),
            Ok(_) => Err(std::io::Error::other("is not an empty file or directory of ours")),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    };
    bounded.run("remove", PATH_LIMIT, work).await
}

/// Mounts the filesystem on `device` at `target`.
///
/// # Errors
/// [`Error::System`], [`Error::Stuck`].
pub async fn mount_filesystem(
    device: &Path,
    target: &Path,
    fs_type: FsType,
    options: &Options,
    bounded: &Bounded,
) -> Result<(), Error> {
    let attempt = |options: Options| {
        let (device, target) = (device.to_owned(), target.to_owned());
        bounded.run("mount", MOUNT_LIMIT, move || {
            let data = Some(options.data.as_str()).filter(|data| !data.is_empty());
            let begun = Instant::now();
            loop {
                match mount(Some(&device), &target, Some(fs_type.name()), options.flags, data) {
                    // LOOP_CONFIGURE of another process claims a device for a moment before it sees
                    // that it is taken (drivers/block/loop.c).
                    Err(Errno::EBUSY) if begun.elapsed() < CLAIMED => thread::sleep(CLAIMED / 50),
                    result => return result.map_err(Error::system("mount", &target)),
                }
            }
        })
    };
    match attempt(options.clone()).await {
        // XFS refuses a UUID that it has mounted already: that of a dead mount of an earlier epoch that
        // some process still holds, or of a volume that this one is a copy of. The device is ours alone.
        Err(Error::System { errno: Errno::EINVAL, .. }) if fs_type == FsType::Xfs => {
            tracing::warn!(device = %device.display(), "mounting again with nouuid");
            let mut options = options.clone();
            options.add("nouuid");
            attempt(options).await
        }
        other => other,
    }
}

/// Binds `source` (a mount point or a device node) to `target`, read-only if wanted; `like` are the options
/// of the mount that is bound, which stay. After an error nothing is mounted.
///
/// # Errors
/// [`Error::System`], [`Error::Stuck`].
pub async fn bind(
    source: &Path,
    target: &Path,
    read_only: bool,
    like: &[String],
    bounded: &Bounded,
) -> Result<(), Error> {
    const NONE: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | repeated(like);
    let (source, target) = (source.to_owned(), target.to_owned());
    let work = move || {
        mount(Some(&source), &target, NONE, MsFlags::MS_BIND, NONE)
            .map_err(Error::system("bind mount", &target))?;
        if read_only && let Err(errno) = mount(NONE, &target, NONE, flags, NONE) {
            if let Err(errno) = umount2(&target, KEEP | MntFlags::MNT_DETACH) {
                tracing::error!(path = %target.display(), %errno, "cannot undo a bind mount");
            }
            return Err(Error::system("read-only remount", &target)(errno));
        }
        Ok(())
    };
    bounded.run("bind mount", MOUNT_LIMIT, work).await
}

/// Unmounts everything that is stacked on `path`. Only what could be ours is touched. Nothing mounted is
/// fine.
///
/// # Errors
/// FAILED_PRECONDITION if the mount is in use or not one of ours; [`Error::Stuck`] if a live device did
/// not take its dirty data in time: the kernel goes on with it.
pub async fn unmount_all(path: &Path, health: Health, bounded: &Bounded) -> Result<(), Error> {
    loop {
        let table = MountTable::read()?;
        let Some(top) = table.top(path) else { return Ok(()) };
        refuse_foreign(top)?;
        let before = table.at(path).count();
        unmount_top(path, health, bounded).await?;
        if MountTable::read()?.at(path).count() >= before {
            return Err(Error::Precondition(format!("{}: still mounted", path.display())));
        }
    }
}

fn refuse_foreign(mount: &Mount) -> Result<(), Error> {
    if mount.could_be_ours() {
        return Ok(());
    }
    Err(Error::Precondition(format!(
        "{}: a {} filesystem is mounted there, which is not Holdfast's; unmount it first",
        mount.point.display(),
        mount.fs_type
    )))
}

async fn unmount_top(path: &Path, health: Health, bounded: &Bounded) -> Result<(), Error> {
    let (flags, limit) = match health {
        Health::Alive => (KEEP, UNMOUNT_LIMIT),
        Health::Dead => (KEEP | MntFlags::MNT_DETACH, DEAD_LIMIT),
    };
    let target = path.to_owned();
    let work = move || umount2(&target, flags).map_err(Error::system("umount", &target));
    match bounded.run("umount", limit, work).await {
        // The mount leaves the table before the device is waited for. The rest is the kernel's business:
        // it ends when the device is torn down.
        Err(Error::Stuck { .. }) if health == Health::Dead => {
            tracing::warn!(path = %path.display(), "umount of a dead device goes on in the kernel");
            Ok(())
        }
        // Somebody else was faster.
        Err(Error::System { errno: Errno::EINVAL, .. }) => Ok(()),
        Err(Error::System { errno: Errno::EBUSY, .. }) => Err(Error::Precondition(format!(
            "{}: in use; close what is open on it first",
            path.display()
        ))),
        other => other,
    }
}

/// Whether nothing has the device mounted, in any mount namespace, nor is still writing it out.
///
/// # Errors
/// FAILED_PRECONDITION if so; [`Error::Io`].
pub async fn check_unused(device: &Path, bounded: &Bounded) -> Result<(), Error> {
    let device = device.to_owned();
    let work = move || {
        let options = O_EXCL | O_CLOEXEC;
        match OpenOptions::new().read(true).custom_flags(options).open(&device) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                Err(Error::Precondition(format!(
                    "{}: still mounted in some mount namespace, or still being written out",
                    device.display()
                )))
            }
            Err(error) => Err(Error::io("open", &device)(error)),
        }
    };
    bounded.run("open of the device", PATH_LIMIT, work).await
}
