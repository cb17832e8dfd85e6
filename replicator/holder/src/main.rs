//! `device-holder`: started by the daemon with a listening socket as its standard input, or a service.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use holder::Life;
use nix::errno::Errno;
use nix::unistd::setsid;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

/// Keeps the kernel devices of a node's volumes alive while its replicator restarts.
///
/// The replicator starts it by itself when the first volume is attached, with a listening Unix
/// socket as standard input. It ends by itself when nothing is left to keep, or when no replicator
/// came back in time: then the devices are removed, and I/O that waits gets an error. With --socket it
/// is a service that lasts, for replicators with `device_holder_socket`: in Kubernetes, a pod of its own.
#[derive(Debug, Parser)]
#[command(name = "device-holder", version)]
struct Cli {
    /// How long devices are kept while no replicator is connected
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    grace_seconds: u64,
    /// Listen on this Unix socket, and last until SIGTERM
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // A session of its own: a terminal's or a group's signals to the daemon are not for us.
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).context("cannot begin a session"),
    }
    // The kernel must not choose us when memory runs short; without the privilege, so be it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let grace = Duration::from_secs(cli.grace_seconds);
    if let Some(socket) = cli.socket {
        if let Some(directory) = socket.parent() {
            std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        holder::serve(hostio::unix::listen(&socket)?.into(), grace, Life::Lasting)?;
        return Ok(());
    }
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let listener = UnixListener::from(listener);
    listener.local_addr().context(
        "standard input is not a listening Unix socket: the replicator starts this program",
    )?;
    holder::serve(listener, grace, Life::Needed)?;
    Ok(())
}
