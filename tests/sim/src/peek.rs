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
        self.look(replica, node, None, offset).map(Option::<&types::Buf>::cloned)
    }

    /// Likewise, of a snapshot and one of its blocks.
    pub(crate) fn peek_snapshot(
        &self,
        replica: &metadata::Replica,
        snapshot: SnapshotId,
        block: u32,
    ) -> Option<Option<types::Buf>> {
        let offset = u64::from(block) * types::BLOCK;
        let held = self.look(replica.replica, replica.node, Some(snapshot), offset)?;
        // Zeros in a slot are the same as no slot.
        Some(held.filter(|buf| !types::is_zeros(buf.as_slice())).cloned())
    }

    fn look(
        &self,
        replica: types::ReplicaId,
        node: types::NodeId,
        snapshot: Option<SnapshotId>,
        offset: u64,
    ) -> Option<Option<&types::Buf>> {
        let node = &self.nodes[index(node)];
        let at = node.process.as_ref()?.data.store.locate(replica, snapshot, offset)?;
        Some(at.and_then(|at| node.disk.block(at.offset)))
    }
}
