//! What a node does when Holdfast is removed from it: the reverse of joining, and of what its daemons left
//! behind. Runs after they have ended, over the node's own file system mounted at a directory.
//!
//! Data are kept unless asked otherwise: the pool, the Raft log and the node's identity stay where they
//! are, and a later installation finds them. Everything else goes. All of it may be repeated.

use crate::files::{CONTROL_SOCKET, CSI_NODE, IDENTITY, REPLICATOR};
use crate::pool;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the driver, as kubelet's directories have it.
const DRIVER: &str = "csi.holdfast.dev";

/// What is to be removed from where.
#[derive(Clone, Debug)]
pub struct Leave {
    /// Where the node's root directory is mounted, shared with the node.
    pub root: PathBuf,
    /// The node's directory for everything but the pool, as the node knows it.
    pub directory: PathBuf,
    /// Kubelet's directory, as the node knows it.
    pub kubelet: PathBuf,
    /// Data, too.
    pub wipe: bool,
    /// The replicator, which wipes a pool that is a device.
    pub replicator: PathBuf,
}

/// What of the replicator's configuration is of interest.
#[derive(Debug, Deserialize)]
struct Configuration {
    cluster: String,
    pool: PathBuf,
}

impl Leave {
    /// The path by which this process sees `path` of the node.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Removes everything.
    ///
    /// # Errors
    /// A replicator that still runs; what the operating system says.
    pub fn run(&self) -> Result<()> {
        let directory = self.at(&self.directory);
        if UnixStream::connect(directory.join(CONTROL_SOCKET)).is_ok() {
            bail!("the replicator of this node still runs");
        }
        self.unmount()?;
        let configuration = self.configuration()?;
        if let Some(configuration) = &configuration {
            self.release(configuration)?;
        }
        let kubelet = self.at(&self.kubelet);
        remove(&kubelet.join("plugins").join(DRIVER))?;
        remove(&kubelet.join(format!("plugins_registry/{DRIVER}-reg.sock")))?;
        remove(&kubelet.join("plugins/kubernetes.io/csi").join(DRIVER))?;
        if self.wipe {
            return remove(&directory);
        }
        for entry in entries(&directory)? {
            let socket = entry.file_type()?.is_socket();
            let name = entry.file_name();
            if socket || [REPLICATOR, CSI_NODE].iter().any(|made| name == *made) {
                remove(&entry.path())?;
            }
        }
        // Nothing ever became of it.
        if !directory.join(IDENTITY).exists() && entries(&directory)?.is_empty() {
            remove(&directory)?;
        }
        Ok(())
    }

    /// Mounts below the directory, and those that kubelet has of our volumes. Nothing uses them: the last
    /// pod went before.
    fn unmount(&self) -> Result<()> {
        let own = self.at(&self.directory);
        let staged = self.at(&self.kubelet).join("plugins/kubernetes.io/csi").join(DRIVER);
        loop {
            let table = fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
            // The newest first: it may cover others.
            let points = mount_points(&table);
            let ours = |point: &&PathBuf| {
                point.starts_with(&staged) || (point.starts_with(&own) && **point != own)
            };
            let Some(point) = points.iter().rev().find(ours) else { return Ok(()) };
            for device in loops_in(point)? {
                tracing::info!(device, "detaching");
                pool::losetup(&["--detach", &device])?;
            }
            tracing::info!(point = %point.display(), "unmounting");
            let done = Command::new("umount").arg("--lazy").arg(point).output();
            let done = done.context("starting umount")?;
            let error = String::from_utf8_lossy(&done.stderr);
            ensure!(done.status.success(), "umount {}: {}", point.display(), error.trim());
        }
    }

    fn configuration(&self) -> Result<Option<Configuration>> {
        let path = self.at(&self.directory).join(REPLICATOR);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map(Some).context(path.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(path.display().to_string()),
        }
    }

    /// Lets go of the pool, and wipes it if asked to.
    fn release(&self, configuration: &Configuration) -> Result<()> {
        let pool = &configuration.pool;
        if !pool.starts_with("/dev") {
            return if self.wipe { remove(&self.at(pool)) } else { Ok(()) };
        }
        if pool.exists() && self.wipe {
            self.wipe_device(pool, &configuration.cluster)?;
        }
        let device = pool.to_string_lossy();
        let listed = pool::losetup(&["--list", "--noheadings", "--output", "NAME,BACK-FILE"])?;
        let over = listed.lines().find_map(|line| line.trim().strip_prefix(&*device));
        if let Some(file) = over.filter(|file| file.starts_with(' ')) {
            pool::losetup(&["--detach", &device])?;
            if self.wipe {
                // As the kernel shows it to whoever sees the node's root elsewhere.
                let file = Path::new(file.trim());
                remove(&if file.starts_with(&self.root) { file.into() } else { self.at(file) })?;
            }
        }
        Ok(())
    }

