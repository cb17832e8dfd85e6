//! Engines, replicas, links and Raft on one fake clock. Messages of a link keep their order; disks
//! complete in any order.

use super::history::History;
use super::replica::{Cell, Held, Replica, SessionKey, payload, value_at};
use super::rng::Rng;
use crate::{
    CompareResult, Engine, EngineConfig, Input, IsrAnswer, IsrChange, IsrView, LinkId, MemberSpec,
    Output, SnapshotError, SnapshotTaken,
};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use types::{
    BLOCK, BlockOp, BlockResult, Buf, BufMut, ClusterId, EngineInstance, Epoch, Incarnation,
    Instant, IoId, IsrVersion, NodeId, Process, ReplicaId, SnapshotId, VolumeId,
};
use wire::{Hello, Reply, Request};

pub(super) const SIZE: u64 = (2 << 20) + (192 << 10);

pub(super) fn replica_id(index: usize) -> ReplicaId {
    ReplicaId::from_bytes((index as u128 + 1).to_be_bytes())
}

pub(super) fn index_of(replica: ReplicaId) -> usize {
    u128::from_be_bytes(*replica.as_bytes()) as usize - 1
}

#[derive(Debug)]
pub(super) enum Event {
    Hello {
        key: SessionKey,
        hello: Hello,
    },
    Request {
        key: SessionKey,
        seq: u64,
        request: Request,
    },
    Reply {
        key: SessionKey,
        seq: u64,
        reply: Reply,
    },
    /// The replica learns that the engine closed the link.
    Closed {
        key: SessionKey,
    },
    /// The engine learns that the link broke.
    Broken {
        key: SessionKey,
    },
    Disk {
        replica: usize,
        process: u64,
        key: SessionKey,
        seq: u64,
        request: Request,
        was: BTreeMap<u64, Cell>,
    },
    CheckSeals {
        replica: usize,
    },
    Commit {
        slot: usize,
        ticket: u64,
        version: IsrVersion,
        change: IsrChange,
    },
    CommitActivate {
        slot: usize,
        isr: Vec<ReplicaId>,
    },
    Tell {
        slot: usize,
        input: Input,
    },
}

/// What Raft does with proposals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RaftMode {
    Normal,
    /// Nothing is applied; the answer is "unknown".
    Lost,
    /// Applied, but the answer is "unknown".
    Unknown,
    /// Nothing comes back.
    Silent,
    /// Nothing is applied, and the answer says so.
    Refused,
}

pub(super) struct Raft {
    pub(super) epoch: Epoch,
    pub(super) version: IsrVersion,
    pub(super) isr: BTreeSet<usize>,
    /// What each replica that was in sync had sealed then (R11).
    pub(super) sealed: BTreeMap<usize, Epoch>,
    pub(super) mode: RaftMode,
    /// How often engines proposed a change of the ISR.
    pub(super) proposals: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { value: u64, fua: bool },
    Flush,
}

#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) slot: usize,
    pub(super) kind: Kind,
    pub(super) blocks: core::ops::Range<u64>,
    pub(super) since: Instant,
    pub(super) invoked: u64,
}

/// One engine and what it told.
pub(super) struct Slot {
    pub(super) engine: Engine,
    pub(super) alive: bool,
    pub(super) epoch: Epoch,
    pub(super) failed: Option<String>,
    pub(super) stopped: Option<bool>,
    pub(super) compared: Vec<Option<CompareResult>>,
    pub(super) resynced: Vec<usize>,
    pub(super) replica_failed: Vec<usize>,
    pub(super) snapshots: Vec<Result<SnapshotTaken, SnapshotError>>,
    pub(super) filled: Vec<Result<(), String>>,
    pub(super) activations: Vec<Vec<usize>>,
    links: BTreeMap<u64, usize>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) rng: Rng,
    pub(super) queue: BTreeMap<(Instant, u64), Event>,
    ordinal: u64,
    /// When the last message of a link and direction arrives.
    last: BTreeMap<(SessionKey, bool), Instant>,
    pub(super) links: BTreeMap<SessionKey, usize>,
    pub(super) replicas: Vec<Replica>,
    pub(super) raft: Raft,
    pub(super) slots: Vec<Slot>,
    pub(super) history: History,
    pub(super) pending: BTreeMap<IoId, Pending>,
    pub(super) results: BTreeMap<IoId, (Instant, BlockResult)>,
    next_io: u64,
    /// Bounds of delays, in nanoseconds.
    pub(super) net: (u64, u64),
    pub(super) disk: (u64, u64),
    /// When each replica lost power, by the history's clock.
    pub(super) power_lost: Vec<Option<u64>>,
    /// Blocks of each replica that engines said to have repaired, and those that nobody had.
    pub(super) repaired: Vec<u64>,
    pub(super) unrepairable: u64,
    /// Whether the consumer outlives its engines (R14).
    pub(super) resumed: bool,
    /// Snapshots that Raft was told of, and what they hold.
    pub(super) committed: Vec<(SnapshotId, Held)>,
    /// What scrubs found to differ.
    pub(super) differing: u64,
    /// Time of a pass of the scrub in engines that are started.
    pub(super) scrub: Duration,
    /// Size of the volume, as engines that are started know it.
    pub(super) size: u64,
}

