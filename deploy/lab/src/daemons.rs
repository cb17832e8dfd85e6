//! Starting and ending the daemons of a node.

use crate::layout::Layout;
use crate::machine;
use crate::process::{ProcessId, end_network_namespace, in_network_namespace, kill_all};
use crate::state::State;
use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The replicator.
pub const REPLICATOR: &str = "replicator";
/// The CSI node plugin.
pub const CSI_NODE: &str = "csi-node";
/// The CSI controller.
pub const CSI_CONTROLLER: &str = "csi-controller";
/// What keeps kernel devices alive while a replicator restarts; the replicator starts it.
pub const DEVICE_HOLDER: &str = "device-holder";
/// The way to the control API of a node that is a machine, a part of [`HOLDFAST`].
pub const RELAY: &str = "relay";
/// The command line, which is also the lab's own clients.
pub const HOLDFAST: &str = "holdfast";

/// How long a SIGKILLed daemon may take to be gone: it may wait for a disk.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// The programs beside the one that runs: target/release for a build, /usr/bin for a package; for a
/// test binary (target/release/deps) the directory above. `HOLDFAST_PROGRAMS` overrides.
///
/// # Errors
/// If one of the five is not there.
pub fn programs() -> Result<PathBuf> {
    let dir = match std::env::var_os("HOLDFAST_PROGRAMS") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe().context("where is this program?")?;
            let mut dir = exe.parent().unwrap_or(Path::new("/")).to_path_buf();
            if dir.ends_with("deps") {
                dir.pop();
            }
            dir
        }
    };
    for name in [REPLICATOR, CSI_NODE, CSI_CONTROLLER, DEVICE_HOLDER, HOLDFAST] {
        let program = dir.join(name);
        ensure!(
            program.is_file(),
            "{} is not there: build it with `cargo build --release --workspace`, or set HOLDFAST_PROGRAMS",
            program.display()
        );
    }
    Ok(dir)
}

/// The replicator's configuration file; names as its flags.
#[derive(Serialize)]
struct ReplicatorConfig {
    node: u64,
    name: String,
    cluster: String,
    data_dir: PathBuf,
    control_address: String,
    data_address: String,
    control_socket: PathBuf,
    pool: PathBuf,
    priority_io: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replace_after_seconds: Option<u64>,
    log: String,
    peers: Vec<Peer>,
}

#[derive(Serialize)]
struct Peer {
    node: u64,
    control_address: String,
}

/// Makes a node's directories and the replicator's configuration.
///
/// # Errors
/// If they cannot be written or the node has no pool yet.
pub fn configure(layout: &Layout, state: &State, node: u64) -> Result<()> {
    for dir in [layout.log_dir(node), layout.data_dir(node)] {
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let peer = |node| Peer { node, control_address: layout.control_address(node).to_string() };
    let pool = state.pools.get(&node).context("the node has no pool")?.clone();
    let (pool, control_socket) = if state.machines.contains(&node) {
        (PathBuf::from(machine::POOL), machine::control_socket(layout, node))
    } else {
        (pool, layout.control_socket(node))
    };
    let config = ReplicatorConfig {
        node,
        name: Layout::node_name(node),
        cluster: state.cluster.clone(),
        data_dir: layout.data_dir(node),
        control_address: layout.control_address(node).to_string(),
        data_address: layout.data_address(node).to_string(),
        control_socket,
        pool,
        priority_io: "high".into(),
        replace_after_seconds: state.replace_after_seconds,
        log: std::env::var("HOLDFAST_LOG").unwrap_or_else(|_| "info".into()),
        peers: (1..=state.nodes).map(peer).collect(),
    };
    fs::write(config_file(layout, node), toml::to_string(&config)?)?;
    Ok(())
}

/// Where [`configure`] writes.
#[must_use]
pub fn config_file(layout: &Layout, node: u64) -> PathBuf {
    layout.node_dir(node).join("replicator.toml")
}

/// Writes the superblock of a node's blank pool.
///
/// # Errors
/// If the replicator refuses the device.
pub fn format_pool(state: &State, node: u64) -> Result<()> {
    let pool = state.pools.get(&node).context("the node has no pool")?.to_string_lossy();
    let program = state.programs.join(REPLICATOR);
    let args = ["pool", "init", "--pool", pool.as_ref(), "--cluster", state.cluster.as_str()];
    crate::exec::run(&program.to_string_lossy(), &args)
        .with_context(|| format!("formatting the pool of {}", Layout::node_name(node)))
        .map(drop)
}

/// Names of the daemons that belong on a node, in the order in which they start.
#[must_use]
pub fn names(state: &State, node: u64) -> Vec<&'static str> {
    if state.machines.contains(&node) {
        return vec![REPLICATOR, RELAY];
    }
    let mut names = vec![REPLICATOR, CSI_NODE];
    if node == state.controller_node {
        names.push(CSI_CONTROLLER);
    }
    names
}

