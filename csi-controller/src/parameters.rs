//! The parameters of a StorageClass.

use csi_common::{FsType, RequestError};
use std::collections::HashMap;

/// Keys that the provisioner adds (`pvc/name`, `pv/name`, …) start with this.
const PROVISIONER_PREFIX: &str = "csi.storage.k8s.io/";
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
const ACCEPTED_KEYS: &str = "repl, priority_io, csi.storage.k8s.io/fstype";

/// What a StorageClass can say about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Copies, 1-3.
    pub repl: u32,
    /// Pool class: `high`, `medium`, `low`, or `""` for any.
    pub priority_io: String,
    /// Filesystem, if it says.
    pub fs_type: Option<FsType>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { repl: 2, priority_io: String::new(), fs_type: None }
    }
}

impl Parameters {
    /// Reads a StorageClass.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the key or value and what would be accepted.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self, RequestError> {
        let mut parameters = Self::default();
        // In order of the keys: the same request gets the same error each time.
        let mut keys: Vec<&String> = given.keys().collect();
        keys.sort();
        for key in keys {
            let value = given[key].as_str();
            let field = || format!("parameter {key}");
            match key.as_str() {
                "repl" => {
                    parameters.repl = match value {
                        "1" => 1,
                        "2" => 2,
                        "3" => 3,
                        _ => return Err(RequestError::invalid(field(), value, "1, 2, 3")),
                    }
                }
                "priority_io" => match value {
                    "high" | "medium" | "low" => parameters.priority_io = value.to_owned(),
                    _ => return Err(RequestError::invalid(field(), value, "high, medium, low")),
                },
                FS_TYPE => parameters.fs_type = FsType::parse(&field(), value)?,
                key if key.starts_with(PROVISIONER_PREFIX) => {}
                key => return Err(RequestError::invalid("parameter", key, ACCEPTED_KEYS)),
            }
        }
        Ok(parameters)
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
            ("priority_io", "", "accepted: high, medium, low"),
            ("priority_io", "High", "parameter priority_io \"High\""),
            (FS_TYPE, "btrfs", "parameter csi.storage.k8s.io/fstype \"btrfs\""),
            (FS_TYPE, "btrfs", "accepted: ext4, xfs"),
            (
                "replicas",
                "2",
                "parameter \"replicas\" is not accepted; accepted: repl, priority_io",
            ),
            ("fstype", "ext4", "accepted: repl, priority_io, csi.storage.k8s.io/fstype"),
            ("", "2", "parameter \"\""),
        ];
        for (key, value, part) in table {
            let error = Parameters::parse(&map(&[(key, value)])).unwrap_err();
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
