//! `csi-node`: the CSI node plugin of Holdfast.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use client::Client;
use csi_common::{Identity, Socket, log_to_stderr, read_config, run};
use csi_node::{NodeIdentity, NodeReady, NodeService};
use proto::csi::identity_server::IdentityServer;
use proto::csi::node_server::NodeServer;
use serde::Deserialize;
use std::path::PathBuf;

/// Volumes per node unless told otherwise: each costs a kernel device and a FUSE connection.
const MAX_VOLUMES: u32 = 128;

/// The CSI node plugin of Holdfast: attaches, formats, mounts and grows volumes on one node.
///
/// Runs once on every node as root, beside the replicator daemon; kubelet calls it on the socket given by
/// --endpoint, and it calls the local replicator only. It keeps no state: it may be restarted at any
/// time. Needs CAP_SYS_ADMIN to mount and CAP_SYS_RESOURCE to grow ext4; and blkid, mkfs.ext4, mkfs.xfs,
/// resize2fs, xfs_growfs and blkdiscard in its PATH. Every flag may also stand in the file given by
/// --config (TOML, the same names with _ for -); flags win.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// TOML file with any of the settings below.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket to serve CSI on, like unix:///csi/csi.sock.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Control socket of this node's replicator, like unix:///run/holdfast/control.sock.
    #[arg(long, value_name = "URL")]
    replicator: Option<String>,
    /// Name of this node in Kubernetes and in Holdfast.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Id of this node in Holdfast, as in the replicator's configuration.
    #[arg(long, value_name = "N")]
    node_id: Option<u64>,
    /// How many volumes this node takes; 0 for no limit [default: 128]
    #[arg(long, value_name = "N")]
    max_volumes: Option<u32>,
    /// What to log: error, warn, info, debug, trace, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoint: Option<String>,
    replicator: Option<String>,
    node_name: Option<String>,
    node_id: Option<u64>,
    max_volumes: Option<u32>,
    log: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let file: File = read_config(arguments.config.as_deref())?;
    let endpoint = arguments.endpoint.or(file.endpoint).context("--endpoint is missing")?;
    let replicator = arguments.replicator.or(file.replicator).context("--replicator is missing")?;
    let name = arguments.node_name.or(file.node_name).context("--node-name is missing")?;
    let node = arguments.node_id.or(file.node_id).context("--node-id is missing")?;
    let max_volumes = arguments.max_volumes.or(file.max_volumes).unwrap_or(MAX_VOLUMES);
    let log = arguments.log.or(file.log).unwrap_or_else(|| "info".into());
    anyhow::ensure!(node != 0, "--node-id 0 is not accepted; accepted: 1 or more");
    anyhow::ensure!(
        !name.is_empty() && name.len() <= 63,
        "--node-name {name:?} is not accepted; accepted: 1-63 bytes, since it is a topology value"
    );
    log_to_stderr(&log)?;
    let client = Client::new([&replicator]).context("--replicator")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("tokio runtime")?;
    let result = runtime.block_on(async {
        let socket = Socket::bind(&endpoint).await?;
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(endpoint, replicator, node = name, node_id = node, version, "serving");
        let identity = NodeIdentity { name, max_volumes: max_volumes.into() };
        let ready = NodeReady { client: client.clone(), node };
        let router = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(Identity(ready)))
            .add_service(NodeServer::new(NodeService::new(client, identity)));
        run(router, socket).await
    });
    // Operations that outlived their grace are not waited for.
    runtime.shutdown_background();
    Ok(result?)
}
