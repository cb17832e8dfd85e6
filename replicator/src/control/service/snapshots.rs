//! Snapshots: taken, found, listed and deleted, on the leader.

use super::volumes::{COMMAND, page};
use super::{ControlService, validate};
use crate::control::convert;
use crate::control::snapshots::{Wanted, take};
use crate::control::status::invalid;
use client::api;
use client::api::get_snapshot_request::By;
use metadata::{Command, Snapshot, State};
use std::sync::Arc;
use tonic::Status;
use types::SnapshotId;

impl ControlService {
    pub(super) async fn create_snapshot_of(
        &self,
        request: api::CreateSnapshotRequest,
    ) -> Result<api::Snapshot, Status> {
        let name = validate::volume_name(request.name)?;
        let volume = validate::volume_id(&request.volume_id)?;
        self.leader_state().await?;
        // A caller that goes away must not leave an attempt that the next call stumbles over.
        let node = Arc::clone(&self.0);
        let work = tokio::spawn(async move {
            let _naming = node.snapshots.begin(&name)?;
            take(&node, volume, &Wanted::Named(&name)).await.map(|(snapshot, _)| snapshot)
        });
        let taken =
            work.await.unwrap_or_else(|_| Err(Status::internal("the call ended unexpectedly")));
        let snapshot = taken?;
        // It may have been recorded through another leader.
        let state = self.leader_state().await?;
        visible(&state, snapshot)
            .map(|record| convert::snapshot(&state, record))
            .ok_or_else(|| Status::aborted(format!("snapshot {snapshot} was deleted meanwhile")))
    }

    pub(super) async fn delete_snapshot_by(&self, snapshot: SnapshotId) -> Result<(), Status> {
        let state = self.leader_state().await?;
        // A hidden one is none to callers, and goes by itself.
        if visible(&state, snapshot).is_some() {
            self.0.proposer.propose(Command::DeleteSnapshot { snapshot }, COMMAND).await?;
        }
        Ok(())
    }

    pub(super) async fn get_snapshot_by(
        &self,
        request: api::GetSnapshotRequest,
    ) -> Result<api::Snapshot, Status> {
        let state = self.leader_state().await?;
        let (found, what) = match request.by {
            None => return Err(invalid("by", "", "snapshot_id or name")),
            Some(By::SnapshotId(text)) => {
                let snapshot = validate::snapshot_id(&text)?;
                (visible(&state, snapshot), text)
            }
            Some(By::Name(name)) => {
                let name = validate::volume_name(name)?;
                (state.snapshot_by_name(&name), format!("{name:?}"))
            }
        };
        let record =
            found.ok_or_else(|| Status::not_found(format!("there is no snapshot {what}")))?;
        Ok(convert::snapshot(&state, record))
    }

    pub(super) async fn list_snapshots_by(
        &self,
        request: api::ListSnapshotsRequest,
    ) -> Result<api::ListSnapshotsResponse, Status> {
        let after = match request.starting_after.as_str() {
            "" => None,
            text => Some(text.parse::<SnapshotId>().map_err(|_| validate::token(text))?),
        };
        let volume = match request.volume_id.as_str() {
            "" => None,
            text => Some(validate::volume_id(text)?),
        };
        let state = self.leader_state().await?;
        let wanted = |record: &&Snapshot| {
            let of_volume = volume.is_none_or(|volume| record.volume == volume);
            record.is_visible() && of_volume && Some(record.snapshot) > after
        };
        let records = state.snapshots.values().filter(wanted);
        let (records, more) = page(records, request.max_entries);
        let next = records.last().filter(|_| more).map(|last| last.snapshot.to_string());
        let snapshots =
            records.into_iter().map(|record| convert::snapshot(&state, record)).collect();
        Ok(api::ListSnapshotsResponse { snapshots, next: next.unwrap_or_default() })
    }
}

fn visible(state: &State, snapshot: SnapshotId) -> Option<&Snapshot> {
    state.snapshots.get(&snapshot).filter(|record| record.is_visible())
}
