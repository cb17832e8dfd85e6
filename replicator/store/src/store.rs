//! The open pool: its parts, the step, and what follows every input.

use std::collections::{BTreeMap, VecDeque};

use types::plant::{Bug, planted};
use types::{BootId, EngineInstance, Epoch, Instant, LEASE, Process, ReplicaId};
use wire::{Reply, Role, WireError};

use crate::alloc::Alloc;
use crate::api::{Event, Input, IoId, Output, Place, PoolStats, ReplicaInfo, SessionId};
use crate::copy::{Copying, Piece};
use crate::disk::PoolDisk;
use crate::flush::SyncState;
use crate::layout::{RecordSeq, ReplicaIndex, Slot};
use crate::log::Log;
use crate::online::CheckpointStage;
use crate::op::{Io, Op, OpKind, Unreached, Waits, Wake};
use crate::record::Change;
use crate::recovery::{self, OpenOptions, Recovered};
use crate::seal_era::Settle;
use crate::session::SealWait;
use crate::slab::{Key, Slab};
use crate::state::{PoolState, ReplicaState};
use crate::sums::Sums;
use crate::superblock::Superblock;
use crate::{IoResult, OpenError};

/// Requests of one session that may wait or be in progress.
pub(crate) const MAX_SESSION_OPS: u32 = 4096;

/// Sessions at most.
pub(crate) const MAX_SESSIONS: usize = 4096;

/// A session that said an acceptable [`wire::Hello`].
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) replica: ReplicaIndex,
    pub(crate) epoch: Epoch,
    pub(crate) instance: EngineInstance,
    pub(crate) process: Process,
    pub(crate) role: Role,
    /// Its seal was acknowledged.
    pub(crate) sealed: bool,
    /// Its Close arrived.
    pub(crate) closing: bool,
    /// Requests not yet answered.
    pub(crate) ops: u32,
}

impl Session {
    pub(crate) fn as_holder(&self) -> LeaseHolder {
        LeaseHolder { epoch: self.epoch, instance: self.instance, process: self.process }
    }
}

/// An engine that was granted a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseHolder {
    pub(crate) epoch: Epoch,
    pub(crate) instance: EngineInstance,
    pub(crate) process: Process,
}

impl LeaseHolder {
    /// Whether a seal by `self` need not wait for the lease of `holder` (R3).
    pub(crate) fn frees(&self, holder: &Self) -> bool {
        let own = (self.epoch, self.instance) == (holder.epoch, holder.instance);
        own || self.process.succeeds(&holder.process)
    }
}

/// What is known of a replica in memory only.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    /// No write may be issued before this record is durable: the in-use mark (R9), or that a snapshot
    /// was dropped (R26).
    pub(crate) gate: RecordSeq,
    /// Regions whose tag record may not be durable yet (R17).
    pub(crate) undurable_tags: Unreached,
    /// Pieces whose map record may not be written yet: no write to them is acknowledged before.
    pub(crate) unwritten_maps: Unreached,
    /// The sync that covers every finished write: its number.
    pub(crate) sync_needed: u64,
    /// Writes, discards and zeroings that came, counted.
    pub(crate) mutations: u64,
    /// Requests that have submitted something to the disk, of open and closed sessions.
    pub(crate) submitted: u32,
    /// End of the lease granted by the last reply, and to whom (R3, R8). Nobody: not known, since
    /// it was granted before the pool was opened.
    pub(crate) lease_until: Instant,
    pub(crate) lease_holder: Option<LeaseHolder>,
    /// The seal in progress.
    pub(crate) seal: Option<SealWait>,
    /// Slots whose checksums differ from the table.
    pub(crate) unsettled: Vec<Slot>,
    /// Where recent writes ended, in bytes, to see sequential streams.
    pub(crate) streams: [u64; 4],
    pub(crate) next_stream: usize,
}

