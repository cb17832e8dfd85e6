//! One run of the daemon: what is started in which order, and how it ends.

use crate::config::Config;
use crate::control::{self, ListenError, Parts, RunError};
use crate::data::{self, DataConfig, DataError, PoolError};
use crate::meta::{self, MetaConfig, MetaError};
use metadata::PoolInfo;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Raft messages that wait for the transport; more are dropped (Raft sends them again).
const OUTBOUND: usize = 4096;

/// Why the daemon does not run. Every message is a sentence for the person who started it.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Something of the host.
    #[error("cannot {doing}: {source}")]
    Host {
        /// What was tried.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another daemon works in the data directory.
    #[error("data_dir {} is in use by another replicator", path.display())]
    DataDirInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The control address or socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The pool was opened and then did not answer.
    #[error(transparent)]
    Data(#[from] DataError),
    /// It ran, and ended unasked.
    #[error(transparent)]
    Run(#[from] RunError),
}

fn host(doing: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let doing = doing.into();
    move |source| DaemonError::Host { doing, source }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`]; nothing is left running.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(host("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(host("wait for signals"))?;
    if let Err(error) = hostio::process::raise_nofile() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let (stop, stopped) = watch::channel(false);
    let node = config.node;
    let signals = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(%node, "asked to stop");
        // Nobody left to tell is as good as stopped.
        let _ = stop.send(true);
    });
    let result = serve(config, stopped).await;
    signals.abort();
    result
}

/// Runs the daemon until `stopped` is true.
///
/// # Errors
/// [`DaemonError`]; nothing is left running.
pub async fn serve(config: Config, stopped: watch::Receiver<bool>) -> Result<(), DaemonError> {
    let boot = hostio::clock::boot_id().map_err(host("read the boot id"))?;
    // The lock comes before everything that touches the directory: what looks like a remnant of a
    // killed daemon may be in use by a live one.
    let _lock = lock_data_dir(&config.data_dir).await?;
    let settings = config.clone();
    let legacy = tokio::task::spawn_blocking(move || control::Legacy::inherit(&settings))
        .await
        .map_err(|error| host("remove what a former process left")(io::Error::other(error)))?;
    let tcp = control::listen_tcp(config.control_address)?;
    let unix = control::listen_unix(&config.control_socket).await?;
    let listener = data::listen(config.data_address)
        .await
        .map_err(host(format!("listen on data_address {}", config.data_address)))?;

    let (send, outbound) = mpsc::channel(OUTBOUND);
    let meta = meta::start(
        MetaConfig {
            node: config.node,
            cluster: config.cluster,
            dir: config.data_dir.join("meta"),
            initial_voters: config.initial_voters(),
        },
        send,
    )?;
    // A pool that holds replicas cannot be swapped for another (R11). This state may be behind: see
    // `control::reconcile::swapped`.
    let expected_pool = policy::pool::expected(&meta.state(), config.node);
    let (data, data_events, data_thread) = data::start(DataConfig {
        pool: config.pool.clone(),
        cluster: config.cluster,
        expected_pool,
        boot,
        listener,
        scrub: config.scrub,
        cpu: None,
    })?;
    let stats = data.pool().await?;
    let pool = PoolInfo { id: stats.pool, bytes: stats.capacity };
    tracing::info!(
        node = %config.node,
        name = config.name,
        cluster = %config.cluster,
        pool = %pool.id,
        pool_bytes = pool.bytes,
        pool_free = stats.free,
        control_address = %config.control_address,
        data_address = %config.data_address,
        control_socket = %config.control_socket.display(),
        "the node is up"
    );

    let node = config.node;
    let socket = config.control_socket.clone();
    let parts = Parts {
        config,
        boot,
        pool,
        meta: meta.clone(),
        outbound,
        data: data.clone(),
        data_events,
        tcp,
        unix,
        legacy,
    };
    let result = control::run(parts, stopped).await;
    data.shutdown();
    // Its last writes are over before the process ends, so that a successor finds the pool free.
    if tokio::task::spawn_blocking(move || data_thread.join()).await.is_err() {
        tracing::warn!(%node, "the data thread did not end well");
    }
    meta.shutdown().await;
    // The next daemon would replace it as well.
    let _ = std::fs::remove_file(socket);
    tracing::info!(%node, "stopped");
    Ok(result?)
}

/// Makes the directory and takes it for this process, until the returned file is dropped.
async fn lock_data_dir(path: &Path) -> Result<File, DaemonError> {
    std::fs::create_dir_all(path).map_err(host(format!("make data_dir {}", path.display())))?;
    let lock = path.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .map_err(host(format!("open {}", lock.display())))?;
    let is_taken = |error: &TryLockError| matches!(error, TryLockError::WouldBlock);
    match data::outwait(|| file.try_lock(), is_taken).await {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DaemonError::DataDirInUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(host(format!("lock {}", lock.display()))(error)),
    }
}
