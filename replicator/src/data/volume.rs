//! The attach side: engines, their links, seals without an engine, and front-ends.

use super::command::{Answer, DataError, DataEvent, EngineSpec};
use super::conn::{Conn, Purpose};
use super::thread::{Link, Owner, SessionEnd, Thread, Work};
use super::throttle::Throttle;
use engine::{CompareResult, Engine, FillSource, Input, IsrChange, LinkId, Output, SnapshotTaken};
use frontend::{BlockDevice, Status as FrontStatus};
use hostio::Completion;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use store::SessionId;
use tracing::{info, warn};
use types::{BlockOp, Epoch, Instant, IoError, IoId, ReplicaId, SnapshotId, VolumeId};
use wire::{Frame, Hello, Reply, Request, Role, SealInfo, WireError};

/// A seal without an engine is given up after this: a lease (R3), and time to connect.
const SEAL_TIMEOUT: Duration = Duration::from_secs(6);

/// The other end of an engine's link.
#[derive(Clone, Copy, Debug)]
enum LinkEnd {
    Local(SessionId),
    Remote(u32),
}

/// An attached volume.
pub(super) struct Volume {
    engine: Engine,
    pub(super) epoch: Epoch,
    pub(super) size: u64,
    links: BTreeMap<LinkId, LinkEnd>,
    pub(super) tick: Option<Instant>,
    started: Option<Answer<Vec<ReplicaId>>>,
    stopped: Option<Answer<bool>>,
    compares: BTreeMap<u64, Answer<CompareResult>>,
    snapshots: BTreeMap<u64, Answer<SnapshotTaken>>,
    fills: BTreeMap<u64, Answer<()>>,
    /// Owners of front-ends and of their listeners.
    pub(super) fronts: Vec<u32>,
    pub(super) detached: Vec<Answer<()>>,
    pub(super) throttle: Throttle,
}

/// A seal on behalf of the fencing of a lost engine (R7).
pub(super) struct Sealer {
    hello: Hello,
    answer: Option<Answer<SealInfo>>,
    until: Instant,
    session: Option<SessionId>,
    owner: Option<u32>,
}

/// A volume as its front-ends see it: requests go to the engine's queue, at the rate that they may.
struct Device<'a> {
    volume: VolumeId,
    size: u64,
    now: Instant,
    throttle: Option<&'a mut Throttle>,
    work: &'a mut VecDeque<Work>,
}

impl BlockDevice for Device<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn submit(&mut self, id: IoId, op: BlockOp) {
        let passing = match &mut self.throttle {
            Some(throttle) => throttle.offer(self.now, id, op),
            None => Some((id, op)),
        };
        if let Some((id, op)) = passing {
            self.work.push_back(Work::Engine(self.volume, Input::Io { id, op }));
        }
    }
}

impl Thread {
    // ---- engines -----------------------------------------------------------------------------

    pub(super) fn start_engine(&mut self, spec: EngineSpec, answer: Answer<Vec<ReplicaId>>) {
        let id = spec.volume;
        if self.volumes.contains_key(&id) {
            let _ = answer.send(Err(DataError::Attached(id)));
            return;
        }
        info!(volume = %id, epoch = %spec.epoch, "engine starts: sealing the in-sync replicas");
        let volume = Volume {
            epoch: spec.epoch,
            size: spec.size,
            engine: Engine::new(spec).scrubbing(self.scrub),
            links: BTreeMap::new(),
            tick: None,
            started: Some(answer),
            stopped: None,
            compares: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            fills: BTreeMap::new(),
            fronts: Vec::new(),
            detached: Vec::new(),
            throttle: Throttle::default(),
        };
        self.volumes.insert(id, volume);
        self.work.push_back(Work::Engine(id, Input::Start));
    }

    pub(super) fn stop_engine(&mut self, id: VolumeId, answer: Answer<bool>) {
        match self.volumes.get_mut(&id) {
            Some(volume) => {
                volume.stopped = Some(answer);
                self.end_throttle(id);
                self.work.push_back(Work::Engine(id, Input::Stop));
            }
            None => {
                let _ = answer.send(Err(DataError::NotAttached(id)));
            }
        }
    }

    pub(super) fn compare(&mut self, id: VolumeId, answer: Answer<CompareResult>) {
        let input = |ticket| Input::Compare { ticket };
        self.ask_engine(id, |volume| &mut volume.compares, answer, input);
    }

