//! Nodes that are gone for good: Raft has lost them, and Kubernetes does not have them any more.
//!
//! Such a node is removed from the cluster, so that it is no voter that a majority has to do without. Its number
//! is retired for ever. The cluster refuses as long as the node has copies or volumes; making those copies
//! elsewhere is the Raft leader's business (R27).

use super::observe::{Observed, is_lost};
use super::{GONE_FOR, RETIRE_AGAIN};
use core::time::Duration;
use std::collections::BTreeMap;

/// Since when nodes have been gone, and when to try to remove them.
#[derive(Debug)]
pub struct Gone {
    after: Duration,
    due: BTreeMap<u64, Duration>,
}

impl Default for Gone {
    fn default() -> Self {
        Self::after(GONE_FOR)
    }
}

impl Gone {
    /// Nodes are removed after this time.
    pub fn after(after: Duration) -> Self {
        Self { after, due: BTreeMap::new() }
    }

    /// The nodes that are to be removed now, by number. Whoever is seen again in between starts anew, and so does
    /// everybody when Kubernetes names no node at all or most of the cluster is lost.
    pub fn look(&mut self, observed: &Observed, now: Duration) -> Vec<u64> {
        let sure = !observed.nodes.is_empty() && observed.too_many_lost().is_none();
        let gone = |node: &&client::api::Node| {
            sure && is_lost(node) && !observed.nodes.contains_key(&node.name)
        };
        let gone: Vec<u64> =
            observed.cluster.nodes.iter().filter(gone).map(|node| node.node).collect();
        self.due.retain(|node, _| gone.contains(node));
        let mut remove = Vec::new();
        for node in gone {
            let due = self.due.entry(node).or_insert(now + self.after);
            if now >= *due {
                *due = now + RETIRE_AGAIN;
                if !has_copies(observed, node) {
                    remove.push(node);
                }
            }
        }
        remove
    }
}

fn has_copies(observed: &Observed, node: u64) -> bool {
    let volumes = &observed.cluster.volumes;
    volumes.iter().any(|v| v.attached_node == node || v.replicas.iter().any(|r| r.node == node))
}
