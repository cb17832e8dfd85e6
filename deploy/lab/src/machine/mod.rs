//! A node with a kernel of its own: its replicator runs inside user-mode Linux, a kernel that is one
//! program of the host. SIGKILL of that program is a loss of power: processes, page cache and boot id
//! are gone, and what remains is what its kernel had handed to its two disks.
//!
//! The machine sees the host's files read-only and writes nothing but those disks, `data.img` (ext4,
//! the replicator's data directory) and the pool, and what its [`Job`]s say. Its network card is the cable of the node's
//! namespace. Unix sockets do not cross kernels: a [`relay`] serves the node's control socket.

mod job;
pub mod relay;

pub use job::Job;

use crate::exec::run;
use crate::layout::Layout;
use anyhow::{Context as _, Result, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel, of Debian's package `user-mode-linux`.
pub const KERNEL: &str = "/usr/bin/linux.uml";
/// The pool as the machine sees it.
pub const POOL: &str = "/dev/ubdb";

const INIT: &str = include_str!("init.sh");
/// Its own name in its management directory, that of the node.
const NAME: &str = "machine";
/// Memory of a machine, in MiB.
const MEMORY_MIB: u64 = 384;
/// Bytes of the disk for the replicator's data directory.
const DATA_BYTES: u64 = 256 << 20;
/// Where the kernel keeps its memory, in a file without a name.
const MEMORY_DIR: &str = "/dev/shm";

/// Why no machine can run on this host; `None` if one can.
#[must_use]
pub fn missing() -> Option<String> {
    [KERNEL, "/usr/sbin/insmod", MEMORY_DIR]
        .into_iter()
        .find(|path| !Path::new(path).exists())
        .map(|path| format!("{path} is not there: packages user-mode-linux and kmod"))
}

/// Makes the two disks of a node's machine and its first program; returns the file of the pool.
///
/// # Errors
/// If the machine cannot run on this host, or the files cannot be made.
pub fn make(layout: &Layout, node: u64, pool_bytes: u64) -> Result<PathBuf> {
    if let Some(missing) = missing() {
        anyhow::bail!("node {node} cannot have a machine: {missing}");
    }
    // The kernel splits its command line at spaces.
    ensure!(
        !layout.dir.to_string_lossy().contains(char::is_whitespace),
        "{}: no spaces in the directory of a lab with machines",
        layout.dir.display()
    );
    fs::write(init_file(layout, node), INIT)?;
    fs::create_dir_all(jobs(layout, node))?;
    let (pool, data) = (layout.pool_file(node), data_file(layout, node));
    for (file, bytes) in [(&pool, pool_bytes), (&data, DATA_BYTES)] {
        fs::File::create(file)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("making {}", file.display()))?;
    }
    run("mkfs.ext4", &["-q", "-F", &data.to_string_lossy()])?;
    Ok(pool)
}

/// Forgets the management socket of the kernel that ran last: the next one takes its name only if the
/// process that had it is gone from the process table, and a dead one may stay there for a while.
///
/// # Errors
/// If the directory is there and cannot be removed.
pub fn forget_last(layout: &Layout, node: u64) -> Result<()> {
    crate::down::remove_directory(&layout.node_dir(node).join(NAME))
}

/// The program that is the machine, and its arguments, for the node's namespace.
#[must_use]
pub fn command(
    layout: &Layout,
    node: u64,
    replicator: &Path,
    config: &Path,
) -> (PathBuf, Vec<OsString>) {
    let boot = [
        format!("mem={MEMORY_MIB}M"),
        "root=/dev/root rootfstype=hostfs ro quiet".into(),
        format!("uml_dir={}", layout.node_dir(node).display()),
        format!("umid={NAME}"),
        format!("ubda={}", data_file(layout, node).display()),
        format!("ubdb={}", layout.pool_file(node).display()),
        // The same card after a reboot: the neighbours remember its address.
        format!(
            "vec0:transport=raw,ifname=eth0,gro=1,mac=02:77:00:00:{:02x}:{node:02x}",
            layout.number
        ),
        "con=null con0=null,fd:1".into(),
        "init=/bin/sh --".into(),
        init_file(layout, node).display().to_string(),
        format!("{}/24", layout.address(node)),
        layout.data_dir(node).display().to_string(),
        replicator.display().to_string(),
        config.display().to_string(),
        jobs(layout, node).display().to_string(),
    ];
    let arguments = boot.iter().flat_map(|words| words.split(' ')).map(OsString::from);
    let mut all = vec![format!("TMPDIR={MEMORY_DIR}").into(), KERNEL.into()];
    all.extend(arguments);
    // env(1) runs the kernel in its own place: the process stays the same.
    (PathBuf::from("/usr/bin/env"), all)
}

/// The control socket inside the machine.
#[must_use]
pub fn control_socket(layout: &Layout, node: u64) -> PathBuf {
    layout.data_dir(node).join("control.sock")
}

fn data_file(layout: &Layout, node: u64) -> PathBuf {
    layout.node_dir(node).join("data.img")
}

fn jobs(layout: &Layout, node: u64) -> PathBuf {
    layout.node_dir(node).join("jobs")
}

fn init_file(layout: &Layout, node: u64) -> PathBuf {
    layout.node_dir(node).join("init.sh")
}
