//! Debian's PostgreSQL on a node, the way a pod would run it: in the node's network namespace, with
//! PID and IPC namespaces of its own (on one machine the interlock of two servers would see each other's
//! processes, which on two machines it cannot), as user postgres, its data on the published volume.
//!
//! Nothing here trades safety for speed: fsync, full_page_writes and synchronous_commit are on.

use crate::daemons::spawn;
use crate::exec::run_async;
use crate::layout::{Layout, POSTGRES_PORT};
use crate::process::{ProcessId, kill_all, wait_until};
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{User, chown};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

const USER: &str = "postgres";
/// How long a clean shutdown may take.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a killed server may take: its processes may wait for a device that is failing.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// Settings that go with the data, appended once to postgresql.conf.
const SETTINGS: &str = "
fsync = on
full_page_writes = on
synchronous_commit = on
shared_buffers = 128MB
# The volume has 1 GiB for tables and log: the default of 1 GB of log would fill it.
max_wal_size = 256MB
min_wal_size = 80MB
# With it everything shared lives in the server's own IPC namespace and ends with it.
dynamic_shared_memory_type = sysv
max_connections = 100
log_line_prefix = '%m [%p] '
";

/// A server on a node; it need not run.
#[derive(Clone, Debug)]
pub struct Postgres {
    layout: Layout,
    node: u64,
    data: PathBuf,
    binaries: PathBuf,
    process: Option<ProcessId>,
}

impl Postgres {
    /// A server on `node` whose data directory is `pgdata` on the volume published at `volume`.
    ///
    /// # Errors
    /// If no PostgreSQL is installed.
    pub fn new(layout: &Layout, node: u64, volume: &Path) -> Result<Self> {
        Ok(Self {
            layout: layout.clone(),
            node,
            data: volume.join("pgdata"),
            binaries: binaries()?,
            process: None,
        })
    }

