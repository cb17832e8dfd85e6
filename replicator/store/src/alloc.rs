//! Free slots, and why a new owner never sees what an earlier one wrote (R23).
//!
//! ```text
//!        zeroing           sync               first write
//! dirty ────────▶ zeroed ────────▶ ready ──────────────────▶ used
//!   ▲                                                          │ unmapped
//!   └──────────── record durable, no I/O on it ◀── releasing ◀─┘
//! ```
//!
//! A slot is handed out only when it is known to be zeros on stable storage. So after a crash a
//! map record without its data shows zeros, and data without its record lies in a free slot, which
//! is zeroed before anybody owns it. That is why a first write needs no sync between record and
//! data. The knowledge is in memory only: after opening, every free slot is dirty.

use std::collections::{BTreeSet, VecDeque};

use crate::layout::{Layout, Slot};

/// Ready slots kept at first. Every time that writers had to wait it doubles…
const READY: u32 = 256;
/// …up to this.
const MAX_READY: u32 = 4096;
/// Bytes zeroed by one operation.
const ZERO_RUN: u64 = 16 << 20;
/// Zeroing operations in flight.
const ZERO_OPS: u32 = 4;

#[derive(Debug)]
pub(crate) struct Alloc {
    slots: u32,
    run: u32,
    /// One bit per slot: free and not known to be zeros.
    dirty: Vec<u64>,
    dirty_count: u32,
    cursor: u32,
    zero_ops: u32,
    zeroing: u32,
    zeroed: Vec<Slot>,
    /// Zeroed before the running sync began.
    syncing: Vec<Slot>,
    ready: VecDeque<Slot>,
    target: u32,
    filling: bool,
    releasing: u32,
    retired: u32,
    /// I/O in flight on each slot.
    pins: Vec<u32>,
    /// Released, but pinned.
    pinned: BTreeSet<Slot>,
}

impl Alloc {
    /// Every slot that is not `used` is dirty.
    pub(crate) fn new(layout: &Layout, used: impl Fn(Slot) -> bool) -> Self {
        let slots = layout.slots;
        let mut alloc = Self {
            slots,
            run: (ZERO_RUN / layout.slot_size) as u32,
            dirty: vec![0; (slots as usize).div_ceil(64)],
            dirty_count: 0,
            cursor: 0,
            zero_ops: 0,
            zeroing: 0,
            zeroed: Vec::new(),
            syncing: Vec::new(),
            ready: VecDeque::new(),
            target: READY,
            filling: true,
            releasing: 0,
            retired: 0,
            pins: vec![0; slots as usize],
            pinned: BTreeSet::new(),
        };
        for slot in (0..slots).map(Slot).filter(|slot| !used(*slot)) {
            alloc.set_dirty(slot);
        }
        alloc
    }

    fn is_dirty(&self, slot: u32) -> bool {
        self.dirty[slot as usize / 64] & (1 << (slot % 64)) != 0
    }

    fn set_dirty(&mut self, slot: Slot) {
        self.dirty[slot.0 as usize / 64] |= 1 << (slot.0 % 64);
        self.dirty_count += 1;
    }

    pub(crate) fn ready(&self) -> u32 {
        self.ready.len() as u32
    }

    pub(crate) fn retired(&self) -> u32 {
        self.retired
    }

    pub(crate) fn releasing(&self) -> u32 {
        self.releasing
    }

    /// Slots that are free or will be without anybody's help.
    pub(crate) fn free(&self) -> u32 {
        let zeroed = self.zeroed.len() + self.syncing.len();
        self.dirty_count + self.zeroing + zeroed as u32 + self.ready() + self.releasing
    }

    /// A ready slot.
    pub(crate) fn take(&mut self) -> Option<Slot> {
        self.ready.pop_front()
    }

    /// A writer found too few ready slots: keep more from now on.
    pub(crate) fn starved(&mut self) {
        self.target = (self.target * 2).min(MAX_READY);
        self.filling = true;
    }

