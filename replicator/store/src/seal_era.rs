//! Sealing an era (R18): settle the checksum pages of the replica, sync, then remember the tag.
//!
//! In this order, because the tag in the record is what makes recovery trust the pages and what
//! tells a resync that everything up to it is on this disk. One at a time for the pool, since
//! replicas share pages.
//!
//! The other copy of each page follows behind, so that no page is lost with one write or one block.

use std::collections::{BTreeSet, VecDeque};

use types::Tag;
use wire::Reply;

use crate::api::{Output, SessionId};
use crate::flush::SyncWake;
use crate::layout::RecordSeq;
use crate::op::{Io, OpKind, Wake};
use crate::record::Change;
use crate::slab::Key;
use crate::store::Store;

/// Page writes in flight.
const PAGE_WRITES: u32 = 32;

#[derive(Debug, Default)]
pub(crate) struct Settle {
    queue: VecDeque<Key>,
    running: Option<Key>,
    pages: VecDeque<u32>,
    /// Pages whose other copy is behind.
    behind: VecDeque<u32>,
    writes: u32,
    /// A sync is needed before the record.
    dirty: bool,
    syncing: bool,
}

impl Settle {
    /// Queues a request that settles the checksums of its replica.
    pub(crate) fn enqueue(&mut self, key: Key) {
        self.queue.push_back(key);
    }

    pub(crate) fn page_written(&mut self) {
        self.writes -= 1;
    }
}

impl Store {
    pub(crate) fn seal_era(&mut self, id: SessionId, seq: u64, tag: Tag, out: &mut Vec<Output>) {
        let index = self.sessions[&id].replica;
        if tag <= self.state.replicas[&index].last_sealed
            && self.log.durable() == self.log.appended()
        {
            return self.reply(id, seq, Reply::Done, out);
        }
        if let Some(key) = self.op(id, seq, OpKind::SealEra { tag }) {
            self.settle.enqueue(key);
        }
    }

    pub(crate) fn pump_settle(&mut self, out: &mut Vec<Output>) {
        // The next copy of a page must not overtake the one that follows the last.
        while self.settle.running.is_none()
            && self.settle.behind.is_empty()
            && self.settle.writes == 0
        {
            let Some(key) = self.settle.queue.pop_front() else { return };
            let Some(op) = self.ops.get(key) else { continue };
            let index = op.replica;
            let Some(replica) = self.replicas.get_mut(&index) else { continue };
            let mut pages = BTreeSet::new();
            for slot in std::mem::take(&mut replica.unsettled) {
                self.sums.settled(slot);
                pages.insert(self.sums.page_of(slot));
            }
            self.settle.dirty = !pages.is_empty() || self.needs_sync(index);
            self.settle.pages = pages.into_iter().collect();
            self.settle.running = Some(key);
            self.submitted(key);
        }
        let first = self.settle.running.is_some();
        while self.settle.writes < PAGE_WRITES {
            let pages = if first { &mut self.settle.pages } else { &mut self.settle.behind };
            let Some(page) = pages.pop_front() else { break };
            let (offset, data) = if first {
                self.settle.behind.push_back(page);
                self.sums.settle_page(page)
            } else {
                self.sums.settle_other(page)
            };
            self.settle.writes += 1;
            let id = self.io(Io::Page);
            out.push(Output::Write { id, offset, data, durable: false });
        }
        if first && self.settle.writes == 0 && !self.settle.syncing {
            self.settle.syncing = true;
            if self.settle.dirty {
                self.sync.wait(SyncWake::Settle);
            } else {
                self.settle_synced(out);
            }
        }
    }

    pub(crate) fn settle_synced(&mut self, out: &mut Vec<Output>) {
        self.settle.syncing = false;
        if let Some(key) = self.settle.running.take() {
            self.advance(key, out);
        }
    }

    /// After the sync, and again after the record.
    pub(crate) fn finish_seal_era(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        let OpKind::SealEra { tag } = op.kind else { return };
        let index = op.replica;
        if !self.has_to_record(key) {
            return self.finish(key, Reply::Done, out);
        }
        let news = self.state.replicas.get(&index).is_some_and(|s| tag > s.last_sealed);
        self.record_and_finish(key, news.then_some(Change::SealEra { tag }), out);
    }

    /// Whether a request has its record still before it: its session is there, and so is its replica.
    pub(crate) fn has_to_record(&self, key: Key) -> bool {
        let Some(op) = self.ops.get(key) else { return false };
        let alive = self.state.replicas.get(&op.replica).is_some_and(|s| s.failed.is_none());
        op.record == RecordSeq(0) && alive && self.sessions.contains_key(&op.session)
    }

    /// Ends a request once its change is durable; a repeated one, without a change, waits for the record of
    /// the first.
    pub(crate) fn record_and_finish(
        &mut self,
        key: Key,
        change: Option<Change>,
        out: &mut Vec<Output>,
    ) {
        let Some(index) = self.ops.get(key).map(|op| op.replica) else { return };
        let record = match change {
            Some(change) => self.commit(index, &change),
            None => self.log.appended(),
        };
        if let Some(op) = self.ops.get_mut(key) {
            op.record = record;
        }
        if record > self.log.durable() {
            return self.when_durable(record, Wake::Op(key));
        }
        self.finish(key, Reply::Done, out);
    }
}
