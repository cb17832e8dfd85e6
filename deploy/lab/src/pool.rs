//! Pools of the lab: sparse files with loop devices on them, as a person would make them.

use crate::exec::run;
use crate::layout::{Layout, POOL_PREFIX};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use types::VolumeId;

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

    /// The volume and the node, if its file is a replicator's and was opened in a mount namespace that has
    /// ended since: the kernel then says only the file's name.
    fn orphaned(&self) -> Option<(VolumeId, u64)> {
        let (volume, node) = self.backing.as_deref()?.strip_prefix('/')?.split_once('.')?;
        Some((volume.parse().ok()?, node.parse().ok()?))
    }

    /// Whether it is the device of a volume that nothing but its name leads to.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.orphaned().is_some()
    }

    /// Whether it is an orphan of the lab in `dir`.
    #[must_use]
    pub fn is_orphan_of(&self, dir: &Path) -> bool {
        let mount = |(volume, node)| dir.join(format!("n{node}/data/fuse/{volume}"));
        // A mount whose server is dead cannot be looked at, but it is there.
        self.orphaned().is_some_and(|orphan| mount(orphan).try_exists().unwrap_or(true))
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
        let json = r#"{"loopdevices": [
            {"name":"/dev/loop2", "back-file":"/b4d60ab3-1844-4d50-9e60-975883e5f5d5.2"}]}"#;
        let orphan = &parse(json).unwrap()[0];
        assert!(orphan.is_orphan() && !orphan.is_orphan_of(Path::new("/l")));
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("n2/data/fuse/b4d60ab3-1844-4d50-9e60-975883e5f5d5");
        std::fs::create_dir_all(mount).unwrap();
        assert!(orphan.is_orphan_of(dir.path()));
        assert_eq!(parse("").unwrap(), []);
    }
}
