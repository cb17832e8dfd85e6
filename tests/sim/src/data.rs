//! The data thread of a node, as `replicator/src/data` has it: the same state machines, the same
//! queue of work between them, with simulated disks, connections and consumers instead of a ring.

mod seal;

use crate::check::eras::Eras;
use crate::clock::Time;
use crate::disk::DiskOp;
use crate::net::{ConnId, Item, Purpose};
use crate::plan::Moment;
use crate::world::{Event, World};
use engine::{Engine, Input as EngineInput, LinkId, Output as EngineOutput};
use policy::pool::Task;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use store::{Input as StoreInput, Output as StoreOutput, SessionId, Store};
use types::{BlockResult, Epoch, Instant, IoError, IoId, ReplicaId, SnapshotId, VolumeId};
use wire::{Frame, Hello, Reply, Request, WireError};

/// An input for a state machine; worked off in order.
#[derive(Debug)]
pub enum Work {
    /// For the store.
    Store(StoreInput),
    /// For an engine.
    Engine(VolumeId, EngineInput),
    /// For a consumer.
    Front(VolumeId, IoId, BlockResult),
}

#[derive(Clone, Copy, Debug)]
enum SessionEnd {
    Conn(ConnId, usize),
    Engine(VolumeId, LinkId),
    Sealer(u64),
}

#[derive(Clone, Copy, Debug)]
enum LinkEnd {
    Local(SessionId),
    Remote(ConnId),
}

/// An attached volume.
pub struct Attached {
    /// Its engine.
    pub engine: Engine,
    /// Its epoch.
    pub epoch: Epoch,
    links: BTreeMap<LinkId, LinkEnd>,
    /// Whom a link leads to.
    replicas: BTreeMap<LinkId, ReplicaId>,
    /// What was sent and answered, for the checker.
    pub eras: Eras,
    tick: Option<Instant>,
}

struct Sealer {
    until: Instant,
    session: Option<SessionId>,
    conn: Option<ConnId>,
}

/// See the module's text.
pub struct Data {
    /// The pool.
    pub store: Store,
    store_timer: Option<Instant>,
    pub(crate) work: VecDeque<Work>,
    sessions: BTreeMap<SessionId, SessionEnd>,
    next_session: u64,
    /// Engines.
    pub volumes: BTreeMap<VolumeId, Attached>,
    sealers: BTreeMap<u64, Sealer>,
    next_ticket: u64,
    admin: BTreeMap<u64, Task>,
    /// Snapshots that engines are taking.
    pub(crate) snapshots: BTreeMap<u64, SnapshotId>,
    /// When the thread looks at its timers next.
    wake: Time,
    store_outputs: Vec<StoreOutput>,
    engine_outputs: Vec<EngineOutput>,
}

impl Data {
    /// Around an opened pool.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            store_timer: None,
            work: VecDeque::from([Work::Store(StoreInput::Tick)]),
            sessions: BTreeMap::new(),
            next_session: 0,
            volumes: BTreeMap::new(),
            sealers: BTreeMap::new(),
            next_ticket: 0,
            admin: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            wake: Time::MAX,
            store_outputs: Vec::new(),
            engine_outputs: Vec::new(),
        }
    }

    /// For an engine that is to take a snapshot.
    pub(crate) fn snapshot_ticket(&mut self, snapshot: SnapshotId) -> u64 {
        self.next_ticket += 1;
        self.snapshots.insert(self.next_ticket, snapshot);
        self.next_ticket
    }

    fn deadline(&self) -> Option<Instant> {
        let ticks = self.volumes.values().filter_map(|volume| volume.tick);
        let seals = self.sealers.values().map(|sealer| sealer.until);
        ticks.chain(seals).chain(self.store_timer).min()
    }
}

impl World {
    pub(crate) fn data_mut(&mut self, n: usize) -> Option<&mut Data> {
        self.nodes[n].process.as_mut().map(|process| &mut process.data)
    }

