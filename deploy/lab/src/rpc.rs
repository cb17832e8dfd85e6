//! Connections to the lab's sockets: the CSI plugins and the replicators.

use crate::layout::Layout;
use anyhow::{Context as _, Result};
use client::Client;
use hyper_util::rt::TokioIo;
use proto::csi::controller_client::ControllerClient;
use proto::csi::identity_client::IdentityClient;
use proto::csi::node_client::NodeClient;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A gRPC channel to a Unix socket, connected.
///
/// # Errors
/// If nobody listens there.
pub async fn unix(path: &Path) -> Result<Channel> {
    let path = path.to_path_buf();
    let connect = move |_: Uri| {
        let path: PathBuf = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    // The URI only fills the HTTP/2 authority.
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(endpoint.connect_with_connector(tower::service_fn(connect)).await?)
}

/// The CSI node service of a node.
///
/// # Errors
/// If nobody listens on its socket.
pub async fn csi_node(layout: &Layout, node: u64) -> Result<NodeClient<Channel>> {
    let path = layout.csi_socket(node);
    let channel = unix(&path).await.with_context(|| format!("csi-node at {}", path.display()))?;
    Ok(NodeClient::new(channel))
}

/// The CSI controller service, which runs on `node`.
///
/// # Errors
/// If nobody listens on its socket.
pub async fn csi_controller(layout: &Layout, node: u64) -> Result<ControllerClient<Channel>> {
    let path = layout.controller_socket(node);
    let channel =
        unix(&path).await.with_context(|| format!("csi-controller at {}", path.display()))?;
    Ok(ControllerClient::new(channel))
}

/// The CSI identity service behind any of the plugin sockets.
///
/// # Errors
/// If nobody listens there.
pub async fn csi_identity(path: &Path) -> Result<IdentityClient<Channel>> {
    Ok(IdentityClient::new(unix(path).await?))
}

/// The replicators of `nodes` by their Unix sockets; `[local]` calls go to the first. Their own
/// addresses exist only in the lab's namespaces, so redirects are not followed.
///
/// # Errors
/// If there are none.
pub fn replicators(layout: &Layout, nodes: impl IntoIterator<Item = u64>) -> Result<Client> {
    let endpoints: Vec<String> = nodes
        .into_iter()
        .map(|node| format!("unix://{}", layout.control_socket(node).display()))
        .collect();
    Ok(Client::new(&endpoints)?.without_redirects())
}
