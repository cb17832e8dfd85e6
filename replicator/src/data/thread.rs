//! The loop: commands, timers, work of the state machines, and what the ring completed.

use super::command::{Command, DataError, DataEvent};
use super::conn::{Conn, Event, Purpose};
use super::pool::{self, DataConfig, PoolError};
use super::replica::PoolIo;
use super::volume::{Sealer, Volume};
use engine::LinkId;
use frontend::{Frontend, NbdConnection};
use hostio::pool::PoolFile;
use hostio::{Completion, Fd, Op, Ring, Token, Waker};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::Duration;
use store::{SessionId, Store};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tracing::{error, warn};
use types::{BlockResult, Instant, IoId, VolumeId};

/// Ring owners that exist once.
pub(super) const POOL: u32 = 0;
const LISTENER: u32 = 1;
const FIRST_FREE_OWNER: u32 = 2;

/// Bounds of the thread, all in one place.
pub(super) const MAX_CONNECTIONS: usize = 1024;
const MAX_NBD_CLIENTS: usize = 64;
const RING_ENTRIES: u32 = 1024;
/// A connection must say which replica it means within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after `accept` failed (out of descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// What the end of a front-end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing: clients come and go.
    Loose,
    /// The kernel's device lacks it: [`DataEvent::LinkDead`].
    Kernel,
}

/// Whose operations a token's owner number names.
pub(super) enum Owner {
    Conn(Conn),
    Front { volume: VolumeId, front: Box<dyn Frontend>, link: Link },
    NbdListener { volume: VolumeId, fd: Fd, stopping: bool },
}

/// The engine's side of a session of the store.
#[derive(Clone, Copy, Debug)]
pub(super) enum SessionEnd {
    Conn(u32),
    Engine { volume: VolumeId, link: LinkId },
    Sealer(u64),
}

/// An input for a state machine. They are worked off in order, so that a machine is never entered
/// from within itself.
pub(super) enum Work {
    Store(store::Input),
    Engine(VolumeId, engine::Input),
    Front(IoId, BlockResult),
}

pub(super) struct Thread {
    pub(super) now: Instant,
    pub(super) ring: Ring,
    pub(super) pool_fd: Fd,
    /// Holds the lock on the pool (R12).
    _pool: PoolFile,
    pub(super) store: Store,
    pub(super) store_timer: Option<Instant>,
    pub(super) pool_ios: Vec<Option<PoolIo>>,
    pub(super) work: VecDeque<Work>,
    pub(super) owners: BTreeMap<u32, Owner>,
    next_owner: u32,
    listener: Fd,
    accept_again: Option<Instant>,
    pub(super) sessions: BTreeMap<SessionId, SessionEnd>,
    pub(super) next_session: u64,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    pub(super) sealers: BTreeMap<u64, Sealer>,
    pub(super) next_ticket: u64,
    /// Time of one pass of the scrub.
    pub(super) scrub: std::time::Duration,
    pub(super) admin: BTreeMap<u64, oneshot::Sender<Result<(), DataError>>>,
    /// Connections with queued frames.
    pub(super) unflushed: Vec<u32>,
    // Reused, so that steady I/O does not allocate.
    pub(super) store_outputs: Vec<store::Output>,
    pub(super) engine_outputs: Vec<engine::Output>,
    pub(super) conn_events: Vec<Event>,
    inbox: Receiver<Command>,
    events: UnboundedSender<DataEvent>,
}

