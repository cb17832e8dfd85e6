//! Random work on an open pool: writes, discards, flushes, eras, seals, closes, snapshots, volumes that
//! come, grow and go; every disk operation completes when chance says so. After every step of the store
//! power is cut (see [`crate::run`]).

use std::collections::BTreeMap;

use kit::Rng;
use kit::content::{BLOCK, SECTORS, block_bytes};
use kit::ids::{boot, hello, incarnation, replica, volume};
use store::{Admin, Input, IoId, IoResult, OpenError, OpenOptions, Output, SessionId, Store};
use types::{Buf, BufMut, Epoch, Era, Instant, REGION, SnapshotId, Tag, crc32c};
use wire::{Reply, Request, Role, WireError};

use crate::disk::Disk;
use crate::model::{Life, Model, Volume};

/// Volumes at a time.
const VOLUMES: usize = 3;
/// The device cannot zero a range by itself.
const EOPNOTSUPP: i32 = 95;

#[derive(Debug)]
pub(crate) enum Pending {
    Seal,
    Write { first: usize, count: usize, id: u64 },
    Flush { last: Vec<u64>, seal: Option<Tag>, close: bool },
    Read,
    Mark { region: u32, tag: Tag },
    Snapshot { id: SnapshotId, last: Vec<u64>, given_up: bool },
}

#[derive(Clone, Copy, Debug)]
enum DiskOp {
    Read { offset: u64, len: u32 },
    Write { write: u64, durable: bool },
    Sync { mark: u64 },
    Refused,
}

/// How a seed likes to work.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// The device cannot zero ranges.
    pub no_zero: bool,
    /// Prefers eras (1), neither flushes nor eras (2), or what fills the log (3).
    pub likes: u64,
    /// Completes this many operations per action at most.
    pub haste: u64,
}

/// A store at work.
pub struct Work {
    /// Its disk.
    pub disk: Disk,
    /// What it may hold.
    pub model: Model,
    /// Where chance comes from.
    pub rng: Rng,
    taste: Taste,
    store: Store,
    now: Instant,
    in_flight: Vec<(IoId, DiskOp)>,
    pending: BTreeMap<(SessionId, u64), (u8, Pending)>,
    admin: BTreeMap<u64, (u8, Option<usize>)>,
    drops: BTreeMap<u64, (u8, SnapshotId)>,
    next: u64,
    next_volume: u8,
}

impl Work {
    /// A store on an opened pool.
    #[must_use]
    pub fn new(disk: Disk, store: Store, model: Model, rng: Rng, taste: Taste) -> Self {
        let next_volume = model.volumes.iter().map(|volume| volume.n).max().unwrap_or(0);
        Self {
            disk,
            model,
            rng,
            taste,
            store,
            now: Instant(1),
            in_flight: Vec::new(),
            pending: BTreeMap::new(),
            admin: BTreeMap::new(),
            drops: BTreeMap::new(),
            next: 1,
            next_volume,
        }
    }

    /// What opening needs.
    #[must_use]
    pub const fn options(n: u8) -> OpenOptions {
        OpenOptions {
            cluster: kit::ids::CLUSTER,
            expected_pool: Some(kit::ids::POOL),
            boot: boot(n),
        }
    }

    /// The process dies and another one opens the pool.
    ///
    /// # Errors
    /// It cannot be opened any more.
    pub fn restart(
        &mut self,
        open: impl FnOnce(&mut Disk, &Model) -> Result<Store, OpenError>,
    ) -> Result<(), OpenError> {
        self.disk.complete_all();
        self.in_flight.clear();
        self.pending.clear();
        self.admin.clear();
        self.drops.clear();
        self.model.killed();
        self.store = open(&mut self.disk, &self.model)?;
        self.now = Instant(1);
        // What became of volumes that were being made or deleted shows.
        let there = self.store.replicas();
        for volume in &mut self.model.volumes {
            let found = there.iter().find(|info| info.replica == replica(volume.n));
            volume.life = if found.is_some() { Life::Live } else { Life::Gone };
            if let Some(found) = found {
                volume.size = (found.size / BLOCK) as usize;
                volume.blocks.truncate(volume.size);
                volume.sealed_epoch = found.sealed.0;
                volume.sealed_for_sure = found.last_sealed;
                volume.keep_snapshots(&found.snapshots);
            }
        }
        Ok(())
    }

