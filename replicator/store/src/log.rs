//! The metadata log while the pool is open: group commit, and which records are durable.
//!
//! Records wait in blocks; one group of blocks is written at a time and the next one takes
//! everything that came meanwhile. A record is durable when its block **and every block before it**
//! are, because recovery stops at the first missing one. So a group is written as durable only if
//! nothing before it is still volatile; otherwise it is written plainly and a sync follows.
//!
//! While a checkpoint is being made every group goes to both areas, so that whichever superblock
//! survives a crash names a complete log.

use std::collections::VecDeque;

use types::{BLOCK, Buf, BufMut};

use crate::layout::{Area, Generation, Layout, Lsn, RecordSeq, ReplicaIndex};
use crate::log_block;
use crate::record::{self, Change, Writer};

/// A log within an area.
#[derive(Clone, Copy, Debug)]
struct LogArea {
    area: Area,
    generation: Generation,
    first: Lsn,
}

/// Records for one block that is not yet written.
#[derive(Debug)]
struct Pending {
    records: Writer,
    last: RecordSeq,
}

#[derive(Debug)]
struct Group {
    last: RecordSeq,
    last_lsn: Lsn,
    writes: u32,
    durable: bool,
}

/// What [`Log::compose`] wants written.
#[derive(Debug)]
pub(crate) struct Writes {
    /// Pool offset and blocks, once or twice.
    pub(crate) to: [Option<(u64, Buf)>; 2],
    pub(crate) durable: bool,
    /// Blocks of the group.
    pub(crate) blocks: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    layout: Layout,
    active: LogArea,
    /// The area of the checkpoint that is being made.
    second: Option<LogArea>,
    /// Records up to this are in that checkpoint and need not go to its log.
    covered: RecordSeq,
    next: Lsn,
    pending: VecDeque<Pending>,
    group: Option<Group>,
    appended: RecordSeq,
    written: RecordSeq,
    durable: RecordSeq,
    written_lsn: Lsn,
    durable_lsn: Lsn,
    /// The newest record that somebody wants to be durable…
    wanted: RecordSeq,
    /// …and one that was wanted before, if it is not durable yet.
    wanted_first: Option<RecordSeq>,
}

impl Log {
    /// The empty log behind a fresh checkpoint.
    pub(crate) fn new(layout: Layout, area: Area, generation: Generation, first: Lsn) -> Self {
        let before = Lsn(first.0 - 1);
        Self {
            layout,
            active: LogArea { area, generation, first },
            second: None,
            covered: RecordSeq(0),
            next: first,
            pending: VecDeque::new(),
            group: None,
            appended: RecordSeq(0),
            written: RecordSeq(0),
            durable: RecordSeq(0),
            written_lsn: before,
            durable_lsn: before,
            wanted: RecordSeq(0),
            wanted_first: None,
        }
    }

    /// Queues a record.
    pub(crate) fn append(&mut self, index: ReplicaIndex, change: &Change) -> RecordSeq {
        self.appended.0 += 1;
        let fits =
            |block: &&mut Pending| block.records.0.len() + record::MAX_RECORD <= log_block::PAYLOAD;
        let open = self.covered.0 + 1 < self.appended.0;
        let block = match self.pending.back_mut().filter(fits).filter(|_| open) {
            Some(block) => block,
            None => {
                self.pending.push_back(Pending { records: Writer::default(), last: self.appended });
                let last = self.pending.len() - 1;
                &mut self.pending[last]
            }
        };
        record::encode(index, change, &mut block.records);
        block.last = self.appended;
        self.appended
    }

    /// Asks for durability of a record.
    pub(crate) fn want(&mut self, record: RecordSeq) {
        self.wanted = self.wanted.max(record);
        if record > self.durable {
            self.wanted_first = Some(self.wanted_first.map_or(record, |first| first.min(record)));
        }
    }

    pub(crate) fn appended(&self) -> RecordSeq {
        self.appended
    }

    /// Records up to this are on the disk or in its cache.
    pub(crate) fn written(&self) -> RecordSeq {
        self.written
    }

    /// Records up to this survive a crash.
    pub(crate) fn durable(&self) -> RecordSeq {
        self.durable
    }

