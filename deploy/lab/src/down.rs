//! Ending labs, whole ones and remains: everything is found by name, file or namespace, nothing has
//! to be remembered. Each step goes on when another failed, and the first failure is reported.
//!
//! The order matters: first the processes, so that nothing new appears; then filesystems, then the
//! loop devices under them, then the FUSE mounts that hold the files of those, then the rest.

use crate::layout::{Layout, number_of_namespace};
use crate::pool::{LoopDevice, detach, loop_devices};
use crate::process::{end_network_namespace, wait_until};
use crate::state::{REGISTRY, Registry, namespaces};
use crate::{exec, net};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a process may take to be gone after SIGKILL: it may wait for a disk that is failing.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How long the kernel may take to free a loop device after its last user.
const LOOP_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Failures(Vec<anyhow::Error>);

impl Failures {
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    fn into_result(self) -> Result<()> {
        let texts: Vec<String> = self.0.iter().map(|error| format!("{error:#}")).collect();
        if texts.is_empty() {
            Ok(())
        } else {
            bail!("not everything was removed: {}", texts.join("; "))
        }
    }
}

/// Ends the lab with this number and directory.
///
/// # Errors
/// If something is left.
pub fn lab(layout: &Layout) -> Result<()> {
    let mut failures = Failures::default();
    // Ended before, its number may be another lab's by now.
    let number = Registry::default().list()?.remove(&layout.number);
    let given_away = number.is_some_and(|dir| dir != layout.dir);
    let ours = |name: &String| !given_away && number_of_namespace(name) == Some(layout.number);
    let namespaces: Vec<String> = namespaces().into_iter().filter(ours).collect();
    end_processes(&namespaces, &mut failures);
    release_storage(&layout.dir, &mut failures);
    for namespace in &namespaces {
        failures.note(net::remove(namespace));
    }
    failures.note(remove_directory(&layout.dir));
    if failures.0.is_empty() && !given_away {
        failures.note(Registry::default().release(layout.number));
    }
    failures.into_result()
}

/// Ends every lab of this machine and removes remains of killed ones.
///
/// # Errors
/// If something is left.
pub fn all() -> Result<()> {
    let mut failures = Failures::default();
    for (number, dir) in Registry::default().list()? {
        failures.note(lab(&Layout { number, dir }));
    }
    let ours = |name: &String| number_of_namespace(name).is_some();
    let orphans: Vec<String> = namespaces().into_iter().filter(ours).collect();
    end_processes(&orphans, &mut failures);
    for namespace in &orphans {
        failures.note(net::remove(namespace));
    }
    for device in failures.note(loop_devices()).unwrap_or_default() {
        if device.is_lab_pool() || device.is_orphan() {
            failures.note(detach(&device.device));
        }
    }
    if failures.0.is_empty() {
        // Only if empty: a lab that is just coming up keeps its entry.
        let _ = fs::remove_file(Path::new(REGISTRY).join("lock"));
        let _ = fs::remove_dir(REGISTRY);
    }
    failures.into_result()
}

fn end_processes(namespaces: &[String], failures: &mut Failures) {
    // A second look: what was being started during the first.
    for _ in 0..2 {
        for namespace in namespaces {
            let path = Layout::namespace_path(namespace);
            failures.note(end_network_namespace(&path, KILL_PATIENCE));
        }
    }
}

/// Unmounts and frees everything below `dir`.
fn release_storage(dir: &Path, failures: &mut Failures) {
    // Read before any unmount: the kernel names a file relative to what is still mounted.
    let below = |device: &LoopDevice| device.is_below(dir) || device.is_orphan_of(dir);
    let devices: Vec<PathBuf> = failures
        .note(loop_devices())
        .unwrap_or_default()
        .into_iter()
        .filter(below)
        .map(|device| device.device)
        .collect();
    let mounts = failures.note(mounts_below(dir, &devices)).unwrap_or_default();
    let (own, mounts): (Vec<_>, Vec<_>) = mounts.into_iter().partition(|mount| mount.point == dir);
    let (fuse, other): (Vec<_>, Vec<_>) =
        mounts.into_iter().partition(|mount| mount.kind.starts_with("fuse"));
    for mount in other.iter().rev() {
        failures.note(unmount(mount));
    }
    for device in &devices {
        failures.note(detach(device));
    }
    // By file, not by name: the next user of the machine may have the freed device already.
    let gone = || loop_devices().is_ok_and(|left| !left.iter().any(below));
    if !devices.is_empty() && !wait_until(LOOP_PATIENCE, gone) {
        failures.note::<()>(Err(anyhow::anyhow!("a loop device of {devices:?} is still in use")));
    }
    // What is mounted on the directory itself goes last: it hides what is below.
    for mount in fuse.iter().rev().chain(&own) {
        failures.note(unmount(mount));
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
}

fn unmount(mount: &Mount) -> Result<()> {
    // Lazily: what still uses a dead filesystem must not hold us up.
    exec::run("umount", &["--lazy", &mount.point.to_string_lossy()]).map(drop)
}

/// Mounts at or below `dir`, and mounts anywhere of `devices`, in mounting order.
fn mounts_below(dir: &Path, devices: &[PathBuf]) -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading mounts")?;
    Ok(parse_mounts(&text, dir, devices))
}

fn parse_mounts(text: &str, dir: &Path, devices: &[PathBuf]) -> Vec<Mount> {
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = PathBuf::from(unescape(before.split(' ').nth(4)?));
        let mut after = after.split(' ');
        let kind = after.next()?.to_owned();
        let source = PathBuf::from(unescape(after.next()?));
        (point.starts_with(dir) || devices.contains(&source)).then_some(Mount { point, kind })
    };
    text.lines().filter_map(parse).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, character);
    }
    plain
}

/// Removes a directory and what is below; fine if it is not there.
///
/// # Errors
/// If something below cannot be removed.
pub(crate) fn remove_directory(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_place_and_by_device() {
        let text = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
40 22 0:50 / /lab/n1/data/v rw - fuse.holdfast holdfast rw
41 22 7:3 / /lab/n1/stage/a\\040b rw - ext4 /dev/loop3 rw
42 22 7:3 / /elsewhere rw shared:1 - ext4 /dev/loop3 rw
43 22 7:9 / /laboratory rw - ext4 /dev/loop9 rw
";
        let found = parse_mounts(text, Path::new("/lab"), &[PathBuf::from("/dev/loop3")]);
        let points: Vec<&str> = found.iter().filter_map(|mount| mount.point.to_str()).collect();
        assert_eq!(points, ["/lab/n1/data/v", "/lab/n1/stage/a b", "/elsewhere"]);
        assert_eq!(found[0].kind, "fuse.holdfast");
    }
}
