//! What is on a device, so that nothing is ever formatted over.
//!
//! A device counts as blank only if blkid knows no signature on it *and* its first and last MiB were
//! read and are zeros: blkid alone says "nothing" of a device that it cannot read, too.
//!
//! mkfs takes a while and a node may die in it. What it leaves is neither blank nor a filesystem, so
//! before mkfs four marker blocks are written, and they are removed after mkfs and before the first
//! mount. Hence: where a marker is found nothing was ever mounted, and starting anew loses nothing.

use crate::bounded::Bounded;
use crate::{Error, command};
use core::time::Duration;
use csi_common::FsType;
use nix::libc::{O_CLOEXEC, O_EXCL};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use types::{BLOCK, VolumeId};

/// For a few MiB of reads or writes: longer than an engine may hold an I/O (R4) before it fails it.
const IO_LIMIT: Duration = Duration::from_secs(30);

/// How much has to be zeros at either end, in bytes.
const ENDS: u64 = 1 << 20;

/// Marker blocks lie at these fifths of the device: mkfs writes none of them all.
const MARKERS: [u64; 4] = [1, 2, 3, 4];

/// blkid's exit status when it knows nothing of the device.
const BLKID_NOTHING: i32 = 2;
/// blkid's exit status when it sees more than one answer.
const BLKID_AMBIVALENT: i32 = 8;

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing was ever written that matters.
    Blank,
    /// A filesystem that we can mount.
    FileSystem(FsType),
    /// A mkfs of ours that did not come to its end.
    Unfinished,
    /// Something else; in words.
    Foreign(String),
}

/// Finds out what is on `device`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Stuck`], [`Error::Program`].
pub async fn inspect(volume: VolumeId, device: &Path, bounded: &Bounded) -> Result<Content, Error> {
    let of = device.to_owned();
    let marked =
        bounded.run("read of the device", IO_LIMIT, move || has_marker(volume, &of)).await?;
    if marked {
        return Ok(Content::Unfinished);
    }
    let arguments = ["-p", "-o", "export", "--", &device.to_string_lossy()];
    let output = command::output("blkid", &arguments, device, IO_LIMIT).await?;
    let found = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => Ok(signature(&found)),
        Some(BLKID_NOTHING) => {
            let of = device.to_owned();
            bounded.run("read of the device", IO_LIMIT, move || ends(&of)).await
        }
        Some(BLKID_AMBIVALENT) => Ok(Content::Foreign("several signatures at once".into())),
        _ => Err(command::unexpected("blkid", device, &output)),
    }
}

/// Reads what blkid exports, one `KEY=value` a line.
fn signature(export: &str) -> Content {
    let value = |key: &str| {
        export
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v)
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some(text), _) => match text.parse() {
            Ok(fs_type) => Content::FileSystem(fs_type),
            Err(()) => Content::Foreign(format!("{text} data")),
        },
        (None, Some(table)) => Content::Foreign(format!("a {table} partition table")),
        (None, None) => Content::Foreign("a signature without a type".into()),
    }
}

fn open(device: &Path, write: bool) -> Result<(File, u64), Error> {
    let mut options = OpenOptions::new();
    // Exclusively: a filesystem that is mounted from it must not be written to underneath.
    options.read(true).write(write).custom_flags(O_CLOEXEC | if write { O_EXCL } else { 0 });
    let mut file = options.open(device).map_err(Error::io("open", device))?;
    let size = file.seek(SeekFrom::End(0)).map_err(Error::io("size of", device))?;
    Ok((file, size))
}

fn ends(device: &Path) -> Result<Content, Error> {
    let (file, size) = open(device, false)?;
    let len = ENDS.min(size);
    for at in [0, size - len] {
        let mut bytes = vec![0xff; usize::try_from(len).unwrap_or_default()];
        file.read_exact_at(&mut bytes, at).map_err(Error::io("read", device))?;
        if bytes.iter().any(|&byte| byte != 0) {
            return Ok(Content::Foreign(format!("data without a known signature near {at}")));
        }
    }
    Ok(Content::Blank)
}

fn marker(volume: VolumeId) -> Vec<u8> {
    let mut block = format!("Holdfast: mkfs of volume {volume} is not finished\n").into_bytes();
    block.resize(usize::try_from(BLOCK).unwrap_or_default(), 0);
    block
}

fn marker_offsets(size: u64) -> impl Iterator<Item = u64> {
    MARKERS.into_iter().map(move |fifth| size / 5 * fifth / BLOCK * BLOCK)
}