    /// The next run of slots to zero, if some are wanted.
    pub(crate) fn next_zero(&mut self) -> Option<(Slot, u32)> {
        let ahead = self.ready() + self.zeroing + (self.zeroed.len() + self.syncing.len()) as u32;
        if ahead * 4 < self.target * 3 {
            self.filling = true;
        } else if ahead >= self.target {
            self.filling = false;
        }
        if !self.filling || self.dirty_count == 0 || self.zero_ops >= ZERO_OPS {
            return None;
        }
        let first = self.next_dirty()?;
        let most = self.run.min(self.target - ahead.min(self.target)).max(1);
        let mut count = 0;
        while count < most && first + count < self.slots && self.is_dirty(first + count) {
            let slot = first + count;
            self.dirty[slot as usize / 64] &= !(1 << (slot % 64));
            count += 1;
        }
        self.cursor = first + count;
        self.dirty_count -= count;
        self.zeroing += count;
        self.zero_ops += 1;
        Some((Slot(first), count))
    }

    fn next_dirty(&self) -> Option<u32> {
        let words = self.dirty.len();
        let start = self.cursor.min(self.slots - 1);
        let mut word = start as usize / 64;
        let mut bits = self.dirty[word] & (u64::MAX << (start % 64));
        for _ in 0..=words {
            if bits != 0 {
                return Some(word as u32 * 64 + bits.trailing_zeros());
            }
            word = (word + 1) % words;
            bits = self.dirty[word];
        }
        None
    }

    /// Zeroing of a run ended. A slot that cannot be zeroed is never used again.
    pub(crate) fn zero_ended(&mut self, first: Slot, count: u32, ok: bool) {
        self.zero_ops -= 1;
        self.zeroing -= count;
        if ok {
            self.zeroed.extend((first.0..first.0 + count).map(Slot));
        } else {
            self.retired += count;
        }
    }

    /// Zeroing in this form is not possible here: the run is dirty again.
    pub(crate) fn zero_undone(&mut self, first: Slot, count: u32) {
        self.zero_ops -= 1;
        self.zeroing -= count;
        for slot in first.0..first.0 + count {
            self.set_dirty(Slot(slot));
        }
        self.cursor = self.cursor.min(first.0);
    }

    /// From now on a run is one slot.
    pub(crate) fn single_slots(&mut self) {
        self.run = 1;
    }

    /// Whether slots wait for a sync and no more are about to join them.
    pub(crate) fn needs_sync(&self) -> bool {
        !self.zeroed.is_empty() && self.zero_ops == 0
    }

    /// A sync begins.
    pub(crate) fn sync_began(&mut self) {
        self.syncing.append(&mut self.zeroed);
    }

    /// The running sync ended well.
    pub(crate) fn sync_ended(&mut self) {
        self.ready.extend(self.syncing.drain(..));
    }

    /// Slots lost their owner; see [`Self::release`].
    pub(crate) fn releasing_more(&mut self, count: usize) {
        self.releasing += count as u32;
    }

    /// The record that unmapped the slot is durable.
    pub(crate) fn release(&mut self, slot: Slot) {
        if self.pins[slot.0 as usize] > 0 {
            self.pinned.insert(slot);
        } else {
            self.releasing -= 1;
            self.set_dirty(slot);
        }
    }

    /// I/O on slots `first..=last` begins.
    pub(crate) fn pin(&mut self, first: Slot, last: Slot) {
        for pins in &mut self.pins[first.0 as usize..=last.0 as usize] {
            *pins += 1;
        }
    }

    /// I/O on slots `first..=last` ended.
    pub(crate) fn unpin(&mut self, first: Slot, last: Slot) {
        for slot in first.0..=last.0 {
            self.pins[slot as usize] -= 1;
            if self.pins[slot as usize] == 0 && self.pinned.remove(&Slot(slot)) {
                self.release(Slot(slot));
            }
        }
    }
}
