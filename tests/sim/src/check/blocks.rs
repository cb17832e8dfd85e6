//! Block history: each 4 KiB block of a volume is a register.
//!
//! Checked, of every read that a consumer gets, of what in-sync replicas hold when something is
//! acknowledged, and of the end of the run:
//! - the value was written to that very block, and the write had begun;
//! - it is not older than a write that was acknowledged before the read began: writes that overlap
//!   in time may win in either order, later ones win over earlier ones;
//! - a write that was never acknowledged may take effect late, but not once a later epoch was
//!   activated: then it has happened or has not, and what a read found stays;
//! - after every in-sync copy lost its memory (see `isr`), what had been flushed is still there,
//!   and of the rest one state is chosen, once;
//! - nothing is torn inside a block. Exception: a block that was being written, or was written and
//!   not flushed, when every copy lost its memory may be torn at sectors of 512 bytes, as on any
//!   disk with a volatile cache; each sector is then one of the values above.
//!
//! Not checked: that two reads during one unfinished write agree (no disk promises it), and the
//! order of writes under way at the same time.

use crate::content::Content;
use std::collections::{BTreeMap, BTreeSet};
use types::Epoch;

/// Order of the events of a run.
pub type Moment = u64;

/// One write to one block.
#[derive(Clone, Debug)]
struct Entry {
    /// Its number; also what the content says, unless it wrote zeros.
    write: u64,
    zeros: bool,
    epoch: Epoch,
    invoked: Moment,
    /// It can take effect no more after this.
    ended: Option<Moment>,
    acked: Option<Moment>,
    flushed: bool,
    /// Since then it is known not to be what the block holds.
    gone: Option<Moment>,
}

impl Entry {
    fn content(&self) -> u64 {
        if self.zeros { 0 } else { self.write }
    }
}

#[derive(Debug, Default)]
struct Block {
    entries: Vec<Entry>,
    /// A read that began before this moment may find sectors that differ, each of them what it may hold:
    /// for ever, until the block is written again.
    torn: Moment,
}

/// A write that is not answered yet.
#[derive(Debug)]
struct Open {
    blocks: core::ops::Range<u32>,
    epoch: Epoch,
}

/// The registers of one volume.
#[derive(Debug)]
pub struct Blocks {
    now: Moment,
    blocks: BTreeMap<u32, Block>,
    open: BTreeMap<u64, Open>,
    /// Blocks with something that is not flushed.
    dirty: BTreeSet<u32>,
    /// Every in-sync copy lost its memory since the last activation.
    lost: bool,
    /// When that was, if something that was acknowledged had not been flushed (R10).
    owing: Option<Moment>,
    /// When the last FUA write ended: engines flush all that was acknowledged before with it.
    forced: Moment,
    /// The newest epoch that was activated.
    newest: Epoch,
    /// Reads under way, by when they began.
    reading: BTreeMap<u64, Moment>,
}

/// The first entry of every block: zeros, from the beginning.
const ORIGIN: Entry = Entry {
    write: 0,
    zeros: true,
    epoch: Epoch(0),
    invoked: 0,
    ended: Some(0),
    acked: Some(0),
    flushed: true,
    gone: None,
};

impl Default for Blocks {
    fn default() -> Self {
        Self {
            now: 1,
            blocks: BTreeMap::new(),
            open: BTreeMap::new(),
            dirty: BTreeSet::new(),
            lost: false,
            owing: None,
            forced: 0,
            newest: Epoch(0),
            reading: BTreeMap::new(),
        }
    }
}

impl Blocks {
    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    fn block(&mut self, index: u32) -> &mut Block {
        let new = || Block { entries: vec![ORIGIN], torn: 0 };
        self.blocks.entry(index).or_insert_with(new)
    }

    /// A write begins. `write` is its number.
    pub fn write_begins(
        &mut self,
        write: u64,
        blocks: core::ops::Range<u32>,
        zeros: bool,
        epoch: Epoch,
    ) {
        let invoked = self.tick();
        for index in blocks.clone() {
            self.dirty.insert(index);
            let entry = Entry {
                write,
                zeros,
                epoch,
                invoked,
                ended: None,
                acked: None,
                flushed: false,
                gone: None,
            };
            self.block(index).entries.push(entry);
        }
        self.open.insert(write, Open { blocks, epoch });
    }

