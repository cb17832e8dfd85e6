//! Snapshots of attached volumes (R26): `control::snapshots` on the leader, `attach::take_snapshot` on the node that
//! serves the volume; volumes that begin with one. Snapshots of detached volumes and clones are not simulated.

use super::propose::{After, Call};
use crate::clock::MS;
use crate::world::World;
use core::time::Duration;
use engine::{Input, SnapshotError, SnapshotTaken};
use metadata::{Attachment, Command, Done, Lifecycle, Outcome, SnapshotState, Source, placement};
use policy::snapshot::taker;
use types::{Instant, SnapshotId, VolumeId};
use uuid::Uuid;

const CREATE: Duration = Duration::from_secs(10);
const RECORD: Duration = Duration::from_secs(15);
/// A volume has no more than this many, so that pools are not full of them.
const MOST: usize = 2;

/// A snapshot that a leader takes, and until when it waits for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub(crate) snapshot: SnapshotId,
    pub(crate) until: Instant,
}

impl World {
    /// The operator wants a snapshot of a volume, or to be rid of one.
    pub(crate) fn care_for_snapshots(&mut self, state: &metadata::State, volume: VolumeId) {
        let of = state.snapshots.values().filter(|s| s.volume == volume);
        let known: Vec<_> = of.map(|s| (s.snapshot, s.state)).collect();
        let ready = known.iter().filter(|(_, state)| *state == SnapshotState::Ready);
        let ready: Vec<SnapshotId> = ready.map(|(snapshot, _)| *snapshot).collect();
        if known.len() >= MOST || self.rng.one_in(3) {
            if let Some(snapshot) = self.rng.pick(&ready) {
                self.order(Command::DeleteSnapshot { snapshot });
            }
            return;
        }
        let attached = |v: &metadata::Volume| matches!(v.attachment, Attachment::Attached { .. });
        if state.volumes.get(&volume).is_some_and(attached) {
            self.want_snapshot(volume);
        }
    }

    fn want_snapshot(&mut self, volume: VolumeId) {
        let Some(leader) = self.leader() else { return };
        let snapshot = SnapshotId(Uuid::from_u128(self.rng.id()));
        let until = self.local(leader).after(Duration::from_secs(self.rng.between(2, 20)));
        if !self.begin_snapshot(leader, Own { snapshot, until }) {
            return;
        }
        let create = Command::CreateSnapshot {
            snapshot,
            name: snapshot.to_string(),
            volume,
            created_unix_ms: self.now / MS,
            hidden: false,
        };
        self.note(|| format!("operator at node {}: {create:?}", leader + 1));
        self.propose(leader, create, CREATE, After::Snapshot { volume, snapshot });
    }

    /// The operator wants a new volume that begins with a snapshot, or to be rid of one.
    pub(crate) fn care_for_restores(&mut self, state: &metadata::State) {
        if let Some(restored) = state.volumes.values().find(|v| v.source.is_some()) {
            let (volume, ready) = (restored.volume, restored.lifecycle == Lifecycle::Live);
            if (ready || self.rng.one_in(80)) && self.rng.one_in(20) {
                self.order(Command::DeleteVolume { volume });
            }
            return;
        }
        if self.healing || !self.rng.one_in(20) {
            return;
        }
        let ready = |s: &&metadata::Snapshot| s.state == SnapshotState::Ready && !s.hidden;
        let ready: Vec<_> =
            state.snapshots.values().filter(ready).map(|s| (s.snapshot, s.size)).collect();
        let Some((snapshot, size)) = self.rng.pick(&ready) else { return };
        let repl = self.rng.between(1, 2) as u32;
        let request = placement::Request { size, repl, ..placement::Request::default() };
        let Ok(nodes) = placement::place(state, &request) else { return };
        let replicas = nodes.into_iter().map(|node| self.new_replica(node)).collect();
        let volume = VolumeId(Uuid::from_u128(self.rng.id()));
        self.order(Command::CreateVolume {
            volume,
            name: format!("r{}", volume.0.as_u128() >> 96),
            size,
            repl,
            class: None,
            fs_type: None,
            pinned: false,
            source: Some(Source::Snapshot(snapshot)),
            replicas,
        });
    }

    /// The record of a snapshot was made, or was not.
    pub(crate) fn snapshot_created(
        &mut self,
        n: usize,
        volume: VolumeId,
        snapshot: SnapshotId,
        outcome: &Option<Outcome>,
    ) {
        if !matches!(outcome, Some(Ok(Done::Snapshot { existing: false, .. }))) {
            return;
        }
        let Some(state) = self.state(n) else { return };
        let record = state.volumes.get(&volume);
        let Some(at) = record.and_then(|record| taker(&state, record)) else { return };
        self.have(n, at, Call::TakeSnapshot { volume, snapshot });
    }

    /// Node `n` is asked to take a snapshot of a volume that it may serve.
    pub(crate) fn take_snapshot(&mut self, n: usize, volume: VolumeId, snapshot: SnapshotId) {
        let Some(data) = self.data_mut(n) else { return };
        let serves = data.volumes.get(&volume).is_some_and(|attached| attached.engine.is_active());
        if serves {
            let ticket = data.snapshot_ticket(snapshot);
            self.engine_command(n, volume, Input::Snapshot { ticket, snapshot });
        }
    }

    /// The engine answered.
    pub(crate) fn snapshot_taken(
        &mut self,
        n: usize,
        volume: VolumeId,
        ticket: u64,
        result: Result<SnapshotTaken, SnapshotError>,
    ) {
        let Some(snapshot) = self.data_mut(n).and_then(|data| data.snapshots.remove(&ticket))
        else {
            return;
        };
        self.note(|| format!("node {}: snapshot {snapshot}: {result:?}", n + 1));
        let Ok(SnapshotTaken { epoch, isr_version, holders, .. }) = result else {
            // As a csi-snapshotter does: copies may still be at the attempt that was given up.
            if !self.healing && self.rng.one_in(2) {
                self.want_snapshot(volume);
            }
            return;
        };
        self.figures.snapshots += 1;
        self.remember_snapshot(volume, snapshot, &holders);
        let record = Command::SnapshotTaken { snapshot, epoch, isr_version, holders };
        self.propose(n, record, RECORD, After::Nothing);
    }
}
