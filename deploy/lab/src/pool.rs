//! Pools of the lab: sparse files with loop devices on them, as a person would make them.

use crate::exec::run;
use crate::layout::{Layout, POOL_PREFIX};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Makes the file of a node's pool; it is blank.
///
/// # Errors
/// If `truncate` fails.
pub fn make(layout: &Layout, node: u64, bytes: u64) -> Result<PathBuf> {
    let file = layout.pool_file(node);
    run("truncate", &["-s", &bytes.to_string(), &file.to_string_lossy()])?;
    Ok(file)
}

/// A loop device with direct I/O and 4096-byte blocks on `file`.
///
/// # Errors
/// If `losetup` fails.
pub fn attach(file: &Path) -> Result<PathBuf> {
    let path = file.to_string_lossy();
    let device =
        run("losetup", &["--find", "--show", "--direct-io=on", "--sector-size=4096", &path])?;
    Ok(PathBuf::from(device.trim()))
}

/// Frees a loop device; one that is still open goes when its last user does.
///
/// # Errors
/// If `losetup` fails.
pub fn detach(device: &Path) -> Result<()> {
    let detached = run("losetup", &["--detach", &device.to_string_lossy()]).map(drop);
    // Its last user may have gone between the listing and this, and the device with it.
    let name = device.file_name().unwrap_or_default();
    let in_use = Path::new("/sys/block").join(name).join("loop/backing_file").exists();
    if in_use { detached } else { Ok(()) }
}

/// A loop device in use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LoopDevice {
    /// For example /dev/loop3.
    #[serde(rename = "name")]
    pub device: PathBuf,
    /// The file under it as the kernel names it; " (deleted)" may follow.
    #[serde(rename = "back-file", default)]
    pub backing: Option<String>,
}

impl LoopDevice {
    /// Whether the file under it is or was below `dir`.
    #[must_use]
    pub fn is_below(&self, dir: &Path) -> bool {
        self.backing.as_ref().is_some_and(|backing| Path::new(backing).starts_with(dir))
    }

    /// Whether its file was served by a replicator whose FUSE mount is gone: the kernel then names
    /// the file relative to nothing. Every I/O on such a device fails.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.backing.as_deref() == Some("/volume")
    }

    /// Whether it is the pool of a lab, known by the file's name.
    #[must_use]
    pub fn is_lab_pool(&self) -> bool {
        let name = self.backing.as_ref().and_then(|backing| Path::new(backing).file_name());
        name.is_some_and(|name| name.to_string_lossy().starts_with(POOL_PREFIX))
    }
}

/// All loop devices in use.
///
/// # Errors
/// If `losetup` fails.
pub fn loop_devices() -> Result<Vec<LoopDevice>> {
    parse(&run("losetup", &["--list", "--json", "--output", "NAME,BACK-FILE"])?)
}

fn parse(json: &str) -> Result<Vec<LoopDevice>> {
    #[derive(Deserialize)]
    struct Listing {
        loopdevices: Vec<LoopDevice>,
    }
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let listing: Listing = serde_json::from_str(json).context("losetup's JSON")?;
    Ok(listing.loopdevices)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn devices_are_told_apart_by_their_files() {
        let json = r#"{"loopdevices": [
            {"name":"/dev/loop0", "back-file":"/l/n1/holdfast-lab-1-n1.pool (deleted)"},
            {"name":"/dev/loop1", "back-file":"/lab/disk"}]}"#;
        let devices = parse(json).unwrap();
        assert!(devices[0].is_below(Path::new("/l")) && devices[0].is_lab_pool());
        assert!(!devices[1].is_below(Path::new("/l")) && !devices[1].is_lab_pool());
        assert!(!devices[1].is_orphan());
        let orphan = parse(r#"{"loopdevices": [{"name":"/dev/loop2", "back-file":"/volume"}]}"#);
        assert!(orphan.unwrap()[0].is_orphan());
        assert_eq!(parse("").unwrap(), []);
    }
}
