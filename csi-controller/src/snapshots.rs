//! Snapshots: what may be asked for, and what is answered. They are taken and kept by the replicators (R26).

use crate::controller::{check_name, check_page, to_wire};
use client::{Client, api};
use csi_common::{RequestError, from_client, snapshot_id_in, volume_id_in};
use prost_types::Timestamp;
use proto::csi::list_snapshots_response::Entry;
use proto::csi::{
    CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, ListSnapshotsRequest,
    ListSnapshotsResponse, Snapshot,
};
use tonic::{Code, Status};
use types::{SnapshotId, VolumeId};

/// What the snapshotter adds to parameters (`volumesnapshot/name`, …) starts with this.
const SNAPSHOTTER_PREFIX: &str = "csi.storage.k8s.io/";

/// A checked CreateSnapshot.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub volume: VolumeId,
}

pub fn check_create(request: &CreateSnapshotRequest) -> Result<Wanted, RequestError> {
    check_name(&request.name)?;
    let foreign = request.parameters.keys().filter(|key| !key.starts_with(SNAPSHOTTER_PREFIX));
    // The first in order: the same request gets the same error each time.
    if let Some(key) = foreign.min() {
        return Err(RequestError::invalid(
            "parameter",
            key,
            "none: a VolumeSnapshotClass has none",
        ));
    }
    if request.accessibility_requirements.is_some() {
        return Err(RequestError::Unsupported {
            what: "accessibility_requirements".into(),
            instead: "leave it out: a snapshot can be restored for every node",
        });
    }
    let volume = volume_id_in("source_volume_id", &request.source_volume_id)?;
    Ok(Wanted { name: request.name.clone(), volume })
}

/// `None` for one that cannot exist, which is as good as deleted.
pub fn check_delete(request: &DeleteSnapshotRequest) -> Result<Option<SnapshotId>, RequestError> {
    match snapshot_id_in("snapshot_id", &request.snapshot_id) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(RequestError::NoSnapshot { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A snapshot as CSI sees it. No topology: it can be restored for every node.
fn present(snapshot: &api::Snapshot) -> Snapshot {
    let (seconds, ms) = (snapshot.created_unix_ms / 1000, snapshot.created_unix_ms % 1000);
    Snapshot {
        size_bytes: to_wire(snapshot.size_bytes),
        snapshot_id: snapshot.snapshot_id.clone(),
        source_volume_id: snapshot.volume_id.clone(),
        creation_time: Some(Timestamp {
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
            nanos: i32::try_from(ms * 1_000_000).unwrap_or(0),
        }),
        ready_to_use: snapshot.ready,
        group_snapshot_id: String::new(),
        accessible_topology: Vec::new(),
    }
}

/// Takes a snapshot; returns once every in-sync copy has it.
pub async fn create(client: &Client, wanted: &Wanted) -> Result<Snapshot, Status> {
    let snapshot = client.create_snapshot(&wanted.name, &wanted.volume.to_string()).await;
    snapshot.map(|snapshot| present(&snapshot)).map_err(|e| from_client(&e))
}

pub async fn delete(client: &Client, snapshot: SnapshotId) -> Result<(), Status> {
    match client.delete_snapshot(&snapshot.to_string()).await {
        Err(error) if error.code() != Code::NotFound => Err(from_client(&error)),
        _ => Ok(()),
    }
}

pub async fn get(client: &Client, request: &GetSnapshotRequest) -> Result<Snapshot, Status> {
    let snapshot = snapshot_id_in("snapshot_id", &request.snapshot_id)?;
    let snapshot = client.get_snapshot(&snapshot.to_string()).await;
    snapshot.map(|snapshot| present(&snapshot)).map_err(|e| from_client(&e))
}

/// One page. A filter that nothing fits, or nothing can fit, gives an empty one.
pub async fn list(
    client: &Client,
    request: ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, Status> {
    let ListSnapshotsRequest { max_entries, starting_token, source_volume_id, snapshot_id, .. } =
        request;
    let max_entries = check_page::<SnapshotId>(max_entries, &starting_token)?;
    let impossible = |text: &str, is_id: bool| !text.is_empty() && !is_id;
    if impossible(&source_volume_id, source_volume_id.parse::<VolumeId>().is_ok())
        || impossible(&snapshot_id, snapshot_id.parse::<SnapshotId>().is_ok())
    {
        return Ok(ListSnapshotsResponse::default());
    }
    let (snapshots, next_token) = if snapshot_id.is_empty() {
        let page = client.list_snapshots(max_entries, &starting_token, &source_volume_id).await;
        let page = page.map_err(|e| from_client(&e))?;
        (page.snapshots, page.next)
    } else {
        let one = match client.get_snapshot(&snapshot_id).await {
            Err(error) if error.code() == Code::NotFound => None,
            other => Some(other.map_err(|e| from_client(&e))?),
        };
        let fits = |found: &api::Snapshot| {
            (source_volume_id.is_empty() || found.volume_id == source_volume_id)
                && found.snapshot_id > starting_token
        };
        (one.into_iter().filter(fits).collect(), String::new())
    };
    let entries = snapshots.iter().map(|one| Entry { snapshot: Some(present(one)) }).collect();
    Ok(ListSnapshotsResponse { entries, next_token })
}
