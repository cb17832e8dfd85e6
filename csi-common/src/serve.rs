//! Serving gRPC on a Unix socket until SIGTERM.

use core::time::Duration;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;

/// How long calls in flight may go on after SIGTERM. A later end is as good as a crash: every call can be
/// repeated.
const GRACE: Duration = Duration::from_secs(5);

/// How long whoever serves a socket may take for the first byte of an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What a client of HTTP/2 says first: its preface and empty SETTINGS (RFC 9113, 3.4). A server answers
/// with its own SETTINGS at once.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Longest path of a Unix socket, in bytes (`sun_path` less its NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Why a plugin cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Not an endpoint.
    #[error("endpoint {0:?} is not accepted; accepted: unix:///ABSOLUTE/PATH of at most 107 bytes")]
    Endpoint(String),
    /// Another process answers there.
    #[error("{}: another process serves this socket; stop it or choose another endpoint", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket is there; it is left alone.
    #[error("{}: exists and is not a socket; choose another endpoint", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server stopped.
    #[error("gRPC server")]
    Server(#[source] tonic::transport::Error),
}

/// A listening Unix socket, readable by root only and removed when dropped.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens on `endpoint` (`unix:///path`), after removing the socket of a dead predecessor.
    ///
    /// # Errors
    /// [`ServeError`]; what is not a dead socket is left alone.
    pub async fn bind(endpoint: &str) -> Result<Self, ServeError> {
        let path = parse(endpoint)?;
        let io = |what: &'static str| {
            let path = path.clone();
            move |source: io::Error| ServeError::Io { path, what, source }
        };
        remove_dead(&path).await?;
        let listener = UnixListener::bind(&path).map_err(io("listen"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(io("set permissions"))?;
        let inode = std::fs::symlink_metadata(&path).map_err(io("look at it"))?.ino();
        Ok(Self { listener: Some(listener), path, inode })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A successor may have taken the name meanwhile.
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove own socket");
        }
    }
}

fn parse(endpoint: &str) -> Result<PathBuf, ServeError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH || path.contains('\0') {
        return Err(ServeError::Endpoint(endpoint.to_owned()));
    }
    Ok(PathBuf::from(path))
}

async fn remove_dead(path: &Path) -> Result<(), ServeError> {
    let io = |what| move |source| ServeError::Io { path: path.to_owned(), what, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at it")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let answered = match UnixStream::connect(path).await {
        Ok(stream) => Ok(answers(stream).await),
        Err(error) => Err(error),
    };
    match answered {
        Ok(true) => Err(ServeError::InUse(path.to_owned())),
        // A killed process keeps its socket for as long as one of its threads hangs in the kernel, on a dead
        // device for example: that must not keep a successor from serving.
        Ok(false) => {
            tracing::warn!(path = %path.display(), "nobody answers on this socket; taking it over");
            std::fs::remove_file(path).map_err(io("remove the socket of a dead process"))
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io("remove the socket of a dead process"))
        }
        Err(error) => Err(io("find out whether it is in use")(error)),
    }
}

/// Whether somebody answers at the other end.
async fn answers(mut stream: UnixStream) -> bool {
    let answer = async {
        stream.write_all(HELLO).await.ok()?;
        stream.read_u8().await.ok()
    };
    matches!(tokio::time::timeout(ANSWER, answer).await, Ok(Some(_)))
}

/// Serves `router` on `socket` until SIGTERM or SIGINT; calls in flight then have 5 s to end.
///
/// # Errors
/// [`ServeError::Io`] without signal handlers, [`ServeError::Server`].
pub async fn run(router: Router, mut socket: Socket) -> Result<(), ServeError> {
    let install = |kind| {
        signal(kind).map_err(|source| ServeError::Io {
            path: socket.path.clone(),
            what: "install a signal handler",
            source,
        })
    };
    let mut terminate = install(SignalKind::terminate())?;
    let mut interrupt = install(SignalKind::interrupt())?;
    let Some(listener) = socket.listener.take() else { return Ok(()) };
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let stopped = async {
        // An error means that `stop` is gone: stop as well.
        let _ = stopping.await;
    };
    let serve = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped);
    tokio::pin!(serve);
    tokio::select! {
        result = &mut serve => return result.map_err(ServeError::Server),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _ = stop.send(());
    match tokio::time::timeout(GRACE, serve).await {
        Ok(result) => result.map_err(ServeError::Server),
        Err(_) => {
            tracing::warn!("calls still in flight are dropped");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Identity, Readiness};
    use proto::csi::identity_server::IdentityServer;

    struct Never;

    #[tonic::async_trait]
    impl Readiness for Never {
        async fn ready(&self) -> Result<(), String> {
            Err("a test".into())
        }
    }

    fn endpoint(directory: &tempfile::TempDir) -> (String, PathBuf) {
        let path = directory.path().join("csi.sock");
        (format!("unix://{}", path.display()), path)
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_ours_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (endpoint, path) = endpoint(&directory);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&endpoint).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_and_other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (endpoint, path) = endpoint(&directory);
        let mut first = Socket::bind(&endpoint).await.unwrap();
        let listener = UnixListenerStream::new(first.listener.take().unwrap());
        let identity = IdentityServer::new(Identity(Never));
        let router = tonic::transport::Server::builder().add_service(identity);
        let serving = tokio::spawn(router.serve_with_incoming(listener));
        let error = Socket::bind(&endpoint).await.unwrap_err();
        assert!(matches!(error, ServeError::InUse(_)), "{error}");
        assert!(path.exists());
        serving.abort();
        drop(first);
        std::fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&endpoint).await.unwrap_err();
        assert!(matches!(error, ServeError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_answers_on_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let (endpoint, path) = endpoint(&directory);
        // A thread of a killed process that hangs in the kernel keeps it open, and never accepts.
        let stuck = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let socket = Socket::bind(&endpoint).await.unwrap();
        drop(stuck);
        assert!(path.exists());
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_successors_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (endpoint, path) = endpoint(&directory);
        let first = Socket::bind(&endpoint).await.unwrap();
        // The successor's inode must differ, so the first one's stays allocated under another name.
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        let second = Socket::bind(&endpoint).await.unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn endpoints() {
        for text in ["unix:///run/csi.sock", "/run/csi.sock"] {
            assert_eq!(parse(text).unwrap(), Path::new("/run/csi.sock"));
        }
        let long = format!("unix:///{}", "a".repeat(108));
        for text in ["", "run/csi.sock", "unix://run/csi.sock", "tcp://1.2.3.4:5", long.as_str()] {
            assert!(parse(text).unwrap_err().to_string().contains("unix:///ABSOLUTE/PATH"));
        }
    }
}
