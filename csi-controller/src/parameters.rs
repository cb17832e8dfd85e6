//! The parameters of a StorageClass, and those of a VolumeAttributesClass, which may change later.

use crate::limits::Limits;
use core::fmt;
use csi_common::{FsType, RequestError};
use std::collections::HashMap;

/// Keys that the provisioner adds (`pvc/name`, `pv/name`, …) start with this.
const PROVISIONER_PREFIX: &str = "csi.storage.k8s.io/";
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
/// How many copies.
pub const REPL: &str = "repl";
/// Class of the pools.
pub const PRIORITY_IO: &str = "priority_io";
/// Where the volume is to be used.
pub const PLACEMENT: &str = "placement";
const ACCEPTED_KEYS: &str = "repl, priority_io, placement, csi.storage.k8s.io/fstype, iops_limit, \
                             bandwidth_limit";
const MUTABLE_KEYS: &str = "repl, priority_io, iops_limit, bandwidth_limit";

/// From where a volume is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// From every node; the first copy is near the pod if there is room.
    #[default]
    Anywhere,
    /// From nodes that hold a copy, the first of which is where the pod is going to be.
    Local,
}

impl Placement {
    /// The control API's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Anywhere => "",
            Self::Local => "local",
        }
    }

    /// From the control API's word.
    pub fn of(word: &str) -> Self {
        if word == Self::Local.word() { Self::Local } else { Self::Anywhere }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anywhere => "anywhere",
            Self::Local => "local",
        })
    }
}

/// What a StorageClass can say about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Copies, 1-3.
    pub repl: u32,
    /// Pool class: `high`, `medium`, `low`, or `""` for any.
    pub priority_io: String,
    /// Where it is to be used.
    pub placement: Placement,
    /// Filesystem, if it says.
    pub fs_type: Option<FsType>,
    /// How much I/O it may do.
    pub limits: Limits,
}

impl Default for Parameters {
    fn default() -> Self {
        let placement = Placement::default();
        let limits = Limits::default();
        Self { repl: 2, priority_io: String::new(), placement, fs_type: None, limits }
    }
}

/// In order of the keys: the same request gets the same error each time.
fn sorted(given: &HashMap<String, String>) -> Vec<(&str, &str)> {
    let mut pairs: Vec<_> =
        given.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    pairs.sort_unstable();
    pairs
}

fn field(key: &str) -> String {
    format!("parameter {key}")
}

fn repl(value: &str) -> Result<u32, RequestError> {
    match value {
        "1" => Ok(1),
        "2" => Ok(2),
        "3" => Ok(3),
        _ => Err(RequestError::invalid(field(REPL), value, "1, 2, 3")),
    }
}

fn priority_io(value: &str) -> Result<String, RequestError> {
    match value {
        "high" | "medium" | "low" => Ok(value.to_owned()),
        "any" => Ok(String::new()),
        _ => Err(RequestError::invalid(field(PRIORITY_IO), value, "high, medium, low, any")),
    }
}

impl Parameters {
    /// Reads a StorageClass.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the key or value and what would be accepted.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self, RequestError> {
        let mut parameters = Self::default();
        for (key, value) in sorted(given) {
            match key {
                REPL => parameters.repl = repl(value)?,
                PRIORITY_IO => parameters.priority_io = priority_io(value)?,
                PLACEMENT => {
                    parameters.placement = match value {
                        "anywhere" => Placement::Anywhere,
                        "local" => Placement::Local,
                        _ => {
                            let accepted = "anywhere, local";
                            return Err(RequestError::invalid(field(key), value, accepted));
                        }
                    }
                }
                FS_TYPE => parameters.fs_type = FsType::parse(&field(key), value)?,
                key if key.starts_with(PROVISIONER_PREFIX) => {}
                key if parameters.limits.take(key, value)? => {}
                key => return Err(RequestError::invalid("parameter", key, ACCEPTED_KEYS)),
            }
        }
        Ok(parameters)
    }

    /// With what a VolumeAttributesClass says, which goes before a StorageClass.
    pub fn changed_by(mut self, changes: &Changes) -> Self {
        let Changes { repl, priority_io, limits } = changes.clone();
        self.limits = self.limits.changed_by(limits);
        self.repl = repl.unwrap_or(self.repl);
        self.priority_io = priority_io.unwrap_or(self.priority_io);
        self
    }
}

/// What a VolumeAttributesClass can say about a volume; `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Copies, 1-3.
    pub repl: Option<u32>,
    /// Pool class; `""` for any.
    pub priority_io: Option<String>,
    /// How much I/O it may do.
    pub limits: Limits,
}

