//! Pools that are not what they were: another disk in the place of a node's own, and an older image of it
//! (R11).

use crate::clock::MS;
use crate::disk::SimDisk;
use crate::node::{Death, Image};
use crate::rng::Rng;
use crate::world::{World, index};
use metadata::ReplicaState;
use store::PoolDisk as _;
use types::{ClusterId, Epoch, PoolId};
use uuid::Uuid;

impl World {
    /// The daemon of node `n` is killed and finds another disk; false if that makes no sense now.
    pub(crate) fn swap(&mut self, n: usize, how: u64) -> bool {
        let size = self.nodes[n].disk.size();
        let id = self.nodes[n].id;
        let Some(state) = self.newest_state() else { return false };
        let here: Vec<_> = state.replicas_on(id).map(|(_, record)| record.replica).collect();
        // Replicas that are not found fail for good (R11). A pool without any may change.
        if self.nodes[n].process.is_none() || here.is_empty() || !self.may_destroy(n) {
            return false;
        }
        here.into_iter().for_each(|replica| self.checks.isr.pool_swapped(replica));
        self.kill(n, Death::Kill);
        let mut other = SimDisk::new(size);
        let mut rng = Rng::new(how, 1);
        let (cluster, pool) = (Uuid::from_u128(rng.id()), Uuid::from_u128(rng.id()));
        let (blank, foreign) = (how.is_multiple_of(3), how % 3 == 1);
        let cluster = if foreign { ClusterId(cluster) } else { self.cluster };
        if !blank {
            let options = store::FormatOptions {
                cluster,
                pool: PoolId(pool),
                slot_size: 64 << 10,
                force: true,
            };
            // It cannot fail: the disk is large enough and has no errors.
            let _ = store::format(&mut other, &options);
        }
        let node = &mut self.nodes[n];
        node.kept = Some(std::mem::replace(&mut node.disk, other));
        self.restart_later(n);
        true
    }

    /// The right disk is back.
    pub(crate) fn swap_back(&mut self, n: usize) {
        if self.nodes[n].process.is_some() {
            self.kill(n, Death::Kill);
        }
        let Some(disk) = self.nodes[n].kept.take() else { return };
        let (id, pool) = (self.nodes[n].id, self.nodes[n].pool);
        let known = self.newest_state().and_then(|state| state.nodes.get(&id)?.pool);
        match known {
            // All its replicas were given up meanwhile: the other disk is its pool now (R11).
            Some(known) if known.id != pool => self.nodes[n].pool = known.id,
            _ => self.nodes[n].disk = disk,
        }
        self.start_later(n, 10 * MS);
    }

    /// The pool of node `n` is copied; false if that makes no sense now.
    pub(crate) fn take_image(&mut self, n: usize) -> bool {
        let Some(state) = self.true_state() else { return false };
        let epochs = state.volumes.values().map(|volume| (volume.volume, volume.epoch)).collect();
        let node = &mut self.nodes[n];
        if node.process.is_none() || node.kept.is_some() || node.image.is_some() {
            return false;
        }
        node.image = Some(Image { disk: node.disk.image(), epochs });
        true
    }

    /// The daemon of node `n` is killed and finds the copy, if each of its replicas has sealed a later epoch
    /// since and was in sync then. An image from within one attachment has the ids, the incarnation and the
    /// promise of the copy: that it is older is not noticed, and not promised.
    pub(crate) fn restore(&mut self, n: usize) {
        let Some(Image { disk, epochs }) = self.nodes[n].image.take() else { return };
        if self.healing || self.nodes[n].process.is_none() || !self.may_destroy(n) {
            return;
        }
        let Some(state) = self.true_state() else { return };
        let mut here = state.replicas_on(self.nodes[n].id).peekable();
        let used = here.peek().is_some();
        let older = |(volume, record): (&metadata::Volume, &metadata::Replica)| {
            epochs.get(&volume.volume).is_none_or(|epoch| record.sealed > *epoch)
        };
        if !used || !here.all(older) {
            return;
        }
        for (_, record) in state.replicas_on(self.nodes[n].id) {
            self.checks.isr.pool_swapped(record.replica);
            // One that is still to be made will be.
            if record.state == ReplicaState::Creating {
                continue;
            }
            // One that never sealed anything may be made again, by a node that has not heard that it was: it
            // holds nothing, as the first one did.
            if record.sealed > Epoch(0) {
                self.put_back.insert(record.replica, (record.node, record.sealed));
            }
            // It counts for nothing any more, as one whose disk failed.
            self.checks.copy_failed(record.replica, self.now);
        }
        self.note(|| format!("node {}: an older image of its pool is put in its place", n + 1));
        self.figures.older_pools += 1;
        self.kill(n, Death::Kill);
        self.nodes[n].disk = disk;
        self.nodes[n].troubled = self.now;
        self.restart_later(n);
    }

    /// An older image of a replica has sealed no epoch from that on which the replica itself had (R11).
    pub(crate) fn check_put_back(&mut self) {
        let taken = self.put_back.iter().find(|(replica, (node, known))| {
            let process = self.nodes[index(*node)].process.as_ref();
            let replicas = process.map(|process| process.data.store.replicas());
            let sealed =
                |found: &store::ReplicaInfo| found.replica == **replica && found.sealed >= *known;
            replicas.is_some_and(|replicas| replicas.iter().any(sealed))
        });
        if let Some((replica, (node, known))) = taken {
            self.violation(format!(
                "identity: an older image of replica {replica} on node {node} was taken for it: it has sealed {known} again"
            ));
        }
    }
}
