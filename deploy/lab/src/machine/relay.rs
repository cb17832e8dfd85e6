//! A Unix socket on the host that leads to a TCP address of a machine.

use anyhow::{Context as _, Result};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

/// How long a machine may take to accept; one that is off never does.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// What leads where.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The socket, made anew.
    #[arg(long)]
    socket: PathBuf,
    /// The address.
    #[arg(long)]
    to: SocketAddr,
}

/// Relays until killed.
///
/// # Errors
/// If the socket cannot be made or accepts no more.
pub async fn run(arguments: Arguments) -> Result<()> {
    let listener = listen(&arguments.socket)?;
    loop {
        let (stream, _) = listener.accept().await.context("accepting")?;
        tokio::spawn(relay(stream, arguments.to));
    }
}

fn listen(socket: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))
}

/// An end of either side, or of the machine, ends both connections: the client sees it.
async fn relay(mut from: UnixStream, to: SocketAddr) {
    if let Ok(Ok(mut to)) = timeout(CONNECT_PATIENCE, TcpStream::connect(to)).await {
        let _ = copy_bidirectional(&mut from, &mut to).await;
    }
}
