//! `holdfast cluster`, `holdfast node`, `holdfast events`.

use crate::output::{Output, Table, size};
use crate::target::Target;
use crate::volume;
use anyhow::{Result, ensure};
use client::Client;
use client::api::{AddNodeRequest, Event, GetClusterResponse, Replica, VolumeState};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// Without --follow the listing ends when this long nothing came.
const QUIET: Duration = Duration::from_millis(500);

/// Commands on the cluster.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ClusterCommand {
    /// Shows Raft, nodes and volumes.
    Status,
}

/// Commands on nodes.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// Takes a running replicator into the cluster: learner first, voter when it has caught up.
    Add {
        /// Its number, never used before.
        node: u64,
        /// Its name.
        #[arg(long)]
        name: String,
        /// Its control address, IP:PORT.
        #[arg(long)]
        control_address: SocketAddr,
    },
    /// Succeeds if the node that is asked serves, and every copy on it that can be is in sync: while an
    /// update waits for this on each node, no volume is down to one copy because of it.
    Ready,
    /// Shows what the node that is asked says of itself: whether it serves, and how its kernel reaches
    /// volumes and why that way.
    Show,
    /// Takes a node out of Raft.
    Remove {
        /// Its number.
        node: u64,
    },
}

/// Which events.
#[derive(Clone, Debug, clap::Args)]
pub struct EventsArguments {
    /// Only those of this volume (id or name).
    #[arg(long)]
    volume: Option<String>,
    /// Only those after this Raft index.
    #[arg(long, default_value_t = 0)]
    after: u64,
    /// Go on as they happen.
    #[arg(long, short)]
    follow: bool,
}

/// Runs a cluster command.
///
/// # Errors
/// As the cluster answers.
pub async fn cluster(target: &Target, command: ClusterCommand, output: Output) -> Result<()> {
    match command {
        ClusterCommand::Status => {
            let status = target.client()?.get_cluster().await?;
            if output.json {
                return output.line(&status_json(&status).to_string());
            }
            let leader = status.nodes.iter().find(|node| node.node == status.leader);
            output.line(&format!(
                "cluster {}  leader {}  term {}  applied {}\n",
                status.cluster_id,
                leader.map_or("unknown", |node| &node.name),
                status.term,
                status.applied
            ))?;
            output.show(&Value::Null, || nodes(&status))?;
            if status.volumes.is_empty() {
                return Ok(());
            }
            output.line("")?;
            output.show(&Value::Null, || volume::table(&status.volumes))
        }
    }
}

fn nodes(status: &GetClusterResponse) -> Table {
    let heads = ["NODE", "NAME", "STATE", "RAFT", "CONTROL", "DATA", "POOL", "FREE", "CLASS"];
    let mut table = Table::new(&heads);
    for node in &status.nodes {
        let mark = if node.node == status.leader { " leader" } else { "" };
        table.row([
            node.node.to_string(),
            node.name.clone(),
            node.state.clone(),
            format!("{}{mark}", node.raft_role),
            node.control_address.clone(),
            node.data_address.clone(),
            size(node.pool_bytes),
            size(node.pool_free_bytes),
            node.priority_io.clone(),
        ]);
    }
    table
}

fn status_json(status: &GetClusterResponse) -> Value {
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "node": node.node,
                "name": node.name,
                "state": node.state,
                "raft_role": node.raft_role,
                "control_address": node.control_address,
                "data_address": node.data_address,
                "priority_io": node.priority_io,
                "pool_id": node.pool_id,
                "pool_bytes": node.pool_bytes,
                "pool_free_bytes": node.pool_free_bytes,
            })
        })
        .collect();
    let volumes: Vec<Value> = status.volumes.iter().map(volume::volume_json).collect();
    json!({
        "cluster_id": status.cluster_id,
        "leader": status.leader,
        "term": status.term,
        "applied": status.applied,
        "nodes": nodes,
        "volumes": volumes,
    })
}

/// Copies on `node` that their volume does not count on and that somebody is rebuilding or should be.
fn behind(cluster: &GetClusterResponse, node: u64) -> Vec<&str> {
    let waiting = |replica: &Replica| {
        replica.node == node && !replica.in_sync && ["creating", "ready"].contains(&&*replica.state)
    };
    let behind = cluster.volumes.iter().filter(|volume| {
        let attached = volume.state() == VolumeState::Attached;
        attached && volume.replicas.iter().any(waiting)
    });
    behind.map(|volume| volume.name.as_str()).collect()
}