/// Network namespace, program and arguments of a daemon.
fn command(
    layout: &Layout,
    state: &State,
    node: u64,
    daemon: &str,
) -> (String, PathBuf, Vec<OsString>) {
    let namespace = layout.namespace(node);
    if daemon == RELAY {
        let mut arguments: Vec<OsString> = vec!["lab".into(), "relay".into()];
        arguments.extend(["--socket".into(), layout.control_socket(node).into()]);
        arguments.extend(["--to".into(), layout.control_address(node).to_string().into()]);
        // The node's own namespace has no address: the machine has it.
        return (layout.hub(), state.programs.join(HOLDFAST), arguments);
    }
    let program = state.programs.join(daemon);
    if daemon == REPLICATOR && state.disks {
        return (namespace, "unshare".into(), with_boot_id(layout, state, node, &program));
    }
    if daemon == REPLICATOR && state.machines.contains(&node) {
        let (kernel, arguments) =
            machine::command(layout, node, &program, &config_file(layout, node));
        return (namespace, kernel, arguments);
    }
    (namespace, program, arguments(layout, state, node, daemon))
}

/// Runs the program whose words follow with the boot id in the file `$1`. Its mounts are the machine's
/// all the same, below the lab's directory.
const WITH_BOOT_ID: &str = "mount --make-private /proc && \
    mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";

fn with_boot_id(layout: &Layout, state: &State, node: u64, replicator: &Path) -> Vec<OsString> {
    let words = ["--mount", "--propagation=unchanged", "sh", "-c", WITH_BOOT_ID, "sh"];
    let mut all: Vec<OsString> = words.map(OsString::from).into();
    all.extend([layout.boot_id_file(node).into(), replicator.into()]);
    all.extend(arguments(layout, state, node, REPLICATOR));
    all
}

/// The next start of the replicator of `node` is on another boot of its host.
///
/// # Errors
/// If it cannot be written.
pub fn new_boot_id(layout: &Layout, node: u64) -> Result<()> {
    let file = layout.boot_id_file(node);
    fs::write(&file, format!("{}\n", uuid::Uuid::new_v4()))
        .with_context(|| format!("writing {}", file.display()))
}

/// Makes what a process with mounts of its own mounts below `dir` a mount of the machine.
///
/// # Errors
/// If `mount` fails.
pub fn share_mounts(dir: &Path) -> Result<()> {
    let dir = dir.to_string_lossy();
    crate::exec::run("mount", &["--bind", &dir, &dir])?;
    crate::exec::run("mount", &["--make-shared", &dir]).map(drop)
}

fn arguments(layout: &Layout, state: &State, node: u64, daemon: &str) -> Vec<OsString> {
    let unix = |path: PathBuf| format!("unix://{}", path.display());
    let text: Vec<String> = match daemon {
        CSI_NODE => vec![
            "--endpoint".into(),
            unix(layout.csi_socket(node)),
            "--replicator".into(),
            unix(layout.control_socket(node)),
            "--node-name".into(),
            Layout::node_name(node),
            "--node-id".into(),
            node.to_string(),
            "--alpha".into(),
        ],
        CSI_CONTROLLER => {
            // The replicator beside it first, then the others.
            let order = core::iter::once(node).chain((1..=state.nodes).filter(|n| *n != node));
            let all: Vec<String> =
                order.map(|node| format!("http://{}", layout.control_address(node))).collect();
            vec![
                "--endpoint".into(),
                unix(layout.controller_socket(node)),
                "--replicators".into(),
                all.join(","),
                "--alpha".into(),
            ]
        }
        _ => vec!["--config".into(), config_file(layout, node).display().to_string()],
    };
    text.into_iter().map(OsString::from).collect()
}

