//! The slots of a replica and of its snapshots (R26).
//!
//! ```text
//! version      1        2        3 (now)
//!              │ snapshot A      │
//!              │        │ snapshot B
//! piece 0   [ slot 7 ──────────────────▶    head, born 1: A and B use it, so it is not written
//! piece 1   [ slot 3 ───────)[ slot 9 ─▶    retained 1..3: A and B; head, born 3: nobody else's
//! piece 2              [ slot 4 ───────▶    head, born 2: B uses it, for A the piece is zeros
//! ```
//!
//! A snapshot is a version number, and making one counts the version up: that costs the same however
//! much the replica holds. A slot belongs to the versions `born..died`. The head's slots have not died;
//! one that was born before the newest snapshot is shared and is copied before it is written.
//! Each slot is described once, so that a checkpoint's size is bounded by the number of slots.

use std::collections::BTreeMap;

use types::SnapshotId;
use types::plant::{Bug, planted};

use crate::layout::{Slot, VSlot, Version};

const NONE: u32 = u32::MAX;

/// A snapshot of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) snapshot: SnapshotId,
    pub(crate) version: Version,
    /// Of the replica at that time, in bytes.
    pub(crate) size: u64,
}

/// A slot that only snapshots use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retained {
    /// The first version that does not use it.
    pub(crate) died: Version,
    pub(crate) slot: Slot,
}

/// Which slot holds which piece of which version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    /// The head's slot of each piece, and the version that it was first used in.
    map: Vec<(u32, Version)>,
    /// By piece and version of birth.
    retained: BTreeMap<(VSlot, Version), Retained>,
    /// Oldest first.
    snapshots: Vec<Snapshot>,
    pub(crate) now: Version,
    /// Pieces of the head that have a slot.
    pub(crate) allocated: u32,
}

impl Versions {
    pub(crate) fn new(vslots: usize) -> Self {
        Self {
            map: vec![(NONE, Version(0)); vslots],
            retained: BTreeMap::new(),
            snapshots: Vec::new(),
            now: Version(1),
            allocated: 0,
        }
    }

    pub(crate) fn vslots(&self) -> u32 {
        self.map.len() as u32
    }

    /// Makes room for more pieces.
    pub(crate) fn grow(&mut self, vslots: usize) {
        self.map.resize(vslots, (NONE, Version(0)));
    }