async fn ready(client: &Client, output: Output) -> Result<()> {
    let node = client.get_node().await?;
    ensure!(node.ready, "node {} does not serve yet", node.name);
    let cluster = client.get_cluster().await?;
    let behind = behind(&cluster, node.node);
    ensure!(behind.is_empty(), "node {} is behind with {}", node.name, behind.join(", "));
    output.line(&format!("node {} is ready", node.name))
}

async fn show_node(client: &Client, output: Output) -> Result<()> {
    let node = client.get_node().await?;
    let shown = json!({
        "node": node.node,
        "name": node.name,
        "version": node.version,
        "ready": node.ready,
        "frontend": node.frontend,
        "frontend_reason": node.frontend_reason,
    });
    output.show(&shown, || {
        let mut table = Table::new(&["NODE", "VERSION", "READY", "FRONTEND", "WHY"]);
        let frontend = if node.frontend.is_empty() { "none" } else { &node.frontend };
        table.row([
            node.name.clone(),
            node.version.clone(),
            if node.ready { "yes" } else { "no" }.into(),
            frontend.into(),
            node.frontend_reason.clone(),
        ]);
        table
    })
}

/// Runs a node command.
///
/// # Errors
/// As the cluster answers.
pub async fn node(target: &Target, command: NodeCommand, output: Output) -> Result<()> {
    let client = target.client()?;
    let (node, what) = match command {
        NodeCommand::Ready => return ready(&client, output).await,
        NodeCommand::Show => return show_node(&client, output).await,
        NodeCommand::Add { node, name, control_address } => {
            let control_address = control_address.to_string();
            client.add_node(AddNodeRequest { node, name, control_address }).await?;
            (node, "added")
        }
        NodeCommand::Remove { node } => {
            client.remove_node(node).await?;
            (node, "removed")
        }
    };
    if output.json {
        output.line(&json!({ "node": node, "result": what }).to_string())
    } else {
        output.line(&format!("node {node} {what}"))
    }
}

/// Prints events, one a line.
///
/// # Errors
/// As the cluster answers, or when the stream breaks.
pub async fn events(target: &Target, arguments: EventsArguments, output: Output) -> Result<()> {
    let client = target.client()?;
    let volume = match &arguments.volume {
        Some(volume) => client.find_volume(volume).await?.volume_id,
        None => String::new(),
    };
    let mut stream = client.watch_events(arguments.after, &volume).await?;
    loop {
        let next = if arguments.follow {
            stream.message().await?
        } else {
            match timeout(QUIET, stream.message()).await {
                Ok(next) => next?,
                Err(_) => return Ok(()),
            }
        };
        let Some(event) = next else { return Ok(()) };
        output.line(&line(&event, output.json))?;
    }
}

/// All events that the asked node remembers; of one volume, unless `volume_id` is empty.
///
/// # Errors
/// As the cluster answers, or when the stream breaks.
pub async fn remembered(client: &Client, volume_id: &str) -> Result<Vec<Event>> {
    let mut stream = client.watch_events(0, volume_id).await?;
    let mut events = Vec::new();
    while let Ok(next) = timeout(QUIET, stream.message()).await {
        match next? {
            Some(event) => events.push(event),
            None => break,
        }
    }
    Ok(events)
}

fn line(event: &Event, json: bool) -> String {
    if json {
        return json!({
            "index": event.index,
            "kind": event.kind,
            "volume_id": event.volume_id,
            "node": event.node,
            "epoch": event.epoch,
            "message": event.message,
            "boottime_ns": event.boottime_ns,
        })
        .to_string();
    }
    let seconds = event.boottime_ns / 1_000_000_000;
    let millis = event.boottime_ns / 1_000_000 % 1000;
    let mut line = format!("{seconds:>8}.{millis:03}  {:<15}", event.kind);
    if event.node != 0 {
        line += &format!("  n{}", event.node);
    }
    if !event.volume_id.is_empty() {
        line += &format!("  {} epoch {}", event.volume_id, event.epoch);
    }
    line + "  " + &event.message
}
