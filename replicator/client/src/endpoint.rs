//! Endpoints as people write them, and connections to them.

use crate::Error;
use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint as Transport, Uri};

/// How long a TCP or Unix connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// HTTP/2 ping interval; with [`KEEPALIVE_TIMEOUT`] a silent peer is noticed within 3 s.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a ping may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a replicator listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// TCP control address.
    Tcp(SocketAddr),
    /// Unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// A connection that is made with the first call and made again after a failure. Silence of
    /// the peer (cut network, stopped process) fails the calls on it within 3 s.
    #[must_use]
    pub fn channel(&self) -> Channel {
        let configure = |transport: Transport| {
            transport
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
        };
        match self {
            Self::Tcp(address) => {
                let uri = Uri::builder()
                    .scheme("http")
                    .authority(address.to_string())
                    .path_and_query("/")
                    .build()
                    .unwrap_or_default();
                configure(Transport::from(uri)).connect_lazy()
            }
            Self::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The URI only fills the HTTP/2 authority; the connector ignores it.
                configure(Transport::from_static("http://localhost"))
                    .connect_with_connector_lazy(connector)
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Endpoint {
            text: text.chars().take(256).collect(),
            reason: reason.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            if !path.starts_with('/') {
                return Err(refuse("the path of a Unix socket must be absolute"));
            }
            // sockaddr_un.sun_path holds 108 bytes with its terminator (unix(7)).
            if path.len() > 107 {
                return Err(refuse("the path of a Unix socket is longer than 107 bytes"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        address.parse().map(Self::Tcp).map_err(|_| refuse("not an IP address with a port"))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}
