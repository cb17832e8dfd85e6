//! What consumers saw: each block is a register whose writes have unique values.
//!
//! Checked: a value that a read returns, or that an in-sync replica holds when something is
//! acknowledged, is not older than an acknowledged write that began after the value's own write
//! had ended. Not checked: that two reads during one unfinished write agree (no disk promises it).

use std::collections::BTreeMap;
use types::IoId;

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) id: IoId,
    pub(super) value: u64,
    pub(super) slot: usize,
    pub(super) invoked: u64,
    /// It can take effect no more after this.
    pub(super) ended: Option<u64>,
    pub(super) acked: Option<u64>,
    pub(super) flushed: Option<u64>,
    /// It came under an epoch that was over.
    pub(super) void: bool,
}

#[derive(Default)]
pub(super) struct History {
    /// Orders all events.
    pub(super) clock: u64,
    blocks: BTreeMap<u64, Vec<Write>>,
    /// When a replica last lost power.
    pub(super) power_lost: u64,
    /// The newest activated engine and when.
    newest: Option<usize>,
}

impl History {
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn invoke(
        &mut self,
        id: IoId,
        slot: usize,
        blocks: core::ops::Range<u64>,
        value: u64,
    ) {
        let invoked = self.tick();
        let void = self.newest.is_some_and(|newest| newest > slot);
        for block in blocks {
            let (ended, acked, flushed) = (None, None, None);
            let write = Write { id, value, slot, invoked, ended, acked, flushed, void };
            self.blocks.entry(block).or_default().push(write);
        }
    }

    fn of(&mut self, slot: usize, id: IoId) -> impl Iterator<Item = &mut Write> {
        self.blocks.values_mut().flatten().filter(move |w| w.slot == slot && w.id == id)
    }

    pub(super) fn acked(&mut self, slot: usize, id: IoId, fua: bool) {
        let now = self.tick();
        for write in self.of(slot, id) {
            assert!(!write.void, "promise 3: {write:?} was acknowledged under a dead epoch");
            write.acked = Some(now);
            write.ended = write.ended.or(Some(now));
            if fua {
                write.flushed = Some(now);
            }
        }
    }

    /// It failed on an engine that goes on: it will take effect no more.
    pub(super) fn failed(&mut self, slot: usize, id: IoId) {
        let now = self.tick();
        self.of(slot, id).for_each(|write| write.ended = Some(now));
    }

    /// A flush that was submitted at `invoked` was acknowledged.
    pub(super) fn flushed(&mut self, slot: usize, invoked: u64) {
        let now = self.tick();
        for write in self.blocks.values_mut().flatten() {
            if write.slot == slot && write.acked.is_some_and(|at| at < invoked) {
                write.flushed = write.flushed.or(Some(now));
            }
        }
    }

    /// The engine `slot` was activated: what older ones had not finished has happened or not.
    pub(super) fn activated(&mut self, slot: usize) {
        let now = self.tick();
        self.newest = Some(slot);
        for write in self.blocks.values_mut().flatten() {
            if write.slot < slot {
                write.ended = write.ended.or(Some(now));
            }
        }
    }

    pub(super) fn power_lost(&mut self) {
        self.power_lost = self.tick();
    }

    pub(super) fn written(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// Why `value` must not be what `block` holds for engine `slot` at time `at`, if so. Writes
    /// that were acknowledged but not flushed before a power loss may be gone for a later engine;
    /// for the same one they may not (R10). `lost_after`: what one replica may have lost itself.
    pub(super) fn stale(
        &self,
        block: u64,
        value: u64,
        slot: usize,
        at: u64,
        lost_after: Option<u64>,
    ) -> Option<String> {
        let writes = self.blocks.get(&block).map_or(&[][..], Vec::as_slice);
        let must = |w: &&Write| {
            let kept = w.flushed.is_some_and(|f| f < at)
                || (w.slot == slot && lost_after.is_none())
                || w.invoked > self.power_lost.max(lost_after.unwrap_or(0));
            w.acked.is_some_and(|acked| acked < at) && kept
        };
        let newest_due = writes.iter().filter(must).max_by_key(|w| w.invoked);
        let Some(due) = newest_due else {
            let known = value == 0 || writes.iter().any(|w| w.value == value && !w.void);
            return (!known).then(|| format!("block {block}: {value} was never written"));
        };
        let legal = |w: &&Write| {
            w.value == value && !w.void && w.ended.is_none_or(|ended| ended > due.invoked)
        };
        if writes.iter().any(|w| legal(&w)) {
            return None;
        }
        Some(format!("block {block} holds {value} for engine {slot} at {at}, but {due:?} is due"))
    }
}