/// Body of the data thread.
pub(super) fn main(
    config: DataConfig,
    inbox: Receiver<Command>,
    events: UnboundedSender<DataEvent>,
    ready: &SyncSender<Result<Waker, PoolError>>,
) {
    match Thread::new(config, inbox, events) {
        Ok(mut thread) => {
            if ready.send(Ok(thread.ring.waker())).is_ok() {
                thread.run();
            }
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

impl Thread {
    fn new(
        config: DataConfig,
        inbox: Receiver<Command>,
        events: UnboundedSender<DataEvent>,
    ) -> Result<Self, PoolError> {
        let setup = |what| move |source| PoolError::Setup { what, source };
        if let Some(cpu) = config.cpu
            && let Err(error) = hostio::process::pin_to_cpu(cpu)
        {
            warn!(cpu, %error, "the data thread is not pinned");
        }
        if let Err(error) = hostio::process::io_flusher() {
            warn!(%error, "PR_SET_IO_FLUSHER is not set: writeback may wait for itself");
        }
        let ring = Ring::new(RING_ENTRIES).map_err(setup("io_uring"))?;
        let (pool, store) = pool::open(&config)?;
        let listener = hostio::net::into_ring(OwnedFd::from(config.listener))
            .map_err(setup("data listener"))?;
        let mut thread = Self {
            now: hostio::clock::boottime(),
            ring,
            pool_fd: pool.fd(),
            _pool: pool,
            store,
            store_timer: None,
            pool_ios: Vec::new(),
            work: VecDeque::new(),
            owners: BTreeMap::new(),
            next_owner: FIRST_FREE_OWNER,
            listener,
            accept_again: None,
            sessions: BTreeMap::new(),
            next_session: 0,
            volumes: BTreeMap::new(),
            sealers: BTreeMap::new(),
            next_ticket: 0,
            scrub: config.scrub,
            admin: BTreeMap::new(),
            unflushed: Vec::new(),
            store_outputs: Vec::new(),
            engine_outputs: Vec::new(),
            conn_events: Vec::new(),
            inbox,
            events,
        };
        thread.accept();
        thread.work.push_back(Work::Store(store::Input::Tick));
        Ok(thread)
    }

    fn run(&mut self) {
        let mut completions: Vec<Completion> = Vec::new();
        loop {
            if !self.commands() {
                return;
            }
            // What came in goes first: a timer must not fire for an answer that is already here.
            self.work_off();
            self.timers();
            self.work_off();
            self.flush();
            let timeout = self.next_deadline().map(|at| at.since(self.now));
            if let Err(error) = self.ring.wait(timeout, &mut completions) {
                // Without its ring the thread can neither serve nor fail I/O: the process ends,
                // and other nodes take over.
                error!(%error, "io_uring failed");
                std::process::abort();
            }
            self.now = hostio::clock::boottime();
            for completion in completions.drain(..) {
                self.completed(completion);
            }
        }
    }

    fn work_off(&mut self) {
        while let Some(work) = self.work.pop_front() {
            match work {
                Work::Store(input) => self.step_store(input),
                Work::Engine(volume, input) => self.step_engine(volume, input),
                Work::Front(id, result) => self.front_done(id, result),
            }
        }
    }

    fn flush(&mut self) {
        let mut owners = std::mem::take(&mut self.unflushed);
        for owner in owners.drain(..) {
            if let Some(Owner::Conn(conn)) = self.owners.get_mut(&owner) {
                conn.flush(&mut self.ring);
                // A reply may have made room for more requests.
                conn.receive(&mut self.ring);
            }
        }
        self.unflushed = owners;
    }

    fn completed(&mut self, completion: Completion) {
        match completion.token.owner {
            POOL => self.pool_completed(completion),
            LISTENER => match (completion.result, completion.fd) {
                (Ok(_), Some(fd)) => {
                    self.accepted(fd);
                    self.accept();
                }
                (result, _) => {
                    warn!(?result, "accepting a data connection failed");
                    self.accept_again = Some(self.now.after(ACCEPT_RETRY));
                }
            },
            owner => match self.owners.get(&owner) {
                Some(Owner::Conn(_)) => self.conn_completed(owner, completion),
                Some(Owner::Front { .. }) => self.front_completed(owner, completion),
                Some(Owner::NbdListener { .. }) => self.nbd_accepted(owner, completion),
                None => {}
            },
        }
    }

    pub(super) fn new_owner(&mut self) -> u32 {
        loop {
            let owner = self.next_owner;
            self.next_owner = self.next_owner.checked_add(1).unwrap_or(FIRST_FREE_OWNER);
            if !self.owners.contains_key(&owner) {
                return owner;
            }
        }
    }

    fn accept(&mut self) {
        let token = Token { owner: LISTENER, op: 0 };
        self.ring.submit(token, Op::Accept { fd: Fd::clone(&self.listener) });
    }

    pub(super) fn tell(&self, event: DataEvent) {
        // Nobody listens only while the daemon ends.
        let _ = self.events.send(event);
    }

    // ---- time --------------------------------------------------------------------------------

    fn timers(&mut self) {
        if self.store_timer.is_some_and(|at| at <= self.now) {
            self.store_timer = None;
            self.work.push_back(Work::Store(store::Input::Tick));
        }
        let now = self.now;
        let due = |volume: &Volume| volume.throttle.due().is_some_and(|at| at <= now);
        let passing = self.volumes.iter().filter(|(_, volume)| due(volume)).map(|(id, _)| *id);
        for id in passing.collect::<Vec<_>>() {
            self.let_pass(id);
        }
        for (id, volume) in &mut self.volumes {
            if volume.tick.is_some_and(|at| at <= self.now) {
                volume.tick = None;
                self.work.push_back(Work::Engine(*id, engine::Input::Tick));
            }
        }
        if self.accept_again.is_some_and(|at| at <= self.now) {
            self.accept_again = None;
            self.accept();
        }
        self.overdue_seals();
        let mut silent = Vec::new();
        for (owner, entry) in &mut self.owners {
            match entry {
                Owner::Conn(conn) => {
                    let waits = matches!(conn.purpose, Purpose::Inbound(None));
                    if waits && !conn.is_closed() && now.since(conn.since) >= HELLO_TIMEOUT {
                        silent.push(*owner);
                    }
                }
                Owner::Front { front, .. } => {
                    if front.deadline().is_some_and(|at| at <= now) {
                        front.tick(now, &mut self.ring);
                    }
                }
                Owner::NbdListener { .. } => {}
            }
        }
        for owner in silent {
            self.close_conn(owner, false);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let fronts = self.owners.values().filter_map(|entry| match entry {
            Owner::Conn(conn) => {
                let waits = matches!(conn.purpose, Purpose::Inbound(None)) && !conn.is_closed();
                waits.then(|| conn.since.after(HELLO_TIMEOUT))
            }
            Owner::Front { front, .. } => front.deadline(),
            Owner::NbdListener { .. } => None,
        });
        let ticks = self.volumes.values().flat_map(|volume| [volume.tick, volume.throttle.due()]);
        let ticks = ticks.flatten();
        let own = [self.store_timer, self.accept_again, self.next_seal_timeout()];
        fronts.chain(ticks).chain(own.into_iter().flatten()).min()
    }

    // ---- commands ----------------------------------------------------------------------------

    /// False when the thread is to end.
    fn commands(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Shutdown) | Err(TryRecvError::Disconnected) => return false,
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Admin { admin, answer } => {
                self.next_ticket += 1;
                let op = self.next_ticket;
                self.admin.insert(op, answer);
                self.work.push_back(Work::Store(store::Input::Admin { op, admin }));
            }
            Command::Replicas { answer } => {
                let _ = answer.send(Ok(self.store.replicas()));
            }
            Command::Pool { answer } => {
                let _ = answer.send(Ok(self.store.stats()));
            }
            Command::Seal { hello, address, answer } => self.start_seal(hello, address, answer),
            Command::StartEngine { spec, answer } => self.start_engine(*spec, answer),
            Command::Activate { volume, view, answer } => {
                self.engine_command(volume, engine::Input::Activated(view), Some(answer));
            }
            Command::SetMembers { volume, members } => {
                self.engine_command(volume, engine::Input::Members(members), None);
            }
            Command::SetLimits { volume: id, limits } => {
                if let Some(volume) = self.volumes.get_mut(&id) {
                    volume.throttle.set(limits);
                    self.let_pass(id);
                }
            }
            Command::Resize { volume, size, answer } => {
                self.resize(volume, size);
                self.engine_command(volume, engine::Input::Resize(size), Some(answer));
            }
            Command::StopEngine { volume, answer } => self.stop_engine(volume, answer),
            Command::FailEngine { volume } => {
                self.end_throttle(volume);
                self.engine_command(volume, engine::Input::Fenced, None);
            }
            Command::AttachFuse { volume, fd, name, answer } => {
                let _ = answer.send(self.attach_fuse(volume, fd, &name));
            }
            Command::AttachNbd { volume, listener, answer } => {
                let _ = answer.send(self.attach_nbd(volume, listener));
            }
            Command::AttachKernelNbd { volume, socket, answer } => {
                let _ = answer.send(self.attach_kernel_nbd(volume, socket));
            }
            Command::DetachFrontends { volume, answer } => self.detach_frontends(volume, answer),
            Command::Status { volume, answer } => {
                let _ = answer.send(self.status(volume));
            }
            Command::Compare { volume, answer } => self.compare(volume, answer),
            Command::Snapshot { volume, snapshot, answer } => {
                self.snapshot(volume, snapshot, answer);
            }
            Command::Fill { volume, source, answer } => self.fill(volume, source, answer),
            Command::IsrChanged { volume, ticket, result } => {
                let input = engine::Input::IsrAnswer { ticket, answer: result };
                self.engine_command(volume, input, None);
            }
            Command::Shutdown => {}
        }
    }

    fn engine_command(
        &mut self,
        volume: VolumeId,
        input: engine::Input,
        answer: Option<oneshot::Sender<Result<(), DataError>>>,
    ) {
        let known = self.volumes.contains_key(&volume);
        if known {
            self.work.push_back(Work::Engine(volume, input));
        }
        if let Some(answer) = answer {
            let _ = answer.send(if known { Ok(()) } else { Err(DataError::NotAttached(volume)) });
        }
    }

    // ---- front-ends --------------------------------------------------------------------------

    fn add_front(&mut self, id: VolumeId, owner: u32, entry: Owner) {
        self.owners.insert(owner, entry);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.fronts.push(owner);
        }
        match self.owners.get_mut(&owner) {
            Some(Owner::Front { front, .. }) => front.start(&mut self.ring),
            Some(Owner::NbdListener { fd, .. }) => {
                let fd = Fd::clone(fd);
                self.ring.submit(Token { owner, op: 0 }, Op::Accept { fd });
            }
            _ => {}
        }
    }

    fn attach_fuse(&mut self, id: VolumeId, fd: OwnedFd, name: &str) -> Result<(), DataError> {
        let size = self.volumes.get(&id).ok_or(DataError::NotAttached(id))?.size;
        let owner = self.new_owner();
        let front = frontend::Fuse::new(owner, Fd::new(fd), name, size);
        let front = Box::new(front);
        self.add_front(id, owner, Owner::Front { volume: id, front, link: Link::Loose });
        Ok(())
    }

    fn attach_kernel_nbd(&mut self, id: VolumeId, socket: OwnedFd) -> Result<(), DataError> {
        let size = self.volumes.get(&id).ok_or(DataError::NotAttached(id))?.size;
        let socket = hostio::net::into_ring(socket)
            .map_err(|error| DataError::Descriptor(error.to_string()))?;
        let owner = self.new_owner();
        let export = frontend::Export { name: id.to_string(), size };
        let front = Box::new(NbdConnection::of_kernel(owner, socket, export, self.now));
        self.add_front(id, owner, Owner::Front { volume: id, front, link: Link::Kernel });
        Ok(())
    }

    fn attach_nbd(&mut self, id: VolumeId, listener: UnixListener) -> Result<(), DataError> {
        if !self.volumes.contains_key(&id) {
            return Err(DataError::NotAttached(id));
        }
        let fd = hostio::net::into_ring(OwnedFd::from(listener))
            .map_err(|error| DataError::Descriptor(error.to_string()))?;
        let owner = self.new_owner();
        self.add_front(id, owner, Owner::NbdListener { volume: id, fd, stopping: false });
        Ok(())
    }

    fn nbd_accepted(&mut self, owner: u32, completion: Completion) {
        let Some(Owner::NbdListener { volume, fd, stopping }) = self.owners.get(&owner) else {
            return;
        };
        let (id, listener, stopping) = (*volume, Fd::clone(fd), *stopping);
        if stopping || completion.result.is_err() {
            return self.forget_front(owner);
        }
        self.ring.submit(Token { owner, op: 0 }, Op::Accept { fd: listener });
        let Some(size) = self.volumes.get(&id).map(|volume| volume.size) else { return };
        let clients =
            |entry: &&Owner| matches!(entry, Owner::Front { volume, .. } if *volume == id);
        if self.owners.values().filter(clients).count() >= MAX_NBD_CLIENTS {
            warn!(volume = %id, "too many NBD clients; one was refused");
            return;
        }
        let Some(socket) = completion.fd else { return };
        let client = self.new_owner();
        let Ok(socket) = hostio::net::into_ring(socket) else { return };
        let export = frontend::Export { name: id.to_string(), size };
        let front = Box::new(NbdConnection::new(client, socket, export, self.now));
        self.add_front(id, client, Owner::Front { volume: id, front, link: Link::Loose });
    }

    pub(super) fn stop_front(&mut self, owner: u32) {
        match self.owners.get_mut(&owner) {
            Some(Owner::Front { front, link, .. }) => {
                *link = Link::Loose;
                front.stop(&mut self.ring);
            }
            Some(Owner::NbdListener { stopping, .. }) => {
                *stopping = true;
                self.ring.cancel(Token { owner, op: 0 });
            }
            _ => {}
        }
    }

    fn resize(&mut self, id: VolumeId, size: u64) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.size = volume.size.max(size);
        for owner in volume.fronts.clone() {
            if let Some(Owner::Front { front, .. }) = self.owners.get_mut(&owner) {
                front.resize(size);
            }
        }
    }
}
