//! Which device a node's pool is, from the administrator's table, and how it is made.
//!
//! ```toml
//! [default]
//! file = "/var/lib/holdfast/pool"
//! size = "20GiB"
//!
//! [node.db-1]
//! device = "/dev/disk/by-id/nvme-…"
//! priority_io = "high"
//! ```

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Smallest pool, in bytes.
const MIN_SIZE: u64 = 64 << 20;

/// The administrator's table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pools {
    /// For nodes that have no entry of their own.
    default: Option<Setting>,
    /// By the node's name.
    #[serde(default)]
    node: BTreeMap<String, Setting>,
}

/// One entry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    device: Option<PathBuf>,
    file: Option<PathBuf>,
    r#loop: Option<PathBuf>,
    size: Option<String>,
    priority_io: Option<String>,
}

/// Where a node's pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A disk or partition.
    Device(PathBuf),
    /// A file, made sparse with so many bytes if it is not there.
    File(PathBuf, u64),
    /// A loop device with direct I/O over such a file.
    Loop(PathBuf, u64),
}

impl Pools {
    /// Reads the table.
    ///
    /// # Errors
    /// Where it is not one, and what would be.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("the table of pools")
    }

    /// The place and the class (`priority_io`) of the pool of `node`; `None` if the node is to have none.
    ///
    /// # Errors
    /// A setting that makes no sense, by its name.
    pub fn of(&self, node: &str) -> Result<(Place, Option<String>)> {
        let setting = self.node.get(node).or(self.default.as_ref());
        let setting = setting.with_context(|| {
            format!("the table of pools has neither [node.{node}] nor [default]")
        })?;
        let place = match (&setting.device, &setting.file, &setting.r#loop) {
            (Some(path), None, None) => {
                ensure!(
                    setting.size.is_none(),
                    "size is not accepted beside device: all of it is used"
                );
                Place::Device(path.clone())
            }
            (None, Some(path), None) => Place::File(path.clone(), setting.bytes()?),
            (None, None, Some(path)) => Place::Loop(path.clone(), setting.bytes()?),
            _ => bail!("the pool of {node}: exactly one of device, file and loop is accepted"),
        };
        let (Place::Device(path) | Place::File(path, _) | Place::Loop(path, _)) = &place;
        ensure!(path.is_absolute(), "the pool of {node}: {path:?} is not an absolute path");
        Ok((place, setting.priority_io.clone()))
    }
}

impl Setting {
    fn bytes(&self) -> Result<u64> {
        let text = self.size.as_deref().context("size is missing; accepted: like \"20GiB\"")?;
        let bytes = parse_size(text);
        bytes
            .filter(|bytes| *bytes >= MIN_SIZE)
            .with_context(|| format!("size = {text:?} is not accepted; accepted: 64MiB or more, with the unit MiB, GiB or TiB"))
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let units = [("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let (number, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))?;
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Place {
    /// The path that the replicator opens. `create`: the file may be made; without it a missing file is
    /// an error, because a pool was there before (R11).
    ///
    /// # Errors
    /// The operating system's.
    pub fn prepare(&self, create: bool) -> Result<PathBuf> {
        match self {
            Self::Device(path) => {
                ensure!(path.exists(), "the pool's device {} is not there", path.display());
                Ok(path.clone())
            }
            Self::File(path, size) => {
                make_file(path, *size, create)?;
                Ok(path.clone())
            }
            Self::Loop(path, size) => {
                make_file(path, *size, create)?;
                attach(path)
            }
        }
    }
}

fn make_file(path: &Path, size: u64, create: bool) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    ensure!(create, "the pool's file {} was there and is gone", path.display());
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("making {}", path.display()))?;
    file.set_len(size).and_then(|()| file.sync_all())?;
    Ok(())
}

/// The loop device over `file`; one that is there is used again.
fn attach(file: &Path) -> Result<PathBuf> {
    let file = file.to_string_lossy();
    let listed = losetup(&["--noheadings", "--output", "NAME", "--associated", &file])?;
    if let Some(device) = listed.lines().next() {
        return Ok(device.trim().into());
    }
    let made = losetup(&["--find", "--show", "--direct-io=on", "--sector-size", "4096", &file])?;
    Ok(made.trim().into())
}

pub(crate) fn losetup(arguments: &[&str]) -> Result<String> {
    let output = Command::new("losetup").args(arguments).output().context("starting losetup")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "losetup {}: {}", arguments.join(" "), error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_nodes_own_entry_wins_over_the_default() {
        let table = Pools::parse(
            "[default]\nfile = \"/var/lib/holdfast/pool\"\nsize = \"20GiB\"\n\
             [node.db-1]\ndevice = \"/dev/sdb\"\npriority_io = \"high\"\n\
             [node.old]\nloop = \"/srv/pool\"\nsize = \"64 MiB\"",
        )
        .unwrap();
        let file = Place::File("/var/lib/holdfast/pool".into(), 20 << 30);
        assert_eq!(table.of("web").unwrap(), (file, None));
        let device = Place::Device("/dev/sdb".into());
        assert_eq!(table.of("db-1").unwrap(), (device, Some("high".into())));
        assert_eq!(table.of("old").unwrap().0, Place::Loop("/srv/pool".into(), 64 << 20));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let rows = [
            ("", "[node.n] nor [default]"),
            ("[default]", "exactly one of"),
            ("[default]\nfile = \"/a\"\ndevice = \"/b\"\nsize = \"1GiB\"", "exactly one of"),
            ("[default]\ndevice = \"/b\"\nsize = \"1GiB\"", "size is not accepted"),
            ("[default]\nfile = \"/a\"", "size is missing"),
            ("[default]\nfile = \"/a\"\nsize = \"20G\"", "\"20G\""),
            ("[default]\nfile = \"/a\"\nsize = \"1MiB\"", "64MiB or more"),
            ("[default]\nfile = \"/a\"\nsize = \"99999999999TiB\"", "64MiB or more"),
            ("[default]\nfile = \"a\"\nsize = \"1GiB\"", "not an absolute path"),
        ];
        for (text, wanted) in rows {
            let error = format!("{:#}", Pools::parse(text).unwrap().of("n").unwrap_err());
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
        let error = format!("{:#}", Pools::parse("[default]\ndisk = \"/dev/sdb\"").unwrap_err());
        assert!(error.contains("disk"), "{error}");
    }

    #[test]
    fn a_file_is_made_once_and_missed_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let place = Place::File(path.clone(), MIN_SIZE);
        assert!(place.prepare(false).unwrap_err().to_string().contains("is gone"));
        assert_eq!(place.prepare(true).unwrap(), path);
        assert_eq!(path.metadata().unwrap().len(), MIN_SIZE);
        place.prepare(false).unwrap();
    }
}
