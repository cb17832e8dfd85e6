//! `holdfast-join`: prepares a node of a Kubernetes cluster for its replicator.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use client::Client;
use client::api::AddNodeRequest;
use join::files::{self, CONTROL_PORT, bracketed};
use join::object::Object;
use join::pool::{Place, Pools};
use join::registry::{Identity, JoinError, Pool, Registry};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use uuid::Uuid;

/// Between two looks at a registry that waits for founders, or at a cluster without a leader.
const PAUSE: Duration = Duration::from_millis(500);

/// Prepares this node for its replicator: number, pool, configuration.
///
/// Runs as an init container before the replicator, on every start of its pod, and changes nothing
/// the second time. Nodes agree through the ConfigMap holdfast-registry in its namespace.
#[derive(Debug, Parser)]
#[command(name = "holdfast-join", version)]
struct Arguments {
    /// Name of this node in Kubernetes
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// Address of this node that the others reach
    #[arg(long, env = "HOST_IP", value_name = "IP")]
    address: IpAddr,
    /// Namespace that Holdfast is installed in
    #[arg(long, env = "NAMESPACE", value_name = "NAME")]
    namespace: String,
    /// How many nodes found the cluster and are its first voters: 1, 3 or 5. The founding waits for them
    #[arg(long, env = "FOUNDERS", value_name = "N", default_value_t = 3)]
    founders: usize,
    /// This node's directory for everything but the pool
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/holdfast")]
    directory: PathBuf,
    /// The table of pools (TOML)
    #[arg(long, value_name = "FILE", default_value = "/etc/holdfast/pools.toml")]
    pools: PathBuf,
    /// The replicator, which formats a new pool
    #[arg(long, value_name = "PROGRAM", default_value = "/usr/bin/replicator")]
    replicator: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.pools);
    let text = text.with_context(|| arguments.pools.display().to_string())?;
    let (place, class) = Pools::parse(&text)?.of(&arguments.node_name)?;
    std::fs::create_dir_all(&arguments.directory)
        .with_context(|| arguments.directory.display().to_string())?;

    let kubernetes = kube::Client::try_default().await.context("the Kubernetes API")?;
    let object = Object::new(kubernetes, &arguments.namespace);
    let registry = enter(&arguments, &object).await?;
    let registry = prepare(&arguments, &object, registry, &place, class).await?;

    let number = registry.nodes[&arguments.node_name].number;
    if !registry.founders.contains(&number) {
        take_in(&arguments, &registry, number).await?;
    }
    tracing::info!(cluster = %registry.cluster, number, founders = ?registry.founders, "ready");
    Ok(())
}

fn identity(arguments: &Arguments) -> Result<Option<Identity>> {
    files::read_identity(&arguments.directory)
}

/// Takes a number and waits until the cluster is founded.
async fn enter(arguments: &Arguments, object: &Object) -> Result<Registry> {
    let (name, address) = (&arguments.node_name, arguments.address.to_string());
    let known = identity(arguments)?;
    let fresh = Uuid::new_v4();
    let change = |found: Option<Registry>| -> Result<Registry> {
        let mut registry = match found {
            Some(registry) => registry,
            None => Registry::new(fresh, arguments.founders, known.as_ref())?,
        };
        registry.enter(name, &address, known.as_ref())?;
        Ok(registry)
    };
    let entered = object.update(change).await;
    let mut registry = match entered.as_ref().err().and_then(|error| error.downcast_ref()) {
        Some(JoinError::LogLost { number, .. }) if is_retired(object, *number).await? => {
            let number = *number;
            tracing::info!(number, "the cluster has removed this node: it joins anew");
            let renewed = |found: Option<Registry>| {
                let mut registry = found.context("the registry is gone")?;
                if registry.nodes.get(name).is_some_and(|entry| entry.number == number) {
                    registry.retire(name);
                }
                registry.enter(name, &address, None)?;
                Ok(registry)
            };
            object.update(renewed).await?
        }
        _ => entered?,
    };
    while !registry.is_founded() {
        let (have, wanted) = (registry.founding().len().max(registry.nodes.len()), registry.wanted);
        tracing::info!(have, wanted, "waiting for the founders");
        tokio::time::sleep(PAUSE).await;
        registry = object.update(change).await?;
    }
    Ok(registry)
}

/// Whether the cluster has removed node `number`, as far as it answers.
async fn is_retired(object: &Object, number: u64) -> Result<bool> {
    let Some((registry, _)) = object.read().await? else { return Ok(false) };
    match cluster_of(&registry)?.get_cluster().await {
        Ok(cluster) => Ok(cluster.retired.contains(&number)),
        Err(error) => {
            tracing::warn!(%error, number, "cannot ask whether the node was removed");
            Ok(false)
        }
    }
}

/// The cluster, by way of its founders.
fn cluster_of(registry: &Registry) -> Result<Client> {
    let founders =
        registry.founding().into_values().map(|address| format!("http://{}", control(address)));
    Ok(Client::new(founders.collect::<Vec<_>>())?)
}

fn control(address: &str) -> String {
    format!("{}:{CONTROL_PORT}", bracketed(address))
}

/// Makes the pool, remembers who this node is, and writes the configuration.
async fn prepare(
    arguments: &Arguments,
    object: &Object,
    mut registry: Registry,
    place: &Place,
    class: Option<String>,
) -> Result<Registry> {
    let name = &arguments.node_name;
    let mark = async |pool: Pool| {
        object
            .update(|found| {
                let mut registry = found.context("the registry is gone")?;
                let entry = registry.nodes.get_mut(name).context("this node's entry is gone")?;
                entry.pool = pool;
                Ok(registry)
            })
            .await
    };
    if registry.nodes[name].pool == Pool::Absent {
        registry = mark(Pool::Preparing).await?;
    }
    let new = registry.nodes[name].pool == Pool::Preparing;
    let device = place.prepare(new)?;
    if new {
        format(&arguments.replicator, &device, registry.cluster)?;
    }
    let number = registry.nodes[name].number;
    let mut identity = registry.identity(name).with_context(|| format!("node {number} is gone"))?;
    identity.pool = Pool::Ready;
    files::write_identity(&arguments.directory, &identity)?;
    if new {
        registry = mark(Pool::Ready).await?;
    }
    files::write_configuration(&arguments.directory, &registry, name, &device, class)?;
    Ok(registry)
}

fn format(replicator: &Path, device: &Path, cluster: Uuid) -> Result<()> {
    let output = Command::new(replicator)
        .args(["pool", "init", "--if-needed", "--pool"])
        .arg(device)
        .arg("--cluster")
        .arg(cluster.to_string())
        .output()
        .with_context(|| format!("starting {}", replicator.display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "preparing the pool: {}", error.trim());
    tracing::info!("{}", String::from_utf8_lossy(&output.stdout).trim());
    Ok(())
}

/// Has the running cluster take this node in; a node that is in already is welcome.
async fn take_in(arguments: &Arguments, registry: &Registry, node: u64) -> Result<()> {
    let client = cluster_of(registry)?;
    let request = AddNodeRequest {
        node,
        name: arguments.node_name.clone(),
        control_address: control(&arguments.address.to_string()),
    };
    while let Err(error) = client.add_node(request.clone()).await {
        tracing::warn!(%error, "not taken in yet");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
