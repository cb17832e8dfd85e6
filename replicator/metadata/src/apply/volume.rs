//! Volumes and their replicas: creation, failure, growth, deletion.

use super::{Change, Changed, OK, find};
use crate::command::NewReplica;
use crate::event::EventKind;
use crate::outcome::{Done, Outcome, Refused};
use crate::placement;
use crate::state::{
    Attachment, BANDWIDTH_LIMITS, FsType, IOPS_LIMITS, Lifecycle, Limits, PoolClass, Replica,
    ReplicaState, Snapshot, SnapshotState, Source, State, Volume,
};
use std::collections::{BTreeMap, BTreeSet};
use types::{BootId, Epoch, IsrVersion, MAX_VOLUME, REGION, ReplicaId, VolumeId};

/// Parameters of a wanted volume.
pub(super) struct Wanted<'a> {
    pub volume: VolumeId,
    pub name: &'a str,
    pub size: u64,
    pub repl: u32,
    pub class: Option<PoolClass>,
    pub fs_type: Option<FsType>,
    pub pinned: bool,
    pub source: Option<Source>,
}

pub(super) fn invalid(field: &str, value: impl ToString, accepted: impl Into<String>) -> Refused {
    Refused::Invalid { field: field.into(), value: value.to_string(), accepted: accepted.into() }
}

/// For names of volumes and snapshots.
pub(super) fn check_name(name: &str) -> Result<(), Refused> {
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        let shown: String = name.chars().take(64).collect();
        return Err(invalid("name", shown, "1 to 128 printable bytes"));
    }
    Ok(())
}

fn check_size(size: u64) -> Result<(), Refused> {
    if size == 0 || !size.is_multiple_of(REGION) || size > MAX_VOLUME {
        let accepted = format!("multiples of {REGION} bytes from {REGION} to {MAX_VOLUME}");
        return Err(invalid("size", size, accepted));
    }
    Ok(())
}

impl Wanted<'_> {
    fn check(&self) -> Result<(), Refused> {
        check_name(self.name)?;
        if !(1..=3).contains(&self.repl) {
            return Err(invalid("repl", self.repl, "1, 2 or 3"));
        }
        check_size(self.size)
    }

    /// Whether `existing` is what is wanted, as CSI's CreateVolume asks.
    fn matches(&self, existing: &Volume) -> Result<(), Refused> {
        let conflict = |field: &str, existing: String, wanted: String| Refused::Conflict {
            name: self.name.into(),
            field: field.into(),
            existing,
            wanted,
        };
        fn word<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(|| "unset".into(), |value| value.to_string())
        }
        if self.size != existing.size && self.size != existing.created_size {
            return Err(conflict("size", existing.size.to_string(), self.size.to_string()));
        }
        if self.repl != existing.repl {
            return Err(conflict("repl", existing.repl.to_string(), self.repl.to_string()));
        }
        if self.class != existing.class {
            return Err(conflict("priority_io", word(existing.class), word(self.class)));
        }
        if self.fs_type != existing.fs_type {
            return Err(conflict("fstype", word(existing.fs_type), word(self.fs_type)));
        }
        if self.pinned != existing.pinned {
            let placement = |pinned| if pinned { "local" } else { "anywhere" }.to_owned();
            return Err(conflict("placement", placement(existing.pinned), placement(self.pinned)));
        }
        let same = match (self.source, existing.source) {
            (Some(wanted), Some(existing)) => wanted.same_wish(&existing),
            (wanted, existing) => wanted == existing,
        };
        if !same {
            return Err(conflict("source", word(existing.source), word(self.source)));
        }
        Ok(())
    }

    /// Whether the source is there and fits.
    fn check_source(&self, state: &State) -> Result<(), Refused> {
        let Some(source) = self.source else { return Ok(()) };
        let snapshot = source.snapshot();
        match state.snapshots.get(&snapshot) {
            Some(found) if found.state == SnapshotState::Creating => {
                Err(Refused::Taking { snapshot, volume: found.volume })
            }
            Some(found) if found.state == SnapshotState::Ready => {
                if self.size < found.size {
                    let (size, source_size) = (self.size, found.size);
                    return Err(Refused::SmallerThanSource { size, source_size });
                }
                Ok(())
            }
            _ => Err(Refused::NoSnapshot { snapshot }),
        }
    }
}

