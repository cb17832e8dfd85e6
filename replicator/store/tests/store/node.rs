//! A store on a [`SimDisk`], its disk operations completed in any order that the test likes.

use std::collections::BTreeMap;

pub use kit::ids::{CLUSTER, POOL, boot, incarnation, instance, process, replica, volume};
use store::{
    Admin, Event, Input, IoId, IoResult, OpenError, OpenOptions, Output, SessionId, Store,
};
use types::{Buf, Era, Instant, crc32c};
use wire::{Hello, Reply, Request, Role, SealInfo, WireError};

use crate::disk::{Rng, SimDisk};

pub const MIB: u64 = 1 << 20;

pub fn format_options() -> store::FormatOptions {
    store::FormatOptions { cluster: CLUSTER, pool: POOL, slot_size: 64 << 10, force: false }
}

pub fn open_options(n: u8) -> OpenOptions {
    OpenOptions { cluster: CLUSTER, expected_pool: Some(POOL), boot: boot(n) }
}

#[derive(Debug)]
pub struct InFlight {
    pub id: IoId,
    pub op: DiskOp,
}

#[derive(Clone, Debug)]
pub enum DiskOp {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: Buf, durable: bool },
    Zero { offset: u64, len: u64 },
    Sync { mark: u64 },
}

pub struct Node {
    pub disk: SimDisk,
    pub store: Store,
    pub now: Instant,
    pub in_flight: Vec<InFlight>,
    pub replies: BTreeMap<(SessionId, u64), Reply>,
    pub closed: Vec<SessionId>,
    pub admin: BTreeMap<u64, Result<(), store::StoreError>>,
    pub events: Vec<Event>,
    pub timers: Vec<Instant>,
    /// Everything of the last step, disk operations as they were asked for.
    pub last: Vec<Output>,
    /// Errors to answer: predicate on the operation.
    pub fault: Option<fn(&DiskOp) -> Option<i32>>,
    next: u64,
    /// Where the slots begin: the lowest offset that was ever zeroed.
    slots: u64,
}

impl Node {
    pub fn new(size: u64) -> Self {
        let mut disk = SimDisk::new(size);
        store::format(&mut disk, &format_options()).unwrap();
        Self::open(disk, 1, Instant(1)).unwrap()
    }

    pub fn open(mut disk: SimDisk, boot: u8, now: Instant) -> Result<Self, OpenError> {
        match store::open(&mut disk, &open_options(boot)) {
            Err(error) => Err(error),
            Ok(store) => Ok(Self {
                disk,
                store,
                now,
                in_flight: Vec::new(),
                replies: BTreeMap::new(),
                closed: Vec::new(),
                admin: BTreeMap::new(),
                events: Vec::new(),
                timers: Vec::new(),
                last: Vec::new(),
                fault: None,
                next: 1 << 32,
                slots: u64::MAX,
            }),
        }
    }

    /// A number that was not used before.
    pub fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn step(&mut self, input: Input) {
        let mut out = Vec::new();
        self.store.step(self.now, input, &mut out);
        for output in &out {
            let (id, op) = match output.clone() {
                Output::Reply { session, seq, reply } => {
                    let before = self.replies.insert((session, seq), reply);
                    assert!(before.is_none(), "answered twice: {session:?} {seq}");
                    continue;
                }
                Output::CloseSession { session } => {
                    self.closed.push(session);
                    continue;
                }
                Output::AdminDone { op, result } => {
                    assert!(self.admin.insert(op, result).is_none());
                    continue;
                }
                Output::Timer(at) => {
                    self.timers.push(at);
                    continue;
                }
                Output::Event(event) => {
                    self.events.push(event);
                    continue;
                }
                Output::Read { id, offset, len } => (id, DiskOp::Read { offset, len }),
                Output::Write { id, offset, data, durable } => {
                    (id, DiskOp::Write { offset, data, durable })
                }
                Output::Zero { id, offset, len } => {
                    self.slots = self.slots.min(offset);
                    (id, DiskOp::Zero { offset, len })
                }
                Output::Sync { id } => (id, DiskOp::Sync { mark: self.disk.mark() }),
            };
            self.in_flight.push(InFlight { id, op });
        }
        self.last = out;
    }

    /// Completes one disk operation.
    pub fn complete(&mut self, at: usize) {
        let InFlight { id, op } = self.in_flight.remove(at);
        let fault = self.fault.and_then(|fault| fault(&op));
        let result = match (op, fault) {
            (DiskOp::Read { .. }, Some(errno)) => IoResult::Read(Err(errno)),
            (_, Some(errno)) => IoResult::Done(Err(errno)),
            (DiskOp::Read { offset, len }, None) => IoResult::Read(Ok(self.disk.read(offset, len))),
            (DiskOp::Write { offset, data, durable }, None) => {
                self.disk.write(offset, data.len() as u64, Some(&data), durable);
                IoResult::Done(Ok(()))
            }
            (DiskOp::Zero { offset, len }, None) => {
                self.disk.write(offset, len, None, false);
                IoResult::Done(Ok(()))
            }
            (DiskOp::Sync { mark }, None) => {
                self.disk.synced(mark);
                IoResult::Done(Ok(()))
            }
        };
        self.step(Input::Io { id, result });
    }

