//! `csi-node`: the CSI node plugin of Holdfast.
#![forbid(unsafe_code)]

use anyhow::{Context, ensure};
use clap::Parser;
use client::Client;
use csi_common::{Identity, read_config};
use csi_node::{NodeIdentity, NodeReady, NodeService};
use proto::csi::identity_server::IdentityServer;
use proto::csi::node_server::NodeServer;
use std::path::PathBuf;

/// Volumes per node unless told otherwise: each costs a kernel device and a FUSE connection.
const MAX_VOLUMES: u32 = 128;
/// Kubelet's `--root-dir` unless told otherwise.
const KUBELET_DIR: &str = "/var/lib/kubelet";

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
    #[command(flatten)]
    settings: Settings,
}

csi_common::settings! { Settings {
    /// Unix socket to serve CSI on, like unix:///csi/csi.sock.
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// Control socket of this node's replicator, like unix:///run/holdfast/control.sock.
    #[arg(long, value_name = "URL")]
    replicator: String,
    /// Name of this node in Kubernetes and in Holdfast.
    #[arg(long, value_name = "NAME")]
    node_name: String,
    /// Id of this node in Holdfast, as in the replicator's configuration.
    #[arg(long, value_name = "N")]
    node_id: u64,
    /// How many volumes this node takes; 0 for no limit [default: 128]
    #[arg(long, value_name = "N")]
    max_volumes: u32,
    /// Where kubelet has volumes staged and published: mounts below it that a crash left are removed at
    /// start [default: /var/lib/kubelet]
    #[arg(long, value_name = "DIRECTORY")]
    kubelet_dir: PathBuf,
    /// Offer the calls that CSI 1.13 names alpha: NodeGetVolumeHealth and NodeGetStorageHealth
    /// [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    alpha: bool,
    /// What to log: error, warn, info, debug, trace, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER")]
    log: String,
} }

fn main() -> anyhow::Result<()> {
    let Arguments { config, settings } = Arguments::parse();
    let settings = settings.or(read_config(config.as_deref())?);
    let endpoint = settings.endpoint.context("--endpoint is missing")?;
    let replicator = settings.replicator.context("--replicator is missing")?;
    let name = settings.node_name.context("--node-name is missing")?;
    let node = settings.node_id.context("--node-id is missing")?;
    ensure!(node != 0, "--node-id 0 is not accepted; accepted: 1 or more");
    ensure!(
        !name.is_empty() && name.len() <= 63,
        "--node-name {name:?} is not accepted; accepted: 1-63 bytes, since it is a topology value"
    );
    let client = Client::new([&replicator]).context("--replicator")?;
    let kubelet_dir = settings.kubelet_dir.unwrap_or_else(|| PathBuf::from(KUBELET_DIR));
    ensure!(kubelet_dir.is_absolute(), "--kubelet-dir {kubelet_dir:?} is not an absolute path");
    let identity = NodeIdentity {
        name,
        id: node,
        max_volumes: settings.max_volumes.unwrap_or(MAX_VOLUMES).into(),
        alpha: settings.alpha.unwrap_or(false),
    };
    csi_common::serve(&endpoint, settings.log.as_deref(), || async {
        tracing::info!(replicator, node = identity.name, node_id = node, "the node");
        let ready = NodeReady { client: client.clone(), node: identity.clone() };
        let service = NodeService::new(client, identity);
        tokio::spawn(service.clone().sweep(kubelet_dir));
        Ok(tonic::transport::Server::builder()
            .add_service(IdentityServer::new(Identity(ready)))
            .add_service(NodeServer::new(service)))
    })?;
    Ok(())
}
