//! Fields that many requests have, checked and turned into types.

use crate::error::{RequestError, shorten};
use core::fmt;
use core::str::FromStr;
use proto::csi::VolumeCapability;
use proto::csi::volume_capability::access_mode::Mode as Wire;
use proto::csi::volume_capability::{AccessType, MountVolume};
use std::path::{Component, Path, PathBuf};
use types::{SnapshotId, VolumeId};

/// Longest path that is accepted, in bytes: Linux's own limit.
pub const MAX_PATH: usize = 4096;

/// A filesystem that Holdfast makes and mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// Smallest volume for it, in bytes: ext4 with a journal, XFS as mkfs.xfs demands.
    #[must_use]
    pub const fn least_volume(self) -> u64 {
        match self {
            Self::Ext4 => 16 << 20,
            Self::Xfs => 300 << 20,
        }
    }

    /// Its name for mount(2), mkfs and csi.proto.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// `""` as none, else one of ours; `field` is named in the error.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn parse(field: &str, text: &str) -> Result<Option<Self>, RequestError> {
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|()| RequestError::invalid(field, text, "ext4, xfs"))
    }
}

impl FromStr for FsType {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Ext4, Self::Xfs].into_iter().find(|fs| fs.name() == text).ok_or(())
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the volume shows up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// A raw device.
    Block,
    /// A mounted filesystem.
    Mount {
        /// Which one; none: the volume's own, or the default.
        fs_type: Option<FsType>,
        /// Mount options as given, not yet understood.
        flags: Vec<String>,
    },
}

/// Who may use the volume; one node at a time in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reading and writing on one node.
    Writer,
    /// Reading on one node.
    ReaderOnly,
    /// Reading and writing by one pod.
    SingleWriter,
    /// Reading and writing by several pods of one node.
    MultiWriter,
}

/// A volume capability that Holdfast can give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// How the volume shows up.
    pub access: Access,
    /// Who may use it.
    pub mode: Mode,
}

const MODES: &str = "SINGLE_NODE_WRITER, SINGLE_NODE_READER_ONLY, SINGLE_NODE_SINGLE_WRITER, \
                     SINGLE_NODE_MULTI_WRITER";

/// Checks one volume capability.
///
/// # Errors
/// INVALID_ARGUMENT if something is missing, unknown, or for more than one node.
pub fn capability(given: Option<&VolumeCapability>) -> Result<Capability, RequestError> {
    let missing = |field, accepted| RequestError::Missing { field, accepted };
    let given = given.ok_or(missing("volume_capability", "access type and access mode"))?;
    let access = match &given.access_type {
        None => return Err(missing("volume_capability.access_type", "block, mount")),
        Some(AccessType::Block(_)) => Access::Block,
        Some(AccessType::Mount(mount)) => mount_access(mount)?,
    };
    let mode = given.access_mode.ok_or(missing("volume_capability.access_mode", MODES))?.mode;
    let mode = match Wire::try_from(mode) {
        Ok(Wire::SingleNodeWriter) => Mode::Writer,
        Ok(Wire::SingleNodeReaderOnly) => Mode::ReaderOnly,
        Ok(Wire::SingleNodeSingleWriter) => Mode::SingleWriter,
        Ok(Wire::SingleNodeMultiWriter) => Mode::MultiWriter,
        other => {
            let name = other.map_or_else(|e| e.0.to_string(), |m| m.as_str_name().to_owned());
            return Err(RequestError::invalid("volume_capability.access_mode.mode", &name, MODES));
        }
    };
    if access == Access::Block && mode == Mode::ReaderOnly {
        return Err(RequestError::Unsupported {
            what: "SINGLE_NODE_READER_ONLY with a block volume".into(),
            instead: "use a writer mode, or mount it",
        });
    }
    Ok(Capability { access, mode })
}

fn mount_access(mount: &MountVolume) -> Result<Access, RequestError> {
    if !mount.volume_mount_group.is_empty() {
        return Err(RequestError::Unsupported {
            what: "volume_capability.mount.volume_mount_group".into(),
            instead: "leave it empty: the node plugin does not advertise VOLUME_MOUNT_GROUP",
        });
    }
    let fs_type = FsType::parse("volume_capability.mount.fs_type", &mount.fs_type)?;
    Ok(Access::Mount { fs_type, flags: mount.mount_flags.clone() })
}

/// Checks that a field is there.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn non_empty(field: &'static str, text: &str) -> Result<(), RequestError> {
    if text.is_empty() {
        return Err(RequestError::Missing { field, accepted: "a non-empty text" });
    }
    Ok(())
}

/// Checks a volume id. Call it after the other checks of a request: an id that cannot exist is an absent
/// volume, not a malformed request.
///
/// # Errors
/// INVALID_ARGUMENT if empty, NOT_FOUND if it is not a canonical UUID.
pub fn volume_id(text: &str) -> Result<VolumeId, RequestError> {
    volume_id_in("volume_id", text)
}

/// As [`volume_id`], in a field of another name.
///
/// # Errors
/// As [`volume_id`].
pub fn volume_id_in(field: &'static str, text: &str) -> Result<VolumeId, RequestError> {
    non_empty(field, text)?;
    text.parse().map_err(|_| RequestError::NoVolume { field, id: shorten(text) })
}

/// Checks a snapshot id, like [`volume_id`].
///
/// # Errors
/// INVALID_ARGUMENT if empty, NOT_FOUND if it is not a canonical UUID.
pub fn snapshot_id_in(field: &'static str, text: &str) -> Result<SnapshotId, RequestError> {
    non_empty(field, text)?;
    text.parse().map_err(|_| RequestError::NoSnapshot { field, id: shorten(text) })
}

/// Checks a path that we are going to mount on or unmount: absolute, below the root, without `.` or
/// `..`, without NUL, at most [`MAX_PATH`] bytes.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn path(field: &'static str, text: &str) -> Result<PathBuf, RequestError> {
    const ACCEPTED: &str =
        "an absolute path below / without \"..\" or NUL, at most 4096 bytes long";
    if text.is_empty() {
        return Err(RequestError::Missing { field, accepted: ACCEPTED });
    }
    let refuse = || RequestError::invalid(field, text, ACCEPTED);
    // The kernel's limit counts the terminating NUL.
    if text.len() >= MAX_PATH || text.contains('\0') || !text.starts_with('/') {
        return Err(refuse());
    }
    // `components` swallows "." inside a path, so look at the text too.
    if text.split('/').any(|part| part == "." || part == "..") {
        return Err(refuse());
    }
    let mut clean = PathBuf::from("/");
    clean.extend(Path::new(text).components().filter(|c| matches!(c, Component::Normal(_))));
    if clean == Path::new("/") {
        return Err(refuse());
    }
    Ok(clean)
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
