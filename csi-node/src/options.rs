//! Mount options as StorageClasses give them, turned into what mount(2) takes.

use csi_common::{FsType, RequestError};
use nix::mount::MsFlags;

/// Options of one mount: flags for the kernel, the rest for the filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of mount(2).
    pub flags: MsFlags,
    /// Options that the filesystem itself reads.
    pub data: String,
}

/// Longest text of options for a filesystem, in bytes: one page, as the kernel has it.
const MAX_DATA: usize = 4095;

/// Options that turn a mount into something else than the mount that was asked for.
const NOT_OPTIONS: [&str; 13] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "offset",
    "sizelimit",
    "user",
    "users",
    "shared",
    "private",
    "slave",
    "nouuid",
];

impl Options {
    /// From a capability's `mount_flags`; each may hold several options, separated by commas. What is not
    /// a flag of the kernel goes to the filesystem, which refuses what it does not know.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn parse(given: &[String]) -> Result<Self, RequestError> {
        let mut flags = MsFlags::empty();
        let mut data: Vec<&str> = Vec::new();
        for option in given.iter().flat_map(|flags| flags.split(',')) {
            let name = option.split('=').next().unwrap_or_default();
            if name.is_empty() || NOT_OPTIONS.contains(&name) || option.contains('\0') {
                return Err(RequestError::invalid(
                    "volume_capability.mount.mount_flags",
                    option,
                    "options of mount(8) for the filesystem, like noatime or discard",
                ));
            }
            match flag(option) {
                Some((flag, true)) => flags |= flag,
                Some((flag, false)) => flags &= !flag,
                None => data.push(option),
            }
        }
        let data = data.join(",");
        if data.len() > MAX_DATA {
            let field = "volume_capability.mount.mount_flags";
            return Err(RequestError::invalid(field, &data, "at most 4095 bytes of options"));
        }
        Ok(Self { flags, data })
    }

    /// Adds what Holdfast wants of `fs_type` unless the caller said otherwise.
    #[must_use]
    pub fn with_defaults(mut self, fs_type: FsType, read_only: bool) -> Self {
        if read_only {
            self.flags |= MsFlags::MS_RDONLY;
        }
        let says_errors = self.data.split(',').any(|option| option.starts_with("errors="));
        if fs_type == FsType::Ext4 && !says_errors {
            // A volume that fails writes shall not collect more of them. (XFS shuts down by itself.)
            self.add("errors=remount-ro");
        }
        self
    }

    /// Whether they say so.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    /// Adds an option for the filesystem.
    pub fn add(&mut self, option: &str) {
        if !self.data.is_empty() {
            self.data.push(',');
        }
        self.data.push_str(option);
    }
}

/// The flag that an option sets (`true`) or clears.
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        // The kernel's default; "defaults" stands for rw, suid, dev, exec, async.
        "defaults" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "lazytime" => (MsFlags::MS_LAZYTIME, true),
        "nolazytime" => (MsFlags::MS_LAZYTIME, false),
        _ => return None,
    })
}

/// The flags that a remount of a bind has to repeat, or else the kernel drops them: from the options of
/// the mount that was bound.
#[must_use]
pub fn repeated<'a>(options: impl IntoIterator<Item = &'a String>) -> MsFlags {
    const PER_MOUNT: [&str; 6] = ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"];
    options
        .into_iter()
        .filter(|option| PER_MOUNT.contains(&option.as_str()))
        .filter_map(|option| flag(option))
        .fold(MsFlags::empty(), |all, (flag, _)| all | flag)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(given: &[&str]) -> Result<Options, RequestError> {
        Options::parse(&given.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_go_to_the_kernel_and_the_rest_to_the_filesystem() {
        let none = MsFlags::empty();
        let table: &[(&[&str], MsFlags, &str)] = &[
            (&[], none, ""),
            (&["defaults"], none, ""),
            (&["noatime"], MsFlags::MS_NOATIME, ""),
            (&["noatime,nosuid"], MsFlags::MS_NOATIME | MsFlags::MS_NOSUID, ""),
            (&["ro", "rw"], none, ""),
            (&["discard", "noatime", "commit=30"], MsFlags::MS_NOATIME, "discard,commit=30"),
        ];
        for (given, flags, data) in table {
            let wanted = Options { flags: *flags, data: (*data).into() };
            assert_eq!(parse(given).unwrap(), wanted, "{given:?}");
        }
    }

    #[test]
    fn what_would_not_be_a_mount_of_the_volume_is_refused() {
        for option in ["bind", "remount", "loop", "loop=/dev/loop3", "", "a,,b", "x\0y", "move"] {
            let error = parse(&["noatime", option]).unwrap_err();
            assert!(error.to_string().contains("mount_flags"), "{error}");
        }
        assert!(parse(&[&"x".repeat(5000)]).is_err());
    }

    #[test]
    fn ext4_goes_read_only_on_errors_unless_told_otherwise() {
        let of = |given: &[&str], fs| parse(given).unwrap().with_defaults(fs, false).data;
        assert_eq!(of(&[], FsType::Ext4), "errors=remount-ro");
        assert_eq!(of(&["discard"], FsType::Ext4), "discard,errors=remount-ro");
        assert_eq!(of(&["errors=panic"], FsType::Ext4), "errors=panic");
        assert_eq!(of(&[], FsType::Xfs), "");
        let read_only = parse(&[]).unwrap().with_defaults(FsType::Xfs, true);
        assert_eq!(read_only.flags, MsFlags::MS_RDONLY);
    }

    /// Flags in lines, altered; see the `fuzz` crate.
    #[test]
    fn altered_flags_are_accepted_or_named() {
        fuzz::run(&fuzz::Target {
            name: "mount flags",
            corpus: vec![
                b"noatime,discard\ndata=ordered".to_vec(),
                b"ro\nnodev,nosuid,noexec\ncommit=30".to_vec(),
            ],
            words: &[b"bind", b"remount", b"rw", b",", b"=", b"\n", b"\0", b"x-"],
            longest: 300,
            repair: &fuzz::no_repair,
            decode: &|bytes| {
                let text = String::from_utf8_lossy(bytes);
                let given: Vec<String> = text.lines().map(str::to_owned).collect();
                match Options::parse(&given) {
                    Ok(options) => {
                        assert!(options.data.len() <= MAX_DATA && !options.data.contains('\0'));
                        let dangerous = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_MOVE;
                        assert!(!options.flags.intersects(dangerous), "{:?}", options.flags);
                        true
                    }
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        false
                    }
                }
            },
        });
    }
}