    pub(crate) fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    pub(crate) fn find(&self, snapshot: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|found| found.snapshot == snapshot)
    }

    /// The snapshot that `version` is.
    pub(crate) fn at(&self, version: Version) -> Option<&Snapshot> {
        let place = self.snapshots.binary_search_by_key(&version, |found| found.version).ok()?;
        self.snapshots.get(place)
    }

    /// Whether a snapshot has one of the versions `born..died`.
    fn is_kept(&self, born: Version, died: Version) -> bool {
        let next = self.snapshots.partition_point(|found| found.version < born);
        self.snapshots.get(next).is_some_and(|found| found.version < died)
    }

    /// The head's slot of a piece.
    pub(crate) fn slot(&self, vslot: VSlot) -> Option<Slot> {
        self.map.get(vslot.0 as usize).map(|entry| entry.0).filter(|slot| *slot != NONE).map(Slot)
    }

    /// The slot of a piece in the snapshot that `version` is.
    pub(crate) fn slot_in(&self, version: Version, vslot: VSlot) -> Option<Slot> {
        let older = self.retained.range((vslot, Version(0))..=(vslot, version)).next_back();
        if let Some((_, retained)) = older.filter(|(_, retained)| retained.died > version) {
            return Some(retained.slot);
        }
        self.slot(vslot).filter(|_| self.map[vslot.0 as usize].1 <= version)
    }

    /// Whether a snapshot uses the head's slot of a piece: it must be copied before it is written.
    pub(crate) fn is_shared(&self, vslot: VSlot) -> bool {
        let newest = self.snapshots.last().map_or(Version(0), |found| found.version);
        let shared = |(slot, born): &(u32, Version)| *slot != NONE && *born <= newest;
        self.map.get(vslot.0 as usize).is_some_and(shared) && !planted(Bug::OverwriteSnapshot)
    }

    /// The head's pieces of `first..end` that have a slot, ascending.
    pub(crate) fn mapped(
        &self,
        first: u32,
        end: u32,
    ) -> impl Iterator<Item = (VSlot, Slot)> + use<'_> {
        let end = end.min(self.vslots());
        let first = first.min(end);
        self.map[first as usize..end as usize]
            .iter()
            .zip(first..)
            .filter(|((slot, _), _)| *slot != NONE)
            .map(|((slot, _), vslot)| (VSlot(vslot), Slot(*slot)))
    }

    /// The head's slots, with their births.
    pub(crate) fn head(&self) -> impl Iterator<Item = (VSlot, Slot, Version)> + use<'_> {
        let entries = self.map.iter().zip(0..).filter(|((slot, _), _)| *slot != NONE);
        entries.map(|((slot, born), vslot)| (VSlot(vslot), Slot(*slot), *born))
    }

    /// The slots that only snapshots use.
    pub(crate) fn retained(
        &self,
    ) -> impl ExactSizeIterator<Item = (VSlot, Version, Retained)> + use<'_> {
        self.retained.iter().map(|((vslot, born), retained)| (*vslot, *born, *retained))
    }

    /// Every slot, and whether it will never be written again.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (VSlot, Slot, bool)> + use<'_> {
        let head = self.mapped(0, self.vslots());
        let head = head.map(|(vslot, slot)| (vslot, slot, self.is_shared(vslot)));
        head.chain(self.retained().map(|(vslot, _, retained)| (vslot, retained.slot, true)))
    }

    /// Gives an empty piece of the head a slot. False if it is not there or not empty.
    pub(crate) fn map(&mut self, vslot: VSlot, slot: Slot, born: Version) -> bool {
        match self.map.get_mut(vslot.0 as usize) {
            Some(entry) if entry.0 == NONE => *entry = (slot.0, born),
            _ => return false,
        }
        self.allocated += 1;
        true
    }

    /// Remembers a slot that only snapshots use. False if it contradicts what is there.
    pub(crate) fn retain(&mut self, vslot: VSlot, born: Version, retained: Retained) -> bool {
        let fits = vslot.0 < self.vslots() && born < retained.died && retained.died <= self.now;
        fits && self.is_kept(born, retained.died)
            && self.retained.insert((vslot, born), retained).is_none()
    }

    /// Takes the slots of the pieces `first..end` from the head; those that no snapshot uses go to
    /// `freed`. False if there are no such pieces.
    pub(crate) fn unmap(&mut self, first: u32, end: u32, freed: &mut Vec<Slot>) -> bool {
        if first > end || end > self.vslots() {
            return false;
        }
        for vslot in first..end {
            let (slot, born) = std::mem::replace(&mut self.map[vslot as usize], (NONE, Version(0)));
            if slot != NONE {
                self.allocated -= 1;
                self.let_go(VSlot(vslot), Slot(slot), born, freed);
            }
        }
        true
    }

    /// The head stops using a slot.
    fn let_go(&mut self, vslot: VSlot, slot: Slot, born: Version, freed: &mut Vec<Slot>) {
        let retained = Retained { died: self.now, slot };
        if self.is_kept(born, self.now) {
            self.retained.insert((vslot, born), retained);
        } else {
            freed.push(slot);
        }
    }

    /// A piece of the head is in another slot from now on. False if it was in none.
    pub(crate) fn replace(&mut self, vslot: VSlot, slot: Slot, freed: &mut Vec<Slot>) -> bool {
        match self.map.get_mut(vslot.0 as usize) {
            Some(entry) if entry.0 != NONE => {
                let (old, born) = std::mem::replace(entry, (slot.0, self.now));
                self.let_go(vslot, Slot(old), born, freed);
                true
            }
            _ => false,
        }
    }

    /// What the head holds now is a snapshot. False if there is one of that id.
    pub(crate) fn snapshot(&mut self, snapshot: SnapshotId, size: u64) -> bool {
        let next = self.now.0.checked_add(1).map(Version);
        let (None, Some(next)) = (self.find(snapshot), next) else { return false };
        self.snapshots.push(Snapshot { snapshot, version: self.now, size });
        self.now = next;
        true
    }

    /// Puts back a snapshot that a checkpoint has; they come oldest first.
    pub(crate) fn restore(&mut self, found: Snapshot) -> bool {
        let later = self.snapshots.last().is_none_or(|last| last.version < found.version);
        let fits = later && found.version < self.now && self.find(found.snapshot).is_none();
        if fits {
            self.snapshots.push(found);
        }
        fits
    }

    /// Forgets a snapshot; slots that only it used go to `freed`. False if there is none of that id.
    pub(crate) fn drop_snapshot(&mut self, snapshot: SnapshotId, freed: &mut Vec<Slot>) -> bool {
        let Some(place) = self.snapshots.iter().position(|found| found.snapshot == snapshot) else {
            return false;
        };
        let gone = self.snapshots.remove(place);
        let mut retained = std::mem::take(&mut self.retained);
        retained.retain(|(_, born), found| {
            let kept = !(*born <= gone.version && gone.version < found.died)
                || self.is_kept(*born, found.died);
            if !kept {
                freed.push(found.slot);
            }
            kept
        });
        self.retained = retained;
        true
    }

    /// Everything goes: all slots to `freed`.
    pub(crate) fn clear(&mut self, freed: &mut Vec<Slot>) {
        self.snapshots.clear();
        freed.extend(std::mem::take(&mut self.retained).into_values().map(|found| found.slot));
        let vslots = self.vslots();
        self.unmap(0, vslots, freed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> SnapshotId {
        SnapshotId::from_bytes([n; 16])
    }

    /// The picture above, step by step.
    #[test]
    fn each_snapshot_sees_its_own_time() {
        let (mut versions, mut freed) = (Versions::new(3), Vec::new());
        assert!(versions.map(VSlot(0), Slot(7), versions.now));
        assert!(versions.map(VSlot(1), Slot(3), versions.now));
        assert!(!versions.is_shared(VSlot(0)));
        assert!(versions.snapshot(id(1), 3));
        assert!(!versions.snapshot(id(1), 3), "an id is used once");
        assert!(versions.map(VSlot(2), Slot(4), versions.now));
        assert!(!versions.is_shared(VSlot(2)) && versions.is_shared(VSlot(1)));
        assert!(versions.snapshot(id(2), 3));
        assert!(versions.replace(VSlot(1), Slot(9), &mut freed));
        assert_eq!(freed, []);
        let sees = |versions: &Versions, version| -> Vec<Option<u32>> {
            (0..3).map(|v| versions.slot_in(Version(version), VSlot(v)).map(|s| s.0)).collect()
        };
        assert_eq!(sees(&versions, 1), [Some(7), Some(3), None]);
        assert_eq!(sees(&versions, 2), [Some(7), Some(3), Some(4)]);
        assert_eq!(versions.slot(VSlot(1)), Some(Slot(9)));
        assert!(!versions.is_shared(VSlot(1)));

        // Dropped in any order, each slot is freed with its last user.
        assert!(versions.unmap(0, 1, &mut freed));
        assert_eq!(freed, [], "both snapshots still have it");
        assert!(versions.drop_snapshot(id(1), &mut freed));
        assert_eq!(freed, []);
        assert_eq!(sees(&versions, 2), [Some(7), Some(3), Some(4)]);
        assert!(versions.drop_snapshot(id(2), &mut freed));
        freed.sort_unstable();
        assert_eq!(freed, [Slot(3), Slot(7)]);
        assert!(!versions.is_shared(VSlot(2)), "nobody else has it any more");
        assert!(!versions.drop_snapshot(id(2), &mut freed));
    }

    #[test]
    fn clearing_frees_every_slot_once() {
        let (mut versions, mut freed) = (Versions::new(2), Vec::new());
        versions.map(VSlot(0), Slot(1), versions.now);
        versions.snapshot(id(1), 2);
        versions.replace(VSlot(0), Slot(2), &mut freed);
        versions.snapshot(id(2), 2);
        versions.clear(&mut freed);
        freed.sort_unstable();
        assert_eq!((freed, versions.allocated), (vec![Slot(1), Slot(2)], 0));
    }
}
