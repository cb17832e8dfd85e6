//! How much of its device a filesystem uses, from its superblock: a copy may be larger than its source.

use crate::Error;
use crate::bounded::Bounded;
use core::time::Duration;
use csi_common::{FsType, VOLUME_UNIT};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// For one read: longer than an engine may hold an I/O (R4) before it fails it.
const IO_LIMIT: Duration = Duration::from_secs(30);

/// Covers the superblocks of both.
const HEAD: usize = 4096;

/// Whether the filesystem on `device` leaves room for [`VOLUME_UNIT`] or more.
///
/// # Errors
/// [`Error::Io`], [`Error::Stuck`].
pub async fn leaves_room(fs_type: FsType, device: &Path, bounded: &Bounded) -> Result<bool, Error> {
    let device = device.to_owned();
    let work = move || {
        let mut file = File::open(&device).map_err(Error::io("open", &device))?;
        let size = file.seek(SeekFrom::End(0)).map_err(Error::io("size of", &device))?;
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).map_err(Error::io("read", &device))?;
        Ok(used(fs_type, &head).is_some_and(|used| used.saturating_add(VOLUME_UNIT) <= size))
    };
    bounded.run("read of the device", IO_LIMIT, work).await
}

/// Bytes from the device's begin that the filesystem counts as its own; `None` if `head` is not one's.
fn used(fs_type: FsType, head: &[u8; HEAD]) -> Option<u64> {
    match fs_type {
        FsType::Ext4 => ext4(head),
        FsType::Xfs => xfs(head),
    }
}

/// struct ext4_super_block at byte 1024 (fs/ext4/ext4.h), little endian.
fn ext4(head: &[u8; HEAD]) -> Option<u64> {
    const AT: usize = 1024;
    const MAGIC: u16 = 0xEF53;
    const INCOMPAT_64BIT: u32 = 0x80;
    let word = |at: usize| {
        let bytes = head.get(AT + at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    // s_magic is the lower half.
    if word(0x38)? & 0xFFFF != u32::from(MAGIC) {
        return None;
    }
    let high = if word(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { word(0x150)? };
    let blocks = u64::from(high) << 32 | u64::from(word(0x4)?);
    // s_log_block_size: 1024 bytes shifted.
    1024_u64.checked_shl(word(0x18)?)?.checked_mul(blocks)
}

/// struct xfs_dsb at byte 0 (fs/xfs/libxfs/xfs_format.h), big endian.
fn xfs(head: &[u8; HEAD]) -> Option<u64> {
    let (magic, rest) = head.split_first_chunk::<4>()?;
    let (block, rest) = rest.split_first_chunk::<4>()?;
    let (blocks, _) = rest.split_first_chunk::<8>()?;
    if magic != b"XFSB" {
        return None;
    }
    u64::from(u32::from_be_bytes(*block)).checked_mul(u64::from_be_bytes(*blocks))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    fn head_of(program: &str, arguments: &[&str], mib: u64) -> [u8; HEAD] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        let output = Command::new(program).args(arguments).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        let mut head = [0; HEAD];
        file.as_file().read_exact_at(&mut head, 0).unwrap();
        head
    }

    #[test]
    fn what_mkfs_made_is_as_large_as_its_device() {
        let table: [(FsType, &str, &[&str], u64); 3] = [
            (FsType::Ext4, "mkfs.ext4", &["-q", "-b", "4096"], 64),
            (FsType::Ext4, "mkfs.ext4", &["-q", "-b", "1024", "-O", "^64bit"], 64),
            (FsType::Xfs, "mkfs.xfs", &["-q", "-K"], 320),
        ];
        for (fs_type, program, arguments, mib) in table {
            let head = head_of(program, arguments, mib);
            assert_eq!(used(fs_type, &head), Some(mib << 20), "{program} {arguments:?}");
            let other = if fs_type == FsType::Xfs { FsType::Ext4 } else { FsType::Xfs };
            assert_eq!(used(other, &head), None, "{program} is no {other}");
        }
    }

    #[test]
    fn what_no_mkfs_made_is_nothing_and_does_not_overflow() {
        let mut head = [0xFF; HEAD];
        head[1024 + 0x38..][..2].copy_from_slice(&0xEF53_u16.to_le_bytes());
        assert_eq!(used(FsType::Ext4, &head), None);
        head[..4].copy_from_slice(b"XFSB");
        assert_eq!(used(FsType::Xfs, &head), None);
        assert_eq!(used(FsType::Xfs, &[0; HEAD]), None);
    }
}