    /// Completes everything.
    pub fn settle(&mut self) {
        while !self.in_flight.is_empty() {
            self.complete(0);
        }
    }

    pub fn pass(&mut self, ms: u64) {
        self.now = self.now.after(std::time::Duration::from_millis(ms));
        self.step(Input::Tick);
    }

    pub fn admin(&mut self, admin: Admin) -> Result<(), store::StoreError> {
        let op = self.unique();
        self.step(Input::Admin { op, admin });
        self.settle();
        self.admin.remove(&op).expect("answered")
    }

    pub fn create(&mut self, n: u8, size: u64) {
        let admin = Admin::CreateReplica {
            volume: volume(n),
            replica: replica(n),
            incarnation: incarnation(n),
            size,
        };
        self.admin(admin).unwrap();
    }

    pub fn hello(n: u8, epoch: u64, role: Role) -> Hello {
        kit::ids::hello(n, epoch, role)
    }

    pub fn session(&mut self, hello: Hello) -> Result<SessionId, WireError> {
        let session = SessionId(self.unique());
        self.step(Input::Open { session, hello });
        match self.replies.remove(&(session, 0)) {
            None => Ok(session),
            Some(Reply::Failed(error)) => {
                assert_eq!(self.closed.last(), Some(&session));
                Err(error)
            }
            Some(reply) => panic!("{reply:?}"),
        }
    }

    pub fn send(&mut self, session: SessionId, request: Request) -> u64 {
        let seq = self.unique();
        self.step(Input::Request { session, seq, request });
        seq
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&mut self, session: SessionId, request: Request) -> Reply {
        let seq = self.send(session, request);
        self.settle();
        self.take(session, seq).expect("answered")
    }

    pub fn take(&mut self, session: SessionId, seq: u64) -> Option<Reply> {
        self.replies.remove(&(session, seq))
    }

    /// Hello and seal, with all the waiting that it takes.
    pub fn attach(&mut self, n: u8, epoch: u64, role: Role) -> (SessionId, SealInfo) {
        let session = self.session(Self::hello(n, epoch, role)).unwrap();
        let seq = self.send(session, Request::Seal);
        self.settle();
        self.pass(3000);
        self.settle();
        match self.take(session, seq) {
            Some(Reply::Sealed(info)) => (session, info),
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, session: SessionId, offset: u64, data: Buf, era: u32) -> Reply {
        self.ask(session, write(offset, data, era))
    }

    pub fn read(&mut self, session: SessionId, offset: u64, len: u32) -> Buf {
        match self.ask(session, Request::Read { offset, len }) {
            Reply::Data { data, crc } => {
                assert_eq!(crc, crc32c(data.as_slice()));
                assert_eq!(data.len(), len as usize);
                data
            }
            other => panic!("{other:?}"),
        }
    }

    /// Power loss: a new boot.
    pub fn crash(self, rng: &mut Rng, boot: u8) -> Self {
        let Self { mut disk, in_flight, now, next, slots, .. } = self;
        let writes: Vec<_> = in_flight
            .into_iter()
            .filter_map(|io| match io.op {
                DiskOp::Write { offset, data, .. } => Some((offset, data.len() as u64, Some(data))),
                DiskOp::Zero { offset, len } => Some((offset, len, None)),
                _ => None,
            })
            .filter(|_| !rng.one_in(3))
            .collect();
        disk.crash(rng, &writes, slots);
        let node = Self::open(disk, boot, now).unwrap();
        Self { next, slots, ..node }
    }

    /// The process dies and starts again; what it submitted completes first (R12).
    pub fn restart(self, boot: u8) -> Self {
        let Self { mut disk, in_flight, now, next, slots, .. } = self;
        for io in in_flight {
            match io.op {
                DiskOp::Write { offset, data, durable } => {
                    disk.write(offset, data.len() as u64, Some(&data), durable);
                }
                DiskOp::Zero { offset, len } => disk.write(offset, len, None, false),
                _ => {}
            }
        }
        let node = Self::open(disk, boot, now).unwrap();
        Self { next, slots, ..node }
    }
}

pub fn write(offset: u64, data: Buf, era: u32) -> Request {
    let crc = crc32c(data.as_slice());
    Request::Write { offset, data, crc, era: Era(era) }
}

pub fn filled(len: u64, byte: u8) -> Buf {
    Buf::copy_of(&vec![byte; len as usize])
}