impl World {
    /// `count` replicas; those in `isr` are in sync.
    pub(super) fn new(seed: u64, count: usize, isr: &[usize]) -> Self {
        Self {
            now: Instant(1_000_000_000),
            rng: Rng::new(seed),
            queue: BTreeMap::new(),
            ordinal: 0,
            last: BTreeMap::new(),
            links: BTreeMap::new(),
            replicas: (0..count).map(|_| Replica::new(SIZE)).collect(),
            raft: Raft {
                epoch: Epoch(0),
                version: IsrVersion(0),
                isr: isr.iter().copied().collect(),
                sealed: BTreeMap::new(),
                mode: RaftMode::Normal,
                proposals: 0,
            },
            slots: Vec::new(),
            history: History::default(),
            pending: BTreeMap::new(),
            results: BTreeMap::new(),
            next_io: 0,
            net: (20_000, 300_000),
            disk: (20_000, 600_000),
            power_lost: vec![None; count],
            repaired: vec![0; count],
            unrepairable: 0,
            resumed: false,
            committed: Vec::new(),
            differing: 0,
            scrub: Duration::from_secs(7 * 86_400),
            size: SIZE,
        }
    }

    // ---- engines -----------------------------------------------------------------------------

    /// A replica as an engine on `node` is told of it.
    pub(super) fn member(&self, index: usize, node: usize, lost: &[usize]) -> MemberSpec {
        MemberSpec {
            replica: replica_id(index),
            incarnation: Incarnation::default(),
            sealed: self.raft.sealed.get(&index).copied().unwrap_or_default(),
            node: NodeId(index as u64),
            address: (index != node).then(|| ([127, 0, 0, 1], index as u16 + 1).into()),
            in_isr: self.raft.isr.contains(&index),
            lost: lost.contains(&index),
        }
    }

    /// BeginAttach commits on `node`, and its engine starts.
    pub(super) fn attach(&mut self, node: usize, lost: &[usize]) -> usize {
        self.raft.epoch = self.raft.epoch.next();
        let slot = self.slots.len();
        let member = |index: usize| self.member(index, node, lost);
        let config = EngineConfig {
            cluster: ClusterId::default(),
            volume: VolumeId::default(),
            size: self.size,
            epoch: self.raft.epoch,
            instance: EngineInstance::from_bytes((slot as u128 + 1).to_be_bytes()),
            process: Process { node: NodeId(node as u64), ..Process::default() },
            resumed: self.resumed,
            isr_version: self.raft.version,
            members: (0..self.replicas.len()).map(member).collect(),
        };
        self.slots.push(Slot {
            engine: Engine::new(config).scrubbing(self.scrub),
            alive: true,
            epoch: self.raft.epoch,
            failed: None,
            stopped: None,
            compared: Vec::new(),
            resynced: Vec::new(),
            replica_failed: Vec::new(),
            snapshots: Vec::new(),
            filled: Vec::new(),
            activations: Vec::new(),
            links: BTreeMap::new(),
        });
        self.tell(slot, Input::Start);
        slot
    }

    /// The engine's process is gone.
    pub(super) fn crash(&mut self, slot: usize) {
        self.slots[slot].alive = false;
        self.pending.retain(|_, p| p.slot != slot);
        for link in self.slots[slot].links.keys().copied().collect::<Vec<_>>() {
            let due = self.ordered((slot, link), true);
            self.post(due, Event::Closed { key: (slot, link) });
        }
    }