    /// Works off the queue; the process may die on the way.
    pub(crate) fn work_off(&mut self, n: usize) {
        let run = self.nodes[n].run;
        while let Some(work) = self.data_mut(n).and_then(|data| data.work.pop_front()) {
            match work {
                Work::Store(input) => self.step_store(n, input),
                Work::Engine(volume, input) => self.step_engine(n, volume, input),
                Work::Front(volume, id, result) => self.front_done(n, volume, id, result),
            }
            if !self.is_run(n, run) {
                return;
            }
        }
        self.arm(n);
    }

    /// Sees to it that the thread wakes up for its next timer.
    fn arm(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let (clock, run) = (node.clock, node.run);
        let Some(process) = &mut node.process else { return };
        let Some(deadline) = process.data.deadline() else { return };
        let at = clock.when(deadline).max(now);
        if at < process.data.wake {
            process.data.wake = at;
            self.post(at, Event::Data { node: n, run });
        }
    }

    /// The thread woke up for a timer.
    pub(crate) fn data_timer(&mut self, n: usize) {
        let now = self.local(n);
        let true_now = self.now;
        let Some(data) = self.data_mut(n) else { return };
        if data.wake > true_now {
            // An earlier one took its place and is over.
            return;
        }
        data.wake = Time::MAX;
        if data.store_timer.is_some_and(|at| at <= now) {
            data.store_timer = None;
            data.work.push_back(Work::Store(StoreInput::Tick));
        }
        for (id, volume) in &mut data.volumes {
            if volume.tick.is_some_and(|at| at <= now) {
                volume.tick = None;
                data.work.push_back(Work::Engine(*id, EngineInput::Tick));
            }
        }
        let overdue: Vec<u64> =
            data.sealers.iter().filter(|(_, s)| s.until <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.end_seal(n, id, Err(WireError::Refused { reason: "no answer".into() }));
        }
        self.work_off(n);
    }

    // ---- store -------------------------------------------------------------------------------

    fn step_store(&mut self, n: usize, input: StoreInput) {
        let (now, run) = (self.local(n), self.nodes[n].run);
        let Some(data) = self.data_mut(n) else { return };
        let mut outputs = std::mem::take(&mut data.store_outputs);
        data.store.step(now, input, &mut outputs);
        for output in outputs.drain(..) {
            if !self.survives(n) || self.nodes[n].run != run {
                return;
            }
            self.store_output(n, output);
        }
        if let Some(data) = self.data_mut(n) {
            data.store_outputs = outputs;
        }
    }

    fn store_output(&mut self, n: usize, output: StoreOutput) {
        match output {
            StoreOutput::Reply { session, seq, reply } => self.store_reply(n, session, seq, reply),
            StoreOutput::CloseSession { session } => self.store_closed(n, session),
            StoreOutput::Read { id, offset, len } => {
                self.pool_io(n, id.0, DiskOp::Read { offset, len });
            }
            StoreOutput::Write { id, offset, data, durable } => {
                self.pool_io(n, id.0, DiskOp::Write { offset, data, durable });
            }
            StoreOutput::Sync { id } => {
                let mark = self.nodes[n].disk.mark();
                self.pool_io(n, id.0, DiskOp::Sync { mark });
            }
            StoreOutput::Zero { id, offset, len } => {
                self.nodes[n].data_start = self.nodes[n].data_start.min(offset);
                self.pool_io(n, id.0, DiskOp::Zero { offset, len });
            }
            StoreOutput::AdminDone { op, result } => {
                let task = self.data_mut(n).and_then(|data| data.admin.remove(&op));
                if let Some(task) = task {
                    self.pool_task_done(n, task, &result);
                }
            }
            StoreOutput::Timer(at) => {
                if let Some(data) = self.data_mut(n) {
                    data.store_timer = Some(data.store_timer.map_or(at, |old| old.min(at)));
                }
            }
            StoreOutput::Event(event) => self.store_event(n, &event),
        }
    }

    fn pool_io(&mut self, n: usize, io: u64, op: DiskOp) {
        let sync = matches!(op, DiskOp::Sync { .. } | DiskOp::Write { durable: true, .. });
        let delay = self.disk_time(n, sync);
        let node = &mut self.nodes[n];
        node.disk.under_way.insert(io, op);
        let run = node.run;
        self.checks.bounds.disk_queue(node.disk.under_way.len());
        self.after(delay, Event::Disk { node: n, run, io });
    }

