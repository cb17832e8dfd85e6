//! Snapshots (R26): attempts, holders, deletion; and volumes that are filled from them.
//!
//! A replica leaves the holders when it is given up, not when it fails: a failed one may be all that is
//! left of the data, as the last member of an ISR may be.

use super::attach::wrong_state;
use super::volume::{check_name, not_live};
use super::{Change, Changed, OK, find, find_at};
use crate::event::EventKind;
use crate::outcome::{Done, Outcome, Refused};
use crate::state::{Attachment, Lifecycle, ReplicaState, Snapshot, SnapshotState, State, Volume};
use std::collections::BTreeSet;
use types::{Epoch, IsrVersion, ReplicaId, SnapshotId, VolumeId};

/// A wanted snapshot.
pub(super) struct Wanted<'a> {
    pub snapshot: SnapshotId,
    pub name: &'a str,
    pub volume: VolumeId,
    pub created_unix_ms: u64,
    pub hidden: bool,
}

impl Wanted<'_> {
    /// The snapshot that is there already, by id (the proposer did not hear the first answer) or name.
    fn existing(&self, state: &State) -> Result<Option<Done>, Refused> {
        if let Some(found) = state.snapshots.get(&self.snapshot) {
            let same = found.volume == self.volume
                && found.hidden == self.hidden
                && found.name == self.name
                && found.state != SnapshotState::Deleting;
            if !same {
                let (what, id) = ("snapshot id".into(), self.snapshot.to_string());
                return Err(Refused::IdReused { what, id });
            }
            let existing = found.state == SnapshotState::Ready;
            return Ok(Some(Done::Snapshot { snapshot: found.snapshot, existing }));
        }
        if self.hidden {
            return Ok(None);
        }
        let Some(found) = state.snapshot_by_name(self.name) else { return Ok(None) };
        if found.volume != self.volume {
            return Err(Refused::Conflict {
                name: self.name.into(),
                field: "volume".into(),
                existing: found.volume.to_string(),
                wanted: self.volume.to_string(),
            });
        }
        if found.state == SnapshotState::Creating {
            return Err(Refused::Taking { snapshot: found.snapshot, volume: found.volume });
        }
        Ok(Some(Done::Snapshot { snapshot: found.snapshot, existing: true }))
    }
}

impl Change {
    pub(super) fn create_snapshot(&mut self, state: &mut State, wanted: &Wanted<'_>) -> Outcome {
        if !wanted.hidden {
            check_name(wanted.name)?;
        }
        if let Some(existing) = wanted.existing(state)? {
            return Ok(existing);
        }
        let volume = find(state, wanted.volume)?;
        if volume.lifecycle != Lifecycle::Live {
            return Err(not_live(volume));
        }
        let snapshot = wanted.snapshot;
        let about = Some((volume.volume, volume.epoch));
        let record = Snapshot {
            snapshot,
            name: wanted.name.into(),
            volume: wanted.volume,
            size: volume.size,
            fs_type: volume.fs_type,
            created_unix_ms: wanted.created_unix_ms,
            state: SnapshotState::Creating,
            holders: BTreeSet::new(),
            hidden: wanted.hidden,
        };
        let message = format!("{} is being taken", named(&record));
        state.snapshots.insert(snapshot, record);
        self.changed.insert(Changed::Snapshot(snapshot));
        self.event(state, EventKind::SnapshotBegun, about, None, message);
        Ok(Done::Snapshot { snapshot, existing: false })
    }

    pub(super) fn snapshot_taken(
        &mut self,
        state: &mut State,
        snapshot: SnapshotId,
        epoch: Epoch,
        isr_version: IsrVersion,
        holders: &[ReplicaId],
    ) -> Outcome {
        let record = state.snapshots.get(&snapshot).ok_or(Refused::NoSnapshot { snapshot })?;
        match record.state {
            SnapshotState::Creating => {}
            // Repeated: an id is taken at most once, so the holders were these or grew since.
            SnapshotState::Ready => return OK,
            SnapshotState::Deleting => return Err(wrong(record)),
        }
        let found = find_at(state, record.volume, epoch)?;
        let volume = found.volume;
        let Attachment::Attached { node, .. } = found.attachment else {
            return Err(wrong_state(found, "attached"));
        };
        if found.isr_version != isr_version {
            return Err(Refused::IsrChanged { volume, current: found.isr_version });
        }
        let holders: BTreeSet<ReplicaId> = holders.iter().copied().collect();
        if let Some(replica) = holders.iter().find(|id| !found.replicas.contains_key(*id)) {
            return Err(Refused::NoReplica { replica: *replica });
        }
        if let Some(replica) = found.isr.iter().find(|id| !holders.contains(*id)) {
            return Err(Refused::NotHeld { snapshot, replica: *replica });
        }
        // What it holds may be of either size, and a filesystem of the larger one needs that.
        if found.size != record.size {
            let found = format!("of {} bytes, and its volume has grown", record.size);
            return Err(Refused::SnapshotState { snapshot, found });
        }
        let about = Some((volume, epoch));
        let Some(record) = self.snapshot(state, snapshot) else { return OK };
        record.state = SnapshotState::Ready;
        record.holders = holders;
        let message = format!("{} is ready on {} replicas", named(record), record.holders.len());
        self.event(state, EventKind::SnapshotTaken, about, Some(node), message);
        OK
    }