    pub(super) fn tell(&mut self, slot: usize, input: Input) {
        if !self.slots[slot].alive {
            return;
        }
        let mut out = Vec::new();
        self.slots[slot].engine.step(self.now, input, &mut out);
        for output in out {
            self.output(slot, output);
        }
    }

    pub(super) fn io(&mut self, slot: usize, op: BlockOp) -> IoId {
        self.next_io += 1;
        let id = IoId(self.next_io);
        let (offset, len, kind) = match &op {
            BlockOp::Read { offset, len } => (*offset, u64::from(*len), Kind::Read),
            BlockOp::Write { offset, data, fua } => {
                let kind = Kind::Write { value: value_at(data, 0), fua: *fua };
                (*offset, data.len() as u64, kind)
            }
            BlockOp::Flush => (0, 0, Kind::Flush),
            BlockOp::Discard { offset, len } => {
                (*offset, *len, Kind::Write { value: 0, fua: false })
            }
            BlockOp::WriteZeroes { offset, len, fua } => {
                (*offset, *len, Kind::Write { value: 0, fua: *fua })
            }
        };
        let blocks = offset / BLOCK..offset.saturating_add(len) / BLOCK;
        if let Kind::Write { value, .. } = kind {
            self.history.invoke(id, slot, blocks.clone(), value);
        }
        let invoked = self.history.tick();
        self.pending.insert(id, Pending { slot, kind, blocks, since: self.now, invoked });
        self.tell(slot, Input::Io { id, op });
        id
    }

    pub(super) fn write(&mut self, slot: usize, block: u64, count: u64, fua: bool) -> IoId {
        let value = self.next_io + 1;
        let data = payload(value, count);
        self.io(slot, BlockOp::Write { offset: block * BLOCK, data, fua })
    }

    pub(super) fn read(&mut self, slot: usize, block: u64) -> IoId {
        self.io(slot, BlockOp::Read { offset: block * BLOCK, len: BLOCK as u32 })
    }

    fn output(&mut self, slot: usize, output: Output) {
        match output {
            Output::Complete { id, result } => self.completed(slot, id, result),
            Output::Connect { link, hello, .. } => {
                let key = (slot, link.0);
                let replica = index_of(hello.replica);
                self.slots[slot].links.insert(link.0, replica);
                self.links.insert(key, replica);
                let due = self.ordered(key, true);
                self.post(due, Event::Hello { key, hello });
            }
            Output::Send { link, seq, request } => {
                let key = (slot, link.0);
                assert!(self.slots[slot].links.contains_key(&link.0), "sent on a closed link");
                let due = self.ordered(key, true);
                self.post(due, Event::Request { key, seq, request });
            }
            Output::Disconnect { link } => {
                let key = (slot, link.0);
                // One that broke is closed by the engine as well.
                self.slots[slot].links.remove(&link.0);
                let due = self.ordered(key, true);
                self.post(due, Event::Closed { key });
            }
            Output::Activate { isr } => {
                self.slots[slot].activations.push(isr.iter().map(|r| index_of(*r)).collect());
                let due = self.raft_delay();
                self.post(due, Event::CommitActivate { slot, isr });
            }
            Output::Propose { ticket, version, change } => {
                let due = self.raft_delay();
                self.post(due, Event::Commit { slot, ticket, version, change });
            }
            Output::Resynced { replica, .. } => self.slots[slot].resynced.push(index_of(replica)),
            Output::ReplicaFailed { replica, .. } => {
                self.slots[slot].replica_failed.push(index_of(replica));
            }
            Output::Repaired { replica, repaired, unrepairable } => {
                self.repaired[index_of(replica)] += repaired;
                self.unrepairable += unrepairable;
            }
            Output::ReplicasDiffer { blocks } => self.differing += blocks,
            Output::Snapshot { ticket, result } => self.snapshot_ended(slot, ticket, result),
            Output::Filled { result, .. } => self.slots[slot].filled.push(result),
            Output::Compared { result, .. } => self.slots[slot].compared.push(result),
            Output::Failed { reason } => self.slots[slot].failed = Some(reason),
            Output::Stopped { clean } => self.slots[slot].stopped = Some(clean),
        }
    }