    pub(crate) fn disk_done(&mut self, n: usize, io: u64) {
        let Some(result) = self.nodes[n].disk.complete(io) else { return };
        let id = store::IoId(io);
        self.data_input(n, Work::Store(StoreInput::Io { id, result }));
    }

    fn store_reply(&mut self, n: usize, session: SessionId, seq: u64, reply: Reply) {
        let Some(end) = self.data_mut(n).and_then(|data| data.sessions.get(&session).copied())
        else {
            return;
        };
        match end {
            SessionEnd::Conn(conn, side) => {
                self.send_item(conn, side, Item::Frame(Box::new(Frame::Reply { seq, reply })));
            }
            SessionEnd::Engine(volume, link) => {
                let work = Work::Engine(volume, EngineInput::Reply { link, seq, reply });
                if let Some(data) = self.data_mut(n) {
                    data.work.push_back(work);
                }
            }
            SessionEnd::Sealer(id) => self.sealer_reply(n, id, reply),
        }
    }

    /// The store ended a session.
    fn store_closed(&mut self, n: usize, session: SessionId) {
        let Some(data) = self.data_mut(n) else { return };
        match data.sessions.remove(&session) {
            Some(SessionEnd::Conn(conn, side)) => self.close_conn(conn, side),
            Some(SessionEnd::Engine(volume, link)) => {
                data.work.push_back(Work::Engine(volume, EngineInput::Disconnected { link }));
            }
            Some(SessionEnd::Sealer(_)) | None => {}
        }
    }

    fn store_event(&mut self, n: usize, event: &store::Event) {
        self.note(|| format!("node {} store: {event:?}", n + 1));
        match event {
            store::Event::PoolFailed { errno } => {
                self.nodes[n].pool_dead = true;
                let infos = self.data_mut(n).map(|data| data.store.replicas()).unwrap_or_default();
                for info in infos {
                    self.checks.copy_failed(info.replica, self.now);
                    self.replica_failed(n, info.replica, format!("the pool failed with {errno}"));
                }
            }
            store::Event::ReplicaFailed { replica, reason, .. } => {
                self.checks.copy_failed(*replica, self.now);
                self.replica_failed(n, *replica, reason.clone());
            }
            _ => {}
        }
    }

    // ---- sessions ----------------------------------------------------------------------------

    fn open_session(&mut self, n: usize, end: SessionEnd, hello: Hello) -> Option<SessionId> {
        let data = self.data_mut(n)?;
        data.next_session += 1;
        let session = SessionId(data.next_session);
        data.sessions.insert(session, end);
        data.work.push_back(Work::Store(StoreInput::Open { session, hello }));
        Some(session)
    }

    fn request(&mut self, n: usize, session: SessionId, seq: u64, request: Request) {
        if let Some(data) = self.data_mut(n) {
            data.work.push_back(Work::Store(StoreInput::Request { session, seq, request }));
        }
    }

    fn end_session(&mut self, n: usize, session: SessionId) {
        if let Some(data) = self.data_mut(n)
            && data.sessions.remove(&session).is_some()
        {
            data.work.push_back(Work::Store(StoreInput::Disconnected { session }));
        }
    }

    /// The pool is asked for something, on behalf of the control plane.
    pub(crate) fn pool_admin(&mut self, n: usize, task: Task) {
        let Some(admin) = task.admin() else { return };
        let Some(data) = self.data_mut(n) else { return };
        data.next_ticket += 1;
        let op = data.next_ticket;
        data.admin.insert(op, task);
        self.data_input(n, Work::Store(StoreInput::Admin { op, admin }));
    }

    // ---- connections -------------------------------------------------------------------------

    /// Where a data address leads: node `n` listens on 10.0.0.n.
    fn node_at(address: SocketAddr) -> Option<usize> {
        match address {
            SocketAddr::V4(address) => (address.ip().octets()[3] as usize).checked_sub(1),
            SocketAddr::V6(_) => None,
        }
    }

