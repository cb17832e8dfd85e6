//! Which run of a daemon somebody belongs to.

use crate::{BootId, EngineInstance, NodeId};

/// One run of a node's daemon. Its engines end with it: they answer no read any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Process {
    /// The node.
    pub node: NodeId,
    /// Boot of its host.
    pub boot: BootId,
    /// The run; never used again.
    pub run: EngineInstance,
}

impl Process {
    /// Whether the existence of `self` proves that `other` has ended: a daemon starts only with the
    /// lock on its node's data directory, which the kernel takes from a former one when the last of
    /// its threads is gone. Another boot proves nothing: it may be a copy of the machine.
    #[must_use]
    pub fn succeeds(&self, other: &Self) -> bool {
        (self.node, self.boot) == (other.node, other.boot) && self.run != other.run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_run_on_the_same_boot_of_the_node_is_a_successor() {
        let process = |node, boot, run| Process {
            node: NodeId(node),
            boot: BootId::from_bytes([boot; 16]),
            run: EngineInstance::from_bytes([run; 16]),
        };
        let old = process(1, 1, 1);
        for (new, succeeds) in [
            (process(1, 1, 2), true),
            (process(1, 1, 1), false),
            (process(1, 2, 2), false),
            (process(2, 1, 2), false),
        ] {
            assert_eq!(new.succeeds(&old), succeeds, "{new:?}");
        }
    }
}