    fn completed(&mut self, slot: usize, id: IoId, result: BlockResult) {
        let pending = self.pending.remove(&id).expect("completed once");
        let newest = self.slots.len() - 1 == slot && self.slots[slot].engine.is_active();
        match (&result, pending.kind) {
            (Ok(data), Kind::Read) => self.check_read(slot, &pending, data.as_ref().unwrap()),
            (Ok(_), Kind::Write { fua, .. }) => {
                self.history.acked(slot, id, fua);
                if newest {
                    let at = self.history.tick();
                    for block in pending.blocks.clone() {
                        self.check_in_sync(block, slot, at, fua);
                    }
                }
            }
            (Ok(_), Kind::Flush) => {
                self.history.flushed(slot, pending.invoked);
                if newest {
                    for block in self.history.written() {
                        self.check_in_sync(block, slot, pending.invoked, true);
                    }
                }
            }
            (Err(_), Kind::Write { .. }) if self.slots[slot].engine.is_active() => {
                self.history.failed(slot, id);
            }
            (Err(_), _) => {}
        }
        self.results.insert(id, (self.now, result));
    }

    fn check_read(&self, slot: usize, pending: &Pending, data: &Buf) {
        for (index, block) in pending.blocks.clone().enumerate() {
            let value = value_at(data, index);
            if let Some(why) = self.history.stale(block, value, slot, pending.invoked, None) {
                panic!("read: {why}");
            }
        }
    }

    /// R4: whatever is acknowledged is in every member of the committed ISR.
    fn check_in_sync(&self, block: u64, slot: usize, at: u64, durable: bool) {
        for index in &self.raft.isr {
            let replica = &self.replicas[*index];
            let value = if durable { replica.durable_value(block) } else { replica.value(block) };
            let lost = self.power_lost[*index];
            if let Some(why) = self.history.stale(block, value, slot, at, lost) {
                panic!("replica {index} of the ISR, durable: {durable}: {why}");
            }
        }
    }

    // ---- time --------------------------------------------------------------------------------

    pub(super) fn post(&mut self, due: Instant, event: Event) {
        self.ordinal += 1;
        self.queue.insert((due, self.ordinal), event);
    }

    pub(super) fn random(&mut self, (low, high): (u64, u64)) -> Duration {
        Duration::from_nanos(self.rng.between(low, high))
    }

    fn raft_delay(&mut self) -> Instant {
        let delay = self.random((500_000, 4_000_000));
        self.now.after(delay)
    }

    /// When the next message of a link in this direction arrives.
    pub(super) fn ordered(&mut self, key: SessionKey, to_replica: bool) -> Instant {
        let delay = self.random(self.net);
        let due = self.now.after(delay);
        let last = self.last.entry((key, to_replica)).or_default();
        *last = due.max(*last);
        *last
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        loop {
            let timer = (0..self.slots.len())
                .filter(|slot| self.slots[*slot].alive)
                .filter_map(|slot| Some((self.slots[slot].engine.next_timer()?, slot)))
                .min();
            let event = self.queue.first_key_value().map(|(at, _)| *at);
            match (timer, event) {
                (Some((at, slot)), next) if next.is_none_or(|(e, _)| at <= e) => {
                    if at > end {
                        break;
                    }
                    self.now = self.now.max(at);
                    self.tell(slot, Input::Tick);
                    let again = self.slots[slot].engine.next_timer();
                    assert!(again.is_none_or(|t| t > self.now), "the timer makes no progress");
                }
                (_, Some((at, ordinal))) => {
                    if at > end {
                        break;
                    }
                    self.now = self.now.max(at);
                    let event = self.queue.remove(&(at, ordinal)).unwrap();
                    self.handle(event);
                }
                _ => break,
            }
        }
        self.now = self.now.max(end);
    }