    pub(super) fn abort_snapshot(&mut self, state: &mut State, snapshot: SnapshotId) -> Outcome {
        let Some(record) = state.snapshots.get(&snapshot) else { return OK };
        if record.state != SnapshotState::Creating {
            return Err(wrong(record));
        }
        let message = format!("{} was not taken; nothing of it is left", named(record));
        let about = state.volumes.get(&record.volume).map(|v| (v.volume, v.epoch));
        state.snapshots.remove(&snapshot);
        self.changed.insert(Changed::Snapshot(snapshot));
        self.event(state, EventKind::SnapshotAborted, about, None, message);
        OK
    }

    pub(super) fn delete_snapshot(&mut self, state: &mut State, snapshot: SnapshotId) -> Outcome {
        let Some(record) = state.snapshots.get(&snapshot) else { return OK };
        match record.state {
            SnapshotState::Creating => return self.abort_snapshot(state, snapshot),
            SnapshotState::Deleting => return OK,
            SnapshotState::Ready => {}
        }
        if let Some(Volume { volume, .. }) = state.filled_from(snapshot) {
            return Err(Refused::SourceInUse { snapshot, volume: *volume });
        }
        let volume = record.volume;
        let about = state.volumes.get(&volume).map(|v| (v.volume, v.epoch));
        let Some(record) = self.snapshot(state, snapshot) else { return OK };
        record.state = SnapshotState::Deleting;
        let message = format!("{} is being deleted", named(record));
        self.event(state, EventKind::SnapshotDeleted, about, None, message);
        self.settle_retired(state, volume);
        OK
    }

    pub(super) fn snapshot_dropped(
        &mut self,
        state: &mut State,
        snapshot: SnapshotId,
        replica: ReplicaId,
    ) -> Outcome {
        let Some(record) = state.snapshots.get(&snapshot) else { return OK };
        if record.state != SnapshotState::Deleting {
            return Err(wrong(record));
        }
        if let Some(record) = self.snapshot(state, snapshot) {
            record.holders.remove(&replica);
            if record.holders.is_empty() {
                state.snapshots.remove(&snapshot);
            }
        }
        OK
    }

    pub(super) fn filled(&mut self, state: &mut State, volume: VolumeId, epoch: Epoch) -> Outcome {
        let found = find(state, volume)?;
        match found.lifecycle {
            Lifecycle::Filling => {}
            Lifecycle::Live => return OK,
            _ => return Err(not_live(found)),
        }
        let found = find_at(state, volume, epoch)?;
        let (Attachment::Attached { node, .. }, true) = (found.attachment, found.internal) else {
            return Err(wrong_state(found, "attached to be filled"));
        };
        let found = self.volume(state, volume)?;
        found.lifecycle = Lifecycle::Live;
        let from = found.source.map(|source| format!("filled from {source}")).unwrap_or_default();
        let about = Some((volume, epoch));
        self.event(state, EventKind::VolumeFilled, about, Some(node), from);
        OK
    }

    /// `replica` has just joined the ISR of `volume`, and has all its snapshots.
    pub(super) fn hold_all(&mut self, state: &mut State, volume: VolumeId, replica: ReplicaId) {
        for (id, record) in &mut state.snapshots {
            if record.volume == volume && record.state == SnapshotState::Ready {
                self.changed.insert(Changed::Snapshot(*id));
                record.holders.insert(replica);
            }
        }
    }

    /// These replicas of `volume` are given up or gone.
    pub(super) fn forget_holders(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        replicas: &[ReplicaId],
    ) {
        let about = state.volumes.get(&volume).map(|v| (v.volume, v.epoch));
        let of: Vec<SnapshotId> = state.snapshots_of(volume).map(|s| s.snapshot).collect();
        for snapshot in of {
            let Some(record) = state.snapshots.get_mut(&snapshot) else { continue };
            let before = record.holders.len();
            record.holders.retain(|holder| !replicas.contains(holder));
            if record.holders.len() == before {
                continue;
            }
            self.changed.insert(Changed::Snapshot(snapshot));
            if !record.holders.is_empty() {
                continue;
            }
            let lost = record.state == SnapshotState::Ready;
            let message = format!("{} went with the last replica that had it", named(record));
            state.snapshots.remove(&snapshot);
            if lost {
                self.event(state, EventKind::SnapshotLost, about, None, message);
            }
        }
        self.settle_retired(state, volume);
    }

    /// A retired volume keeps what holds a ready snapshot, and goes when there is none.
    pub(super) fn settle_retired(&mut self, state: &mut State, volume: VolumeId) {
        let Some(record) = state.volumes.get(&volume) else { return };
        if record.lifecycle != Lifecycle::Retired {
            return;
        }
        let ready = |s: &&Snapshot| s.state == SnapshotState::Ready;
        let kept: BTreeSet<ReplicaId> =
            state.snapshots_of(volume).filter(ready).flat_map(|s| &s.holders).copied().collect();
        let Ok(record) = self.volume(state, volume) else { return };
        if kept.is_empty() {
            record.lifecycle = Lifecycle::Deleting;
        }
        for replica in record.replicas.values_mut().filter(|r| !kept.contains(&r.replica)) {
            replica.state = ReplicaState::Deleting;
        }
    }

    /// Marks a snapshot changed and hands it out.
    fn snapshot<'s>(
        &mut self,
        state: &'s mut State,
        snapshot: SnapshotId,
    ) -> Option<&'s mut Snapshot> {
        self.changed.insert(Changed::Snapshot(snapshot));
        state.snapshots.get_mut(&snapshot)
    }
}

fn wrong(record: &Snapshot) -> Refused {
    let found = record.state.as_str().into();
    Refused::SnapshotState { snapshot: record.snapshot, found }
}

fn named(record: &Snapshot) -> String {
    if record.hidden {
        return format!("snapshot {} for a clone", record.snapshot);
    }
    format!("snapshot {:?} ({})", record.name, record.snapshot)
}