    /// A write ended. `fua`: it is durable too. A failed one (`acked` false) of an engine that goes
    /// on has happened or has not, and will not any more.
    pub fn write_ends(&mut self, write: u64, acked: bool, fua: bool) {
        let now = self.tick();
        let Some(open) = self.open.remove(&write) else { return };
        let quiet = self.reading.is_empty();
        if acked && fua {
            self.forced = now;
        }
        for index in open.blocks {
            let block = self.block(index);
            let mut invoked = 0;
            for entry in block.entries.iter_mut().filter(|entry| entry.write == write) {
                entry.ended = Some(now);
                if acked {
                    entry.acked = Some(now);
                    entry.flushed |= fua;
                    invoked = entry.invoked;
                }
            }
            if acked {
                block.torn = block.torn.min(now);
                if fua && quiet {
                    block.settle(invoked);
                }
            }
        }
        self.prune();
    }

    /// The engine of the newest epoch closes all copies cleanly: they have on disk what was acknowledged (R20).
    pub fn closed(&mut self) {
        let now = self.tick();
        self.flushed(now);
    }

    /// A flush that began at `began` was acknowledged.
    pub fn flushed(&mut self, began: Moment) {
        let now = self.tick();
        // A read that is under way may still find what it found when it began.
        let oldest = self.reading.values().copied().min().unwrap_or(now);
        let dirty: Vec<u32> = self.dirty.iter().copied().collect();
        for index in dirty {
            let block = self.block(index);
            let mut newest = 0;
            for entry in &mut block.entries {
                if entry.acked.is_some_and(|at| at < began) {
                    entry.flushed = true;
                    if entry.acked.is_some_and(|at| at < oldest) {
                        newest = newest.max(entry.invoked);
                    }
                }
            }
            block.settle(newest);
            // What was found out about the content before the flush is durable now.
            block.entries.retain(|entry| entry.gone.is_none_or(|gone| gone >= began.min(oldest)));
            if block.entries.iter().all(|entry| entry.flushed) {
                self.dirty.remove(&index);
            }
        }
    }

    /// A read begins.
    pub fn read_begins(&mut self, read: u64) {
        let now = self.tick();
        self.reading.insert(read, now);
    }

    /// A read ended without data.
    pub fn read_fails(&mut self, read: u64) {
        self.reading.remove(&read);
    }

    /// A read found this in the block `index`.
    ///
    /// # Errors
    /// Why that must not be.
    pub fn read_finds(&mut self, read: u64, index: u32, found: Content) -> Result<(), String> {
        let now = self.tick();
        let began = self.reading.get(&read).copied().unwrap_or(now);
        let block = self.block(index);
        block.check(found, began)?;
        block.learn(found, began);
        Ok(())
    }

    /// All blocks of a read were looked at.
    pub fn read_ends(&mut self, read: u64) {
        self.reading.remove(&read);
        self.prune();
    }

    /// What an in-sync replica holds now, looked at from outside.
    ///
    /// # Errors
    /// Why that must not be.
    pub fn held(&mut self, index: u32, found: Content) -> Result<(), String> {
        let now = self.tick();
        self.block(index).check(found, now)
    }

