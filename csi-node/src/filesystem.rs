//! Making a filesystem on a blank volume, and growing one.

use crate::bounded::Bounded;
use crate::content::{self, Content};
use crate::{Error, command};
use core::time::Duration;
use csi_common::FsType;
use std::path::Path;
use types::VolumeId;

/// mkfs writes tens of MiB at most, since nothing is discarded or zeroed.
const MKFS_LIMIT: Duration = Duration::from_secs(100);

/// Growing touches a little metadata for each GiB.
const GROW_LIMIT: Duration = Duration::from_secs(100);

/// Sees to it that `device` holds a filesystem: takes the one that is there, or makes one on a blank
/// device; never anything else. Never repairs: a mount replays the journal, and what that does not mend
/// wants a person.
///
/// `wanted` is what the caller asked for; none: whatever is there, else ext4.
///
/// # Errors
/// FAILED_PRECONDITION if something else is there; failures of mkfs with what it printed.
pub async fn ensure(
    volume: VolumeId,
    device: &Path,
    wanted: Option<FsType>,
    bounded: &Bounded,
) -> Result<FsType, Error> {
    let mut content = content::inspect(volume, device, bounded).await?;
    let unfinished = content == Content::Unfinished;
    if unfinished {
        tracing::warn!(device = %device.display(), "an earlier mkfs was cut short; starting anew");
        let path = device.to_string_lossy();
        command::run("blkdiscard", &["--", &path], device, MKFS_LIMIT).await?;
        content = content::inspect(volume, device, bounded).await?;
    }
    match content {
        Content::Blank => {
            let fs_type = wanted.unwrap_or(FsType::Ext4);
            make(volume, device, fs_type, !unfinished, bounded).await?;
            Ok(fs_type)
        }
        Content::FileSystem(found) => match wanted {
            Some(wanted) if wanted != found => Err(Error::Precondition(format!(
                "volume {volume} holds {found}, and {wanted} was asked for; it is not formatted"
            ))),
            _ => Ok(found),
        },
        Content::Foreign(what) => Err(Error::Precondition(format!(
            "volume {volume} holds {what}; it is never formatted over. Use it as a block volume, \
             or wipe it first"
        ))),
        Content::Unfinished => Err(Error::Precondition(format!(
            "volume {volume} holds a mkfs that was cut short and could not be discarded"
        ))),
    }
}

/// `zeroed`: the device is known to read as zeros all over.
async fn make(
    volume: VolumeId,
    device: &Path,
    fs_type: FsType,
    zeroed: bool,
    bounded: &Bounded,
) -> Result<(), Error> {
    let path = device.to_string_lossy();
    content::mark(volume, device, bounded).await?;
    // No discard: the volume is thin and blank. No force either, in both: each refuses a device in use.
    match fs_type {
        FsType::Ext4 => {
            let extended = if zeroed {
                "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1"
            } else {
                "nodiscard,lazy_itable_init=1"
            };
            // No blocks kept back for root: the whole volume is the pod's.
            let arguments = ["-q", "-b", "4096", "-m", "0", "-E", extended, "--", &path];
            command::run("mkfs.ext4", &arguments, device, MKFS_LIMIT).await?;
        }
        FsType::Xfs => {
            let arguments = ["-q", "-K", "-s", "size=4096", "--", &path];
            command::run("mkfs.xfs", &arguments, device, MKFS_LIMIT).await?;
        }
    }
    content::unmark(volume, device, bounded).await?;
    tracing::info!(device = %device.display(), %fs_type, "formatted");
    Ok(())
}

/// Grows the filesystem on `device`, mounted at `mount_point`, to the size of the device. Does nothing
/// if it has that size.
///
/// # Errors
/// Failures of the tools with what they printed.
pub async fn grow(fs_type: FsType, device: &Path, mount_point: &Path) -> Result<(), Error> {
    match fs_type {
        FsType::Ext4 => command::run("resize2fs", &[device.as_os_str()], device, GROW_LIMIT).await,
        FsType::Xfs => {
            command::run(
                "xfs_growfs",
                &["-d".as_ref(), mount_point.as_os_str()],
                device,
                GROW_LIMIT,
            )
            .await
        }
    }
}