/// The offsets where a marker is.
fn markers_found(file: &File, size: u64, volume: VolumeId) -> std::io::Result<Vec<u64>> {
    let wanted = marker(volume);
    let mut found = Vec::new();
    let mut block = wanted.clone();
    for at in marker_offsets(size) {
        block.fill(0);
        file.read_exact_at(&mut block, at)?;
        if block == wanted {
            found.push(at);
        }
    }
    Ok(found)
}

fn has_marker(volume: VolumeId, device: &Path) -> Result<bool, Error> {
    let (file, size) = open(device, false)?;
    let found = markers_found(&file, size, volume).map_err(Error::io("read", device))?;
    Ok(!found.is_empty())
}

/// Says on the device that mkfs has begun, durably.
///
/// # Errors
/// [`Error::Io`], [`Error::Stuck`].
pub async fn mark(volume: VolumeId, device: &Path, bounded: &Bounded) -> Result<(), Error> {
    rewrite(device, bounded, move |file, size| {
        let block = marker(volume);
        marker_offsets(size).try_for_each(|at| file.write_all_at(&block, at))
    })
    .await
}

/// Says on the device that mkfs is done, durably and before anything is mounted. What mkfs wrote over a
/// marker stays.
///
/// # Errors
/// [`Error::Io`], [`Error::Stuck`].
pub async fn unmark(volume: VolumeId, device: &Path, bounded: &Bounded) -> Result<(), Error> {
    rewrite(device, bounded, move |file, size| {
        // What mkfs wrote is durable before the markers go.
        file.sync_all()?;
        let zeros = vec![0; usize::try_from(BLOCK).unwrap_or_default()];
        let found = markers_found(file, size, volume)?;
        found.into_iter().try_for_each(|at| file.write_all_at(&zeros, at))
    })
    .await
}

async fn rewrite(
    device: &Path,
    bounded: &Bounded,
    change: impl FnOnce(&File, u64) -> std::io::Result<()> + Send + 'static,
) -> Result<(), Error> {
    let device: PathBuf = device.to_owned();
    let work = move || {
        let (file, size) = open(&device, true)?;
        change(&file, size).and_then(|()| file.sync_all()).map_err(Error::io("write to", &device))
    };
    bounded.run("write to the device", IO_LIMIT, work).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const VOLUME: VolumeId = VolumeId::from_bytes([7; 16]);

    fn file(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    async fn of(file: &tempfile::NamedTempFile) -> Content {
        inspect(VOLUME, file.path(), &Bounded::default()).await.unwrap()
    }

    fn put(file: &tempfile::NamedTempFile, at: u64, bytes: &[u8]) {
        file.as_file().write_all_at(bytes, at).unwrap();
    }

    #[tokio::test]
    async fn blank_is_what_reads_as_zeros() {
        assert_eq!(of(&file(64 << 20)).await, Content::Blank);
        for at in [0, 5000, (1 << 20) - 1, 63 << 20, (64 << 20) - 1] {
            let device = file(64 << 20);
            put(&device, at, b"x");
            assert!(matches!(of(&device).await, Content::Foreign(_)), "{at}");
        }
    }

    #[tokio::test]
    async fn signatures() {
        let swap = file(64 << 20);
        put(&swap, 1024, &[1, 0, 0, 0, 255, 63]);
        put(&swap, 4086, b"SWAPSPACE2");
        assert_eq!(of(&swap).await, Content::Foreign("swap data".into()));
        let dos = file(64 << 20);
        put(&dos, 446, &[0, 0, 2, 0, 0x83, 0, 8, 0, 0, 8, 0, 0, 0, 8]);
        put(&dos, 510, &[0x55, 0xaa]);
        assert_eq!(of(&dos).await, Content::Foreign("a dos partition table".into()));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_and_not_blank() {
        let bounded = Bounded::default();
        let error = inspect(VOLUME, Path::new("/nonexistent"), &bounded).await.unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }

    #[tokio::test]
    async fn one_marker_left_means_unfinished() {
        let bounded = Bounded::default();
        for survivor in 0..MARKERS.len() {
            let device = file(64 << 20);
            mark(VOLUME, device.path(), &bounded).await.unwrap();
            for (index, at) in marker_offsets(64 << 20).enumerate() {
                if index != survivor {
                    put(&device, at, b"written by mkfs");
                }
            }
            assert_eq!(of(&device).await, Content::Unfinished);
            unmark(VOLUME, device.path(), &bounded).await.unwrap();
            assert_eq!(of(&device).await, Content::Blank);
        }
    }

    #[tokio::test]
    async fn another_volumes_marker_is_data() {
        let device = file(2 << 20);
        mark(VolumeId::from_bytes([8; 16]), device.path(), &Bounded::default()).await.unwrap();
        assert!(matches!(of(&device).await, Content::Foreign(_)));
    }
}
