//! Which copies a volume is to have: changed, moved. The leader's rounds carry it out
//! ([`policy::replace`]).

use super::volumes::COMMAND;
use super::{ControlService, validate};
use crate::control::{convert, new_replica};
use client::api;
use metadata::placement::{Request, place};
use metadata::{
    BANDWIDTH_LIMITS, Command, IOPS_LIMITS, Refused, Replica, ReplicaState, State, Volume,
};
use tonic::Status;
use types::{NodeId, VolumeId};

impl ControlService {
    pub(super) async fn modify(
        &self,
        request: api::ModifyVolumeRequest,
    ) -> Result<api::Volume, Status> {
        let volume = validate::volume_id(&request.volume_id)?;
        let repl = request.repl.map(validate::repl).transpose()?;
        let class = request.priority_io.as_deref().map(validate::pool_class).transpose()?;
        let limit = |field, limit: Option<u64>, accepted| {
            limit.map(|limit| validate::limit(field, limit, accepted)).transpose()
        };
        let iops = limit("iops_limit", request.iops_limit, IOPS_LIMITS)?;
        let bandwidth = limit("bandwidth_limit", request.bandwidth_limit, BANDWIDTH_LIMITS)?;
        let state = self.leader_state().await?;
        let record = find(&state, volume)?;
        let (copies, wanted) = (repl.unwrap_or(record.repl), class.unwrap_or(record.class));
        // Which of the copies could stay; the rest has to find room before anything is changed.
        let kept = |r: &&Replica| {
            let class = state.nodes.get(&r.node).and_then(|node| node.class);
            usable(r) && !r.leaving && (wanted.is_none() || wanted == class)
        };
        let kept: Vec<NodeId> = record.replicas.values().filter(kept).map(|r| r.node).collect();
        let missing = (copies as usize).saturating_sub(kept.len());
        if missing > 0 && (copies, wanted) != (record.repl, record.class) {
            let request = Request {
                size: record.reserved(),
                repl: u32::try_from(missing).unwrap_or(u32::MAX),
                class: wanted,
                exclude: record.replicas.values().map(|r| r.node).collect(),
                free: self.0.roll.free(),
                ..Request::default()
            };
            place(&state, &request).map_err(|error| {
                let kept = kept.len();
                Status::resource_exhausted(format!("{kept} of {copies} copies can stay; {error}"))
            })?;
        }
        let modify = Command::ModifyVolume { volume, repl, class };
        if (repl, class) != (None, None) {
            self.0.proposer.propose(modify, COMMAND).await?;
        }
        if (iops, bandwidth) != (None, None) {
            let limit = Command::LimitVolume { volume, iops, bandwidth };
            self.0.proposer.propose(limit, COMMAND).await?;
        }
        self.shown(volume)
    }

    pub(super) async fn move_replica_of(
        &self,
        request: api::MoveReplicaRequest,
    ) -> Result<api::Volume, Status> {
        let volume = validate::volume_id(&request.volume_id)?;
        let from = validate::node_id("from", request.from)?;
        let to = Some(NodeId(request.to)).filter(|node| node.0 != 0);
        let state = self.leader_state().await?;
        let record = find(&state, volume)?;
        let on = |node| record.replicas.values().find(|r| r.node == node && usable(r));
        // Moved, or on its way: the wish is met or will be.
        let met = to.is_some_and(|to| on(to).is_some_and(|new| !new.leaving));
        let old = match on(from) {
            Some(old) if old.leaving && (to.is_none() || met) => return self.shown(volume),
            None if met => return self.shown(volume),
            Some(old) => old,
            None => {
                return Err(Status::not_found(format!(
                    "volume {volume} has no replica on node {from}"
                )));
            }
        };
        let to = match to {
            Some(to) => to,
            None => {
                let others = record.replicas.values().filter(|r| r.node != from && usable(r));
                let request = Request {
                    size: record.reserved(),
                    repl: 1,
                    class: record.class,
                    exclude: record.replicas.values().map(|r| r.node).collect(),
                    apart_from: others.map(|r| r.node).collect(),
                    free: self.0.roll.free(),
                    ..Request::default()
                };
                let placed = place(&state, &request)
                    .map_err(|error| Status::resource_exhausted(error.to_string()))?;
                placed.first().copied().unwrap_or_default()
            }
        };
        let (added, from) = (record.added, old.replica);
        let order = Command::MoveReplica { volume, added, from, to: new_replica(to) };
        self.0.proposer.propose(order, COMMAND).await?;
        self.shown(volume)
    }

    /// The volume as this node has it, which the last command was applied on.
    fn shown(&self, volume: VolumeId) -> Result<api::Volume, Status> {
        let state = self.0.meta.state();
        find(&state, volume).map(|record| convert::volume(&state, record))
    }
}

fn usable(replica: &Replica) -> bool {
    matches!(replica.state, ReplicaState::Creating | ReplicaState::Ready)
}

fn find(state: &State, volume: VolumeId) -> Result<&Volume, Status> {
    let record = state.volumes.get(&volume).filter(|v| !v.is_deleted());
    record.ok_or_else(|| crate::control::status::refused_status(&Refused::NoVolume { volume }))
}
