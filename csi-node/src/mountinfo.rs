//! The kernel's mount table of this process's mount namespace, as proc_pid_mountinfo(5) has it.

use crate::Error;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the filesystem (of the superblock, not of a device node bound somewhere).
    pub device: DeviceNumber,
    /// What of the filesystem is mounted: `/`, or the path of what was bound.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of this mount (not of the filesystem).
    pub options: Vec<String>,
    /// Filesystem type.
    pub fs_type: String,
    /// Whether the filesystem as a whole is read-only.
    pub super_read_only: bool,
}

impl Mount {
    /// Whether nothing can be written through it.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.super_read_only || self.options.iter().any(|option| option == "ro")
    }

    /// Whether it is a device node bound onto a file.
    #[must_use]
    pub fn is_device_node(&self) -> bool {
        self.fs_type == "devtmpfs" && self.root != Path::new("/")
    }

    /// Whether it shows the whole filesystem on `device`, or its node `device_name` (`loop7`).
    #[must_use]
    pub fn is_of(&self, device: DeviceNumber, device_name: &Path) -> bool {
        (self.device == device && self.root == Path::new("/"))
            || (self.is_device_node() && self.root.strip_prefix("/") == Ok(device_name))
    }

    /// Whether it could be one that this plugin made: everything else is never unmounted.
    #[must_use]
    pub fn could_be_ours(&self) -> bool {
        matches!(self.fs_type.as_str(), "ext4" | "xfs") || self.is_device_node()
    }
}

/// The mounts, oldest first.
#[derive(Clone, Debug, Default)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads it. Never touches a mounted filesystem, so a dead device cannot hang it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        Ok(Self::parse(&text))
    }

    /// Lines that make no sense are passed over: they cannot be mounts of ours.
    fn parse(text: &[u8]) -> Self {
        Self(text.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
    }

    /// The mounts stacked on `path`; the last one is what is seen there.
    pub fn at<'a>(&'a self, path: &'a Path) -> impl DoubleEndedIterator<Item = &'a Mount> {
        self.0.iter().filter(move |mount| mount.point == path)
    }

    /// What is seen at `path`, if it is a mount point.
    #[must_use]
    pub fn top(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rfind(|mount| mount.point == path)
    }

    /// Mounts of the whole filesystem on `device`, and of its node `device_name` (`loop7`).
    pub fn of<'a>(
        &'a self,
        device: DeviceNumber,
        device_name: &'a Path,
    ) -> impl DoubleEndedIterator<Item = &'a Mount> {
        self.0.iter().filter(move |mount| mount.is_of(device, device_name))
    }

    /// Mounts below `directory`, the newest first.
    pub fn below<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = &'a Mount> {
        self.0.iter().rev().filter(move |mount| mount.point.starts_with(directory))
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = text(fields.nth(2)?)?;
    let (major, minor) = device.split_once(':')?;
    let device = DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = text(fields.next()?)?.split(',').map(str::to_owned).collect();
    // Optional fields end with a single "-".
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?)?.to_owned();
    let super_options = text(fields.nth(1)?)?;
    let super_read_only = super_options.split(',').any(|option| option == "ro");
    Some(Mount { device, root, point, options, fs_type, super_read_only })
}

fn text(field: &[u8]) -> Option<&str> {
    core::str::from_utf8(field).ok()
}

/// Undoes the kernel's escapes of space, tab, line feed and backslash (`\040` …).
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TABLE: &[u8] = b"\
21 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
36 21 0:6 / /dev rw,nosuid shared:2 master:1 - devtmpfs devtmpfs rw,size=4k\n\
98 21 7:7 / /stage/a\\040b rw,noatime shared:7 - xfs /dev/loop7 rw,attr2\n\
99 21 7:7 / /pods/1/mount ro,relatime - xfs /dev/loop7 rw,attr2\n\
100 21 7:7 /sub /pods/1/subpath rw,relatime - xfs /dev/loop7 rw,attr2\n\
101 21 7:8 / /stage/a\\040b rw - ext4 /dev/loop8 ro,errors=remount-ro\n\
102 21 0:6 /loop7 /pods/2/block rw - devtmpfs devtmpfs rw\n\
garbage\n\
103 21 7:x / /a rw - ext4 /dev/loop8 rw\n";

    #[test]
    fn the_table_is_read_as_it_is_written() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.0.len(), 7);
        let stage = Path::new("/stage/a b");
        assert_eq!(table.at(stage).count(), 2);
        let top = table.top(stage).unwrap();
        assert_eq!(top.device, DeviceNumber { major: 7, minor: 8 });
        assert!(top.super_read_only && top.read_only());
        assert!(table.top(Path::new("/stage")).is_none());
        assert!(table.top(Path::new("/pods/1/mount")).unwrap().read_only());
        assert!(!table.top(Path::new("/")).unwrap().read_only());
        let block = table.top(Path::new("/pods/2/block")).unwrap();
        assert!(block.is_device_node() && block.could_be_ours());
        assert!(!table.top(Path::new("/dev")).unwrap().could_be_ours());
    }

    #[test]
    fn mounts_of_a_device_are_whole_filesystems_and_its_node() {
        let table = MountTable::parse(TABLE);
        let points = |minor, name: &str| -> Vec<PathBuf> {
            let device = DeviceNumber { major: 7, minor };
            table.of(device, Path::new(name)).map(|mount| mount.point.clone()).collect()
        };
        let seven = ["/stage/a b", "/pods/1/mount", "/pods/2/block"].map(PathBuf::from);
        assert_eq!(points(7, "loop7"), seven);
        assert_eq!(points(8, "loop8"), [PathBuf::from("/stage/a b")]);
        assert!(points(9, "loop9").is_empty());
    }

    #[test]
    fn escapes() {
        for (given, wanted) in [
            (&b"/a\\040b"[..], "/a b"),
            (b"/a\\134040", "/a\\040"),
            (b"/\\011\\012", "/\t\n"),
            (b"/a\\", "/a\\"),
            (b"/a\\04", "/a\\04"),
            (b"/a\\940", "/a\\940"),
        ] {
            assert_eq!(path(given), Path::new(wanted));
        }
    }

    #[test]
    fn the_machines_own_table_has_a_root() {
        assert!(MountTable::read().unwrap().top(Path::new("/")).is_some());
    }
}