/// Whether `new` may be placed, with room for `size` bytes.
pub(super) fn check_replica(
    state: &State,
    new: &NewReplica,
    size: u64,
    class: Option<PoolClass>,
) -> Result<(), Refused> {
    if state.replica(new.replica).is_some() {
        return Err(Refused::IdReused { what: "replica id".into(), id: new.replica.to_string() });
    }
    let node = state.nodes.get(&new.node).ok_or(Refused::NoNode { node: new.node })?;
    if let Some(reason) = placement::ineligible(node, class) {
        return Err(Refused::BadPlacement { node: new.node, reason: reason.into() });
    }
    let room = placement::room(state, node);
    if room < size {
        return Err(Refused::NoRoom { node: new.node, wanted: size, room });
    }
    Ok(())
}

impl Change {
    pub(super) fn create_volume(
        &mut self,
        state: &mut State,
        wanted: &Wanted<'_>,
        replicas: &[NewReplica],
    ) -> Outcome {
        wanted.check()?;
        if let Some(existing) = state.volume_by_name(wanted.name) {
            wanted.matches(existing)?;
            return Ok(Done::Volume { volume: existing.volume, existing: true });
        }
        let volume = wanted.volume;
        if state.volumes.contains_key(&volume) {
            return Err(Refused::IdReused { what: "volume id".into(), id: volume.to_string() });
        }
        wanted.check_source(state)?;
        if replicas.len() != wanted.repl as usize {
            return Err(invalid("replicas", replicas.len(), format!("{} of them", wanted.repl)));
        }
        let mut map = BTreeMap::new();
        for new in replicas {
            check_replica(state, new, wanted.size, wanted.class)?;
            if map.values().any(|r: &Replica| r.node == new.node) {
                let reason = "it has a replica of the volume already".into();
                return Err(Refused::BadPlacement { node: new.node, reason });
            }
            let replica = Replica {
                replica: new.replica,
                incarnation: new.incarnation,
                node: new.node,
                state: ReplicaState::Creating,
                size: wanted.size,
                leaving: false,
                boot: BootId::default(),
                sealed: Epoch(0),
            };
            if map.insert(new.replica, replica).is_some() {
                return Err(Refused::IdReused {
                    what: "replica id".into(),
                    id: new.replica.to_string(),
                });
            }
        }
        state.volumes.insert(
            volume,
            Volume {
                volume,
                name: wanted.name.into(),
                size: wanted.size,
                created_size: wanted.size,
                expanding: None,
                repl: wanted.repl,
                class: wanted.class,
                fs_type: wanted.fs_type,
                pinned: wanted.pinned,
                source: wanted.source,
                lifecycle: Lifecycle::Creating,
                epoch: Epoch(0),
                // All replicas start as zeros: identical.
                isr: map.keys().copied().collect(),
                isr_version: IsrVersion(1),
                replicas: map,
                added: 0,
                attachment: Attachment::Detached,
                internal: false,
                clean: true,
                limits: Limits::default(),
            },
        );
        self.changed.insert(Changed::Volume(volume));
        let message =
            format!("volume {:?} of {} bytes, repl {}", wanted.name, wanted.size, wanted.repl);
        self.event(state, EventKind::VolumeCreated, Some((volume, Epoch(0))), None, message);
        Ok(Done::Volume { volume, existing: false })
    }

    pub(super) fn limit_volume(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        iops: Option<Option<u64>>,
        bandwidth: Option<Option<u64>>,
    ) -> Outcome {
        let found = find(state, volume)?;
        let limits = Limits {
            iops: iops.unwrap_or(found.limits.iops),
            bandwidth: bandwidth.unwrap_or(found.limits.bandwidth),
        };
        for (field, limit, accepted) in [
            ("iops_limit", limits.iops, IOPS_LIMITS),
            ("bandwidth_limit", limits.bandwidth, BANDWIDTH_LIMITS),
        ] {
            if let Some(limit) = limit
                && !accepted.contains(&limit)
            {
                let accepted = format!("none or {} to {}", accepted.start(), accepted.end());
                return Err(invalid(field, limit, accepted));
            }
        }
        if limits == found.limits {
            return OK;
        }
        let found = self.volume(state, volume)?;
        found.limits = limits;
        let about = Some((volume, found.epoch));
        let word = |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
        let message =
            format!("iops_limit {}, bandwidth_limit {}", word(limits.iops), word(limits.bandwidth));
        self.event(state, EventKind::VolumeModified, about, None, message);
        OK
    }

