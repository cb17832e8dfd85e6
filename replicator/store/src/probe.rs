//! What a device holds that is not our pool: so that nothing is formatted or opened by accident.

use crate::OpenError;
use crate::disk::{self, PoolDisk};
use crate::superblock::MAGIC;

/// Bytes at the start that are looked at.
const PROBED: u64 = 128 << 10;

/// (offset, magic, name), from the headers of the respective projects (`blkid` knows the same).
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, &MAGIC, "a Holdfast pool"),
    (4096, &MAGIC, "a damaged Holdfast pool"),
    (0, b"XFSB", "an xfs filesystem"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0x10040, b"_BHRfS_M", "a btrfs filesystem"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an f2fs filesystem"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"bluestore block device", "a Ceph OSD"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (510, &[0x55, 0xaa], "a boot sector or partition table"),
];

/// Names what the start of `disk` holds; `None` if it is all zeros.
pub(crate) fn contents(disk: &mut dyn PoolDisk) -> Result<Option<String>, OpenError> {
    let len = PROBED.min(disk.size() / 4096 * 4096);
    if len < 8192 {
        return Ok(None);
    }
    let start = disk::read(disk, 0, len)?;
    let start = start.as_slice();
    for (offset, magic, name) in SIGNATURES {
        if start.get(*offset..*offset + magic.len()) == Some(*magic) {
            return Ok(Some((*name).to_owned()));
        }
    }
    Ok((!types::is_zeros(start)).then(|| "unknown data".to_owned()))
}
