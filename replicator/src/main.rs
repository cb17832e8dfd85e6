//! `replicator`: the daemon of one node, and the command that prepares its pool.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use replicator::config::{Config, ConfigError, Settings, parse_cluster};
use replicator::{daemon, data};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use types::PoolId;
use uuid::Uuid;

/// Replicated block storage: the daemon of one node.
///
/// Every node of a Holdfast cluster runs one. It keeps copies of volumes in its pool (a disk or a
/// file), agrees with the other nodes through Raft on who may write which volume, and serves the
/// volumes that are attached here as block devices. It stops cleanly on SIGTERM.
///
/// First prepare the pool, once: `replicator pool init --pool /dev/DISK --cluster UUID`. Then run
/// `replicator --config FILE`. The file is TOML; its keys are the names of the flags below with `_`
/// for `-`, and a flag wins over the file.
#[derive(Debug, Parser)]
#[command(name = "replicator", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Work on a pool while no daemon serves it
    #[command(subcommand)]
    Pool(PoolAction),
}

#[derive(Debug, Subcommand)]
enum PoolAction {
    /// Make a disk, partition, loop device or file the pool of a cluster's node
    ///
    /// Writes Holdfast's layout on it. A device that holds anything else is refused, unless forced.
    Init {
        /// The device or file
        #[arg(long, value_name = "PATH")]
        pool: PathBuf,
        /// UUID of the cluster that the pool will belong to
        #[arg(long, value_name = "UUID")]
        cluster: String,
        /// Destroy what the device holds
        #[arg(long)]
        force: bool,
        /// Leave a device as it is that is a pool of this cluster already
        #[arg(long, conflicts_with = "force")]
        if_needed: bool,
    },
    /// Make a cluster's pool blank again
    ///
    /// What is not a pool of this cluster is left as it is.
    Wipe {
        /// The device or file
        #[arg(long, value_name = "PATH")]
        pool: PathBuf,
        /// UUID of the cluster that the pool belongs to
        #[arg(long, value_name = "UUID")]
        cluster: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Action::Pool(PoolAction::Init { pool, cluster, force, if_needed })) => {
            init_pool(&pool, &cluster, force, if_needed)
        }
        Some(Action::Pool(PoolAction::Wipe { pool, cluster })) => wipe_pool(&pool, &cluster),
        None => configure(cli.config, cli.settings).map_err(Into::into).and_then(serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replicator: {}", sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn configure(file: Option<PathBuf>, flags: Settings) -> Result<Config, ConfigError> {
    let file = file.map_or_else(|| Ok(Settings::default()), |path| Settings::read(&path))?;
    flags.or(file).check()
}

fn serve(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()?;
    let result = runtime.block_on(daemon::run(config));
    // A blocked system call must not keep the process from ending.
    runtime.shutdown_background();
    Ok(result?)
}

fn init_pool(
    pool: &std::path::Path,
    cluster: &str,
    force: bool,
    if_needed: bool,
) -> anyhow::Result<()> {
    let cluster = parse_cluster(cluster)?;
    if if_needed && let Some(id) = data::existing_pool(pool, cluster)? {
        println!("pool {id} of cluster {cluster} is on {} already", pool.display());
        return Ok(());
    }
    let id = PoolId(Uuid::new_v4());
    data::init_pool(pool, cluster, id, force)?;
    println!("pool {id} of cluster {cluster} is ready on {}", pool.display());
    Ok(())
}

fn wipe_pool(pool: &std::path::Path, cluster: &str) -> anyhow::Result<()> {
    match data::wipe_pool(pool, parse_cluster(cluster)?)? {
        Some(id) => println!("pool {id} on {} is wiped", pool.display()),
        None => println!("{} holds no pool", pool.display()),
    }
    Ok(())
}

/// The error and its causes, without those that the text before repeats.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