/// An open pool. Feed it [`Input`]s, do what its [`Output`]s say.
#[derive(Debug)]
pub struct Store {
    pub(crate) superblock: Superblock,
    pub(crate) boot: BootId,
    pub(crate) now: Instant,
    started: bool,
    pub(crate) state: PoolState,
    pub(crate) replicas: BTreeMap<ReplicaIndex, Replica>,
    pub(crate) by_id: BTreeMap<ReplicaId, ReplicaIndex>,
    pub(crate) next_index: u32,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) ops: Slab<Op>,
    pub(crate) ios: Slab<Io>,
    pub(crate) waits: Waits,
    pub(crate) log: Log,
    pub(crate) alloc: Alloc,
    pub(crate) copying: BTreeMap<Piece, Copying>,
    /// Writes that wait for ready slots, with how many they need.
    pub(crate) slot_waiters: VecDeque<(Key, u32)>,
    pub(crate) full_told: bool,
    pub(crate) zero_unsupported: bool,
    pub(crate) sums: Sums,
    pub(crate) sync: SyncState,
    pub(crate) settle: Settle,
    pub(crate) checkpoint: CheckpointStage,
    pub(crate) stats: PoolStats,
    /// Errno that failed the pool (R13).
    pub(crate) failed: Option<i32>,
}

/// Opens the pool on `disk` and recovers its state.
///
/// # Errors
/// The device is not the intact pool that `options` name; see [`OpenError`].
pub fn open(disk: &mut dyn PoolDisk, options: &OpenOptions) -> Result<Store, OpenError> {
    let Recovered { superblock, state, next_lsn, sums, unsettled } =
        recovery::recover(disk, options)?;
    let layout = superblock.layout;
    let mut replicas: BTreeMap<_, Replica> =
        state.replicas.keys().map(|index| (*index, Replica::default())).collect();
    let mut owners = vec![None; layout.slots as usize];
    for (index, replica) in &state.replicas {
        for (_, slot, _) in replica.versions.slots() {
            owners[slot.0 as usize] = Some(*index);
        }
    }
    for slot in unsettled {
        if let Some(replica) = owners[slot.0 as usize].and_then(|index| replicas.get_mut(&index)) {
            replica.unsettled.push(slot);
        }
    }
    Ok(Store {
        boot: options.boot,
        now: Instant::default(),
        started: false,
        by_id: state.replicas.iter().map(|(index, state)| (state.replica, *index)).collect(),
        next_index: state.replicas.keys().next_back().map_or(0, |index| index.0 + 1),
        replicas,
        sessions: BTreeMap::new(),
        ops: Slab::default(),
        ios: Slab::default(),
        waits: Waits::default(),
        log: Log::new(layout, superblock.area, superblock.generation, next_lsn),
        alloc: Alloc::new(&layout, |slot| state.is_used(slot)),
        copying: BTreeMap::new(),
        slot_waiters: VecDeque::new(),
        full_told: false,
        zero_unsupported: false,
        sums,
        sync: SyncState::default(),
        settle: Settle::default(),
        checkpoint: CheckpointStage::Idle,
        stats: PoolStats::default(),
        failed: (superblock.failed != 0).then_some(superblock.failed),
        superblock,
        state,
    })
}

