//! Snapshots of the fake: records only, nothing is copied.

use super::State;
use super::server::no_volume;
use proto::control::create_volume_request::Source;
use proto::control::*;
use tonic::Status;

/// When the first snapshot was taken, ms since 1970.
const FIRST: u64 = 1_700_000_000_123;

pub(super) fn no_snapshot(id: &str) -> Status {
    Status::not_found(format!("snapshot {id:?} does not exist"))
}

impl State {
    pub(super) fn take(&mut self, request: CreateSnapshotRequest) -> Result<Snapshot, Status> {
        let CreateSnapshotRequest { name, volume_id } = request;
        if let Some(snapshot) = self.snapshots.values().find(|one| one.name == name) {
            if snapshot.volume_id != volume_id {
                let of = &snapshot.volume_id;
                return Err(Status::already_exists(format!("snapshot {name:?} is of {of}")));
            }
            return Ok(snapshot.clone());
        }
        let number = self.next_id();
        let source = self.volumes.get(&volume_id).ok_or_else(|| no_volume(&volume_id))?;
        let snapshot = Snapshot {
            snapshot_id: format!("00000000-0000-4000-9000-{number:012x}"),
            name,
            size_bytes: source.size_bytes,
            fs_type: source.fs_type.clone(),
            volume_id,
            created_unix_ms: FIRST + number,
            ready: true,
            holders: vec!["n1".into(), "n2".into()],
        };
        self.snapshots.insert(snapshot.snapshot_id.clone(), snapshot.clone());
        Ok(snapshot)
    }

    pub(super) fn drop_snapshot(&mut self, id: &str) -> Result<(), Status> {
        let filled = |volume: &&Volume| {
            volume.state() == VolumeState::Filling && volume.source_snapshot_id == id
        };
        if let Some(volume) = self.volumes.values().find(filled) {
            let name = &volume.name;
            let why = format!("volume {name:?} is being filled from snapshot {id}");
            return Err(Status::failed_precondition(why));
        }
        self.snapshots.remove(id);
        Ok(())
    }

    pub(super) fn find_snapshot(&self, by: Option<get_snapshot_request::By>) -> Option<&Snapshot> {
        match by? {
            get_snapshot_request::By::SnapshotId(id) => self.snapshots.get(&id),
            get_snapshot_request::By::Name(name) => {
                self.snapshots.values().find(|one| one.name == name)
            }
        }
    }

    pub(super) fn page_of_snapshots(
        &self,
        request: &ListSnapshotsRequest,
    ) -> ListSnapshotsResponse {
        let ListSnapshotsRequest { max_entries, starting_after, volume_id } = request;
        let mut rest = self.snapshots.values().filter(|one| {
            one.snapshot_id > *starting_after
                && (volume_id.is_empty() || one.volume_id == *volume_id)
        });
        let page = if *max_entries == 0 { usize::MAX } else { *max_entries as usize };
        let snapshots: Vec<Snapshot> = rest.by_ref().take(page).cloned().collect();
        let more = rest.next().is_some();
        let last = snapshots.last().filter(|_| more);
        let next = last.map(|one| one.snapshot_id.clone()).unwrap_or_default();
        ListSnapshotsResponse { snapshots, next }
    }

    /// NOT_FOUND or OUT_OF_RANGE if a volume of `size` bytes cannot be a copy of `source`.
    pub(super) fn check_source(&self, source: Option<&Source>, size: u64) -> Result<(), Status> {
        let least = match source {
            None => return Ok(()),
            Some(Source::SourceSnapshotId(id)) => {
                self.snapshots.get(id).ok_or_else(|| no_snapshot(id))?.size_bytes
            }
            Some(Source::SourceVolumeId(id)) => {
                self.volumes.get(id).ok_or_else(|| no_volume(id))?.size_bytes
            }
        };
        if size < least {
            return Err(Status::out_of_range(format!("{size} bytes of {least}")));
        }
        Ok(())
    }
}
