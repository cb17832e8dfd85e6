//! `csi-controller`: the CSI controller plugin of Holdfast.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, ValueEnum};
use client::Client;
use csi_common::{Identity, Socket, log_to_stderr, read_config, run};
use csi_controller::failover::{self, Failover};
use csi_controller::{ControllerService, LeaderReachable};
use proto::csi::controller_server::ControllerServer;
use proto::csi::identity_server::IdentityServer;
use serde::Deserialize;
use std::path::PathBuf;

/// The CSI controller plugin of Holdfast: creates, deletes, lists and grows volumes; and, if told to, the
/// failover controller.
///
/// Runs once per Kubernetes cluster, beside the external-provisioner and external-resizer sidecars,
/// which call it on the socket given by --endpoint. It asks any replicator of the cluster and follows
/// it to the leader; it keeps no state. Every flag may also stand in the file given by --config (TOML,
/// the same names with _ for -); flags win.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// TOML file with any of the settings below.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket to serve CSI on, like unix:///csi/csi.sock.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Control addresses of replicators, like http://10.0.0.1:7420,http://10.0.0.2:7420; some of them
    /// may be down.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    replicators: Option<Vec<String>>,
    /// What to log: error, warn, info, debug, trace, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Whether pods of lost nodes are made to run elsewhere: on or off. "on" needs Kubernetes and
    /// --node-name [default: off]
    #[arg(long, value_name = "on|off")]
    failover: Option<Switch>,
    /// Name of the node where this runs, in Kubernetes and in Holdfast: the failover controller beside
    /// the Raft leader acts first.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// How to reach Kubernetes for --failover on; without it, as a pod does.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Switch {
    On,
    #[default]
    Off,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoint: Option<String>,
    replicators: Option<Vec<String>>,
    log: Option<String>,
    failover: Option<Switch>,
    node_name: Option<String>,
    kubeconfig: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let file: File = read_config(arguments.config.as_deref())?;
    let endpoint = arguments.endpoint.or(file.endpoint).context("--endpoint is missing")?;
    let replicators =
        arguments.replicators.or(file.replicators).context("--replicators is missing")?;
    let log = arguments.log.or(file.log).unwrap_or_else(|| "info".into());
    let failover = match arguments.failover.or(file.failover).unwrap_or_default() {
        Switch::Off => None,
        Switch::On => Some(failover::Settings {
            node_name: arguments
                .node_name
                .or(file.node_name)
                .filter(|name| !name.is_empty())
                .context("--failover on needs --node-name")?,
            kubeconfig: arguments.kubeconfig.or(file.kubeconfig),
        }),
    };
    log_to_stderr(&log)?;
    let client = Client::new(&replicators).context("--replicators")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("tokio runtime")?;
    let result = runtime.block_on(async {
        let socket = Socket::bind(&endpoint).await?;
        let failover = match failover {
            Some(settings) => {
                let failover = Failover::new(&settings, &client).await.context("--failover")?;
                tokio::spawn(failover.run())
            }
            None => tokio::spawn(core::future::pending()),
        };
        tracing::info!(endpoint, ?replicators, version = env!("CARGO_PKG_VERSION"), "serving");
        let router = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(Identity(LeaderReachable(client.clone()))))
            .add_service(ControllerServer::new(ControllerService::new(&client)));
        tokio::select! {
            served = run(router, socket) => Ok(served?),
            // It runs for ever: whoever started this process starts it again.
            ended = failover => Err(anyhow::anyhow!("the failover controller ended: {ended:?}")),
        }
    });
    // Operations that outlived their grace are not waited for.
    runtime.shutdown_background();
    result
}
