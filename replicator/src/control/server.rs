//! Listening: TCP and Unix sockets whose clients are not trusted to speak, or to stop speaking.

#[cfg(test)]
mod tests;

use core::net::SocketAddr;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// Connections of one listener at a time; others wait in the kernel's backlog.
const CONNECTIONS: usize = 512;
/// A client that has not said its first words by then is sent away.
const FIRST_BYTES: Duration = Duration::from_secs(5);
/// Length of the HTTP/2 client preface (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// Pause after a failed accept (out of file descriptors): it fails again at once otherwise.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing can be listened to.
#[derive(Debug, Error)]
pub enum ListenError {
    /// TCP.
    #[error("cannot listen on control_address {address}: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Unix socket.
    #[error("cannot listen on control_socket {}: {source}", path.display())]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody answers on the Unix socket.
    #[error("control_socket {} is in use by another process", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// What is there is not a socket; it is left alone.
    #[error("control_socket {} exists and is not a socket", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
}

/// A connection that must say its first bytes in time, and that counts against the limit.
pub(crate) struct Guarded<S> {
    stream: S,
    /// Until the preface is there.
    deadline: Option<Pin<Box<Sleep>>>,
    seen: usize,
    _permit: OwnedSemaphorePermit,
}

impl<S> Guarded<S> {
    fn new(stream: S, permit: OwnedSemaphorePermit) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(FIRST_BYTES)));
        Self { stream, deadline, seen: 0, _permit: permit }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buf);
        if let Some(deadline) = &mut this.deadline {
            this.seen += buf.filled().len() - before;
            if this.seen >= PREFACE {
                this.deadline = None;
            } else if deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Guarded<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

/// Listens on TCP.
///
/// # Errors
/// [`ListenError::Tcp`].
pub fn listen_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A daemon that starts again must not wait for the connections of the former to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(256)
    };
    listen().map_err(|source| ListenError::Tcp { address, source })
}

/// Listens on a Unix socket for root; one that a killed daemon left is replaced.
///
/// # Errors
/// [`ListenError`].
pub async fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let refuse = |source| ListenError::Unix { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refuse(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => return Err(ListenError::InUse { path: path.to_owned() }),
            Err(_) => std::fs::remove_file(path).map_err(refuse)?,
        },
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(refuse)?;
    }
    let listener = UnixListener::bind(path).map_err(refuse)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(refuse)?;
    Ok(listener)
}

/// What can be accepted from.
pub(crate) trait Listener: Send + 'static {
    /// A connection.
    type Stream: Send;
    /// Waits for one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn accept(&self) -> io::Result<Self::Stream> {
        let (stream, _) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<Self::Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Accepts, at most [`CONNECTIONS`] at a time, until the receiver is dropped.
pub(crate) fn accept<L: Listener>(listener: L) -> mpsc::Receiver<io::Result<Guarded<L::Stream>>> {
    let (connections, accepted) = mpsc::channel(1);
    let limit = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&limit).acquire_owned().await else { return };
            let accept = tokio::select! {
                accept = listener.accept() => accept,
                () = connections.closed() => return,
            };
            match accept {
                Ok(stream) => {
                    if connections.send(Ok(Guarded::new(stream, permit))).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    accepted
}