    /// The lab that it runs in.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Directory of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.layout.node_dir(self.node).join("pg")
    }

    /// The server's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.layout.log_dir(self.node).join("postgres.log")
    }

    /// A command with one of PostgreSQL's client programs, run as user postgres in `namespace`.
    #[must_use]
    pub fn tool(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", Layout::namespace_path(namespace).display()))
            .args(as_postgres())
            .arg(self.binaries.join(program))
            .current_dir("/");
        command
    }

    /// A command that reaches the server through its Unix socket.
    #[must_use]
    pub fn local_tool(&self, program: &str) -> Command {
        let mut command = self.tool(&self.layout.namespace(self.node), program);
        command.env("PGHOST", self.socket_dir()).env("PGUSER", USER).env("PGDATABASE", USER);
        command
    }

    /// Makes the database cluster, with data checksums.
    ///
    /// # Errors
    /// If `initdb` fails.
    pub async fn init(&self) -> Result<()> {
        fs::create_dir(&self.data).with_context(|| format!("making {}", self.data.display()))?;
        give_to_postgres(&self.data)?;
        let mut initdb = self.tool(&self.layout.namespace(self.node), "initdb");
        initdb.args(["--data-checksums", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]);
        initdb.arg(&self.data);
        run_async(initdb).await?;
        let append = |name: &str, text: &str| -> Result<()> {
            let path = self.data.join(name);
            let before = fs::read_to_string(&path)?;
            fs::write(&path, before + text).with_context(|| format!("writing {}", path.display()))
        };
        append("postgresql.conf", SETTINGS)?;
        // The lab's network is reachable from nowhere else.
        append("pg_hba.conf", &format!("host all all {}/24 trust\n", self.layout.hub_address()))
    }

    /// Starts the server; it recovers by itself if it must. See [`Postgres::wait_ready`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        fs::create_dir_all(self.socket_dir())?;
        give_to_postgres(&self.socket_dir())?;
        let mut arguments: Vec<OsString> =
            ["--ipc", "--pid", "--fork", "--kill-child=SIGKILL"].map(OsString::from).into();
        arguments.extend(as_postgres().into_iter().map(OsString::from));
        arguments.push(self.binaries.join("postgres").into());
        arguments.push("-D".into());
        arguments.push(self.data.clone().into());
        let mut listen = OsString::from("--unix_socket_directories=");
        listen.push(self.socket_dir());
        arguments.push(listen);
        arguments.push(format!("--listen_addresses={}", self.layout.address(self.node)).into());
        arguments.push(format!("--port={POSTGRES_PORT}").into());
        let namespace = self.layout.namespace(self.node);
        self.process = Some(spawn(&namespace, Path::new("unshare"), &arguments, &self.log())?);
        Ok(())
    }

    /// Waits until the server takes connections.
    ///
    /// # Errors
    /// If it does not within `patience`, or ended.
    pub async fn wait_ready(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while self.connect().await.is_err() {
            let alive = self.process.is_some_and(ProcessId::is_alive);
            if !alive || Instant::now() >= end {
                let last = crate::daemons::last_words(&self.layout, self.node, "postgres");
                bail!("PostgreSQL on node {} is not ready; {last}", self.node);
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// A connection through the Unix socket.
    ///
    /// # Errors
    /// If the server does not take it.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.socket_dir())
            .user(USER)
            .dbname(USER)
            .connect_timeout(Duration::from_secs(5))
            .connect(NoTls)
            .await?;
        // Ends when the client is dropped; its error reaches the client's calls.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Fast shutdown, with a checkpoint, and waits for it.
    ///
    /// # Errors
    /// If the server does not end within a minute.
    pub fn stop(&mut self) -> Result<()> {
        let Some(process) = self.process else { return Ok(()) };
        if let Some(server) = only_child(process.pid) {
            server.signal(Signal::SIGINT)?;
        }
        ensure!(
            wait_until(STOP_PATIENCE, || !process.is_alive()),
            "PostgreSQL on node {} did not stop within {STOP_PATIENCE:?}",
            self.node
        );
        self.process = None;
        Ok(())
    }

    /// Kills the server and all its processes, as the loss of a pod's sandbox would.
    ///
    /// # Errors
    /// If a process stays.
    pub fn kill(&mut self) -> Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        // The server is the init of its PID namespace: its death ends every process in it.
        let mut both: Vec<ProcessId> = only_child(process.pid).into_iter().collect();
        both.push(process);
        kill_all(&both, KILL_PATIENCE)
    }

    /// Has `pg_amcheck` look at every table and index.
    ///
    /// # Errors
    /// If it finds something.
    pub async fn amcheck(&self) -> Result<()> {
        let mut check = self.local_tool("pg_amcheck");
        check.args(["--install-missing", "--heapallindexed", "--jobs=2"]);
        let said = run_async(check).await?;
        ensure!(said.trim().is_empty(), "pg_amcheck found: {said}");
        Ok(())
    }

    /// Whether the server runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.is_some_and(ProcessId::is_alive)
    }

    /// Verifies every page checksum of a server that was stopped.
    ///
    /// # Errors
    /// If `pg_checksums` finds a bad one.
    pub async fn verify_checksums(&self) -> Result<()> {
        let mut check = self.tool(&self.layout.namespace(self.node), "pg_checksums");
        check.arg("--check").arg("-D").arg(&self.data);
        run_async(check).await.map(drop)
    }
}

fn as_postgres() -> [&'static str; 5] {
    ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
}

fn only_child(pid: i32) -> Option<ProcessId> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    ProcessId::of(children.split_ascii_whitespace().next()?.parse().ok()?)
}

pub(crate) fn give_to_postgres(path: &Path) -> Result<()> {
    let user = User::from_name(USER)?.context("there is no user postgres: install postgresql")?;
    chown(path, Some(user.uid), Some(user.gid))
        .with_context(|| format!("giving {} to {USER}", path.display()))
}

/// The newest of Debian's PostgreSQL installations that has everything we call.
fn binaries() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").map(|entries| {
        let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| version(path).is_some() && path.join("bin/pg_amcheck").is_file());
        paths.sort_by_key(version);
        paths
    });
    let newest = versions.ok().and_then(|paths| paths.last().cloned());
    let newest = newest.context("no PostgreSQL 14 or newer in /usr/lib/postgresql")?;
    Ok(newest.join("bin"))
}