impl Store {
    /// Takes one input and appends what has to be done to `out`. `now` never goes back.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        self.now = self.now.max(now);
        if !self.started {
            self.started = true;
            // The replies before the restart granted leases that may still run (R3).
            for (index, replica) in &mut self.replicas {
                let state = &self.state.replicas[index];
                if state.sealed > Epoch(0) {
                    replica.lease_until = now.after(LEASE);
                    let (epoch, instance) = (state.sealed, state.instance);
                    replica.lease_holder =
                        state.leased.map(|process| LeaseHolder { epoch, instance, process });
                }
            }
        }
        match input {
            Input::Open { session, hello } => self.open_session(session, &hello, out),
            Input::Request { session, seq, request } => self.request(session, seq, request, out),
            Input::Disconnected { session } => self.drop_session(session),
            Input::Io { id, result } => self.io_ended(Key(id.0), result, out),
            Input::Admin { op, admin } => self.admin(op, admin, out),
            Input::Tick => self.tick(out),
        }
        self.pump(out);
    }

    /// What follows every input; the order puts records of this step into one group.
    fn pump(&mut self, out: &mut Vec<Output>) {
        if self.failed.is_some() {
            return;
        }
        self.pump_slots(out);
        self.pump_settle(out);
        self.pump_checkpoint(out);
        self.pump_log(out);
        self.pump_sync(out);
    }

    fn pump_log(&mut self, out: &mut Vec<Output>) {
        let Some(writes) = self.log.compose() else { return };
        self.stats.log_blocks += writes.blocks;
        for (offset, data) in writes.to.into_iter().flatten() {
            let id = self.io(Io::Log);
            out.push(Output::Write { id, offset, data, durable: writes.durable });
        }
    }

    /// Changes durable state: in memory now, on the disk by a record.
    pub(crate) fn commit(&mut self, index: ReplicaIndex, change: &Change) -> RecordSeq {
        let mut freed = Vec::new();
        let applied = self.state.apply(index, change, &mut freed);
        // Recovery would refuse such a log: better to stop here.
        assert_eq!(applied, Ok(()), "{index:?} {change:?}");
        let record = self.log.append(index, change);
        if !freed.is_empty() {
            self.alloc.releasing_more(freed.len());
            if planted(Bug::ReuseBeforeUnmapped) {
                for slot in freed.drain(..) {
                    self.sums.free(slot);
                    self.alloc.release(slot);
                }
            }
            self.waits.durable.entry(record).or_default().push(Wake::Release(freed));
        }
        record
    }

    /// Registers a disk operation.
    pub(crate) fn io(&mut self, io: Io) -> IoId {
        IoId(self.ios.insert(io).0)
    }

    fn io_ended(&mut self, key: Key, result: IoResult, out: &mut Vec<Output>) {
        let Some(io) = self.ios.remove(key) else { return };
        let (done, buf) = match result {
            IoResult::Read(Ok(buf)) => (Ok(()), Some(buf)),
            IoResult::Read(Err(errno)) => (Err(errno), None),
            IoResult::Done(done) => (done, None),
        };
        match io {
            Io::Write { op, offset, data, crc } => {
                self.write_ended(op, offset, &data, crc, done, out);
            }
            Io::Read { op, at, offset, len, began } => {
                self.unpin(offset, len);
                self.read_ended(op, at, offset, (len, began), done.map(|()| buf), out);
            }
            Io::Hash { op, block, offset, len, began } => {
                self.unpin(offset, len);
                self.hash_ended(op, block, offset, (len, began), done.map(|()| buf), out);
            }
            Io::CopyRead { piece } => self.copy_read(piece, done.map(|()| buf), out),
            Io::CopyWrite { piece } => self.copy_written(piece, done, out),
            _ if self.failed.is_some() => {}
            Io::Sync if done.is_err() && planted(Bug::RetrySync) => {
                let id = self.io(Io::Sync);
                out.push(Output::Sync { id });
            }
            Io::Zero { first, count, by_write } => self.zero_ended(first, count, by_write, done),
            Io::Log | Io::Sync | Io::Page | Io::Checkpoint | Io::Superblock if done.is_err() => {
                self.fail_pool(done.err().unwrap_or_default(), out);
            }
            Io::Log => {
                self.log.group_written();
                self.wake_log(out);
            }
            Io::Sync => self.sync_ended(out),
            Io::Page => self.settle.page_written(),
            Io::Checkpoint => self.checkpoint_written(),
            Io::Superblock => self.superblock_written(out),
        }
    }

    /// Lets go on what waited for records.
    pub(crate) fn wake_log(&mut self, out: &mut Vec<Output>) {
        while let Some(wake) = self.waits.next(self.log.written(), self.log.durable()) {
            match wake {
                Wake::Op(key) => self.advance(key, out),
                Wake::Admin(op) => out.push(Output::AdminDone { op, result: Ok(()) }),
                Wake::Seal(index) => self.try_seal(index, out),
                Wake::Release(slots) => {
                    self.full_told = false;
                    for slot in slots {
                        // Not before: if the record were lost the owner would be back, and needs them.
                        self.sums.free(slot);
                        self.alloc.release(slot);
                    }
                }
            }
        }
    }

    /// Waits until `record` is durable, and asks for that.
    pub(crate) fn when_durable(&mut self, record: RecordSeq, wake: Wake) {
        self.log.want(record);
        self.waits.durable.entry(record).or_default().push(wake);
    }

    /// Continues a request after something that it waited for.
    pub(crate) fn advance(&mut self, key: Key, out: &mut Vec<Output>) {
        let Some(op) = self.ops.get(key) else { return };
        match op.kind {
            OpKind::Write { .. } if !op.submitted => self.start_write(key, out),
            OpKind::Zeroes { .. } if !op.submitted => self.start_zeroes(key, out),
            OpKind::Write { .. } | OpKind::Zeroes { .. } => {
                if op.io == 0 && self.log.written() >= op.record {
                    self.finish(key, Reply::Done, out);
                }
            }
            OpKind::Mark { .. } => self.start_mark(key, out),
            OpKind::Read { .. } => self.finish_read(key, out),
            OpKind::Hash { .. } => self.continue_hash(key, out),
            OpKind::Flush if op.record > self.log.durable() => {
                let record = op.record;
                self.when_durable(record, Wake::Op(key));
            }
            OpKind::Flush => {
                self.stats.flushes += 1;
                self.finish(key, Reply::Done, out);
            }
            OpKind::SealEra { .. } => self.finish_seal_era(key, out),
            OpKind::Snapshot { .. } => self.finish_snapshot(key, out),
            OpKind::Close => self.continue_close(key, out),
        }
    }

    /// Marks a request as having submitted something: from here a seal waits for its end (R3).
    pub(crate) fn submitted(&mut self, key: Key) {
        if let Some(op) = self.ops.get_mut(key).filter(|op| !op.submitted) {
            op.submitted = true;
            if let Some(replica) = self.replicas.get_mut(&op.replica) {
                replica.submitted += 1;
            }
        }
    }

    /// Ends a request: `reply`, or the error that it met on its way.
    pub(crate) fn finish(&mut self, key: Key, reply: Reply, out: &mut Vec<Output>) {
        let Some(op) = self.ops.remove(key) else { return };
        let writes = op.kind.mutates();
        if let Some(replica) = self.replicas.get_mut(&op.replica).filter(|_| op.submitted) {
            replica.submitted -= 1;
            if writes {
                replica.sync_needed = self.sync.next();
            }
        }
        // A failed replica acknowledges nothing any more, whatever its disk says of single writes.
        let failed = self.state.replicas.get(&op.replica).and_then(|state| state.failed);
        let error = op.error.or(failed.map(|errno| WireError::Disk { errno }));
        let reply = error.map_or(reply, Reply::Failed);
        if let Some(session) = self.sessions.get_mut(&op.session) {
            session.ops -= 1;
            self.reply(op.session, op.seq, reply, out);
        }
        self.try_seal(op.replica, out);
    }

    /// Sends a reply, which renews the lease of the session (R8).
    pub(crate) fn reply(&mut self, id: SessionId, seq: u64, reply: Reply, out: &mut Vec<Output>) {
        let Some(session) = self.sessions.get(&id) else { return };
        if session.sealed
            && session.role == Role::Engine
            && let Some(replica) = self.replicas.get_mut(&session.replica)
        {
            replica.lease_until = self.now.after(LEASE);
            replica.lease_holder = Some(session.as_holder());
        }
        out.push(Output::Reply { session: id, seq, reply });
    }

    /// Refuses a request as malformed.
    pub(crate) fn invalid(
        &mut self,
        session: SessionId,
        seq: u64,
        reason: &str,
        out: &mut Vec<Output>,
    ) {
        let reason = reason.to_owned();
        self.reply(session, seq, Reply::Failed(WireError::Invalid { reason }), out);
    }

    /// I/O on a range of slots ended.
    pub(crate) fn unpin(&mut self, offset: u64, len: u64) {
        let layout = &self.state.layout;
        let (first, last) = (layout.slot_at(offset).0, layout.slot_at(offset + len - 1).0);
        self.alloc.unpin(first, last);
    }

    /// I/O on a range of slots begins.
    pub(crate) fn pin(&mut self, offset: u64, len: u64) {
        let layout = &self.state.layout;
        let (first, last) = (layout.slot_at(offset).0, layout.slot_at(offset + len - 1).0);
        self.alloc.pin(first, last);
    }

    pub(crate) fn event(&self, event: Event, out: &mut Vec<Output>) {
        out.push(Output::Event(event));
    }

    /// The replicas in this pool, by id.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaInfo> {
        self.by_id
            .values()
            .filter_map(|index| self.state.replicas.get(index))
            .map(|replica| ReplicaInfo {
                volume: replica.volume,
                replica: replica.replica,
                incarnation: replica.incarnation,
                size: replica.size,
                allocated: replica.occupied() * self.state.layout.slot_size,
                sealed: replica.sealed,
                last_sealed: replica.last_sealed,
                clean: replica.in_use.is_none(),
                failed: self.failure(replica).map(failure_text),
                snapshots: replica.versions.snapshots().iter().map(|s| s.snapshot).collect(),
                retired: replica.retired,
            })
            .collect()
    }

    /// The tag of a region of a replica (R17); nothing if there is no such replica. For checkers.
    #[must_use]
    pub fn tag(&self, replica: ReplicaId, region: u32) -> Option<types::Tag> {
        let state = self.state.replicas.get(self.by_id.get(&replica)?)?;
        Some(state.tag(crate::layout::Region(region)))
    }

    /// Where a block of a replica, or of a snapshot of it, lies in the pool: `None` if there is no such block here,
    /// `Some(None)` if it has no slot and reads as zeros. For checkers that look at disks.
    #[must_use]
    pub fn locate(
        &self,
        replica: ReplicaId,
        snapshot: Option<types::SnapshotId>,
        offset: u64,
    ) -> Option<Option<Place>> {
        let index = *self.by_id.get(&replica)?;
        let state = self.state.replicas.get(&index)?;
        let (version, size) = match snapshot {
            None => (None, state.size),
            Some(snapshot) => {
                let found = self.find_snapshot(index, snapshot)?;
                (Some(found.version), found.size)
            }
        };
        if offset >= size {
            return None;
        }
        let vslot = self.state.layout.vslot_at(offset).0;
        let settled =
            version.is_some() || state.tag(self.state.layout.region_of(vslot)) <= state.last_sealed;
        let place = self
            .extent(index, version, offset, types::BLOCK)
            .map(|(offset, _)| Place { offset, verified: settled && self.verifies(offset) });
        Some(place)
    }

    /// Whether the checksum of the block at this pool offset is known.
    #[must_use]
    pub fn verifies(&self, offset: u64) -> bool {
        self.sums.knows(offset)
    }

    /// The errno that failed a replica or its pool.
    pub(crate) fn failure(&self, replica: &ReplicaState) -> Option<i32> {
        self.failed.or(replica.failed)
    }

    /// The pool's numbers.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let layout = &self.state.layout;
        PoolStats {
            pool: self.superblock.pool,
            capacity: u64::from(layout.slots) * layout.slot_size,
            free: u64::from(self.alloc.free()) * layout.slot_size,
            slot_size: layout.slot_size,
            ready_slots: self.alloc.ready().into(),
            retired_slots: self.alloc.retired().into(),
            provisioned: self.state.replicas.values().map(|replica| replica.size).sum(),
            failed: self.failed.is_some(),
            ..self.stats
        }
    }
}

/// A permanent failure in words (R13).
pub(crate) fn failure_text(errno: i32) -> String {
    format!("a write or sync failed with errno {errno}")
}