    /// A later epoch was activated: what earlier ones left unfinished has happened or has not. After
    /// a loss of every copy what was not flushed may be gone.
    pub fn activated(&mut self, epoch: Epoch) {
        let now = self.tick();
        self.newest = self.newest.max(epoch);
        let over: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.epoch < epoch).map(|(id, _)| *id).collect();
        let lost = std::mem::take(&mut self.lost);
        self.owing = None;
        for write in over {
            let Some(open) = self.open.remove(&write) else { continue };
            for index in open.blocks {
                for entry in self.block(index).entries.iter_mut().filter(|e| e.write == write) {
                    entry.ended = Some(now);
                }
            }
        }
        if lost {
            for index in &self.dirty {
                let Some(block) = self.blocks.get_mut(index) else { continue };
                block.torn = Moment::MAX;
                for entry in block.entries.iter_mut().filter(|entry| entry.epoch < epoch) {
                    entry.gone = None;
                    if !entry.flushed {
                        entry.acked = None;
                    }
                }
            }
        }
    }

    /// Every in-sync copy lost its memory.
    pub fn lose(&mut self) {
        self.lost = true;
        // If nothing that was acknowledged is lost the engine goes on, and sends what was under way again.
        for index in self.open.values().flat_map(|open| open.blocks.clone()) {
            if let Some(block) = self.blocks.get_mut(&index) {
                block.torn = Moment::MAX;
            }
        }
        if self.owes_something() {
            self.owing = Some(self.now);
        }
    }

    /// Whether anything that was acknowledged has not been flushed.
    #[must_use]
    pub fn owes_something(&self) -> bool {
        self.owes(self.now)
    }

    /// Whether anything that was acknowledged by `moment` has not been flushed.
    fn owes(&self, moment: Moment) -> bool {
        let blocks = self.dirty.iter().filter_map(|index| self.blocks.get(index));
        let acked = |entry: &Entry| entry.acked.is_some_and(|at| at > self.forced && at <= moment);
        blocks.flat_map(|block| &block.entries).any(|entry| !entry.flushed && acked(entry))
    }

    /// A copy turned up that had everything all the time.
    pub fn keep(&mut self) {
        (self.lost, self.owing) = (false, None);
    }

    /// The newest epoch that was activated.
    #[must_use]
    pub fn newest(&self) -> Epoch {
        self.newest
    }

    /// The epoch of a write that is under way.
    #[must_use]
    pub fn epoch_of(&self, write: u64) -> Option<Epoch> {
        self.open.get(&write).map(|open| open.epoch)
    }

    /// Blocks that were ever written.
    pub fn written(&self) -> impl Iterator<Item = u32> + use<'_> {
        self.blocks.keys().copied()
    }

    /// Whether a write to that block is not answered yet.
    #[must_use]
    pub fn is_busy(&self, block: u32) -> bool {
        self.open.values().any(|open| open.blocks.contains(&block))
    }

    /// Every in-sync copy lost its memory under this epoch, when not all that was acknowledged had been flushed.
    /// What the network still carried as acknowledged is not counted, nor what a flush covers that was acknowledged since:
    /// the copies had answered it before.
    #[must_use]
    pub fn is_owing(&self) -> bool {
        self.owing.is_some_and(|lost| self.owes(lost))
    }

    /// Forgets what no read that is under way can need: done now and then.
    fn prune(&mut self) {
        if !self.now.is_multiple_of(64) {
            return;
        }
        let oldest = self.reading.values().copied().min().unwrap_or(self.now);
        for block in self.blocks.values_mut() {
            if block.entries.len() > 1 {
                block.prune(oldest);
            }
        }
    }
}

impl Block {
    /// A write that began at `invoked` is durable: nothing that had ended before can come back.
    fn settle(&mut self, invoked: Moment) {
        if self.entries.len() < 2 {
            return;
        }
        self.entries.retain(|entry| entry.ended.is_none_or(|ended| ended >= invoked));
    }

    /// Removes what is out of the question for every read that begins at `oldest` or later, unless
    /// a loss could bring it back.
    fn prune(&mut self, oldest: Moment) {
        let durable = |e: &Entry| e.flushed && e.acked.is_some_and(|at| at < oldest);
        let newest = self.entries.iter().filter(|e| durable(e)).map(|e| e.invoked).max();
        if let Some(newest) = newest {
            self.settle(newest);
        }
    }

    /// Whether `entry` may be what a read that began at `began` finds.
    fn possible(&self, entry: &Entry, began: Moment) -> bool {
        if entry.gone.is_some_and(|gone| gone < began) {
            return false;
        }
        let Some(ended) = entry.ended else { return true };
        let hides =
            |other: &Entry| other.acked.is_some_and(|acked| acked < began) && other.invoked > ended;
        !self.entries.iter().any(hides)
    }

    fn check(&self, found: Content, began: Moment) -> Result<(), String> {
        let possible = |value: u64| {
            self.entries.iter().any(|e| e.content() == value && self.possible(e, began))
        };
        match found {
            Content::Whole(value) if possible(value) => return Ok(()),
            Content::Torn(sectors)
                if began < self.torn && sectors.iter().all(|value| possible(*value)) =>
            {
                return Ok(());
            }
            _ => {}
        }
        let legal: Vec<&Entry> = self.entries.iter().filter(|e| self.possible(e, began)).collect();
        Err(format!("{found:?} at moment {began}; possible are {legal:?} of {:?}", self.entries))
    }

