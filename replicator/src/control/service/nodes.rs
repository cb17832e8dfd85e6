//! The cluster's members, on the leader.

use super::{ControlService, validate};
use crate::control::convert;
use crate::control::status::propose_status;
use client::api;
use core::time::Duration;
use metadata::{Change, ChangeError, Command};
use tokio::time::{Instant, sleep};
use tonic::Status;
use types::{Epoch, NodeId};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(10);
/// How long a change of membership may take, other changes before it included.
const CHANGE: Duration = Duration::from_secs(20);
/// Pause before a change is tried again because another one is under way.
const PAUSE: Duration = Duration::from_millis(100);

impl ControlService {
    pub(super) async fn cluster(&self) -> Result<api::GetClusterResponse, Status> {
        let state = self.leader_state().await?;
        let node = &self.0;
        let raft = node.meta.raft_status();
        Ok(api::GetClusterResponse {
            cluster_id: node.config.cluster.to_string(),
            leader: raft.leader.unwrap_or_default().0,
            term: raft.term,
            applied: state.applied,
            nodes: state
                .nodes
                .values()
                .map(|record| convert::node(&state, record, node.roll.pool_free(record.node)))
                .collect(),
            volumes: state
                .volumes
                .values()
                .filter(super::volumes::is_shown)
                .map(|v| convert::volume(&state, v))
                .collect(),
            retired: state.retired.iter().map(|node| node.0).collect(),
        })
    }

    /// Known first, so that the others can reach it, then a learner; the leader makes it a voter
    /// when it is up and has caught up (see `leader`).
    pub(super) async fn add(&self, request: api::AddNodeRequest) -> Result<(), Status> {
        let id = validate::node_id("node", request.node)?;
        let address = validate::address("control_address", &request.control_address)?;
        let state = self.leader_state().await?;
        let name = match request.name.as_str() {
            "" => format!("node-{id}"),
            name => name.to_owned(),
        };
        let control_address = address.to_string();
        let add = Command::AddNode { node: id, name, control_address };
        self.0.proposer.propose(add, COMMAND).await?;
        self.0.transport.set_peer(id, address);
        let members = &state.membership;
        if members.voters.contains(&id) || members.learners.contains(&id) {
            return Ok(());
        }
        self.change(Change::AddLearner(id)).await
    }

    /// Out of Raft first, then out of the record, which refuses while the node has replicas.
    pub(super) async fn remove(&self, id: NodeId) -> Result<(), Status> {
        let state = self.leader_state().await?;
        if state.retired.contains(&id) {
            return Ok(());
        }
        if !state.nodes.contains_key(&id) {
            return Err(Status::not_found(format!("there is no node {id}")));
        }
        let replicas = state.bound_to(id);
        let held = state.held_by(id).count();
        if replicas > 0 || held > 0 {
            return Err(Status::failed_precondition(format!(
                "node {id} still has {replicas} replicas and holds {held} volumes: delete or detach them first"
            )));
        }
        let members = &state.membership;
        if members.voters.contains(&id) || members.learners.contains(&id) {
            self.change(Change::Remove(id)).await?;
        }
        self.0.proposer.propose(Command::RemoveNode { node: id }, COMMAND).await?;
        Ok(())
    }

    pub(super) async fn note(&self, request: api::NoteFailoverRequest) -> Result<(), Status> {
        let volume = validate::volume_id(&request.volume_id)?;
        let node = validate::node_id("node", request.node)?;
        let step = validate::failover_step(&request.step)?;
        let (epoch, unix_ms) = (Epoch(request.epoch), request.unix_ms);
        self.leader_state().await?;
        let note = Command::NoteFailover { volume, epoch, node, step, unix_ms };
        self.0.proposer.propose(note, COMMAND).await?;
        Ok(())
    }

    async fn change(&self, change: Change) -> Result<(), Status> {
        let deadline = Instant::now() + CHANGE;
        loop {
            let error = match self.0.meta.change_membership(change).await {
                Ok(index) => {
                    // Whoever looks at the state next must see it.
                    let _ = self.0.meta.wait_applied(index).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            match error {
                ChangeError::InProgress if Instant::now() < deadline => sleep(PAUSE).await,
                ChangeError::Propose(error) => {
                    let node = &self.0;
                    return Err(propose_status(&error, &node.meta.state(), node.config.node));
                }
                ChangeError::InProgress | ChangeError::NotCaughtUp { .. } => {
                    return Err(Status::unavailable(error.to_string()));
                }
                other => return Err(Status::failed_precondition(other.to_string())),
            }
        }
    }
}
