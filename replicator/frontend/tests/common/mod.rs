//! A block device in memory and a thread that serves front-ends of it, as the data thread does.
#![allow(dead_code, clippy::unwrap_used)]

use frontend::{BlockDevice, Frontend, Fuse, Status, owner_of};
use hostio::loopdev::LoopDevice;
use hostio::{Completion, Fd, Op, Ring, Token, Waker};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use types::{BlockOp, BlockResult, BufMut, IoError, IoId, MAX_IO, in_bounds};

/// What reached the device.
#[derive(Default)]
pub struct Counters {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub fua: AtomicU64,
    pub flushes: AtomicU64,
    pub discards: AtomicU64,
    pub zeroes: AtomicU64,
    /// Writes that have arrived and are held back.
    pub held: AtomicU64,
    /// Requests out of bounds, misaligned or too long: a front-end must let none through.
    pub illegal: AtomicU64,
}

impl Counters {
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Answers in the order of submission, from memory.
pub struct MemDevice {
    bytes: Vec<u8>,
    done: VecDeque<(IoId, BlockResult)>,
    counters: Arc<Counters>,
    /// What every request gets instead of service.
    failing: Option<IoError>,
    /// While `Some`, writes wait here instead of being done: a disk that takes its time.
    held: Option<Vec<(IoId, BlockOp)>>,
}

impl MemDevice {
    pub fn new(size: u64, counters: Arc<Counters>) -> Self {
        let bytes = vec![0; usize::try_from(size).unwrap()];
        Self { bytes, done: VecDeque::new(), counters, failing: None, held: None }
    }

    fn release(&mut self) {
        for (id, op) in self.held.take().unwrap_or_default() {
            self.submit(id, op);
        }
    }

    fn range(&self, offset: u64, len: u64) -> Result<std::ops::Range<usize>, IoError> {
        if !in_bounds(offset, len, self.size()) {
            self.counters.illegal.fetch_add(1, Ordering::Relaxed);
            return Err(IoError::Invalid);
        }
        Ok(offset as usize..(offset + len) as usize)
    }

    fn perform(&mut self, op: BlockOp) -> BlockResult {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let counters = Arc::clone(&self.counters);
        if let Some(error) = self.failing {
            return Err(error);
        }
        match op {
            BlockOp::Read { offset, len } => {
                count(&counters.reads);
                let range = self.range(offset, u64::from(len))?;
                if u64::from(len) > MAX_IO {
                    count(&counters.illegal);
                }
                Ok(Some(BufMut::copy_of(&self.bytes[range]).freeze()))
            }
            BlockOp::Write { offset, data, fua } => {
                count(&counters.writes);
                if fua {
                    count(&counters.fua);
                }
                if data.len() as u64 > MAX_IO {
                    count(&counters.illegal);
                }
                let range = self.range(offset, data.len() as u64)?;
                self.bytes[range].copy_from_slice(data.as_slice());
                Ok(None)
            }
            BlockOp::Flush => {
                count(&counters.flushes);
                Ok(None)
            }
            BlockOp::Discard { offset, len } => {
                count(&counters.discards);
                let range = self.range(offset, len)?;
                self.bytes[range].fill(0);
                Ok(None)
            }
            BlockOp::WriteZeroes { offset, len, fua } => {
                count(&counters.zeroes);
                if fua {
                    count(&counters.fua);
                }
                let range = self.range(offset, len)?;
                self.bytes[range].fill(0);
                Ok(None)
            }
        }
    }
}

impl BlockDevice for MemDevice {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn submit(&mut self, id: IoId, op: BlockOp) {
        if let (Some(held), BlockOp::Write { .. }) = (&mut self.held, &op) {
            held.push((id, op));
            self.counters.held.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let result = self.perform(op);
        self.done.push_back((id, result));
    }
}

const O_DIRECT: i32 = 0o40000;

/// Makes a front-end of an accepted connection: owner, connection, size.
pub type Connect = fn(u32, Fd, u64) -> Box<dyn Frontend>;

enum Ask {
    Add(OwnedFd, String),
    Listen(Fd, Connect),
    Resize(u64),
    Fail(Option<IoError>),
    Hold(bool),
    Stop,
}

/// The serving thread; ends when dropped.
pub struct Server {
    asks: Sender<(Ask, Sender<()>)>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    pub counters: Arc<Counters>,
}

impl Server {
    pub fn start(size: u64) -> Self {
        let counters = Arc::<Counters>::default();
        let device = MemDevice::new(size, Arc::clone(&counters));
        let (asks, asked) = channel();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            let ring = Ring::new(256).unwrap();
            ready.send(ring.waker()).unwrap();
            Loop { ring, device, frontends: BTreeMap::new(), listener: None, next: 1 }.run(&asked);
        });
        let waker = started.recv().unwrap();
        Self { asks, waker, thread: Some(thread), counters }
    }

    /// Returns when the thread has done it.
    fn ask(&self, ask: Ask) {
        let (done, wait) = channel();
        if self.asks.send((ask, done)).is_ok() {
            self.waker.wake();
            let _ = wait.recv();
        }
    }

    /// Serves a FUSE session with one file called `name`.
    pub fn serve_fuse(&self, fd: OwnedFd, name: String) {
        self.ask(Ask::Add(fd, name));
    }

    pub fn listen(&self, listener: std::os::unix::net::UnixListener, connect: Connect) {
        self.ask(Ask::Listen(Arc::new(OwnedFd::from(listener)), connect));
    }

    pub fn resize(&self, size: u64) {
        self.ask(Ask::Resize(size));
    }

    pub fn fail(&self, error: Option<IoError>) {
        self.ask(Ask::Fail(error));
    }

