//! What a resync compares: enough (R17, R19).
//!
//! Checked, whenever a replica joins the ISR, a new epoch is activated or a daemon starts: between each whole in-sync replica and each
//! one that has stayed behind, all that differs lies in regions that either of them has tagged above what the latter
//! has sealed last. (A resync compares from the lower seal of both on; the source's may rise any time.)
//!
//! Not checked: replicas whose daemon does not run or whose disk failed, and blocks in which rot was injected.

use crate::world::{World, index};
use metadata::{ReplicaState, Volume};
use types::{BLOCK, NodeId, REGION, ReplicaId};

impl World {
    /// The daemon of node `n` has opened its pool.
    pub(crate) fn check_returned(&mut self, n: usize) {
        let Some(state) = self.newest_state() else { return };
        let here = self.nodes[n].id;
        let volumes: Vec<Volume> =
            state.replicas_on(here).map(|(volume, _)| volume.clone()).collect();
        for record in volumes {
            let Some(volume) = self.checks.volume(record.volume) else { continue };
            let whole = self.checks.isr.members(record.volume, record.epoch);
            self.check_resync_sets(volume, &record, &whole);
        }
    }

    pub(super) fn check_resync_sets(
        &mut self,
        volume: usize,
        record: &Volume,
        whole: &[(ReplicaId, NodeId)],
    ) {
        let behind = record.replicas.values().filter(|replica| {
            replica.state == ReplicaState::Ready
                && !record.isr.contains(&replica.replica)
                && !self.checks.isr.has_failed(replica.replica)
        });
        let behind: Vec<_> = behind.map(|replica| (replica.replica, replica.node)).collect();
        let missed = behind.iter().find_map(|target| {
            let found = |source| Some((source, self.first_missed(volume, source, *target)?));
            whole.iter().find_map(|source| found(*source)).map(|found| (found, target))
        });
        if let Some((((source, _), block), (target, node))) = missed {
            self.violation(format!(
                "tags: a resync of {target} on node {node} from {source} would leave out block {block} of volume {volume}, which differs"
            ));
        }
    }

    /// A block that differs and would not be compared.
    fn first_missed(
        &self,
        volume: usize,
        source: (ReplicaId, NodeId),
        target: (ReplicaId, NodeId),
    ) -> Option<u32> {
        let process = self.nodes[index(target.1)].process.as_ref()?;
        let replicas = process.data.store.replicas();
        let above = replicas.iter().find(|info| info.replica == target.0)?.last_sealed;
        let tag = |(replica, node): (ReplicaId, NodeId), region: u32| {
            let process = self.nodes[index(node)].process.as_ref();
            process.and_then(|process| process.data.store.tag(replica, region)).unwrap_or_default()
        };
        // `None` is rot.
        let held = |(replica, node): (ReplicaId, NodeId), block: u32| {
            let buf = self.peek(replica, node, u64::from(block) * BLOCK)?;
            let rotten = buf.as_ref().is_some_and(|buf| self.is_rotten(index(node), buf));
            (!rotten).then_some(buf.filter(|buf| !types::is_zeros(buf.as_slice())))
        };
        self.checks.blocks[volume].written().find(|block| {
            let region = (u64::from(*block) * BLOCK / REGION) as u32;
            let compared = tag(source, region).max(tag(target, region)) > above;
            let differs = || match (held(source, *block), held(target, *block)) {
                (Some(here), Some(there)) => here != there,
                _ => false,
            };
            !compared && differs()
        })
    }
}