    /// Whether only a sync can make wanted records durable.
    pub(crate) fn needs_sync(&self) -> bool {
        self.wanted_first.is_some_and(|first| first <= self.written)
    }

    /// A sync that started when this and that were [`Self::written_mark`] ended well.
    pub(crate) fn synced(&mut self, (record, lsn): (RecordSeq, Lsn)) {
        self.durable = self.durable.max(record);
        self.durable_lsn = self.durable_lsn.max(lsn);
        if self.wanted_first.is_some_and(|first| first <= self.durable) {
            self.wanted_first = Some(self.wanted).filter(|newest| *newest > self.durable);
        }
    }

    pub(crate) fn written_mark(&self) -> (RecordSeq, Lsn) {
        (self.written, self.written_lsn)
    }

    /// Whether it is time for a checkpoint.
    pub(crate) fn is_half_full(&self) -> bool {
        self.next.0 - self.active.first.0 > self.layout.log_blocks / 2
    }

    fn room(&self, log: &LogArea) -> usize {
        (self.layout.log_blocks - (self.next.0 - log.first.0)) as usize
    }

    /// The next group, if none is being written, something waits and there is room.
    pub(crate) fn compose(&mut self) -> Option<Writes> {
        if self.group.is_some() || self.pending.is_empty() {
            return None;
        }
        let covered = self.pending.iter().take_while(|block| block.last <= self.covered).count();
        let (second, count) = match self.second {
            _ if covered > 0 => (None, covered),
            Some(second) => (Some(second), self.pending.len().min(self.room(&second))),
            None => (None, self.pending.len()),
        };
        let count = count.min(self.room(&self.active));
        let last = self.pending.get(count.checked_sub(1)?)?.last;
        let durable = self.wanted > self.written && self.durable == self.written;
        let blocks: Vec<Writer> = self.pending.drain(..count).map(|block| block.records).collect();
        let active = self.active;
        let to = [Some(self.encode(&active, &blocks)), second.map(|at| self.encode(&at, &blocks))];
        self.next.0 += count as u64;
        let writes = 1 + u32::from(second.is_some());
        self.group = Some(Group { last, last_lsn: Lsn(self.next.0 - 1), writes, durable });
        Some(Writes { to, durable, blocks: count as u64 })
    }

    fn encode(&self, log: &LogArea, blocks: &[Writer]) -> (u64, Buf) {
        let mut buf = BufMut::with_len(blocks.len() * BLOCK as usize);
        let out = buf.as_mut_slice().chunks_exact_mut(BLOCK as usize);
        for ((out, records), lsn) in out.zip(blocks).zip(self.next.0..) {
            log_block::encode(out, log.generation, Lsn(lsn), self.durable_lsn, &records.0);
        }
        (self.layout.log(log.area, self.next.0 - log.first.0), buf.freeze())
    }

    /// One write of the group ended well.
    pub(crate) fn group_written(&mut self) {
        let Some(group) = self.group.as_mut() else { return };
        group.writes -= 1;
        if group.writes > 0 {
            return;
        }
        self.written = self.written.max(group.last);
        self.written_lsn = self.written_lsn.max(group.last_lsn);
        let durable = group.durable.then_some((group.last, group.last_lsn));
        self.group = None;
        if let Some(mark) = durable {
            self.synced(mark);
        }
    }

    /// A checkpoint of everything appended so far is about to be written: later records go to both
    /// areas. Returns the first LSN of the log behind it.
    pub(crate) fn begin_second(&mut self, area: Area, generation: Generation) -> Lsn {
        let first = Lsn(self.next.0 + self.pending.len() as u64);
        self.second = Some(LogArea { area, generation, first });
        self.covered = self.appended;
        first
    }

    /// The superblock that names the second area is durable: what its checkpoint covers is too.
    pub(crate) fn switch(&mut self) {
        let Some(second) = self.second.take() else { return };
        while self.pending.front().is_some_and(|block| block.last <= self.covered) {
            self.pending.pop_front();
        }
        self.active = second;
        self.next = self.next.max(second.first);
        self.written = self.written.max(self.covered);
        let before = Lsn(second.first.0 - 1);
        self.written_lsn = self.written_lsn.max(before);
        self.synced((self.covered, before));
    }
}