    fn connect(&mut self, n: usize, address: SocketAddr, purpose: Purpose) -> Option<ConnId> {
        let to = Self::node_at(address).filter(|to| *to < self.nodes.len())?;
        let run = self.nodes[n].run;
        let conn = self.net.connect((n, run), to, purpose);
        self.checks.bounds.connections(self.net.conns.len());
        self.send_item(conn, 0, Item::Syn);
        Some(conn)
    }

    /// This side closes: what it queued is still sent, then the other end hears of it.
    fn close_conn(&mut self, conn: ConnId, side: usize) {
        if let Some(found) = self.net.conns.get_mut(&conn)
            && found.ends[side].open
        {
            found.ends[side].open = false;
            self.send_item(conn, side, Item::Fin);
        }
    }

    /// The connection is over as far as this side can tell.
    pub(crate) fn conn_lost(&mut self, conn: ConnId, side: usize) {
        let Some(found) = self.net.conns.get_mut(&conn) else { return };
        let end = &mut found.ends[side];
        if !std::mem::take(&mut end.open) {
            return;
        }
        let (n, run) = (end.node, end.run);
        let purpose = std::mem::replace(&mut end.purpose, Purpose::Inbound(None));
        self.net.clear(conn, side);
        if !self.is_run(n, run) {
            return;
        }
        match purpose {
            Purpose::Inbound(Some(session)) => self.end_session(n, session),
            Purpose::Inbound(None) => {}
            Purpose::Engine(volume, link) => {
                if let Some(data) = self.data_mut(n) {
                    data.work.push_back(Work::Engine(volume, EngineInput::Disconnected { link }));
                }
            }
            Purpose::Sealer(id) => {
                self.end_seal(n, id, Err(WireError::Refused { reason: "unreachable".into() }));
            }
        }
        self.work_off(n);
    }

    /// Something arrives at end `side`.
    pub(crate) fn receive_item(&mut self, conn: ConnId, side: usize, item: Item) {
        let Some(found) = self.net.conns.get_mut(&conn) else { return };
        let end = &mut found.ends[side];
        let n = end.node;
        if !self.nodes[n].powered {
            return;
        }
        let alive = self.nodes[n].process.is_some();
        match item {
            Item::Syn if alive => {
                (end.run, end.open) = (self.nodes[n].run, true);
                self.send_item(conn, side, Item::SynAck);
            }
            Item::Syn => self.send_item(conn, side, Item::Reset),
            Item::Reset => self.conn_lost(conn, side),
            _ if !end.open || end.run != self.nodes[n].run => {
                // Nobody is there any more: the kernel says so, unless that is what it was told.
                if !matches!(item, Item::Fin) {
                    self.send_item(conn, side, Item::Reset);
                }
            }
            Item::Fin => self.conn_lost(conn, side),
            Item::SynAck => {
                if let Purpose::Engine(volume, link) = end.purpose {
                    self.data_input(n, Work::Engine(volume, EngineInput::Connected { link }));
                }
            }
            Item::Frame(frame) => self.receive_frame(n, conn, side, *frame),
        }
    }

    fn receive_frame(&mut self, n: usize, conn: ConnId, side: usize, frame: Frame) {
        let Some(found) = self.net.conns.get(&conn) else { return };
        match (found.ends[side].purpose, frame) {
            (Purpose::Inbound(None), Frame::Hello(hello)) => {
                let session = self.open_session(n, SessionEnd::Conn(conn, side), hello);
                if let Some(found) = self.net.conns.get_mut(&conn) {
                    found.ends[side].purpose = Purpose::Inbound(session);
                }
            }
            (Purpose::Inbound(Some(session)), Frame::Request { seq, request }) => {
                self.request(n, session, seq, request);
            }
            (Purpose::Engine(volume, link), Frame::Reply { seq, reply }) => {
                if let Some(data) = self.data_mut(n) {
                    let input = EngineInput::Reply { link, seq, reply };
                    data.work.push_back(Work::Engine(volume, input));
                }
            }
            (Purpose::Sealer(id), Frame::Reply { reply, .. }) => self.sealer_reply(n, id, reply),
            _ => self.close_conn(conn, side),
        }
        self.work_off(n);
    }

