//! `holdfast-leave`: takes Holdfast's traces off a node of a Kubernetes cluster.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Parser;
use join::leave::Leave;
use std::path::PathBuf;

/// Removes what Holdfast left on this node: stale mounts, loop devices, sockets, directories of kubelet.
///
/// Runs when Holdfast's daemons have ended, in a pod of `holdfast uninstall`. Data are kept unless --wipe
/// is given.
#[derive(Debug, Parser)]
#[command(name = "holdfast-leave", version)]
struct Arguments {
    /// Where the node's root directory is mounted, with its mounts shared
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
    /// The node's directory for everything but the pool
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/holdfast")]
    directory: PathBuf,
    /// Kubelet's directory
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/kubelet")]
    kubelet: PathBuf,
    /// Remove the pool and everything that the node remembers, too
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = false)]
    wipe: bool,
    /// The replicator, which wipes a pool that is a device
    #[arg(long, value_name = "PROGRAM", default_value = "/usr/bin/replicator")]
    replicator: PathBuf,
    /// Remove nothing, and do not end: what shows that a pod's cleaning is over
    #[arg(long)]
    stay: bool,
}

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments = Arguments::parse();
    if arguments.stay {
        loop {
            std::thread::park();
        }
    }
    let Arguments { root, directory, kubelet, wipe, replicator, stay: _ } = arguments;
    Leave { root, directory, kubelet, wipe, replicator }.run()?;
    tracing::info!("nothing of Holdfast is left here but what was to be kept");
    Ok(())
}
