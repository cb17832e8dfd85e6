//! `csi-controller`: the CSI controller plugin of Holdfast.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::{Parser, ValueEnum};
use client::Client;
use csi_common::{Identity, PluginError, read_config};
use csi_controller::failover::{self, Failover, Metrics};
use csi_controller::{ControllerService, LeaderReachable};
use proto::csi::controller_server::ControllerServer;
use proto::csi::identity_server::IdentityServer;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The CSI controller plugin of Holdfast: creates, deletes, lists, grows and modifies volumes; and, if told
/// to, the failover controller.
///
/// Runs once per Kubernetes cluster, beside the external-provisioner, external-resizer and
/// external-snapshotter sidecars, which call it on the socket given by --endpoint. It asks any replicator of the cluster and follows
/// it to the leader; it keeps no state. Every flag may also stand in the file given by --config (TOML,
/// the same names with _ for -); flags win.
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
    /// Control addresses of replicators, like http://10.0.0.1:7420,http://10.0.0.2:7420; some of them
    /// may be down.
    #[arg(long, value_name = "URL,…", value_delimiter = ',')]
    replicators: Vec<String>,
    /// Offer the calls that CSI 1.13 names alpha: GetSnapshot, ControllerGetVolume,
    /// ControllerGetVolumeHealth and ControllerListVolumeHealth [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    alpha: bool,
    /// What to log: error, warn, info, debug, trace, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER")]
    log: String,
    /// Whether pods of lost nodes are made to run elsewhere: on or off. "on" needs Kubernetes and
    /// --node-name [default: off]
    #[arg(long, value_name = "on|off")]
    failover: Switch,
    /// Name of the node where this runs, in Kubernetes and in Holdfast: the failover controller beside
    /// the Raft leader acts first.
    #[arg(long, value_name = "NAME")]
    node_name: String,
    /// Seconds after which a node that is lost, and that Kubernetes does not have any more, is removed from the
    /// cluster: 60 to 2592000 (30 days) [default: 600]
    #[arg(long, value_name = "SECONDS")]
    gone_after_seconds: u64,
    /// Where to tell Prometheus of failovers, like 0.0.0.0:7427; without it, nowhere.
    #[arg(long, value_name = "IP:PORT")]
    metrics: SocketAddr,
    /// How to reach Kubernetes for --failover on; without it, as a pod does.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
} }

/// Seconds accepted for `gone_after_seconds`.
const GONE_AFTER: core::ops::RangeInclusive<u64> = 60..=30 * 86_400;

/// On or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Switch {
    On,
    #[default]
    Off,
}

fn main() -> anyhow::Result<()> {
    let Arguments { config, settings } = Arguments::parse();
    let settings = settings.or(read_config(config.as_deref())?);
    let endpoint = settings.endpoint.context("--endpoint is missing")?;
    let replicators = settings.replicators.context("--replicators is missing")?;
    let alpha = settings.alpha.unwrap_or(false);
    let gone_after = settings.gone_after_seconds.unwrap_or(failover::GONE_FOR.as_secs());
    anyhow::ensure!(
        GONE_AFTER.contains(&gone_after),
        "gone_after_seconds = {gone_after} is refused; accepted: 60 to 2592000 (30 days)"
    );
    let failover = match settings.failover.unwrap_or_default() {
        Switch::Off => None,
        Switch::On => Some(failover::Settings {
            node_name: settings
                .node_name
                .filter(|name| !name.is_empty())
                .context("--failover on needs --node-name")?,
            kubeconfig: settings.kubeconfig,
            gone_after: Duration::from_secs(gone_after),
        }),
    };
    let metrics = settings.metrics;
    let client = Client::new(&replicators).context("--replicators")?;
    csi_common::serve(&endpoint, settings.log.as_deref(), || async {
        tracing::info!(?replicators, alpha, failover = failover.is_some(), "the cluster");
        if let Some(settings) = failover {
            let failover = Failover::new(&settings, &client).await;
            guard(failover.map_err(|error| PluginError::Start(error.into()))?);
        }
        if let Some(address) = metrics {
            let metrics = Metrics::default();
            tokio::spawn(metrics.clone().follow(client.clone()));
            tokio::spawn(async move {
                if let Err(error) = metrics.serve(address).await {
                    tracing::error!(%address, %error, "metrics are not served");
                }
            });
        }
        Ok(tonic::transport::Server::builder()
            .add_service(IdentityServer::new(Identity(LeaderReachable(client.clone()))))
            .add_service(ControllerServer::new(ControllerService::new(&client, alpha))))
    })?;
    Ok(())
}

/// Runs the failover controller, which never ends; if it does all the same, so does this process: whoever
/// started it starts it again.
fn guard(failover: Failover) {
    let running = tokio::spawn(failover.run());
    tokio::spawn(async move {
        let ended = running.await;
        tracing::error!(?ended, "the failover controller ended");
        std::process::exit(1);
    });
}