/// Starts those daemons of a node that do not run, and remembers them in `state` (to be saved).
///
/// # Errors
/// If one cannot be started.
pub fn start(layout: &Layout, state: &mut State, node: u64) -> Result<()> {
    for name in names(state, node) {
        let running = state.daemons.get(&node).and_then(|daemons| daemons.get(name));
        if running.is_some_and(|process| process.is_alive()) {
            continue;
        }
        if name == REPLICATOR && state.machines.contains(&node) {
            machine::forget_last(layout, node)?;
        }
        let (namespace, program, arguments) = command(layout, state, node, name);
        let process = spawn(
            &namespace,
            &program,
            &arguments,
            &layout.log_dir(node).join(format!("{name}.log")),
        )?;
        state.daemons.entry(node).or_default().insert(name.into(), process);
        state.save(&layout.dir)?;
    }
    Ok(())
}

/// Starts a program for good: in a network namespace (and only that: its mounts are the machine's),
/// in a session of its own, with its output appended to `log`.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(
    namespace: &str,
    program: &Path,
    arguments: &[OsString],
    log: &Path,
) -> Result<ProcessId> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let path = Layout::namespace_path(namespace);
    let entered = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    // setsid does not fork here: the pid stays the program's.
    let mut command = Command::new("setsid");
    command
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    // By a thread that has entered the namespace: the child is in it from its fork on, so that
    // whoever clears the namespace at that moment finds it.
    let spawn = move || -> std::io::Result<Child> {
        setns(entered, CloneFlags::CLONE_NEWNET)?;
        command.spawn()
    };
    let child = std::thread::spawn(spawn)
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that starts programs ended"))?
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("pid")?;
    ProcessId::of(pid).with_context(|| format!("{} ended at once", program.display()))
}

/// SIGKILLs a node's daemons and waits until they are gone; a machine loses power.
///
/// # Errors
/// If one will not go.
pub fn kill(layout: &Layout, state: &State, node: u64) -> Result<()> {
    let none = BTreeMap::new();
    let daemons = state.daemons.get(&node).unwrap_or(&none);
    let mut processes: Vec<ProcessId> = daemons.values().copied().collect();
    if let (true, Some(kernel)) = (state.machines.contains(&node), daemons.get(REPLICATOR)) {
        // The kernel first: then the processes that carried its disk and its userland.
        kill_all(&[*kernel], KILL_PATIENCE)?;
        let namespace = layout.namespace(node);
        processes.extend(in_network_namespace(&Layout::namespace_path(&namespace))?);
    }
    kill_all(&processes, KILL_PATIENCE)
}

/// SIGKILLs all that runs on a node, as if its machine had crashed, but for what the kernel itself
/// holds: mounts and loop devices stay.
///
/// # Errors
/// If a process will not go.
pub fn crash(layout: &Layout, node: u64) -> Result<()> {
    let namespace = Layout::namespace_path(&layout.namespace(node));
    end_network_namespace(&namespace, KILL_PATIENCE)
}

/// One daemon of a node.
///
/// # Errors
/// If it was never started.
pub fn process(state: &State, node: u64, daemon: &str) -> Result<ProcessId> {
    let process = state.daemons.get(&node).and_then(|daemons| daemons.get(daemon));
    process.copied().with_context(|| format!("{} has no {daemon}", Layout::node_name(node)))
}

/// The last lines of a daemon's log, for error messages.
#[must_use]
pub fn last_words(layout: &Layout, node: u64, daemon: &str) -> String {
    last_lines(layout, node, daemon, 6)
}

/// The last `count` lines of a daemon's log.
#[must_use]
pub fn last_lines(layout: &Layout, node: u64, daemon: &str, count: usize) -> String {
    let path = layout.log_dir(node).join(format!("{daemon}.log"));
    let text = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(count)..];
    format!("{} ends with:\n{}", path.display(), last.join("\n"))
}
