//! Snapshots as the leader has them taken (R26): one attempt is one id, one engine, one outcome in Raft.
//!
//! Whatever happens to an attempt, Raft decides how it ended: the engine's node has the snapshot recorded,
//! the leader has it aborted, and the first of the two wins. What an aborted attempt left on replicas is
//! dropped by their nodes ([`policy::pool`]).

use super::Node;
use super::attach;
use super::leader::Own;
use super::status::CommandError;
use client::{Client, Endpoint};
use core::net::SocketAddr;
use core::time::Duration;
use metadata::{Command, Done, Refused};
use policy::snapshot::taker;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::{Code, Status};
use types::{NodeId, SnapshotId, VolumeId};
use uuid::Uuid;

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(10);
/// How long a node may take for a snapshot: an engine that has to be started first included.
const TAKE: Duration = Duration::from_secs(60);
/// How long a node is asked to fill a volume.
const FILL: Duration = Duration::from_secs(30);

/// Names of snapshots that this node, as the leader, is taking.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    names: Mutex<BTreeSet<String>>,
}

/// The right to take a snapshot of that name; released on drop.
pub(super) struct Naming<'n> {
    of: &'n InFlight,
    name: String,
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        self.of.names().remove(&self.name);
    }
}

impl InFlight {
    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// ABORTED while another call of that name is in flight.
    pub(super) fn begin(&self, name: &str) -> Result<Naming<'_>, Status> {
        if self.names().insert(name.to_owned()) {
            return Ok(Naming { of: self, name: name.to_owned() });
        }
        Err(Status::aborted(format!("another call for snapshot {name:?} is in flight")))
    }
}

/// What is wanted: one that callers see, or one for a clone.
pub(super) enum Wanted<'a> {
    Named(&'a str),
    Hidden,
}

/// Takes a snapshot, or finds the ready one of that name. While the guard lives, nobody deletes it because
/// nothing refers to it.
pub(super) async fn take<'n>(
    node: &'n Arc<Node>,
    volume: VolumeId,
    wanted: &Wanted<'_>,
) -> Result<(SnapshotId, Own<'n>), Status> {
    let snapshot = SnapshotId(Uuid::new_v4());
    let own = node.roll.own(snapshot);
    let (name, hidden) = match wanted {
        Wanted::Named(name) => ((*name).to_owned(), false),
        Wanted::Hidden => (String::new(), true),
    };
    let create = Command::CreateSnapshot {
        snapshot,
        name,
        volume,
        created_unix_ms: hostio::clock::unix_ms(),
        hidden,
    };
    match node.proposer.propose(create, COMMAND).await? {
        Done::Snapshot { snapshot: found, existing: true } => return Ok((found, own)),
        Done::Snapshot { existing: false, .. } => {}
        other => return Err(Status::internal(format!("unexpected outcome {other:?}"))),
    }
    let Err(status) = have_taken(node, volume, snapshot).await else { return Ok((snapshot, own)) };
    // The answer may be lost and the snapshot taken: Raft knows.
    match node.proposer.propose(Command::AbortSnapshot { snapshot }, COMMAND).await {
        Err(CommandError::Refused(Refused::SnapshotState { .. })) => Ok((snapshot, own)),
        aborted => {
            tracing::warn!(node = %node.config.node, %volume, %snapshot, error = status.message(), ?aborted, "the snapshot was not taken");
            let code = match status.code() {
                Code::ResourceExhausted => Code::ResourceExhausted,
                _ => Code::Unavailable,
            };
            Err(Status::new(code, status.message()))
        }
    }
}

/// Asks the node that can take it, once.
async fn have_taken(
    node: &Arc<Node>,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<(), Status> {
    attach::reclaim(node, volume).await;
    let state = node.meta.state();
    let record = state.volumes.get(&volume);
    let at = record.and_then(|record| taker(&state, record)).ok_or_else(|| {
        let found = record.map_or("absent", |record| record.attachment.as_str());
        Status::unavailable(format!(
            "volume {volume} is {found}: no node with an in-sync copy can take it now"
        ))
    })?;
    if at == node.config.node {
        return attach::take_snapshot(node, volume, snapshot).await;
    }
    let peer = peer(node, at, TAKE)?;
    peer.take_snapshot(&volume.to_string(), &snapshot.to_string()).await.map_err(status)
}

/// Has `at` fill `volume`.
pub(super) async fn have_filled(
    node: &Arc<Node>,
    volume: VolumeId,
    at: NodeId,
) -> Result<(), Status> {
    if at == node.config.node {
        return attach::fill(node, volume).await;
    }
    peer(node, at, FILL)?.fill_volume(&volume.to_string()).await.map_err(status)
}

/// Has `at` begin to fill the replicas of `volume`.
pub(super) async fn have_tended(
    node: &Arc<Node>,
    volume: VolumeId,
    at: NodeId,
) -> Result<(), Status> {
    if at == node.config.node {
        return attach::tend(node, volume).await;
    }
    peer(node, at, FILL)?.tend_volume(&volume.to_string()).await.map_err(status)
}

pub(super) fn peer(node: &Node, at: NodeId, deadline: Duration) -> Result<Client, Status> {
    let state = node.meta.state();
    let address = state.nodes.get(&at).map(|record| record.control_address.parse::<SocketAddr>());
    match address {
        Some(Ok(address)) => Ok(Client::of(vec![Endpoint::Tcp(address)]).with_deadline(deadline)),
        _ => Err(Status::unavailable(format!("node {at} has no address yet"))),
    }
}

fn status(error: client::Error) -> Status {
    Status::new(error.code(), error.to_string())
}