    /// A read found out what the block holds: if no write was under way, that is what it holds
    /// until the next one.
    fn learn(&mut self, found: Content, began: Moment) {
        let Content::Whole(value) = found else { return };
        let settled = |e: &Entry| e.ended.is_some_and(|ended| ended < began);
        if !self.entries.iter().all(settled) {
            return;
        }
        for entry in &mut self.entries {
            if entry.content() != value && entry.gone.is_none() {
                entry.gone = Some(began);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(blocks: &mut Blocks, value: u64) -> Result<(), String> {
        blocks.read_begins(1000);
        let result = blocks.read_finds(1000, 0, Content::Whole(value));
        blocks.read_ends(1000);
        result
    }

    fn write(blocks: &mut Blocks, number: u64, epoch: u64) {
        blocks.write_begins(number, 0..1, false, Epoch(epoch));
    }

    #[test]
    fn an_acknowledged_write_hides_earlier_ones() {
        let mut blocks = Blocks::default();
        assert!(read(&mut blocks, 0).is_ok());
        write(&mut blocks, 1, 1);
        assert!(read(&mut blocks, 0).is_ok() && read(&mut blocks, 1).is_ok());
        assert!(read(&mut blocks, 0).is_ok(), "not finished: either");
        blocks.write_ends(1, true, false);
        assert!(read(&mut blocks, 0).is_err() && read(&mut blocks, 1).is_ok());
        assert!(read(&mut blocks, 7).is_err(), "never written");
    }

    #[test]
    fn an_unfinished_write_is_decided_by_the_next_epoch() {
        let mut blocks = Blocks::default();
        blocks.activated(Epoch(1));
        write(&mut blocks, 1, 1);
        blocks.write_ends(1, true, false);
        write(&mut blocks, 2, 1);
        blocks.activated(Epoch(2));
        assert!(read(&mut blocks, 1).is_ok());
        assert!(read(&mut blocks, 2).is_err(), "a read found that it did not happen");
        assert!(read(&mut blocks, 1).is_ok());
    }

    #[test]
    fn a_loss_of_every_copy_spares_what_was_flushed() {
        let mut blocks = Blocks::default();
        blocks.activated(Epoch(1));
        for number in 1..=2 {
            write(&mut blocks, number, 1);
            blocks.write_ends(number, true, false);
        }
        let began = blocks.tick();
        blocks.flushed(began);
        for number in 3..=4 {
            write(&mut blocks, number, 1);
            blocks.write_ends(number, true, false);
        }
        blocks.lose();
        assert!(read(&mut blocks, 3).is_err(), "not under the same epoch");
        blocks.activated(Epoch(2));
        assert!(read(&mut blocks, 1).is_err() && read(&mut blocks, 0).is_err());
        assert!(blocks.held(0, Content::Torn([2, 3, 4, 2, 2, 2, 2, 2])).is_ok());
        assert!(read(&mut blocks, 3).is_ok());
        assert!(read(&mut blocks, 2).is_err() && read(&mut blocks, 4).is_err(), "chosen once");
        write(&mut blocks, 5, 2);
        blocks.write_ends(5, true, false);
        assert!(blocks.held(0, Content::Torn([2, 3, 4, 2, 2, 2, 2, 2])).is_err());
    }

    const TORN: Content = Content::Torn([1, 2, 1, 1, 1, 1, 1, 2]);

    #[test]
    fn what_was_being_written_when_all_lost_their_memory_may_be_torn_until_it_is_written() {
        let mut blocks = Blocks::default();
        blocks.activated(Epoch(1));
        write(&mut blocks, 1, 1);
        blocks.write_ends(1, true, true);
        write(&mut blocks, 2, 1);
        assert!(blocks.held(0, TORN).is_err(), "nothing was lost");
        blocks.lose();
        assert!(blocks.held(0, TORN).is_ok());
        blocks.write_ends(2, true, false);
        assert!(blocks.held(0, TORN).is_err());
    }

    #[test]
    fn a_torn_block_is_whole_for_reads_that_begin_after_it_was_rewritten() {
        let mut blocks = Blocks::default();
        blocks.activated(Epoch(1));
        write(&mut blocks, 1, 1);
        blocks.write_ends(1, true, true);
        write(&mut blocks, 2, 1);
        blocks.lose();
        blocks.activated(Epoch(2));
        blocks.read_begins(7);
        write(&mut blocks, 3, 2);
        blocks.write_ends(3, true, false);
        blocks.read_begins(8);
        assert!(blocks.read_finds(7, 0, TORN).is_ok());
        assert!(blocks.read_finds(8, 0, TORN).is_err());
    }
}
