//! Syncs (R29): one at a time for the whole pool, shared by everybody who waits for one.
//!
//! A sync covers what completed before it began, so a flush is answered by one that began after it
//! arrived; all that arrive while one runs share the next. A replica to which nothing was written
//! since the last good sync needs none.

use types::plant::{Bug, planted};
use wire::Reply;

use crate::api::{Output, SessionId};
use crate::layout::{Lsn, RecordSeq, ReplicaIndex};
use crate::op::{Io, OpKind};
use crate::slab::Key;
use crate::store::Store;

/// Who waits for a sync.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SyncWake {
    Op(Key),
    Settle,
    Checkpoint,
}

#[derive(Debug, Default)]
pub(crate) struct SyncState {
    /// Syncs begun since the pool was opened.
    started: u64,
    running: bool,
    /// Log records that the running one makes durable.
    covers: (RecordSeq, Lsn),
    /// Waiting for the next one to begin and end.
    next: Vec<SyncWake>,
    /// Waiting for the running one to end.
    current: Vec<SyncWake>,
}

impl SyncState {
    /// The number of the sync that covers what completes now.
    pub(crate) fn next(&self) -> u64 {
        self.started + 1
    }

    /// The number of the last sync that ended.
    fn ended(&self) -> u64 {
        self.started - u64::from(self.running)
    }

    /// Calls for a sync that begins after this.
    pub(crate) fn wait(&mut self, wake: SyncWake) {
        if self.running && planted(Bug::SyncSharesPast) {
            return self.current.push(wake);
        }
        self.next.push(wake);
    }
}

impl Store {
    pub(crate) fn flush(&mut self, id: SessionId, seq: u64, out: &mut Vec<Output>) {
        let index = self.sessions[&id].replica;
        // R9: a replica that lost its memory joins again after a flush. If nothing had to be copied to
        // it, this is where it becomes as good as one that was written under this boot.
        let returns = self.state.replicas[&index].in_use.is_some_and(|boot| boot != self.boot);
        if !returns && (!self.needs_sync(index) || planted(Bug::FlushWithoutSync)) {
            self.stats.flushes += 1;
            return self.reply(id, seq, Reply::Done, out);
        }
        let Some(key) = self.op(id, seq, OpKind::Flush) else { return };
        if returns {
            let record = self.mark_in_use(index);
            if let Some(op) = self.ops.get_mut(key) {
                op.record = record;
            }
        }
        self.when_synced(index, key, out);
    }

    /// Whether a replica has finished writes that no ended sync covers.
    pub(crate) fn needs_sync(&self, index: ReplicaIndex) -> bool {
        let needed = self.replicas.get(&index).map_or(0, |replica| replica.sync_needed);
        needed > self.sync.ended()
    }

    /// Continues a request after a sync, or at once if none is needed.
    pub(crate) fn when_synced(&mut self, index: ReplicaIndex, key: Key, out: &mut Vec<Output>) {
        if self.needs_sync(index) {
            self.sync.wait(SyncWake::Op(key));
        } else {
            self.advance(key, out);
        }
    }

    pub(crate) fn pump_sync(&mut self, out: &mut Vec<Output>) {
        let wanted = !self.sync.next.is_empty() || self.log.needs_sync() || self.alloc.needs_sync();
        if self.sync.running || !wanted {
            return;
        }
        self.sync.running = true;
        self.sync.started += 1;
        self.sync.covers = self.log.written_mark();
        self.sync.current = std::mem::take(&mut self.sync.next);
        self.alloc.sync_began();
        let id = self.io(Io::Sync);
        out.push(Output::Sync { id });
    }

    pub(crate) fn sync_ended(&mut self, out: &mut Vec<Output>) {
        self.sync.running = false;
        self.stats.syncs += 1;
        self.log.synced(self.sync.covers);
        self.alloc.sync_ended();
        for wake in std::mem::take(&mut self.sync.current) {
            match wake {
                SyncWake::Op(key) => self.advance(key, out),
                SyncWake::Settle => self.settle_synced(out),
                SyncWake::Checkpoint => self.checkpoint_synced(out),
            }
        }
        self.wake_log(out);
    }
}
