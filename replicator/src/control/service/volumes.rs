//! Volumes: created, listed, grown and deleted, on the leader.

use super::validate::WantedSource;
use super::{ControlService, validate};
use crate::control::attach;
use crate::control::leader::Own;
use crate::control::snapshots::{Wanted, take};
use crate::control::status::{CommandError, invalid, refused_status};
use crate::control::{convert, new_replica};
use client::api;
use client::api::get_volume_request::By;
use core::time::Duration;
use metadata::{
    Command, Done, Lifecycle, NodeStatus, Refused, ReplicaState, Source, State, Volume, placement,
};
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use types::{NodeId, SnapshotId, VolumeId};
use uuid::Uuid;

/// How long one command may take.
pub(super) const COMMAND: Duration = Duration::from_secs(10);
/// How long the nodes may take to make, grow or delete replicas.
const NODES: Duration = Duration::from_secs(30);
/// Placements that may be overtaken by others before a creation gives up.
const PLACEMENTS: u32 = 8;
/// Volumes on a page if the caller does not say: the answer must fit a message.
const PAGE: usize = 1000;

impl ControlService {
    pub(super) async fn create(
        &self,
        request: api::CreateVolumeRequest,
    ) -> Result<api::Volume, Status> {
        let wanted = validate::new_volume(request)?;
        let (source, own) = self.source(&wanted).await?;
        let mut left = PLACEMENTS;
        let volume = loop {
            let state = self.leader_state().await?;
            left -= 1;
            match self.propose_volume(&state, &wanted, source).await {
                Err(CommandError::Refused(
                    Refused::NoRoom { .. } | Refused::BadPlacement { .. },
                )) if left > 0 => {
                    // Another volume or a lost node overtook this placement: place again.
                }
                Ok(volume) => break volume,
                Err(error) => return Err(error.into()),
            }
        };
        // The volume refers to it from here on.
        drop(own);
        let made = self.until(volume, NODES, |record| {
            let unmade = |lifecycle| matches!(lifecycle, Lifecycle::Creating | Lifecycle::Filling);
            record.is_none_or(|record| !unmade(record.lifecycle) || failed(record))
        });
        let state = made.await.ok_or_else(|| self.unmade(volume))?;
        match state.volumes.get(&volume) {
            Some(record) if record.lifecycle == Lifecycle::Live => {
                Ok(convert::volume(&state, record))
            }
            Some(record) if failed(record) => {
                // Half a volume helps nobody: it goes, and the caller may try again.
                self.0.proposer.propose(Command::DeleteVolume { volume }, COMMAND).await?;
                Err(Status::resource_exhausted(
                    "a node could not make its replica; nothing was created, see the event replica_failed",
                ))
            }
            _ => Err(Status::aborted(format!("volume {volume} was deleted meanwhile"))),
        }
    }

    /// What a new volume is to begin with; a clone's hidden snapshot is taken now, and kept by the guard
    /// until a volume refers to it.
    async fn source(
        &self,
        wanted: &validate::NewVolume,
    ) -> Result<(Option<Source>, Option<Own<'_>>), Status> {
        let volume = match wanted.source {
            None => return Ok((None, None)),
            Some(WantedSource::Snapshot(snapshot)) => {
                return Ok((Some(Source::Snapshot(snapshot)), None));
            }
            Some(WantedSource::Volume(volume)) => volume,
        };
        let state = self.leader_state().await?;
        if state.volume_by_name(&wanted.name).is_some() {
            // It exists: the command only compares whose clone it is.
            let snapshot = SnapshotId::default();
            return Ok((Some(Source::Clone { volume, snapshot }), None));
        }
        let record = state.volumes.get(&volume).filter(|record| !record.is_deleted());
        let record = record.ok_or_else(|| refused_status(&Refused::NoVolume { volume }))?;
        if wanted.size < record.size {
            let (size, source_size) = (wanted.size, record.size);
            return Err(refused_status(&Refused::SmallerThanSource { size, source_size }));
        }
        let (snapshot, own) = take(&self.0, volume, &Wanted::Hidden).await?;
        Ok((Some(Source::Clone { volume, snapshot }), Some(own)))
    }

    /// Why a volume is not there in time.
    fn unmade(&self, volume: VolumeId) -> Status {
        let state = self.0.meta.state();
        match state.volumes.get(&volume) {
            Some(record) if record.lifecycle == Lifecycle::Filling => {
                let under_way = record.attachment.holder().is_some();
                let how = if under_way { "is being" } else { "waits to be" };
                Status::unavailable(format!("volume {volume} {how} filled from its source"))
            }
            _ => {
                Status::unavailable(format!("volume {volume} is still being created on its nodes"))
            }
        }
    }

    async fn propose_volume(
        &self,
        state: &State,
        wanted: &validate::NewVolume,
        source: Option<Source>,
    ) -> Result<VolumeId, CommandError> {
        let nodes = if state.volume_by_name(&wanted.name).is_some() {
            // It exists: the command only compares, and must not fail for want of room.
            Vec::new()
        } else {
            let request = placement::Request {
                size: wanted.size,
                repl: wanted.repl,
                class: wanted.class,
                preferred: wanted.preferred.clone(),
                pinned: wanted.pinned,
                free: self.0.roll.free(),
                ..placement::Request::default()
            };
            placement::place(state, &request).map_err(|error| {
                let node = NodeId::default();
                Refused::BadPlacement { node, reason: error.to_string() }
            })?
        };
        let create = Command::CreateVolume {
            volume: VolumeId(Uuid::new_v4()),
            name: wanted.name.clone(),
            size: wanted.size,
            repl: wanted.repl,
            class: wanted.class,
            fs_type: wanted.fs_type,
            pinned: wanted.pinned,
            source,
            replicas: nodes.into_iter().map(new_replica).collect(),
        };
        match self.0.proposer.propose(create, COMMAND).await? {
            Done::Volume { volume, .. } => Ok(volume),
            other => Err(CommandError::Unknown { reason: format!("unexpected outcome {other:?}") }),
        }
    }

