//! Snapshots of the model: what one holds is what its volume held when it was asked for, whatever is
//! written, discarded, dropped, restarted or cut off afterwards. Of every third one the engine does not hold its
//! writes until the answer, as if it had given it up: the first of them spoils it.

use super::{Life, Model, Pending};
use crate::node::{Node, replica};
use kit::content::{BLOCK, Block, Content, block_bytes};
use store::{Admin, Input, SessionId};
use types::SnapshotId;
use wire::{Reply, Request, Role, WireError};

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Asked for: it may be there.
    Asked,
    /// Acknowledged: it must be there.
    Made,
    /// To be dropped: it may be there.
    Dropping,
}

#[derive(Debug)]
pub(super) struct Snapshot {
    id: SnapshotId,
    state: State,
    contents: Vec<Content>,
}

impl Model {
    pub(super) fn snapshot(&mut self, at: usize) {
        let volume = &self.volumes[at];
        let asked = volume.snapshots.iter().any(|snapshot| snapshot.state == State::Asked);
        if asked || volume.blocks.iter().any(|block| block.busy) {
            return;
        }
        if volume.snapshots.len() >= 4 {
            return self.drop_snapshot(at);
        }
        let number = self.id();
        let id = SnapshotId::from_bytes(u128::from(number).to_le_bytes());
        let given_up = number.is_multiple_of(3);
        let last = self.acked(at);
        let volume = &mut self.volumes[at];
        let contents = volume.blocks.iter().map(Block::present).collect();
        volume.snapshots.push(Snapshot { id, state: State::Asked, contents });
        volume.snapshotting = !given_up;
        let size = volume.blocks.len() as u64 * BLOCK;
        let request = Request::Snapshot { snapshot: id, size };
        self.send(at, request, Pending::Snapshot { id, last, given_up });
    }

    pub(super) fn snapshot_made(
        &mut self,
        n: u8,
        (id, given_up): (SnapshotId, bool),
        last: Vec<u64>,
        reply: Reply,
    ) {
        let volume = self.volumes.iter_mut().find(|volume| volume.n == n).unwrap();
        volume.snapshotting = false;
        if given_up && matches!(reply, Reply::Failed(WireError::Invalid { .. })) {
            return volume.snapshots.retain(|snapshot| snapshot.id != id);
        }
        assert_eq!(reply, Reply::Done);
        for (block, last) in volume.blocks.iter_mut().zip(last) {
            block.flush(last);
        }
        let made = volume.snapshots.iter_mut().find(|snapshot| snapshot.id == id).unwrap();
        made.state = State::Made;
    }

    pub(super) fn drop_snapshot(&mut self, at: usize) {
        let n = self.volumes[at].n;
        let droppable = |snapshot: &&mut Snapshot| snapshot.state != State::Asked;
        let count = self.volumes[at].snapshots.iter_mut().filter(droppable).count() as u64;
        if count == 0 {
            return;
        }
        let which = self.rng.below(count) as usize;
        let chosen = self.volumes[at].snapshots.iter_mut().filter(droppable).nth(which).unwrap();
        chosen.state = State::Dropping;
        let snapshot = chosen.id;
        let op = self.node.unique();
        self.drops.insert(op, (n, snapshot));
        let admin = Admin::DropSnapshot { replica: replica(n), snapshot };
        self.node.step(Input::Admin { op, admin });
        self.collect();
    }

    /// The operation, if it was a drop, is done.
    pub(super) fn dropped(&mut self, op: u64) -> bool {
        let Some((n, id)) = self.drops.remove(&op) else { return false };
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.n == n) {
            volume.snapshots.retain(|snapshot| snapshot.id != id);
        }
        true
    }

    /// What is there of the snapshots of a volume is what must be there, and right.
    pub(super) fn check_snapshots(&mut self, at: usize, forget: bool) {
        let volume = &mut self.volumes[at];
        let n = volume.n;
        let infos = self.node.store.replicas();
        let info = infos.iter().find(|info| info.replica == replica(n)).unwrap();
        for snapshot in &volume.snapshots {
            let there = info.snapshots.contains(&snapshot.id);
            assert!(there || snapshot.state != State::Made, "volume {n} lost {snapshot:?}");
        }
        for id in &info.snapshots {
            let known = volume.snapshots.iter().any(|snapshot| snapshot.id == *id);
            assert!(known, "volume {n}: snapshot {id} came from nowhere");
        }
        if forget {
            // A new life: what is there stays there.
            volume.snapshots.retain(|snapshot| info.snapshots.contains(&snapshot.id));
            volume.snapshots.iter_mut().for_each(|snapshot| snapshot.state = State::Made);
            volume.snapshotting = false;
        }
        let reader = self.node.session(Node::hello(n, 0, Role::Reader)).unwrap();
        let snapshots = &self.volumes[at].snapshots;
        let all: Vec<_> = snapshots.iter().map(|s| (s.id, s.contents.len())).collect();
        for (id, count) in all {
            self.check_snapshot(at, (id, count), reader);
        }
        self.node.step(Input::Disconnected { session: reader });
    }

    fn check_snapshot(&mut self, at: usize, (id, count): (SnapshotId, usize), reader: SessionId) {
        let n = self.volumes[at].n;
        for first in (0..count).step_by(256) {
            let len = 256.min(count - first);
            let (offset, bytes) = (first as u64 * BLOCK, (len as u64 * BLOCK) as u32);
            let request = Request::ReadSnapshot { snapshot: id, offset, len: bytes };
            let seq = self.node.send(reader, request);
            let data = loop {
                self.collect_keeping(reader, seq);
                match self.node.take(reader, seq) {
                    Some(Reply::Data { data, .. }) => break data,
                    // Not made yet, or dropped already.
                    Some(Reply::Failed(WireError::NoSnapshot)) => return,
                    Some(other) => panic!("volume {n}: {other:?}"),
                    None => self.complete_one(),
                }
            };
            let Some(snapshot) = self.volumes[at].snapshots.iter().find(|found| found.id == id)
            else {
                return;
            };
            for (bytes, index) in data.as_slice().chunks_exact(BLOCK as usize).zip(first..) {
                let right = block_bytes(n, index as u64, &snapshot.contents[index]);
                assert!(
                    bytes == right,
                    "volume {n} block {index} of snapshot {id} is not {:?}",
                    snapshot.contents[index]
                );
            }
        }
    }

    pub(super) fn check_any_snapshots(&mut self, at: usize) {
        if self.volumes[at].life == Life::Live {
            self.check_snapshots(at, false);
        }
    }
}