    pub(super) fn snapshot(
        &mut self,
        id: VolumeId,
        snapshot: SnapshotId,
        answer: Answer<SnapshotTaken>,
    ) {
        let input = |ticket| Input::Snapshot { ticket, snapshot };
        self.ask_engine(id, |volume| &mut volume.snapshots, answer, input);
    }

    pub(super) fn fill(&mut self, id: VolumeId, source: FillSource, answer: Answer<()>) {
        let input = |ticket| Input::Fill { ticket, source };
        self.ask_engine(id, |volume| &mut volume.fills, answer, input);
    }

    /// Gives an engine an input with a ticket, by which `answer` is found among those of its kind when the
    /// engine has one.
    fn ask_engine<T>(
        &mut self,
        id: VolumeId,
        answers: impl FnOnce(&mut Volume) -> &mut BTreeMap<u64, Answer<T>>,
        answer: Answer<T>,
        input: impl FnOnce(u64) -> Input,
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            let _ = answer.send(Err(DataError::NotAttached(id)));
            return;
        };
        self.next_ticket += 1;
        answers(volume).insert(self.next_ticket, answer);
        self.work.push_back(Work::Engine(id, input(self.next_ticket)));
    }

    pub(super) fn status(&self, id: VolumeId) -> Result<engine::Status, DataError> {
        let volume = self.volumes.get(&id).ok_or(DataError::NotAttached(id))?;
        Ok(volume.engine.status())
    }

    pub(super) fn step_engine(&mut self, id: VolumeId, input: Input) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            if let Input::Io { id, .. } = input {
                self.work.push_back(Work::Front(id, Err(IoError::Io)));
            }
            return;
        };
        let mut outputs = std::mem::take(&mut self.engine_outputs);
        volume.engine.step(self.now, input, &mut outputs);
        // An earlier appointment stands: steady traffic must not put ticks off.
        volume.tick = match (volume.tick, volume.engine.next_timer()) {
            (Some(earlier), Some(wanted)) => Some(earlier.min(wanted)),
            (_, wanted) => wanted,
        };
        for output in outputs.drain(..) {
            self.engine_output(id, output);
        }
        self.engine_outputs = outputs;
    }

    fn engine_output(&mut self, id: VolumeId, output: Output) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let epoch = volume.epoch;
        match output {
            Output::Complete { id, result } => self.work.push_back(Work::Front(id, result)),
            Output::Connect { link, address, hello } => self.link_connect(id, link, address, hello),
            Output::Send { link, seq, request } => match volume.links.get(&link) {
                Some(LinkEnd::Local(session)) => {
                    let session = *session;
                    self.request(session, seq, request);
                }
                Some(LinkEnd::Remote(owner)) => {
                    let owner = *owner;
                    self.push_frame(owner, &Frame::Request { seq, request });
                }
                None => {}
            },
            Output::Disconnect { link } => match volume.links.remove(&link) {
                Some(LinkEnd::Local(session)) => self.end_session(session),
                Some(LinkEnd::Remote(owner)) => self.close_conn(owner, true),
                None => {}
            },
            Output::Activate { isr } => {
                info!(volume = %id, %epoch, ?isr, "sealed and reconciled");
                if let Some(answer) = volume.started.take() {
                    let _ = answer.send(Ok(isr));
                }
            }
            Output::Propose { ticket, version, change } => {
                let engine = &volume.engine;
                let (volume, isr_version) = (id, version);
                let event = match change {
                    IsrChange::Shrink(remove) => {
                        let members = engine.status().members;
                        for left in members.iter().filter(|m| remove.contains(&m.replica)) {
                            let (replica, node, why) = (left.replica, left.node, left.link_lost);
                            warn!(%volume, %epoch, %replica, %node, why, "a replica is to leave the in-sync set");
                        }
                        DataEvent::ShrinkIsr { volume, epoch, isr_version, remove, ticket }
                    }
                    IsrChange::Grow(add) => {
                        DataEvent::GrowIsr { volume, epoch, isr_version, add, ticket }
                    }
                };
                self.tell(event);
            }
            Output::Resynced { replica, progress } => {
                let (total, copied) = (progress.total, progress.copied);
                info!(volume = %id, %epoch, %replica, total, copied, "resync reached its end");
                self.tell(DataEvent::ResyncDone { volume: id, replica, total, copied });
            }
            Output::ReplicaFailed { replica, reason } => {
                warn!(volume = %id, %epoch, %replica, reason, "a replica failed");
                self.tell(DataEvent::ReplicaFailed { replica, reason });
            }
            Output::Repaired { replica, repaired, unrepairable } => {
                warn!(volume = %id, %epoch, %replica, repaired, unrepairable, "blocks could not be read as they were written");
                self.tell(DataEvent::Repaired { volume: id, replica, repaired, unrepairable });
            }
            Output::ReplicasDiffer { blocks } => {
                warn!(volume = %id, %epoch, blocks, "in-sync replicas differ");
                self.tell(DataEvent::ReplicasDiffer { volume: id, blocks });
            }
            Output::Compared { ticket, result } => {
                if let Some(answer) = volume.compares.remove(&ticket) {
                    let _ = answer.send(result.ok_or(DataError::Comparison));
                }
            }
            Output::Snapshot { ticket, result } => {
                if let Ok(taken) = &result {
                    let pause = taken.pause.as_secs_f64();
                    info!(volume = %id, %epoch, pause, "snapshot taken; writes were held");
                }
                if let Some(answer) = volume.snapshots.remove(&ticket) {
                    let _ = answer.send(result.map_err(DataError::Snapshot));
                }
            }
            Output::Filled { ticket, result } => {
                if let Some(answer) = volume.fills.remove(&ticket) {
                    let _ = answer.send(result.map_err(DataError::Fill));
                }
            }
            Output::Failed { reason } => {
                warn!(volume = %id, %epoch, reason, "engine failed: every I/O gets an error");
                if let Some(answer) = volume.started.take() {
                    let _ = answer.send(Err(DataError::Engine(reason.clone())));
                }
                self.end_throttle(id);
                self.tell(DataEvent::EngineFailed { volume: id, epoch, reason });
            }
            Output::Stopped { clean } => self.engine_stopped(id, clean),
        }
    }

    fn engine_stopped(&mut self, id: VolumeId, clean: bool) {
        self.forget_volume_links(id);
        let Some(volume) = self.volumes.remove(&id) else { return };
        info!(volume = %id, epoch = %volume.epoch, clean, "engine stopped");
        for owner in &volume.fronts {
            self.stop_front(*owner);
        }
        if let Some(answer) = volume.stopped {
            let _ = answer.send(Ok(clean));
        }
        for answer in volume.detached {
            let _ = answer.send(Ok(()));
        }
    }

    // ---- links -------------------------------------------------------------------------------

    fn link_connect(
        &mut self,
        id: VolumeId,
        link: LinkId,
        address: Option<SocketAddr>,
        hello: Hello,
    ) {
        let end = match address {
            None => {
                let end = SessionEnd::Engine { volume: id, link };
                let session = self.open_session(end, hello);
                self.work.push_back(Work::Engine(id, Input::Connected { link }));
                LinkEnd::Local(session)
            }
            Some(address) => {
                let purpose = Purpose::Engine { volume: id, link };
                match self.connect(address, purpose) {
                    Some(owner) => {
                        self.push_frame(owner, &Frame::Hello(hello));
                        LinkEnd::Remote(owner)
                    }
                    None => {
                        self.work.push_back(Work::Engine(id, Input::Disconnected { link }));
                        return;
                    }
                }
            }
        };
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.links.insert(link, end);
        }
    }

    fn connect(&mut self, address: SocketAddr, purpose: Purpose) -> Option<u32> {
        let fd = hostio::net::tcp_socket(&address).ok()?;
        let owner = self.new_owner();
        let mut conn = Conn::new(owner, fd, purpose, self.now);
        conn.connect(&mut self.ring, address);
        self.owners.insert(owner, Owner::Conn(conn));
        Some(owner)
    }

    // ---- seals without an engine -------------------------------------------------------------

    pub(super) fn start_seal(
        &mut self,
        hello: Hello,
        address: Option<SocketAddr>,
        answer: Answer<SealInfo>,
    ) {
        self.next_ticket += 1;
        let id = self.next_ticket;
        let hello = Hello { role: Role::Sealer, ..hello };
        let until = self.now.after(SEAL_TIMEOUT);
        let answer = Some(answer);
        let mut sealer = Sealer { hello: hello.clone(), answer, until, session: None, owner: None };
        match address {
            None => {
                let session = self.open_session(SessionEnd::Sealer(id), hello);
                self.request(session, 1, Request::Seal);
                sealer.session = Some(session);
            }
            Some(address) => {
                sealer.owner = self.connect(address, Purpose::Sealer(id));
                if let Some(owner) = sealer.owner {
                    self.push_frame(owner, &Frame::Hello(hello));
                    self.push_frame(owner, &Frame::Request { seq: 1, request: Request::Seal });
                }
            }
        }
        let nowhere = sealer.session.is_none() && sealer.owner.is_none();
        self.sealers.insert(id, sealer);
        if nowhere {
            self.sealer_lost(id);
        }
    }

    pub(super) fn sealer_reply(&mut self, id: u64, reply: Reply) {
        let result = match reply {
            Reply::Sealed(info) => Ok(info),
            Reply::Failed(error) => Err(DataError::Replica(error)),
            _ => Err(DataError::Replica(WireError::Invalid {
                reason: "a seal was answered by another reply".into(),
            })),
        };
        self.end_seal(id, result);
    }

    pub(super) fn sealer_lost(&mut self, id: u64) {
        if let Some(sealer) = self.sealers.get(&id) {
            let replica = sealer.hello.replica;
            self.end_seal(id, Err(DataError::Unreachable(replica)));
        }
    }

    fn end_seal(&mut self, id: u64, result: Result<SealInfo, DataError>) {
        let Some(mut sealer) = self.sealers.remove(&id) else { return };
        if let Some(answer) = sealer.answer.take() {
            let _ = answer.send(result);
        }
        if let Some(session) = sealer.session {
            self.end_session(session);
        }
        if let Some(owner) = sealer.owner {
            self.close_conn(owner, true);
        }
    }

    pub(super) fn overdue_seals(&mut self) {
        let now = self.now;
        let overdue: Vec<u64> =
            self.sealers.iter().filter(|(_, s)| s.until <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.sealer_lost(id);
        }
    }

    pub(super) fn next_seal_timeout(&self) -> Option<Instant> {
        self.sealers.values().map(|sealer| sealer.until).min()
    }

    // ---- front-ends --------------------------------------------------------------------------

    pub(super) fn front_completed(&mut self, owner: u32, completion: Completion) {
        let Some(Owner::Front { volume, front, .. }) = self.owners.get_mut(&owner) else { return };
        let id = *volume;
        let known = self.volumes.get_mut(&id);
        let (size, throttle) =
            known.map_or((0, None), |volume| (volume.size, Some(&mut volume.throttle)));
        let mut device = Device { volume: id, size, now: self.now, throttle, work: &mut self.work };
        let status = front.on_completion(completion, &mut self.ring, &mut device);
        self.front_settled(owner, status);
    }

    /// Hands the engine what may pass by now.
    pub(super) fn let_pass(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        while let Some((io, op)) = volume.throttle.next(self.now) {
            self.work.push_back(Work::Engine(id, Input::Io { id: io, op }));
        }
    }

    /// Whoever waits is to be answered soon: nothing is held back any more.
    pub(super) fn end_throttle(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        for (io, op) in volume.throttle.end() {
            self.work.push_back(Work::Engine(id, Input::Io { id: io, op }));
        }
    }

    pub(super) fn front_done(&mut self, id: IoId, result: types::BlockResult) {
        let owner = frontend::owner_of(id);
        let Some(Owner::Front { front, .. }) = self.owners.get_mut(&owner) else { return };
        let status = front.on_block_done(id, result, &mut self.ring);
        self.front_settled(owner, status);
    }

    pub(super) fn front_settled(&mut self, owner: u32, status: FrontStatus) {
        if status == FrontStatus::Closed {
            self.forget_front(owner);
        }
    }

    /// A front-end or a listener is over.
    pub(super) fn forget_front(&mut self, owner: u32) {
        let (volume, link) = match self.owners.remove(&owner) {
            Some(Owner::Front { volume, link, .. }) => (volume, link),
            Some(Owner::NbdListener { volume, .. }) => (volume, Link::Loose),
            _ => return,
        };
        if link == Link::Kernel {
            self.tell(DataEvent::LinkDead { volume });
        }
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.fronts.retain(|front| *front != owner);
            if volume.fronts.is_empty() {
                for answer in volume.detached.drain(..) {
                    let _ = answer.send(Ok(()));
                }
            }
        }
    }

    pub(super) fn detach_frontends(&mut self, id: VolumeId, answer: Answer<()>) {
        let Some(volume) = self.volumes.get_mut(&id) else {
            let _ = answer.send(Ok(()));
            return;
        };
        if volume.fronts.is_empty() {
            let _ = answer.send(Ok(()));
            return;
        }
        volume.detached.push(answer);
        let fronts = volume.fronts.clone();
        self.end_throttle(id);
        for owner in fronts {
            self.stop_front(owner);
        }
    }
}