    fn wipe_device(&self, device: &Path, cluster: &str) -> Result<()> {
        let done = Command::new(&self.replicator)
            .args(["pool", "wipe", "--cluster", cluster, "--pool"])
            .arg(device)
            .output()
            .with_context(|| format!("starting {}", self.replicator.display()))?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "wiping the pool: {}", error.trim());
        tracing::info!("{}", String::from_utf8_lossy(&done.stdout).trim());
        Ok(())
    }
}

fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.collect::<Result<_, _>>()?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| directory.display().to_string()),
    }
}

/// A file, or a directory with everything in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => tracing::info!(path = %path.display(), "removed"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
    }
    Ok(())
}

/// Loop devices over files directly in a mounted directory. A dead mount has none that can be asked for.
fn loops_in(point: &Path) -> Result<Vec<String>> {
    let Ok(files) = fs::read_dir(point) else { return Ok(Vec::new()) };
    let mut devices = Vec::new();
    for file in files.filter_map(Result::ok) {
        let path = file.path();
        let path = path.to_string_lossy();
        let listed = pool::losetup(&["--noheadings", "--output", "NAME", "--associated", &path])?;
        devices.extend(listed.lines().map(|line| line.trim().to_owned()));
    }
    Ok(devices)
}

/// The mount points of /proc/PID/mountinfo (proc_pid_mountinfo(5)), oldest first.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape(point)))).collect()
}

/// Space, tab, newline and backslash are octal there.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let octal = text.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let octal = octal.and_then(|digits| core::str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(*byte));
        at += if octal.is_some() { 4 } else { 1 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let table = b"36 35 98:0 / /mnt rw - ext4 /dev/a rw\n40 36 0:5 / /mnt/a\\040b\\134c rw - fuse f rw\n";
        let points = mount_points(table);
        assert_eq!(points, [PathBuf::from("/mnt"), PathBuf::from("/mnt/a b\\c")]);
    }

    fn node(root: &Path, wipe: bool) -> Leave {
        let directory = root.join("var/lib/holdfast");
        let plugins = root.join("var/lib/kubelet/plugins");
        fs::create_dir_all(directory.join("node-1")).unwrap();
        fs::create_dir_all(plugins.join("csi.holdfast.dev")).unwrap();
        fs::create_dir_all(plugins.join("other.example")).unwrap();
        for name in [IDENTITY, "pool", "node-1/log"] {
            fs::write(directory.join(name), "kept").unwrap();
        }
        let text = "cluster = \"c\"\npool = \"/var/lib/holdfast/pool\"\nnode = 1\n";
        fs::write(directory.join(REPLICATOR), text).unwrap();
        fs::write(directory.join(CSI_NODE), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(directory.join(CONTROL_SOCKET)).unwrap());
        Leave {
            root: root.to_owned(),
            directory: "/var/lib/holdfast".into(),
            kubelet: "/var/lib/kubelet".into(),
            wipe,
            replicator: "/nonexistent".into(),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = entries(directory)
            .unwrap()
            .into_iter()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn data_stay_and_everything_else_goes_and_again() {
        let root = tempfile::tempdir().unwrap();
        let leave = node(root.path(), false);
        for _ in 0..2 {
            leave.run().unwrap();
            let directory = root.path().join("var/lib/holdfast");
            assert_eq!(names(&directory), [IDENTITY, "node-1", "pool"]);
            assert_eq!(names(&root.path().join("var/lib/kubelet/plugins")), ["other.example"]);
        }
    }

    #[test]
    fn asked_to_wipe_it_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut leave = node(root.path(), true);
        let pool = root.path().join("srv/pool");
        fs::create_dir_all(pool.parent().unwrap()).unwrap();
        fs::write(&pool, "data").unwrap();
        let text = "cluster = \"c\"\npool = \"/srv/pool\"\n";
        fs::write(root.path().join("var/lib/holdfast").join(REPLICATOR), text).unwrap();
        leave.run().unwrap();
        assert_eq!(names(&root.path().join("var/lib")), ["kubelet"]);
        assert_eq!(names(&root.path().join("srv")), Vec::<String>::new());
        leave.wipe = false;
        leave.run().unwrap();
    }

    #[test]
    fn a_node_that_serves_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let leave = node(root.path(), true);
        let socket = root.path().join("var/lib/holdfast").join(CONTROL_SOCKET);
        remove(&socket).unwrap();
        let _daemon = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(leave.run().unwrap_err().to_string().contains("still runs"));
        assert!(root.path().join("var/lib/holdfast/pool").exists());
    }
}
