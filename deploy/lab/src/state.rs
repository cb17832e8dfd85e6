//! What is remembered of a lab: `state.json` in its directory, and one line per lab in the machine's
//! registry. Both are written before the first resource is made.

use crate::layout::{Layout, MAX_DIR, MAX_NODES, number_of_namespace};
use crate::process::ProcessId;
use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// One file per lab of this machine; in /run, so that a reboot forgets labs as it ends them.
pub const REGISTRY: &str = "/run/holdfast-labs";

/// A lab as its directory remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The lab's number on this machine.
    pub number: u8,
    /// The cluster's UUID.
    pub cluster: String,
    /// How many nodes, numbered from 1.
    pub nodes: u64,
    /// Node that runs the CSI controller.
    pub controller_node: u64,
    /// Bytes of each pool file.
    pub pool_bytes: u64,
    /// Nodes with a kernel of their own.
    pub machines: BTreeSet<u64>,
    /// Whether the pools are on disks whose power can be cut ([`crate::disk`]).
    #[serde(default)]
    pub disks: bool,
    /// After how many seconds a lost copy is replaced (R27), if not the usual time.
    #[serde(default)]
    pub replace_after_seconds: Option<u64>,
    /// Directory of the four programs.
    pub programs: PathBuf,
    /// Loop device of each node's pool; for a machine, the file that is its disk.
    pub pools: BTreeMap<u64, PathBuf>,
    /// Daemons by node and name, as last started.
    pub daemons: BTreeMap<u64, BTreeMap<String, ProcessId>>,
}

impl State {
    /// The file in the lab's directory.
    #[must_use]
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    /// Reads the state of the lab in `dir`; `None` if there is no lab.
    ///
    /// # Errors
    /// If it is there and cannot be read or understood.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(dir);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("reading {}", path.display()))?,
        };
        let state = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a lab's state", path.display()))?;
        Ok(Some(state))
    }

    /// Writes the state in one step: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = Self::path(dir);
        let fresh = dir.join("state.json.new");
        let mut file =
            File::create(&fresh).with_context(|| format!("writing {}", fresh.display()))?;
        file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &path).with_context(|| format!("writing {}", path.display()))
    }
}

/// Holds off other `holdfast lab` commands on the same directory while the state changes.
///
/// # Errors
/// If the lock file cannot be made.
pub fn lock(dir: &Path) -> Result<Flock<File>> {
    exclusive(&dir.join("state.lock"))
}

fn exclusive(path: &Path) -> Result<Flock<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| anyhow::anyhow!("locking {}: {errno}", path.display()))
}

/// The labs of this machine.
pub struct Registry {
    dir: PathBuf,
}

impl Default for Registry {
    fn default() -> Self {
        Self { dir: PathBuf::from(REGISTRY) }
    }
}

impl Registry {
    /// Takes a number that no other lab has for the lab in `dir`, and remembers it.
    ///
    /// # Errors
    /// If `dir` is too long for the sockets in it, or already holds a lab.
    pub fn claim(&self, dir: &Path) -> Result<Layout> {
        ensure!(dir.is_absolute(), "the lab directory {} must be absolute", dir.display());
        let length = dir.as_os_str().len();
        ensure!(
            length <= MAX_DIR,
            "the lab directory {} has {length} bytes; at most {MAX_DIR} fit the Unix sockets in it",
            dir.display()
        );
        fs::create_dir_all(&self.dir)?;
        let _lock = exclusive(&self.dir.join("lock"))?;
        let labs = self.list()?;
        if let Some((number, _)) = labs.iter().find(|(_, known)| known.as_path() == dir) {
            bail!(
                "{} holds lab {number} already: `holdfast lab down --dir {}` ends it",
                dir.display(),
                dir.display()
            );
        }
        let taken: Vec<u8> = labs.keys().copied().chain(namespaces_in_use()).collect();
        let number = (1..=254)
            .find(|number| !taken.contains(number))
            .context("254 labs on one machine are enough")?;
        fs::write(self.entry(number), dir.as_os_str().as_encoded_bytes())?;
        Ok(Layout { number, dir: dir.to_path_buf() })
    }

    /// All labs, by number, with their directories.
    ///
    /// # Errors
    /// If the registry cannot be read.
    pub fn list(&self) -> Result<BTreeMap<u8, PathBuf>> {
        let mut labs = BTreeMap::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(labs),
            other => other.with_context(|| format!("listing {}", self.dir.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            labs.insert(number, PathBuf::from(fs::read_to_string(entry.path())?));
        }
        Ok(labs)
    }

    /// Forgets a lab; the last thing that `down` does.
    ///
    /// # Errors
    /// If the entry is there and cannot be removed.
    pub fn release(&self, number: u8) -> Result<()> {
        match fs::remove_file(self.entry(number)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn entry(&self, number: u8) -> PathBuf {
        self.dir.join(number.to_string())
    }
}

/// Lab numbers that some network namespace carries, registered or not.
#[must_use]
pub fn namespaces_in_use() -> Vec<u8> {
    namespaces().iter().filter_map(|name| number_of_namespace(name)).collect()
}

/// Names of all bound network namespaces.
#[must_use]
pub fn namespaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Checks a number of nodes.
///
/// # Errors
/// If it is not 1 to [`MAX_NODES`].
pub fn check_nodes(nodes: u64) -> Result<()> {
    ensure!((1..=MAX_NODES).contains(&nodes), "--nodes {nodes}: a lab has 1 to {MAX_NODES} nodes");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn labs_get_different_numbers_and_one_directory_holds_one_lab() {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry { dir: temp.path().join("labs") };
        let first = registry.claim(Path::new("/tmp/one")).unwrap();
        let second = registry.claim(Path::new("/tmp/two")).unwrap();
        assert_ne!(first.number, second.number);
        let again = registry.claim(Path::new("/tmp/one")).unwrap_err().to_string();
        assert!(again.contains("lab down --dir /tmp/one"), "{again}");
        registry.release(first.number).unwrap();
        assert_eq!(registry.claim(Path::new("/tmp/one")).unwrap().number, first.number);
        let long = registry.claim(Path::new(&format!("/{}", "x".repeat(60)))).unwrap_err();
        assert!(long.to_string().contains("at most 40"), "{long}");
    }

    #[test]
    fn state_comes_back_as_it_was_saved() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(State::load(temp.path()).unwrap(), None);
        let state = State {
            number: 3,
            cluster: "c".into(),
            nodes: 3,
            controller_node: 3,
            pool_bytes: 1,
            disks: false,
            replace_after_seconds: None,
            machines: BTreeSet::from([2]),
            programs: PathBuf::from("/bin"),
            pools: BTreeMap::from([(1, PathBuf::from("/dev/loop0"))]),
            daemons: BTreeMap::new(),
        };
        state.save(temp.path()).unwrap();
        assert_eq!(State::load(temp.path()).unwrap(), Some(state));
        fs::write(State::path(temp.path()), "{").unwrap();
        assert!(State::load(temp.path()).unwrap_err().to_string().contains("not a lab's state"));
    }
}