    /// Checkpoints that the store made since it was opened.
    #[must_use]
    pub fn checkpoints(&self) -> u64 {
        self.store.stats().checkpoints
    }

    fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn step(&mut self, input: Input, cut: &mut dyn FnMut(&Disk, &Model)) {
        let mut out = Vec::new();
        self.store.step(self.now, input, &mut out);
        let mut changed = false;
        for output in out {
            let (id, op) = match output {
                Output::Reply { session, seq, reply } => {
                    changed = true;
                    self.replied(session, seq, reply);
                    continue;
                }
                Output::AdminDone { op, result } => {
                    assert_eq!(result, Ok(()));
                    changed = true;
                    self.administered(op);
                    continue;
                }
                Output::Read { id, offset, len } => (id, DiskOp::Read { offset, len }),
                Output::Write { id, offset, data, durable } => {
                    changed = true;
                    let write = self.disk.submit(offset, data.len() as u64, Some(&data));
                    (id, DiskOp::Write { write, durable })
                }
                Output::Zero { id, offset, .. } if self.taste.no_zero => {
                    self.disk.data_begins(offset);
                    (id, DiskOp::Refused)
                }
                Output::Zero { id, offset, len } => {
                    changed = true;
                    self.disk.data_begins(offset);
                    let write = self.disk.submit(offset, len, None);
                    (id, DiskOp::Write { write, durable: false })
                }
                Output::Sync { id } => (id, DiskOp::Sync { mark: self.disk.mark() }),
                _ => continue,
            };
            self.in_flight.push((id, op));
        }
        if changed {
            cut(&self.disk, &self.model);
        }
    }

    fn complete(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let (id, op) = self.in_flight.remove(at);
        let result = match op {
            DiskOp::Read { offset, len } => IoResult::Read(Ok(self.disk.read(offset, len.into()))),
            DiskOp::Write { write, durable } => {
                self.disk.complete(write, durable);
                IoResult::Done(Ok(()))
            }
            DiskOp::Sync { mark } => {
                self.disk.synced(mark);
                // Before anybody hears of it.
                cut(&self.disk, &self.model);
                IoResult::Done(Ok(()))
            }
            DiskOp::Refused => IoResult::Done(Err(EOPNOTSUPP)),
        };
        self.step(Input::Io { id, result }, cut);
    }

    /// The number of an operation that drops a snapshot.
    pub(crate) fn dropping(&mut self, n: u8, snapshot: SnapshotId) -> u64 {
        let op = self.unique();
        self.drops.insert(op, (n, snapshot));
        op
    }

    fn administered(&mut self, op: u64) {
        if let Some((n, snapshot)) = self.drops.remove(&op) {
            return self.model.volume(n).snapshot_dropped(snapshot);
        }
        let Some((n, size)) = self.admin.remove(&op) else { panic!("{op} was not asked for") };
        let volume = self.model.volume(n);
        match (volume.life, size) {
            (Life::Creating, None) => volume.life = Life::Live,
            (Life::Deleting, None) => volume.life = Life::Gone,
            (_, Some(size)) => volume.size = size,
            other => panic!("{other:?}"),
        }
    }

