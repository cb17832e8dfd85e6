//! Giving a resync target the snapshots that it lacks (R26), oldest first, before it gets new writes.
//!
//! ```text
//! Asking ─▶ Listing ─▶ Copying ─▶ Taking ─▶ … next snapshot … ─▶ Draining, and on as in `resync`
//! (who has    (tags)    (regions of  (the target makes
//!  which?)               a snapshot)  it its own)
//! ```
//!
//! The target is brought to what the snapshot holds, and makes a snapshot of that: so what snapshots
//! have in common is shared there too. Its contents go back and forth meanwhile, but it counts for
//! nothing, and regions that are written in this are tagged like any others. The set of regions is that of
//! R19: a snapshot that the target lacks was taken after it had left the ISR, and so after its last seal.

use crate::api::Output;
use crate::core::Engine;
use crate::flight::{Mask, Purpose};
use crate::member::Standing;
use crate::resync::Stage;
use std::collections::{BTreeSet, VecDeque};
use wire::{HeldSnapshot, Reply, Request};

/// What is still to be done.
#[derive(Debug, Default)]
pub(crate) struct Past {
    of_source: Option<Vec<HeldSnapshot>>,
    of_target: Option<Vec<HeldSnapshot>>,
    /// Snapshots that the target lacks, oldest first.
    missing: VecDeque<HeldSnapshot>,
    /// Regions that may differ, in any of them.
    pub(crate) dirty: BTreeSet<u32>,
}

impl Past {
    /// The one that is being brought.
    pub(crate) fn oldest(&self) -> Option<HeldSnapshot> {
        self.missing.front().copied()
    }
}

impl Engine {
    pub(crate) fn start_past(&mut self, target: usize, source: usize, out: &mut Vec<Output>) {
        let Standing::Syncing(resync) = &self.members[target].standing else { return };
        let purpose = Purpose::Held { target, run: resync.run };
        for asked in [source, target] {
            self.send_internal(purpose, Request::Snapshots, Mask::one(asked), out);
        }
    }

    /// `asked` says which snapshots it has.
    pub(crate) fn held_by(
        &mut self,
        (target, run): (usize, u64),
        asked: usize,
        reply: Reply,
        out: &mut Vec<Output>,
    ) {
        let Some(resync) = self.resync(target, run) else { return };
        let Reply::Snapshots(held) = reply else { return self.abandon_resync(target, out) };
        let (Stage::Asking, Some(past)) = (&resync.stage, &mut resync.past) else { return };
        let of = if asked == target { &mut past.of_target } else { &mut past.of_source };
        *of = Some(held);
        let (Some(of_source), Some(of_target)) = (&past.of_source, &past.of_target) else { return };
        let lacks =
            |held: &&HeldSnapshot| of_target.iter().all(|other| other.snapshot != held.snapshot);
        past.missing = of_source.iter().filter(lacks).copied().collect();
        if past.missing.is_empty() {
            self.start_present(target, out);
        } else {
            self.list_tags(target, out);
        }
    }

    /// Copies what the oldest missing snapshot holds.
    pub(crate) fn copy_oldest(&mut self, target: usize, out: &mut Vec<Output>) {
        let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
        let Some(past) = &resync.past else { return };
        let Some(HeldSnapshot { size, .. }) = past.oldest() else {
            return self.start_present(target, out);
        };
        let within = |region: &&u32| u64::from(**region) * types::REGION < size;
        let set = past.dirty.iter().filter(within).copied().collect();
        self.copy_regions(target, set, size, out);
    }

    /// The target holds what the oldest missing snapshot holds.
    pub(crate) fn make_oldest(&mut self, target: usize, out: &mut Vec<Output>) {
        let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
        let Some(HeldSnapshot { snapshot, size }) = resync.past.as_ref().and_then(Past::oldest)
        else {
            return;
        };
        resync.stage = Stage::Taking;
        let request = Request::Snapshot { snapshot, size };
        self.send_internal(Purpose::Past { target }, request, Mask::one(target), out);
    }

    /// The target has it.
    pub(crate) fn past_made(&mut self, target: usize, out: &mut Vec<Output>) {
        let Standing::Syncing(resync) = &mut self.members[target].standing else { return };
        let (Stage::Taking, Some(past)) = (&resync.stage, &mut resync.past) else { return };
        past.missing.pop_front();
        self.copy_oldest(target, out);
    }
}
