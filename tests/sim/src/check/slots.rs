//! Slots: nobody is given an earlier owner's bytes (R23).
//!
//! Checked, whenever a daemon has opened its pool: no block of a replica that was written since the last
//! sealed era lies where the bytes of another block, or of another volume, are. A resync would put that right
//! before anybody reads it, mostly.
//!
//! Not checked: blocks whose checksum is known, which give an error then; what is in a sealed era; blocks
//! with injected rot; volumes that were filled from a snapshot, whose blocks are their source's.

use crate::content::{Alien, inspect};
use crate::world::World;
use types::{BLOCK, REGION, ReplicaId};

impl World {
    /// Node `n` has opened its pool.
    pub(crate) fn check_slots(&mut self, n: usize) {
        let Some((replica, block, alien)) = self.foreign_block(n) else { return };
        self.violation(format!(
            "slots: block {block} of replica {replica} on node {} lies where {alien} is",
            n + 1
        ));
    }

    fn foreign_block(&self, n: usize) -> Option<(ReplicaId, u64, Alien)> {
        let node = &self.nodes[n];
        let store = &node.process.as_ref()?.data.store;
        for info in store.replicas() {
            let Some(volume) = self.checks.volume(info.volume) else { continue };
            for region in 0..info.size.div_ceil(REGION) {
                let tag = store.tag(info.replica, region as u32);
                if tag.is_none_or(|tag| tag <= info.last_sealed) {
                    continue;
                }
                let blocks = region * REGION / BLOCK..(region + 1) * REGION / BLOCK;
                for block in blocks {
                    let place = store.locate(info.replica, None, block * BLOCK).flatten();
                    let Some(at) = place.map(|place| place.offset) else { continue };
                    let Some(found) = node.disk.block(at) else { continue };
                    // Bits that rot are nobody's.
                    let alien = inspect(found.as_slice(), volume as u32, block as u32)
                        .err()
                        .filter(|alien| *alien != Alien::Nobody && !store.verifies(at));
                    if let Some(alien) = alien {
                        return Some((info.replica, block, alien));
                    }
                }
            }
        }
        None
    }
}
