//! What is on a disk, looked at from outside.

use crate::world::{World, index};
use types::SnapshotId;

impl World {
    /// The node that holds what a replica of the pool holds at a volume's offset, looked at from
    /// outside: `None` if its daemon does not run.
    pub(crate) fn peek(
        &self,
        replica: types::ReplicaId,
        node: types::NodeId,
        offset: u64,
    ) -> Option<Option<types::Buf>> {
        let node = &self.nodes[index(node)];
        let data = &node.process.as_ref()?.data;
        let at = data.store.locate(replica, None, offset)?;
        Some(at.and_then(|at| node.disk.block(at.offset)).cloned())
    }

    /// Likewise, of a snapshot and one of its blocks.
    pub(crate) fn peek_snapshot(
        &self,
        replica: &metadata::Replica,
        snapshot: SnapshotId,
        block: u32,
    ) -> Option<Option<types::Buf>> {
        let node = &self.nodes[index(replica.node)];
        let data = &node.process.as_ref()?.data;
        let offset = u64::from(block) * types::BLOCK;
        let at = data.store.locate(replica.replica, Some(snapshot), offset)?;
        let held = at.and_then(|at| node.disk.block(at.offset));
        // Zeros in a slot are the same as no slot.
        Some(held.filter(|buf| buf.as_slice().iter().any(|byte| *byte != 0)).cloned())
    }
}