    fn handle(&mut self, event: Event) {
        let held = match &event {
            Event::Hello { key, .. }
            | Event::Request { key, .. }
            | Event::Reply { key, .. }
            | Event::Closed { key } => self.links.get(key).map(|r| self.replicas[*r].silent_until),
            Event::Disk { replica, .. } => {
                let replica = &self.replicas[*replica];
                Some(replica.silent_until.max(replica.stuck_until))
            }
            _ => None,
        };
        if let Some(until) = held.filter(|until| *until > self.now) {
            return self.post(until, event);
        }
        match event {
            Event::Hello { key, hello } => self.hello(key, hello),
            Event::Request { key, seq, request } => self.request(key, seq, request),
            Event::Reply { key, seq, reply } => {
                if self.slots[key.0].links.contains_key(&key.1) {
                    self.tell(key.0, Input::Reply { link: LinkId(key.1), seq, reply });
                }
            }
            Event::Closed { key } => {
                if let Some(replica) = self.links.remove(&key) {
                    self.replicas[replica].sessions.remove(&key);
                    self.check_seals(replica);
                }
            }
            Event::Broken { key } => {
                if self.slots[key.0].links.remove(&key.1).is_some() {
                    self.tell(key.0, Input::Disconnected { link: LinkId(key.1) });
                }
            }
            Event::Disk { replica, process, key, seq, request, was } => {
                let epoch = self.slots[key.0].epoch;
                let here = &mut self.replicas[replica];
                if here.process != process {
                    return;
                }
                let mut reply = here.execute(epoch, &request, &was, self.now);
                if let Reply::Data { data, .. } = &mut reply
                    && here.garbled > 0
                {
                    here.garbled -= 1;
                    let mut other = BufMut::zeroed(data.len());
                    other.as_mut_slice().copy_from_slice(data.as_slice());
                    other.as_mut_slice()[0] ^= 0x40;
                    *data = other.freeze();
                }
                if let Some(count) = here.in_flight.get_mut(&key) {
                    *count -= 1;
                }
                let close = matches!(request, Request::Close { .. });
                self.answer(replica, key, seq, reply, !close);
                if close {
                    // The replica ends the session behind its answer.
                    let due = self.ordered(key, false);
                    self.post(due, Event::Broken { key });
                }
                self.check_seals(replica);
            }
            Event::CheckSeals { replica } => self.check_seals(replica),
            Event::Commit { slot, ticket, version, change } => {
                self.commit(slot, ticket, version, &change);
            }
            Event::CommitActivate { slot, isr } => {
                if self.slots[slot].epoch == self.raft.epoch {
                    self.raft.isr = isr.into_iter().map(index_of).collect();
                    let sealed = self.raft.isr.iter().map(|index| (*index, self.raft.epoch));
                    self.raft.sealed.extend(sealed);
                    self.raft.version.0 += 1;
                    self.history.activated(slot);
                    let due = self.raft_delay();
                    self.post(due, Event::Tell { slot, input: Input::Activated(self.view()) });
                }
            }
            Event::Tell { slot, input } => self.tell(slot, input),
        }
    }

    fn view(&self) -> IsrView {
        let isr = self.raft.isr.iter().map(|index| replica_id(*index)).collect();
        IsrView { version: self.raft.version, isr }
    }

    fn commit(&mut self, slot: usize, ticket: u64, version: IsrVersion, change: &IsrChange) {
        self.raft.proposals += 1;
        let mode = self.raft.mode;
        let current = self.slots[slot].epoch == self.raft.epoch;
        if matches!(mode, RaftMode::Normal | RaftMode::Unknown)
            && current
            && version == self.raft.version
        {
            match change {
                IsrChange::Shrink(remove) => {
                    remove.iter().for_each(|r| assert!(self.raft.isr.remove(&index_of(*r))));
                    assert!(!self.raft.isr.is_empty(), "the ISR is never empty (R4)");
                }
                IsrChange::Grow(add) => {
                    assert!(self.raft.isr.insert(index_of(*add)));
                    self.raft.sealed.insert(index_of(*add), self.raft.epoch);
                    self.check_committed(index_of(*add));
                }
            }
            self.raft.version.0 += 1;
        }
        let answer = match mode {
            RaftMode::Silent => return,
            RaftMode::Lost | RaftMode::Unknown => IsrAnswer::Unavailable,
            RaftMode::Normal if !current => IsrAnswer::Superseded,
            RaftMode::Normal | RaftMode::Refused => IsrAnswer::View(self.view()),
        };
        let due = self.raft_delay();
        self.post(due, Event::Tell { slot, input: Input::IsrAnswer { ticket, answer } });
    }
}
