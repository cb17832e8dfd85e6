//! The disk under a node's pool, as one process: a file served through FUSE with a volatile write
//! cache, whose power can be cut and which can fail or hang when told so. The pool is a loop
//! device on it.
//!
//! It lives in the hub's namespace: it is no part of the node, whose processes may all die.

mod cache;

pub use cache::{Loss, Mode};

use crate::daemons::{HOLDFAST, spawn};
use crate::layout::Layout;
use crate::process::wait_until;
use anyhow::{Context as _, Result, bail, ensure};
use cache::Cache;
use frontend::{BlockDevice, Frontend as _, Fuse, Status};
use hostio::{Completion, Fd, Ring, Waker};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use types::{BlockOp, BlockResult, IoId};

/// Volatile blocks at most: 64 MiB, as a large disk has.
const CACHE_BLOCKS: usize = 16_384;
const RING_ENTRIES: u32 = 256;
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What a disk is made of.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The medium, a file.
    #[arg(long)]
    medium: PathBuf,
    /// Where the disk is mounted, as one file of the medium's name.
    #[arg(long)]
    mount: PathBuf,
    /// Unix socket for what is to go wrong.
    #[arg(long)]
    control: PathBuf,
}

/// Starts the disk of `node` on the file `medium`; returns the file that it shows itself as.
///
/// # Errors
/// If it does not come up.
pub fn start(layout: &Layout, node: u64, programs: &Path, medium: &Path) -> Result<PathBuf> {
    let (mount, control) = (layout.disk_dir(node), layout.disk_socket(node));
    for dir in [&mount, &layout.log_dir(node)] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let mut words: Vec<OsString> = vec!["lab".into(), "disk".into()];
    for (flag, path) in [("--medium", medium), ("--mount", &mount), ("--control", &control)] {
        words.extend([flag.into(), path.as_os_str().to_owned()]);
    }
    let log = layout.log_dir(node).join("disk.log");
    let process = spawn(&layout.hub(), &programs.join(HOLDFAST), &words, &log)?;
    let up = || UnixStream::connect(&control).is_ok() || !process.is_alive();
    ensure!(
        wait_until(START_PATIENCE, up) && process.is_alive(),
        "the disk of node {node} does not start; see {}",
        log.display()
    );
    Ok(mount.join(medium.file_name().context("the medium has a name")?))
}

/// Has the disk of `node` behave so from now on.
///
/// # Errors
/// If it has no such disk.
pub fn set_mode(layout: &Layout, node: u64, mode: Mode) -> Result<()> {
    tell(layout, node, Order::Mode(mode)).map(drop)
}

/// Cuts the power of the disk of `node`: it answers nothing but errors until [`set_mode`], and
/// `seed` chooses what is left of what was not flushed.
///
/// # Errors
/// If it has no such disk.
pub fn cut_power(layout: &Layout, node: u64, seed: u64) -> Result<Loss> {
    tell(layout, node, Order::Cut(seed))
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Order {
    Mode(Mode),
    Cut(u64),
}

fn tell(layout: &Layout, node: u64, order: Order) -> Result<Loss> {
    let socket = layout.disk_socket(node);
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("the disk of node {node} at {}", socket.display()))?;
    writeln!(stream, "{}", serde_json::to_string(&order)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer)
        .with_context(|| format!("the disk of node {node} said {answer:?}"))
}

#[derive(Debug)]
struct Disk {
    cache: Cache,
    mode: Mode,
}

impl Disk {
    fn obey(&mut self, order: Order) -> Result<Loss> {
        match order {
            Order::Mode(mode) => {
                self.mode = mode;
                Ok(Loss::default())
            }
            Order::Cut(seed) => {
                self.mode = Mode::Errors;
                Ok(self.cache.lose_power(seed)?)
            }
        }
    }
}

/// The disk as its front-end sees it: answers are given later, never from within a request.
struct Device {
    size: u64,
    disk: Arc<Mutex<Disk>>,
    waiting: VecDeque<(IoId, BlockOp)>,
}

impl Device {
    /// The answer to the next request, if there is one now.
    fn answer(&mut self) -> Option<(IoId, BlockResult)> {
        let mut disk = lock(&self.disk);
        if disk.mode == Mode::Hangs {
            return None;
        }
        let (id, op) = self.waiting.pop_front()?;
        let result = match disk.mode {
            Mode::Errors => Err(types::IoError::Io),
            _ => disk.cache.execute(op),
        };
        Some((id, result))
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.size
    }

    fn submit(&mut self, id: IoId, op: BlockOp) {
        self.waiting.push_back((id, op));
    }
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Is the disk, until it is unmounted or killed; blocks.
///
/// # Errors
/// If the medium, the mount or the socket cannot be used.
pub fn run(arguments: &Arguments) -> Result<()> {
    let medium = OpenOptions::new().read(true).write(true).open(&arguments.medium)?;
    let size = medium.metadata()?.len();
    let name = arguments.medium.file_name().and_then(|name| name.to_str());
    let name = name.context("the medium has a name")?;
    let disk = Disk { cache: Cache::new(medium, CACHE_BLOCKS), mode: Mode::Fine };
    let disk = Arc::new(Mutex::new(disk));
    let fuse = hostio::fuse::mount_at(&arguments.mount, "holdfast-lab-disk")?;
    let mut ring = Ring::new(RING_ENTRIES)?;
    let mut front = Fuse::new(0, Fd::new(fuse), name, size);
    front.start(&mut ring);
    obey_all(&arguments.control, Arc::clone(&disk), ring.waker())?;
    let mut device = Device { size, disk, waiting: VecDeque::new() };
    let mut completions: Vec<Completion> = Vec::new();
    loop {
        ring.wait(None, &mut completions)?;
        let mut over = false;
        for completion in completions.drain(..) {
            over |= front.on_completion(completion, &mut ring, &mut device) == Status::Closed;
        }
        while let Some((id, result)) = device.answer() {
            over |= front.on_block_done(id, result, &mut ring) == Status::Closed;
        }
        if over {
            return Ok(());
        }
    }
}

/// Serves the control socket on a thread of its own.
fn obey_all(socket: &Path, disk: Arc<Mutex<Disk>>, waker: Waker) -> Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            if let Err(error) = stream.map_err(Into::into).and_then(|s| obey(&s, &disk, &waker)) {
                tracing::warn!("an order for the disk: {error:#}");
            }
        }
    });
    Ok(())
}

fn obey(stream: &UnixStream, disk: &Mutex<Disk>, waker: &Waker) -> Result<()> {
    let mut line = String::new();
    // Whoever only looks whether we are there says nothing.
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Ok(());
    }
    let Ok(order) = serde_json::from_str(&line) else { bail!("{line:?} is no order") };
    let loss = lock(disk).obey(order)?;
    waker.wake();
    let mut stream = stream;
    writeln!(stream, "{}", serde_json::to_string(&loss)?)?;
    Ok(())
}