    /// The volume of a replica, marked changed.
    fn replica<'s>(
        &mut self,
        state: &'s mut State,
        replica: ReplicaId,
    ) -> Result<&'s mut Volume, Refused> {
        let volume = state.replica(replica).map(|(v, _)| v.volume);
        self.volume(state, volume.ok_or(Refused::NoReplica { replica })?)
    }

    pub(super) fn replica_ready(&mut self, state: &mut State, replica: ReplicaId) -> Outcome {
        let found = self.replica(state, replica)?;
        let volume = found.volume;
        let Some(entry) = found.replicas.get_mut(&replica) else {
            return Err(Refused::NoReplica { replica });
        };
        match entry.state {
            ReplicaState::Creating => entry.state = ReplicaState::Ready,
            ReplicaState::Ready => return OK,
            ReplicaState::Failed | ReplicaState::Deleting => {
                let reason = format!("it is {}", entry.state.as_str());
                return Err(Refused::NotEligible { volume, replica, reason });
            }
        }
        let all_ready = found.replicas.values().all(|r| r.state == ReplicaState::Ready);
        if found.lifecycle == Lifecycle::Creating && all_ready {
            let about = Some((volume, found.epoch));
            let message = match found.source {
                None => {
                    found.lifecycle = Lifecycle::Live;
                    "all replicas exist".to_owned()
                }
                Some(source) => {
                    found.lifecycle = Lifecycle::Filling;
                    format!("all replicas exist; to be filled from {source}")
                }
            };
            self.event(state, EventKind::VolumeReady, about, None, message);
        }
        OK
    }

    pub(super) fn replica_failed(
        &mut self,
        state: &mut State,
        replica: ReplicaId,
        reason: &str,
    ) -> Outcome {
        let found = self.replica(state, replica)?;
        let Some(entry) = found.replicas.get_mut(&replica) else {
            return Err(Refused::NoReplica { replica });
        };
        if matches!(entry.state, ReplicaState::Failed | ReplicaState::Deleting) {
            return OK;
        }
        entry.state = ReplicaState::Failed;
        let node = entry.node;
        // With an engine the ISR is the engine's to shrink (R4); without one a smaller set only
        // promises less. The last member stays: it may be all that is left of the data.
        let idle = found.attachment.holder().is_none();
        if idle && found.isr.len() > 1 && found.isr.remove(&replica) {
            found.isr_version.0 += 1;
        }
        let about = Some((found.volume, found.epoch));
        let volume = found.volume;
        let reason: String = reason.chars().take(256).collect();
        self.event(state, EventKind::ReplicaFailed, about, Some(node), reason);
        self.settle_expansion(state, volume);
        OK
    }

    pub(super) fn delete_volume(&mut self, state: &mut State, volume: VolumeId) -> Outcome {
        let Some(found) = state.volumes.get(&volume) else {
            return Ok(Done::Deleting { remaining: 0 });
        };
        let remaining =
            Done::Deleting { remaining: u32::try_from(found.replicas.len()).unwrap_or(u32::MAX) };
        match found.lifecycle {
            Lifecycle::Deleting => return Ok(remaining),
            Lifecycle::Retired => return Ok(Done::Deleting { remaining: 0 }),
            Lifecycle::Creating | Lifecycle::Filling | Lifecycle::Live => {}
        }
        // Nobody uses a volume that is being filled: its epoch is taken away like a lost node's.
        let filling = found.lifecycle == Lifecycle::Filling;
        let taken_away = match found.attachment.holder() {
            Some(node) if !filling && !state.is_lost(node) => {
                return Err(if found.internal {
                    Refused::HeldInternally { volume, node }
                } else {
                    Refused::HeldBy { volume, node }
                });
            }
            holder => holder.is_some(),
        };
        let taking = |s: &&Snapshot| s.state == SnapshotState::Creating;
        if let Some(Snapshot { snapshot, .. }) = state.snapshots_of(volume).find(taking) {
            return Err(Refused::Taking { snapshot: *snapshot, volume });
        }
        let found = self.volume(state, volume)?;
        found.lifecycle = Lifecycle::Retired;
        if taken_away {
            found.epoch = found.epoch.next();
        }
        found.attachment = Attachment::Detached;
        found.internal = false;
        found.expanding = None;
        found.isr = BTreeSet::new();
        found.isr_version.0 += 1;
        let about = Some((volume, found.epoch));
        let name = found.name.clone();
        self.settle_retired(state, volume);
        if find(state, volume)?.lifecycle == Lifecycle::Deleting {
            let message = format!("volume {name:?} is being deleted");
            self.event(state, EventKind::VolumeDeleted, about, None, message);
            return Ok(remaining);
        }
        let message = format!("volume {name:?} is deleted but for its snapshots");
        self.event(state, EventKind::VolumeRetired, about, None, message);
        Ok(Done::Deleting { remaining: 0 })
    }

    pub(super) fn replica_deleted(&mut self, state: &mut State, replica: ReplicaId) -> Outcome {
        let Ok(found) = self.replica(state, replica) else { return OK };
        let volume = found.volume;
        match found.replicas.get(&replica).map(|r| r.state) {
            Some(ReplicaState::Deleting) => {}
            Some(ReplicaState::Failed) if !found.isr.contains(&replica) => {}
            state => {
                let reason = format!("it is {}", state.map_or("absent", ReplicaState::as_str));
                return Err(Refused::NotEligible { volume, replica, reason });
            }
        }
        found.replicas.remove(&replica);
        self.forget_holders(state, volume, &[replica]);
        self.forget_empty(state, volume);
        OK
    }

    /// Ends the record of a volume that is being deleted, once its last replica is gone.
    pub(super) fn forget_empty(&mut self, state: &mut State, volume: VolumeId) {
        let gone = |v: &Volume| v.replicas.is_empty() && v.lifecycle == Lifecycle::Deleting;
        if state.volumes.get(&volume).is_some_and(gone) {
            state.volumes.remove(&volume);
            self.changed.insert(Changed::Volume(volume));
        }
    }

    pub(super) fn expand_begin(
        &mut self,
        state: &mut State,
        volume: VolumeId,
        size: u64,
    ) -> Outcome {
        check_size(size)?;
        let found = find(state, volume)?;
        if found.lifecycle != Lifecycle::Live {
            return Err(not_live(found));
        }
        let reserved = found.reserved();
        if size > reserved {
            let more = size - reserved;
            for replica in found.replicas.values() {
                let Some(node) = state.nodes.get(&replica.node) else { continue };
                let counted = matches!(replica.state, ReplicaState::Creating | ReplicaState::Ready);
                let room = placement::room(state, node);
                if counted && room < more {
                    return Err(Refused::NoRoom { node: replica.node, wanted: more, room });
                }
            }
            self.volume(state, volume)?.expanding = Some(size);
            self.settle_expansion(state, volume);
        }
        sizes(state, volume)
    }

    pub(super) fn replica_resized(
        &mut self,
        state: &mut State,
        replica: ReplicaId,
        size: u64,
    ) -> Outcome {
        let found = self.replica(state, replica)?;
        let volume = found.volume;
        if let Some(entry) = found.replicas.get_mut(&replica) {
            entry.size = entry.size.max(size);
        }
        self.settle_expansion(state, volume);
        sizes(state, volume)
    }

    /// Commits a wanted size once every ISR member has it (R25). A replica outside the ISR is held
    /// back until it has it too: see `GrowIsr`.
    pub(super) fn settle_expansion(&mut self, state: &mut State, volume: VolumeId) {
        let Some(found) = state.volumes.get_mut(&volume) else { return };
        let Some(target) = found.expanding else { return };
        let replicas = &found.replicas;
        if !found.isr.iter().all(|id| replicas.get(id).is_some_and(|r| r.size >= target)) {
            return;
        }
        found.size = target;
        found.expanding = None;
        let about = Some((volume, found.epoch));
        self.changed.insert(Changed::Volume(volume));
        let message = format!("volume grew to {target} bytes");
        self.event(state, EventKind::VolumeExpanded, about, None, message);
    }
}

fn sizes(state: &State, volume: VolumeId) -> Outcome {
    let found = find(state, volume)?;
    Ok(Done::Size { committed: found.size, target: found.reserved() })
}

/// The refusal for a volume that cannot be used yet or any more.
pub(super) fn not_live(found: &Volume) -> Refused {
    match found.lifecycle {
        Lifecycle::Deleting => Refused::Deleting { volume: found.volume },
        Lifecycle::Retired => Refused::NoVolume { volume: found.volume },
        Lifecycle::Filling => Refused::Filling { volume: found.volume },
        Lifecycle::Creating | Lifecycle::Live => Refused::Creating { volume: found.volume },
    }
}
