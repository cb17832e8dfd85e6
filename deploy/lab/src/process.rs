//! Finding and ending processes by what they are (pid and start time, network namespace), never by
//! name alone: a pid may have been given to somebody else since.

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// One process, for good: a reused pid has another start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid in the machine's own PID namespace.
    pub pid: i32,
    /// Clock ticks after boot at which it started (field 22 of /proc/PID/stat).
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has `pid` now; `None` if there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, start_time)| Self { pid, start_time })
    }

    /// Whether it still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(self) -> bool {
        reap(self.pid);
        matches!(stat(self.pid), Some((state, start)) if start == self.start_time && state != 'Z')
    }

    /// Sends `signal`; a process that is gone already is fine.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => bail!("sending {signal} to process {}: {errno}", self.pid),
        }
    }
}

/// Collects the exit status if `pid` is a dead child of ours.
fn reap(pid: i32) {
    // ECHILD: not our child; somebody else collects it.
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// State letter and start time from /proc/PID/stat.
fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    // The command may hold spaces and brackets: fields count from the last bracket.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// Every process whose network namespace is the one bound at `namespace` (a file in /run/netns).
///
/// # Errors
/// If /proc cannot be listed. A namespace file that is not there has no processes.
pub fn in_network_namespace(namespace: &Path) -> Result<Vec<ProcessId>> {
    let Ok(wanted) = std::fs::metadata(namespace) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("listing /proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(theirs) = std::fs::metadata(entry.path().join("ns/net")) else { continue };
        if (theirs.dev(), theirs.ino()) == (wanted.dev(), wanted.ino()) {
            found.extend(ProcessId::of(pid).filter(|process| process.is_alive()));
        }
    }
    Ok(found)
}

/// Those processes of a network namespace whose program is called `name` (at most 15 bytes).
///
/// # Errors
/// As [`in_network_namespace`].
pub fn named_in_network_namespace(namespace: &Path, name: &str) -> Result<Vec<ProcessId>> {
    let mut found = in_network_namespace(namespace)?;
    found.retain(|process| {
        std::fs::read_to_string(format!("/proc/{}/comm", process.pid))
            .is_ok_and(|comm| comm.trim_end() == name)
    });
    Ok(found)
}

/// Ends every process of a network namespace, as a machine that stops: none of them sees another one
/// die and does something about it, such as starting a successor.
///
/// # Errors
/// If one is still there after `patience` (stuck in the kernel).
pub fn end_network_namespace(namespace: &Path, patience: Duration) -> Result<()> {
    let mut stopped: Vec<ProcessId> = Vec::new();
    loop {
        let fresh: Vec<ProcessId> = in_network_namespace(namespace)?
            .into_iter()
            .filter(|process| !stopped.contains(process))
            .collect();
        if fresh.is_empty() {
            return kill_all(&stopped, patience);
        }
        for process in &fresh {
            process.signal(Signal::SIGSTOP)?;
        }
        stopped.extend(fresh);
    }
}

/// SIGKILLs all of `processes` and waits until they are gone.
///
/// # Errors
/// If one is still there after `patience` (stuck in the kernel).
pub fn kill_all(processes: &[ProcessId], patience: Duration) -> Result<()> {
    for process in processes {
        process.signal(Signal::SIGKILL)?;
    }
    for process in processes {
        if !wait_until(patience, || !process.is_alive()) {
            bail!("process {} is still there {patience:?} after SIGKILL", process.pid);
        }
    }
    Ok(())
}

/// Looks at `done` every 10 ms until it holds (true) or `patience` is over (false).
pub fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = crate::clock::now().after(patience);
    loop {
        if done() {
            return true;
        }
        if crate::clock::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stat_survives_a_name_with_brackets() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1 2 3";
        assert_eq!(parse_stat(line), Some(('S', 777)));
        assert_eq!(parse_stat("nothing"), None);
    }

    #[test]
    fn a_killed_child_is_gone_and_its_pid_with_another_start_is_someone_else() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        assert!(!ProcessId { start_time: process.start_time + 1, ..process }.is_alive());
        kill_all(&[process], Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        assert!(child.wait().is_err(), "its exit status was collected already");
    }
}