    fn replied(&mut self, session: SessionId, seq: u64, reply: Reply) {
        let Some((n, pending)) = self.pending.remove(&(session, seq)) else { return };
        let volume = self.model.volume(n);
        match (pending, reply) {
            (Pending::Seal, Reply::Sealed(info)) => {
                volume.session = Some(session);
                volume.sealed_epoch = info.epoch.0;
            }
            (Pending::Write { first, count, id }, reply) => {
                for block in &mut volume.blocks[first..first + count] {
                    block.busy = false;
                    let at = block.later.iter().rposition(|(of, ..)| *of == id);
                    match (&reply, at) {
                        (Reply::Done, Some(at)) => {
                            block.later[at].2 = true;
                            volume.surely_used |= block.later[at].1 != 0;
                        }
                        (Reply::Failed(WireError::NoSpace), Some(at)) => {
                            block.later.remove(at);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            (Pending::Flush { last, seal, close }, Reply::Done) => {
                for (block, last) in volume.blocks.iter_mut().zip(last) {
                    block.flush(last);
                }
                if let Some(tag) = seal {
                    volume.sealed_for_sure = volume.sealed_for_sure.max(tag);
                }
                if close {
                    (volume.maybe_used, volume.surely_used) = (false, false);
                    volume.session = None;
                }
            }
            (Pending::Read, Reply::Data { .. }) => {}
            (Pending::Mark { region, tag }, Reply::Done) => volume.marked(region, tag),
            (
                Pending::Snapshot { id, given_up: true, .. },
                Reply::Failed(WireError::Invalid { .. }),
            ) => volume.snapshot_dropped(id),
            (Pending::Snapshot { id, last, .. }, Reply::Done) => {
                for (block, last) in volume.blocks.iter_mut().zip(last) {
                    block.flush(last);
                }
                volume.snapshot_made(id);
            }
            (pending, reply) => panic!("volume {n}: {pending:?} was answered with {reply:?}"),
        }
    }

    pub(crate) fn send(
        &mut self,
        at: usize,
        request: Request,
        pending: Pending,
        cut: &mut dyn FnMut(&Disk, &Model),
    ) {
        let volume = &self.model.volumes[at];
        let Some(session) = volume.session else { return };
        let n = volume.n;
        let seq = self.unique();
        self.pending.insert((session, seq), (n, pending));
        self.step(Input::Request { session, seq, request }, cut);
    }

    fn forget(&mut self, n: u8) {
        self.pending.retain(|_, (of, _)| *of != n);
        let volume = self.model.volume(n);
        volume.session = None;
        volume.snapshotting = false;
        for block in &mut volume.blocks {
            block.busy = false;
        }
    }

    /// One action, and some completions.
    pub fn act(&mut self, cut: &mut dyn FnMut(&Disk, &Model)) {
        self.choose(cut);
        for _ in 0..self.rng.below(self.taste.haste + 1) {
            if !self.in_flight.is_empty() {
                // Some stay behind for long while younger ones overtake them.
                let all = self.in_flight.len();
                let of = if self.rng.one_in(3) { all } else { all.min(4) };
                let at = all - 1 - self.rng.index(of);
                self.complete(at, cut);
            }
        }
    }

    /// Ends all work and attaches what is there; seals an era of everything if `seal`.
    pub fn quiesce(&mut self, seal: bool) {
        let cut: &mut dyn FnMut(&Disk, &Model) = &mut |_, _| {};
        for _ in 0..64 {
            while !self.in_flight.is_empty() {
                self.complete(0, cut);
            }
            self.pass(cut);
            let idle = self.pending.is_empty() && self.in_flight.is_empty();
            let volumes = &self.model.volumes;
            let lonely = (0..volumes.len())
                .find(|at| volumes[*at].life == Life::Live && volumes[*at].session.is_none());
            match lonely {
                Some(at) if idle => self.attach(at, cut),
                None if idle => break,
                _ => {}
            }
        }
        for at in 0..self.model.volumes.len() {
            if seal && self.model.volumes[at].life == Life::Live {
                self.seal_era(at, cut);
            }
        }
        while !self.in_flight.is_empty() {
            self.complete(0, cut);
        }
    }

    /// A request that nothing will ever answer, if there is one.
    #[must_use]
    pub fn stuck(&self) -> Option<String> {
        if !self.in_flight.is_empty() {
            return None;
        }
        // A seal may wait for a lease: time will tell.
        let waits = self.pending.values().find(|(_, what)| !matches!(what, Pending::Seal));
        let administered = self.admin.values().next().map(|(n, _)| format!("volume {n} hangs"));
        waits.map(|(n, what)| format!("volume {n}: {what:?} hangs")).or(administered)
    }

    fn choose(&mut self, cut: &mut dyn FnMut(&Disk, &Model)) {
        let volumes = &self.model.volumes;
        let live: Vec<usize> =
            (0..volumes.len()).filter(|at| volumes[*at].life == Life::Live).collect();
        let count = volumes.iter().filter(|volume| volume.life != Life::Gone).count();
        if count < VOLUMES && (live.is_empty() || self.rng.one_in(40)) {
            return self.create(cut);
        }
        if live.is_empty() {
            return;
        }
        let at = live[self.rng.index(live.len())];
        let volume = &self.model.volumes[at];
        let n = volume.n;
        if volume.session.is_none() {
            let waits = |what: &Pending| match what {
                Pending::Seal => true,
                Pending::Flush { close, .. } => *close,
                _ => false,
            };
            let waits = self.pending.values().any(|(of, what)| *of == n && waits(what));
            let patient = waits && !self.rng.one_in(12);
            return if patient { self.pass(cut) } else { self.attach(at, cut) };
        }
        let dice = self.rng.below(100);
        // Seeds differ in what they like: most of all, eras, or neither flushes nor eras.
        let dice = match self.taste.likes {
            1 if (54..62).contains(&dice) => 84,
            2 if (62..92).contains(&dice) => 30,
            3 if dice < 40 => 80 + dice % 20,
            _ => dice,
        };
        match dice {
            0..44 => self.write(at, cut),
            44..52 => self.zero(at, cut),
            52..54 => self.mark(at, cut),
            54..56 => self.read(at, cut),
            56..80 => {
                let last = self.model.volumes[at].acked();
                let pending = Pending::Flush { last, seal: None, close: false };
                self.send(at, Request::Flush, pending, cut);
            }
            80..90 => self.seal_era(at, cut),
            90..92 => self.close(at, cut),
            92 => {
                if let Some(session) = self.model.volumes[at].session {
                    self.forget(n);
                    self.step(Input::Disconnected { session }, cut);
                }
            }
            93..95 => self.attach(at, cut),
            95 => self.resize(at, cut),
            96 if self.rng.one_in(2) => self.delete(at, cut),
            97 | 98 => self.snapshot(at, cut),
            99 => self.drop_snapshot(at, cut),
            _ => {}
        }
    }

    fn pass(&mut self, cut: &mut dyn FnMut(&Disk, &Model)) {
        self.now = self.now.after(std::time::Duration::from_millis(700));
        self.step(Input::Tick, cut);
    }

    fn create(&mut self, cut: &mut dyn FnMut(&Disk, &Model)) {
        if self.next_volume > 100 {
            return;
        }
        self.next_volume += 1;
        let n = self.next_volume;
        // Not a multiple of anything.
        let blocks = 270 + self.rng.index(230);
        let op = self.unique();
        let admin = Admin::CreateReplica {
            volume: volume(n),
            replica: replica(n),
            incarnation: incarnation(n),
            size: blocks as u64 * BLOCK,
        };
        let made = Volume::new(n, blocks, &mut self.rng);
        self.model.volumes.push(made);
        self.admin.insert(op, (n, None));
        self.step(Input::Admin { op, admin }, cut);
    }

    fn delete(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let n = self.model.volumes[at].n;
        if self.admin.values().any(|(of, _)| *of == n) {
            return;
        }
        let op = self.unique();
        self.forget(n);
        self.model.volumes[at].life = Life::Deleting;
        self.admin.insert(op, (n, None));
        let admin = Admin::DeleteReplica { replica: replica(n) };
        self.step(Input::Admin { op, admin }, cut);
    }

    fn resize(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let volume = &mut self.model.volumes[at];
        let n = volume.n;
        if volume.blocks.len() > volume.size {
            return;
        }
        let size = volume.size + 1 + self.rng.index(60);
        if size > 700 {
            return;
        }
        volume.blocks.resize_with(size, Default::default);
        let op = self.unique();
        self.admin.insert(op, (n, Some(size)));
        let admin = Admin::ResizeReplica { replica: replica(n), size: size as u64 * BLOCK };
        self.step(Input::Admin { op, admin }, cut);
    }

    fn attach(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let n = self.model.volumes[at].n;
        self.forget(n);
        self.model.volumes[at].epoch += 1;
        self.model.volumes[at].era = 1;
        let session = SessionId(self.unique());
        let hello = hello(n, self.model.volumes[at].epoch, Role::Engine);
        self.step(Input::Open { session, hello }, cut);
        let seq = self.unique();
        self.pending.insert((session, seq), (n, Pending::Seal));
        self.step(Input::Request { session, seq, request: Request::Seal }, cut);
    }

    /// A range of blocks that nothing writes to at present.
    fn range(&mut self, at: usize, longest: usize, anywhere: bool) -> Option<(usize, usize)> {
        let volume = &self.model.volumes[at];
        if volume.snapshotting {
            return None;
        }
        let within = if anywhere {
            0..volume.size
        } else {
            volume.windows[self.rng.index(volume.windows.len())].clone()
        };
        let count = 1 + self.rng.index(longest.min(within.len()));
        let first = within.start + self.rng.index(within.len() - count + 1);
        let free = volume.blocks[first..first + count].iter().all(|block| !block.busy);
        free.then_some((first, count))
    }

    fn begin(&mut self, at: usize, first: usize, count: usize, zero: bool) -> (u64, Era) {
        let volume = &self.model.volumes[at];
        let era = Era(volume.era);
        let id = self.model.number(Tag { epoch: Epoch(volume.epoch), era });
        let volume = &mut self.model.volumes[at];
        volume.maybe_used = true;
        for block in &mut volume.blocks[first..first + count] {
            block.busy = true;
            block.later.push((id, if zero { 0 } else { id }, false));
        }
        (id, era)
    }

    fn write(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let (longest, anywhere) = if self.rng.one_in(12) { (200, true) } else { (4, false) };
        let Some((first, count)) = self.range(at, longest, anywhere) else { return };
        let (id, era) = self.begin(at, first, count, false);
        let n = self.model.volumes[at].n;
        let mut data = BufMut::with_len(count * BLOCK as usize);
        let blocks = data.as_mut_slice().chunks_exact_mut(BLOCK as usize);
        for (out, block) in blocks.zip(first as u64..) {
            out.copy_from_slice(&block_bytes(n, block, &[id; SECTORS]));
        }
        let data: Buf = data.freeze();
        let crc = crc32c(data.as_slice());
        let request = Request::Write { offset: first as u64 * BLOCK, data, crc, era };
        self.send(at, request, Pending::Write { first, count, id }, cut);
    }

    fn zero(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let (longest, anywhere) = if self.rng.one_in(3) { (700, true) } else { (6, false) };
        let Some((first, count)) = self.range(at, longest, anywhere) else { return };
        let (id, era) = self.begin(at, first, count, true);
        let (offset, len) = (first as u64 * BLOCK, count as u64 * BLOCK);
        let request = if self.rng.one_in(2) {
            Request::Discard { offset, len, era }
        } else {
            Request::WriteZeroes { offset, len, era }
        };
        self.send(at, request, Pending::Write { first, count, id }, cut);
    }

    /// As a resync does with what it found to be equal.
    fn mark(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let volume = &self.model.volumes[at];
        let region = self.rng.below((volume.size as u64 * BLOCK).div_ceil(REGION)) as u32;
        let tag = Tag { epoch: Epoch(volume.epoch), era: Era(volume.era) };
        let offset = u64::from(region) * REGION;
        let request = Request::Mark { offset, len: BLOCK, era: tag.era };
        self.send(at, request, Pending::Mark { region, tag }, cut);
    }

    fn read(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let first = self.rng.index(self.model.volumes[at].size - 8) as u64;
        let request = Request::Read { offset: first * BLOCK, len: 8 * BLOCK as u32 };
        self.send(at, request, Pending::Read, cut);
    }

    fn seal_era(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let volume = &mut self.model.volumes[at];
        if volume.busy() {
            return;
        }
        let tag = Tag { epoch: Epoch(volume.epoch), era: Era(volume.era) };
        volume.sealed.insert(tag, volume.present());
        volume.era += 1;
        let last = volume.acked();
        let pending = Pending::Flush { last, seal: Some(tag), close: false };
        self.send(at, Request::SealEra { era: tag.era }, pending, cut);
    }

    fn close(&mut self, at: usize, cut: &mut dyn FnMut(&Disk, &Model)) {
        let n = self.model.volumes[at].n;
        while self.pending.values().any(|(of, _)| *of == n) && !self.in_flight.is_empty() {
            let at = self.rng.index(self.in_flight.len());
            self.complete(at, cut);
        }
        let volume = &mut self.model.volumes[at];
        if self.pending.values().any(|(of, _)| *of == n) {
            return;
        }
        let last = volume.acked();
        volume.surely_used = false;
        let pending = Pending::Flush { last, seal: None, close: true };
        let Some(session) = volume.session.take() else { return };
        let seq = self.unique();
        self.pending.insert((session, seq), (n, pending));
        self.step(Input::Request { session, seq, request: Request::Close { clean: true } }, cut);
    }
}