    /// Holds writes back from now on, or does those that were held and goes on as usual.
    pub fn hold(&self, hold: bool) {
        self.ask(Ask::Hold(hold));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ask(Ask::Stop);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

struct Loop {
    ring: Ring,
    device: MemDevice,
    frontends: BTreeMap<u32, Box<dyn Frontend>>,
    listener: Option<(Fd, Connect)>,
    next: u32,
}

const ACCEPT: Token = Token { owner: 0, op: 0 };

impl Loop {
    fn run(mut self, asked: &Receiver<(Ask, Sender<()>)>) {
        let mut out = Vec::new();
        let mut stopping = false;
        loop {
            while let Ok((ask, done)) = asked.try_recv() {
                match ask {
                    Ask::Add(fd, name) => {
                        let fuse = Fuse::new(self.next, Arc::new(fd), &name, self.device.size());
                        self.add(Box::new(fuse));
                    }
                    Ask::Listen(fd, connect) => {
                        self.ring.submit(ACCEPT, Op::Accept { fd: Arc::clone(&fd) });
                        self.listener = Some((fd, connect));
                    }
                    Ask::Resize(size) => {
                        self.device.bytes.resize(size as usize, 0);
                        self.frontends.values_mut().for_each(|frontend| frontend.resize(size));
                    }
                    Ask::Fail(error) => self.device.failing = error,
                    Ask::Hold(true) => self.device.held = Some(Vec::new()),
                    Ask::Hold(false) => self.device.release(),
                    Ask::Stop => {
                        stopping = true;
                        self.device.release();
                        self.listener = None;
                        self.ring.cancel(ACCEPT);
                        self.frontends.values_mut().for_each(|f| f.stop(&mut self.ring));
                    }
                }
                let _ = done.send(());
            }
            while let Some((id, result)) = self.device.done.pop_front() {
                let owner = owner_of(id);
                let frontend = self.frontends.get_mut(&owner).unwrap();
                let status = frontend.on_block_done(id, result, &mut self.ring);
                self.after(owner, status);
            }
            if stopping && self.frontends.is_empty() {
                return;
            }
            let now = hostio::clock::boottime();
            let deadline = self.frontends.values().filter_map(|f| f.deadline()).min();
            self.ring.wait(deadline.map(|at| at.since(now)), &mut out).unwrap();
            for completion in out.drain(..) {
                self.complete(completion);
            }
            let now = hostio::clock::boottime();
            for frontend in self.frontends.values_mut() {
                if frontend.deadline().is_some_and(|at| at <= now) {
                    frontend.tick(now, &mut self.ring);
                }
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        let owner = completion.token.owner;
        if completion.token == ACCEPT {
            if let (Some(fd), Some((listener, connect))) = (completion.fd, &self.listener) {
                let frontend = connect(self.next, Arc::new(fd), self.device.size());
                self.ring.submit(ACCEPT, Op::Accept { fd: Arc::clone(listener) });
                self.add(frontend);
            }
            return;
        }
        let frontend = self.frontends.get_mut(&owner).unwrap();
        let status = frontend.on_completion(completion, &mut self.ring, &mut self.device);
        self.after(owner, status);
    }

    fn add(&mut self, mut frontend: Box<dyn Frontend>) {
        frontend.start(&mut self.ring);
        self.frontends.insert(self.next, frontend);
        self.next += 1;
    }

    fn after(&mut self, owner: u32, status: Status) {
        if status == Status::Closed {
            let gone = self.frontends.remove(&owner).unwrap();
            assert_eq!(gone.in_flight(), 0, "closed with requests in flight");
        }
    }
}

/// A mounted FUSE filesystem; aborted and unmounted when dropped.
pub struct Mounted {
    pub dir: tempfile::TempDir,
    pub server: Server,
}

/// Loop devices are found by it, so tests that run side by side need different ones.
fn file_name(mount: &Path) -> String {
    format!("{}-volume", mount.file_name().unwrap().to_string_lossy())
}

impl Mounted {
    /// `None`, said in words, where this cannot be tested.
    pub fn new(size: u64) -> Option<Self> {
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if OpenOptions::new().read(true).write(true).open(device).is_err() {
                eprintln!("skipped: {device} cannot be opened");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(size);
        let fuse = hostio::fuse::mount_at(dir.path(), "holdfast-test").unwrap();
        server.serve_fuse(fuse, file_name(dir.path()));
        Some(Self { dir, server })
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join(file_name(self.dir.path()))
    }

    pub fn attach(&self) -> Attached {
        let device = LoopDevice::attach(&self.file(), 4096).unwrap();
        Attached { path: device.path().to_owned(), device: Some(device) }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = hostio::fuse::abort(self.dir.path());
        }
        let unmounted = hostio::fuse::unmount(self.dir.path(), true);
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

/// A loop device; detached when dropped.
pub struct Attached {
    pub path: PathBuf,
    device: Option<LoopDevice>,
}

impl Attached {
    pub fn device(&self) -> &LoopDevice {
        self.device.as_ref().unwrap()
    }

    pub fn open(&self, direct: bool) -> File {
        let flags = if direct { O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path).unwrap()
    }

    pub fn text(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            let _ = device.detach();
        }
    }
}

/// A filesystem mounted by mount(8); unmounted when dropped.
pub struct Filesystem(pub PathBuf);

impl Drop for Filesystem {
    fn drop(&mut self) {
        let _ = hostio::fuse::unmount(&self.0, true);
    }
}

/// Runs a tool to its end. `None`, said in words, if it is not installed.
pub fn tool(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Runs a tool that must succeed; its standard output. `None` if it is not installed.
pub fn succeed(program: &str, args: &[&str]) -> Option<String> {
    let output = tool(program, args)?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}\n{stderr}", output.status);
    Some(stdout.into_owned())
}