    // ---- engines -----------------------------------------------------------------------------

    /// Makes an engine; false if the volume has one.
    pub(crate) fn start_engine(&mut self, n: usize, config: engine::EngineConfig) -> bool {
        let (id, epoch) = (config.volume, config.epoch);
        let Some(data) = self.data_mut(n) else { return false };
        if data.volumes.contains_key(&id) {
            return false;
        }
        let engine = Engine::new(config);
        let (links, replicas, eras) = (BTreeMap::new(), BTreeMap::new(), Eras::default());
        data.volumes.insert(id, Attached { engine, epoch, links, replicas, eras, tick: None });
        self.data_input(n, Work::Engine(id, EngineInput::Start));
        true
    }

    fn step_engine(&mut self, n: usize, id: VolumeId, input: EngineInput) {
        let (now, run) = (self.local(n), self.nodes[n].run);
        let Some(data) = self.data_mut(n) else { return };
        let Some(volume) = data.volumes.get_mut(&id) else {
            if let EngineInput::Io { id: io, .. } = input {
                data.work.push_back(Work::Front(id, io, Err(IoError::Io)));
            }
            return;
        };
        if let EngineInput::Reply { link, seq, reply } = &input
            && let Some(replica) = volume.replicas.get(link)
        {
            volume.eras.answered(*link, *replica, *seq, reply);
        }
        let mut outputs = std::mem::take(&mut data.engine_outputs);
        volume.engine.step(now, input, &mut outputs);
        volume.tick = match (volume.tick, volume.engine.next_timer()) {
            (Some(earlier), Some(wanted)) => Some(earlier.min(wanted)),
            (_, wanted) => wanted,
        };
        for output in outputs.drain(..) {
            if !self.survives(n) || self.nodes[n].run != run {
                return;
            }
            self.engine_output(n, id, output);
        }
        if let Some(data) = self.data_mut(n) {
            data.engine_outputs = outputs;
        }
    }

    fn engine_output(&mut self, n: usize, id: VolumeId, output: EngineOutput) {
        let Some(data) = self.data_mut(n) else { return };
        let Some(volume) = data.volumes.get_mut(&id) else { return };
        let epoch = volume.epoch;
        match output {
            EngineOutput::Complete { id: io, result } => {
                data.work.push_back(Work::Front(id, io, result));
            }
            EngineOutput::Connect { link, address, hello } => {
                self.link_connect(n, id, link, address, hello);
            }
            EngineOutput::Send { link, seq, request } => {
                let end = volume.links.get(&link).copied();
                volume.eras.sent(link, seq, &request);
                if matches!(request, Request::Read { .. })
                    && let Some(replica) = volume.replicas.get(&link).copied()
                {
                    self.check_source(n, id, epoch, replica);
                }
                match request {
                    Request::SealEra { era } => {
                        self.check_era(n, id, epoch, era);
                        self.moment(Moment::EraSealing);
                    }
                    Request::Snapshot { .. } => self.moment(Moment::Snapshotting),
                    Request::Close { clean: true } => {
                        self.moment(Moment::Closing);
                        self.synced_for_stop(id, epoch);
                    }
                    _ => {}
                }
                match end {
                    Some(LinkEnd::Local(session)) => self.request(n, session, seq, request),
                    Some(LinkEnd::Remote(conn)) => {
                        let frame = Frame::Request { seq, request };
                        self.send_item(conn, 0, Item::Frame(Box::new(frame)));
                    }
                    None => {}
                }
            }
            EngineOutput::Disconnect { link } => {
                volume.replicas.remove(&link);
                volume.eras.closed(link);
                match volume.links.remove(&link) {
                    Some(LinkEnd::Local(session)) => self.end_session(n, session),
                    Some(LinkEnd::Remote(conn)) => self.close_conn(conn, 0),
                    None => {}
                }
            }
            EngineOutput::Activate { isr } => {
                self.note(|| format!("node {} epoch {epoch}: sealed, ISR' {isr:?}", n + 1));
                let now = self.now;
                self.checks.isr.reconciled(id, epoch, now);
                self.engine_started(n, id, Ok(isr));
            }
            EngineOutput::Propose { ticket, version, change } => {
                self.note(|| format!("node {} epoch {epoch}: {change:?} at {version:?}", n + 1));
                self.propose_isr(n, id, epoch, ticket, version, change);
            }
            EngineOutput::Resynced { replica, progress } => {
                self.figures.resyncs += 1;
                let now = self.now;
                self.checks.isr.resynced(replica, now);
                self.note(|| {
                    format!("node {} epoch {epoch}: resynced {replica} {progress:?}", n + 1)
                });
            }
            EngineOutput::ReplicaFailed { replica, reason } => {
                self.replica_failed(n, replica, reason);
            }
            EngineOutput::Repaired { replica, repaired, unrepairable } => self.note(|| {
                let node = n + 1;
                format!("node {node} epoch {epoch}: {replica}: {repaired} blocks repaired, {unrepairable} not")
            }),
            EngineOutput::ReplicasDiffer { blocks } => {
                self.note(|| format!("node {} epoch {epoch}: {blocks} blocks differ", n + 1));
            }
            EngineOutput::Snapshot { ticket, result } => self.snapshot_taken(n, id, ticket, result),
            EngineOutput::Filled { result, .. } => {
                self.note(|| format!("node {} epoch {epoch}: filled: {result:?}", n + 1));
                self.end_fill(n, id, result.is_ok());
            }
            EngineOutput::Compared { ticket, result } => self.compared(n, id, ticket, result),
            EngineOutput::Failed { reason } => {
                self.note(|| format!("node {} epoch {epoch}: engine failed: {reason}", n + 1));
                self.engine_started(n, id, Err(reason.clone()));
                self.engine_failed(n, id, epoch, &reason);
            }
            EngineOutput::Stopped { clean } => self.stopped(n, id, clean),
        }
    }

