//! Snapshots (R26): made and dropped at work, and looked at in every image.
//!
//! What one holds is what its volume held when it was asked for: of each block the last acknowledged
//! write, or a later one that nobody knows the end of. It is there once it was acknowledged, until its
//! drop was asked for, and right for as long as it is there. Of some the engine does not hold its writes until
//! the answer, as if it had given them up: they are spoilt by the first write, or right as well.

use kit::content::{BLOCK, Block, SECTOR, read_sector};
use kit::ids::{hello, replica};
use store::{Admin, Input, ReplicaInfo, SessionId};
use types::SnapshotId;
use wire::{Reply, Request, Role};

use crate::disk::Disk;
use crate::model::{Model, Volume};
use crate::opened::Opened;
use crate::workload::{Pending, Work};

/// Snapshots of a volume at a time.
const SNAPSHOTS: usize = 3;
/// Of so many snapshots the engine gives one up.
const GIVEN_UP: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked,
    Made,
    Dropping,
}

/// A snapshot that may be there.
#[derive(Clone, Debug)]
pub struct Snapshot {
    id: SnapshotId,
    state: State,
    /// What was known of the volume's blocks.
    blocks: Vec<Block>,
}

impl Volume {
    /// A new life began with this in the pool: nothing of it can be lost any more.
    pub fn keep_snapshots(&mut self, there: &[SnapshotId]) {
        self.snapshotting = false;
        self.snapshots.retain(|snapshot| there.contains(&snapshot.id));
        for snapshot in &mut self.snapshots {
            snapshot.state = State::Made;
        }
    }

    pub(crate) fn snapshot_made(&mut self, id: SnapshotId) {
        self.snapshotting = false;
        if let Some(made) = self.snapshots.iter_mut().find(|snapshot| snapshot.id == id) {
            made.state = State::Made;
        }
    }

    pub(crate) fn snapshot_dropped(&mut self, id: SnapshotId) {
        self.snapshots.retain(|snapshot| snapshot.id != id);
    }
}

impl Work {
    pub(crate) fn snapshot(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let volume = &self.model.volumes[at];
        let asked = volume.snapshots.iter().any(|snapshot| snapshot.state == State::Asked);
        if volume.busy() || asked || volume.size != volume.blocks.len() {
            return;
        }
        if volume.snapshots.len() >= SNAPSHOTS {
            return self.drop_snapshot(at, cut);
        }
        let number = self.model.next_snapshot();
        let id = SnapshotId::from_bytes(u128::from(number).to_le_bytes());
        let given_up = number.is_multiple_of(GIVEN_UP);
        let volume = &mut self.model.volumes[at];
        let (last, blocks) = (volume.acked(), volume.blocks.clone());
        let size = blocks.len() as u64 * BLOCK;
        volume.snapshots.push(Snapshot { id, state: State::Asked, blocks });
        volume.snapshotting = !given_up;
        let pending = Pending::Snapshot { id, last, given_up };
        self.send(at, Request::Snapshot { snapshot: id, size }, pending, cut);
    }

    pub(crate) fn drop_snapshot(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let volume = &mut self.model.volumes[at];
        let n = volume.n;
        let made = |snapshot: &&mut Snapshot| snapshot.state == State::Made;
        let Some(chosen) = volume.snapshots.iter_mut().find(made) else { return };
        chosen.state = State::Dropping;
        let snapshot = chosen.id;
        let op = self.dropping(n, snapshot);
        let admin = Admin::DropSnapshot { replica: replica(n), snapshot };
        self.step(Input::Admin { op, admin }, cut);
    }
}

/// Compares the snapshots of a volume in an image with what they may be.
pub(crate) fn check(
    opened: &mut Opened<'_, '_>,
    volume: &Volume,
    info: &ReplicaInfo,
    all: bool,
) -> Result<(), String> {
    let n = volume.n;
    for snapshot in &volume.snapshots {
        if snapshot.state == State::Made && !info.snapshots.contains(&snapshot.id) {
            return Err(format!("volume {n} lost snapshot {}", snapshot.id));
        }
    }
    if info.snapshots.is_empty() {
        return Ok(());
    }
    let reader = SessionId(1 << 32 | u64::from(n));
    opened.open_session(reader, hello(n, 0, Role::Reader));
    for id in &info.snapshots {
        let Some(snapshot) = volume.snapshots.iter().find(|snapshot| snapshot.id == *id) else {
            return Err(format!("volume {n}: snapshot {id} came from nowhere"));
        };
        let count = snapshot.blocks.len();
        let ranges = if all {
            (0..count).step_by(256).map(|first| first..(first + 256).min(count)).collect()
        } else {
            volume.windows.clone()
        };
        for range in ranges {
            let range = range.start.min(count)..range.end.min(count);
            if range.is_empty() {
                continue;
            }
            let (offset, len) = (range.start as u64 * BLOCK, (range.len() as u64 * BLOCK) as u32);
            let request = Request::ReadSnapshot { snapshot: *id, offset, len };
            let Reply::Data { data, .. } = opened.ask(reader, request)? else {
                return Err(format!("snapshot {id} of volume {n} cannot be read"));
            };
            for (bytes, at) in data.as_slice().chunks_exact(BLOCK as usize).zip(range) {
                let block = &snapshot.blocks[at];
                for (index, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                    let value = read_sector(n, at as u64, index, sector);
                    if !value.is_some_and(|value| block.keeps(index, value)) {
                        return Err(format!(
                            "snapshot {id} of volume {n}: block {at} sector {index} is {value:?}, of {block:?}"
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}
