//! `holdfast`: what a person does with a cluster from a shell.
#![forbid(unsafe_code)]

mod cluster;
mod failovers;
mod install;
mod output;
mod replica;
mod snapshot;
mod target;
mod uninstall;
mod volume;

use anyhow::Result;
use clap::{Parser, Subcommand};
use output::Output;
use std::process::ExitCode;
use target::Target;
use tracing_subscriber::EnvFilter;

/// Replicated block storage: volumes, nodes, and a cluster to try it all on (`holdfast lab`).
#[derive(Parser)]
#[command(name = "holdfast", version, arg_required_else_help = true)]
struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The cluster as a whole.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Members of the cluster.
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// Volumes: make, show, attach, grow, compare, delete.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Snapshots of volumes: take, show, delete; `volume create --from-snapshot` makes a volume of one.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Copies of volumes: where they are.
    #[command(subcommand)]
    Replica(replica::ReplicaCommand),
    /// What happened: node losses, fences, replicas going and coming back.
    Events(cluster::EventsArguments),
    /// Volumes that were taken from lost nodes, and how long each step of it took.
    Failovers(failovers::FailoversArguments),
    /// What is applied to a Kubernetes cluster to install Holdfast.
    Install(install::InstallArguments),
    /// Takes Holdfast off a Kubernetes cluster; data stay on the nodes unless --wipe is given.
    Uninstall(uninstall::UninstallArguments),
    /// A cluster of several nodes on this machine.
    Lab(lab::command::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let output = Output { json: arguments.json };
    let target = arguments.target;
    match arguments.command {
        Command::Cluster(command) => cluster::cluster(&target, command, output).await,
        Command::Node(command) => cluster::node(&target, command, output).await,
        Command::Volume(command) => volume::volume(&target, command, output).await,
        Command::Snapshot(command) => snapshot::snapshot(&target, command, output).await,
        Command::Replica(command) => replica::replica(&target, command, output).await,
        Command::Events(arguments) => cluster::events(&target, arguments, output).await,
        Command::Failovers(arguments) => failovers::show(&target, &arguments, output).await,
        Command::Install(arguments) => output.line(install::install(&arguments)?.trim_end()),
        Command::Uninstall(arguments) => uninstall::uninstall(&arguments, output),
        Command::Lab(arguments) => lab::command::run(arguments).await,
    }
}