    pub(super) async fn delete(&self, volume: VolumeId) -> Result<(), Status> {
        self.leader_state().await?;
        attach::reclaim(&self.0, volume).await;
        self.0.proposer.propose(Command::DeleteVolume { volume }, COMMAND).await?;
        let meta = &self.0.meta;
        let freed = self.until(volume, NODES, |record| {
            let state = meta.state();
            let up = |node: NodeId| {
                state.nodes.get(&node).is_some_and(|node| node.status == NodeStatus::Up)
            };
            record.is_none_or(|record| {
                let retired = record.lifecycle == Lifecycle::Retired;
                retired || !record.replicas.values().any(|replica| up(replica.node))
            })
        });
        let freed = freed.await;
        freed.map(drop).ok_or_else(|| {
            Status::unavailable(format!("volume {volume} is still being deleted on its nodes"))
        })
    }

    pub(super) async fn get(&self, request: api::GetVolumeRequest) -> Result<api::Volume, Status> {
        let state = self.leader_state().await?;
        let record = match request.by {
            None => return Err(invalid("by", "", "volume_id or name")),
            Some(By::VolumeId(text)) => {
                let volume = validate::volume_id(&text)?;
                let record = state.volumes.get(&volume).filter(is_shown);
                record.ok_or_else(|| Status::not_found(format!("there is no volume {volume}")))?
            }
            Some(By::Name(name)) => {
                let name = validate::volume_name(name)?;
                let record = state.volume_by_name(&name);
                record.ok_or_else(|| Status::not_found(format!("there is no volume {name:?}")))?
            }
        };
        Ok(convert::volume(&state, record))
    }

    pub(super) async fn list(
        &self,
        request: api::ListVolumesRequest,
    ) -> Result<api::ListVolumesResponse, Status> {
        let after = match request.starting_after.as_str() {
            "" => None,
            text => Some(text.parse::<VolumeId>().map_err(|_| validate::token(text))?),
        };
        let state = self.leader_state().await?;
        let wanted = |record: &&Volume| Some(record.volume) > after && is_shown(record);
        let records = state.volumes.values().filter(wanted);
        let (records, more) = page(records, request.max_entries);
        let next = records.last().filter(|_| more).map(|last| last.volume.to_string());
        let volumes = records.into_iter().map(|record| convert::volume(&state, record)).collect();
        Ok(api::ListVolumesResponse { volumes, next: next.unwrap_or_default() })
    }

    pub(super) async fn expand(
        &self,
        request: api::ExpandVolumeRequest,
    ) -> Result<api::Volume, Status> {
        let volume = validate::volume_id(&request.volume_id)?;
        let size = validate::size(request.size_bytes)?;
        self.leader_state().await?;
        self.0.proposer.propose(Command::ExpandBegin { volume, size }, COMMAND).await?;
        let grown =
            self.until(volume, NODES, |record| record.is_none_or(|record| record.size >= size));
        let state = grown.await.ok_or_else(|| {
            Status::unavailable(format!("volume {volume}: not every in-sync replica has grown yet"))
        })?;
        match state.volumes.get(&volume) {
            Some(record) => Ok(convert::volume(&state, record)),
            None => Err(refused_status(&Refused::NoVolume { volume })),
        }
    }

    pub(super) async fn capacity(
        &self,
        request: api::GetCapacityRequest,
    ) -> Result<api::GetCapacityResponse, Status> {
        let class = validate::pool_class(&request.priority_io)?;
        let repl = validate::repl(if request.repl == 0 { 1 } else { request.repl })?;
        let node = Some(NodeId(request.node)).filter(|node| node.0 != 0);
        let state = self.leader_state().await?;
        let capacity = placement::capacity(&state, class, repl, node, &self.0.roll.free());
        Ok(api::GetCapacityResponse {
            available_bytes: capacity.available,
            maximum_volume_bytes: capacity.maximum_volume.min(types::MAX_VOLUME),
        })
    }

    /// Waits until the applied record of `volume` satisfies `condition`, at most for `within`;
    /// returns the state that does.
    async fn until(
        &self,
        volume: VolumeId,
        within: Duration,
        condition: impl Fn(Option<&Volume>) -> bool,
    ) -> Option<Arc<State>> {
        let mut applied = self.0.meta.watch();
        let wait = async {
            loop {
                applied.borrow_and_update();
                let state = self.0.meta.state();
                if condition(state.volumes.get(&volume)) {
                    return Some(state);
                }
                applied.changed().await.ok()?;
            }
        };
        timeout_at(Instant::now() + within, wait).await.ok().flatten()
    }
}

fn failed(record: &Volume) -> bool {
    record.lifecycle == Lifecycle::Creating
        && record.replicas.values().any(|replica| replica.state == ReplicaState::Failed)
}

/// A volume of which only snapshots are left is none to callers.
pub(super) fn is_shown(record: &&Volume) -> bool {
    record.lifecycle != Lifecycle::Retired
}

/// The first of `records`, as many as were asked for and a message holds, and whether there are more.
pub(super) fn page<'r, R>(
    mut records: impl Iterator<Item = &'r R>,
    max_entries: u32,
) -> (Vec<&'r R>, bool) {
    let limit = match usize::try_from(max_entries) {
        Ok(entries @ 1..=PAGE) => entries,
        _ => PAGE,
    };
    let found = records.by_ref().take(limit).collect();
    (found, records.next().is_some())
}