impl Changes {
    /// Reads a VolumeAttributesClass.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the key or value and what would be accepted.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self, RequestError> {
        let mut changes = Self::default();
        for (key, value) in sorted(given) {
            match key {
                REPL => changes.repl = Some(repl(value)?),
                PRIORITY_IO => changes.priority_io = Some(priority_io(value)?),
                key if changes.limits.take(key, value)? => {}
                key => return Err(RequestError::invalid("mutable parameter", key, MUTABLE_KEYS)),
            }
        }
        Ok(changes)
    }

    /// Whether it says anything about `key`.
    pub fn says(&self, key: &str) -> bool {
        match key {
            REPL => self.repl.is_some(),
            PRIORITY_IO => self.priority_io.is_some(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tonic::Code;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_a_storage_class_can_say() {
        let default = Parameters::default();
        let table: &[(&[(&str, &str)], Parameters)] = &[
            (&[], default.clone()),
            (&[("repl", "1")], Parameters { repl: 1, ..default.clone() }),
            (&[("repl", "3")], Parameters { repl: 3, ..default.clone() }),
            (
                &[("priority_io", "high")],
                Parameters { priority_io: "high".into(), ..default.clone() },
            ),
            (&[("priority_io", "any")], default.clone()),
            (
                &[("placement", "local")],
                Parameters { placement: Placement::Local, ..default.clone() },
            ),
            (&[("placement", "anywhere")], default.clone()),
            (&[(FS_TYPE, "xfs")], Parameters { fs_type: Some(FsType::Xfs), ..default.clone() }),
            (&[(FS_TYPE, "")], default.clone()),
            (
                &[
                    ("csi.storage.k8s.io/pvc/name", "data-0"),
                    ("csi.storage.k8s.io/pvc/namespace", "x"),
                    ("csi.storage.k8s.io/pv/name", "pvc-1"),
                ],
                default,
            ),
        ];
        for (given, wanted) in table {
            assert_eq!(&Parameters::parse(&map(given)).unwrap(), wanted, "{given:?}");
        }
    }

    #[test]
    fn what_it_cannot_is_named_with_what_it_can() {
        let table = [
            ("repl", "0", "parameter repl \"0\" is not accepted; accepted: 1, 2, 3"),
            ("repl", "4", "accepted: 1, 2, 3"),
            ("repl", "", "accepted: 1, 2, 3"),
            ("repl", "02", "accepted: 1, 2, 3"),
            ("priority_io", "", "accepted: high, medium, low, any"),
            ("placement", "remote", "parameter placement \"remote\""),
            ("placement", "", "accepted: anywhere, local"),
            ("priority_io", "High", "parameter priority_io \"High\""),
            (FS_TYPE, "btrfs", "parameter csi.storage.k8s.io/fstype \"btrfs\""),
            (FS_TYPE, "btrfs", "accepted: ext4, xfs"),
            (
                "replicas",
                "2",
                "parameter \"replicas\" is not accepted; accepted: repl, priority_io",
            ),
            ("fstype", "ext4", "accepted: repl, priority_io, placement, csi.storage.k8s.io/fstype"),
            ("", "2", "parameter \"\""),
        ];
        for (key, value, part) in table {
            let error = Parameters::parse(&map(&[(key, value)])).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn what_a_volume_attributes_class_can_say() {
        let parse = |given: &[(&str, &str)]| Changes::parse(&map(given));
        assert_eq!(parse(&[]).unwrap(), Changes::default());
        let changes = parse(&[("repl", "3"), ("priority_io", "any")]).unwrap();
        let priority_io = Some(String::new());
        assert_eq!(changes, Changes { repl: Some(3), priority_io, ..Changes::default() });
        let limited = |iops| Limits { iops, ..Limits::default() };
        let changes_of = |limit: &str| parse(&[("iops_limit", limit)]).unwrap();
        assert_eq!(changes_of("500").limits, limited(Some(500)));
        let of_class = Parameters::parse(&map(&[("iops_limit", "200")])).unwrap();
        assert_eq!(of_class.limits, limited(Some(200)));
        assert_eq!(of_class.changed_by(&changes_of("none")).limits, limited(Some(0)));
        let before = Parameters { priority_io: "low".into(), ..Parameters::default() };
        let after = before.clone().changed_by(&changes);
        assert_eq!((after.repl, after.priority_io.as_str()), (3, ""));
        assert_eq!(before.clone().changed_by(&Changes::default()), before);
        for (key, value, part) in [
            ("repl", "0", "accepted: 1, 2, 3"),
            ("priority_io", "fast", "accepted: high, medium, low, any"),
            ("placement", "local", "mutable parameter \"placement\" is not accepted"),
            (FS_TYPE, "xfs", "accepted: repl, priority_io"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    /// Lines `key=value`, altered; see the `fuzz` crate.
    #[test]
    fn altered_parameters_are_accepted_or_named() {
        fuzz::run(&fuzz::Target {
            name: "StorageClass parameters",
            corpus: vec![
                b"repl=2\npriority_io=high\ncsi.storage.k8s.io/fstype=xfs".to_vec(),
                b"repl=1\ncsi.storage.k8s.io/pvc/name=data".to_vec(),
            ],
            words: &[b"repl=", b"3", b"medium", b"ext4", b"=", b"\n", b"csi.storage.k8s.io/"],
            longest: 300,
            repair: &fuzz::no_repair,
            decode: &|bytes| {
                let text = String::from_utf8_lossy(bytes);
                let given: HashMap<String, String> = text
                    .lines()
                    .filter_map(|line| line.split_once('='))
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect();
                match Parameters::parse(&given) {
                    Ok(parameters) => {
                        assert!((1..=3).contains(&parameters.repl));
                        true
                    }
                    Err(error) => {
                        assert_eq!(error.code(), Code::InvalidArgument);
                        assert!(error.to_string().contains("accepted"), "{error}");
                        false
                    }
                }
            },
        });
    }
}