    fn stopped(&mut self, n: usize, id: VolumeId, clean: bool) {
        let Some(data) = self.data_mut(n) else { return };
        let Some(volume) = data.volumes.remove(&id) else { return };
        for end in volume.links.into_values() {
            match end {
                LinkEnd::Local(session) => self.end_session(n, session),
                LinkEnd::Remote(conn) => self.close_conn(conn, 0),
            }
        }
        let epoch = volume.epoch;
        self.note(|| format!("node {} epoch {epoch}: engine stopped, clean: {clean}", n + 1));
        self.engine_stopped(n, id, clean);
    }

    /// An engine tells a copy that it stops cleanly: all of them have on disk what was acknowledged,
    /// whether the engine hears their answers in time or not.
    fn synced_for_stop(&mut self, id: VolumeId, epoch: Epoch) {
        if let Some(index) = self.checks.volume(id)
            && self.checks.blocks[index].newest() == epoch
        {
            self.checks.blocks[index].closed();
        }
    }

    fn link_connect(
        &mut self,
        n: usize,
        id: VolumeId,
        link: LinkId,
        address: Option<SocketAddr>,
        hello: Hello,
    ) {
        let replica = hello.replica;
        let end = match address {
            None => {
                let end = SessionEnd::Engine(id, link);
                let Some(session) = self.open_session(n, end, hello) else { return };
                if let Some(data) = self.data_mut(n) {
                    data.work.push_back(Work::Engine(id, EngineInput::Connected { link }));
                }
                LinkEnd::Local(session)
            }
            Some(address) => match self.connect(n, address, Purpose::Engine(id, link)) {
                Some(conn) => {
                    self.send_item(conn, 0, Item::Frame(Box::new(Frame::Hello(hello))));
                    LinkEnd::Remote(conn)
                }
                None => {
                    if let Some(data) = self.data_mut(n) {
                        data.work.push_back(Work::Engine(id, EngineInput::Disconnected { link }));
                    }
                    return;
                }
            },
        };
        if let Some(volume) = self.data_mut(n).and_then(|data| data.volumes.get_mut(&id)) {
            volume.links.insert(link, end);
            volume.replicas.insert(link, replica);
        }
    }
}
