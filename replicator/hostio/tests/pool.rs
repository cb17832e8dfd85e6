//! R12: one owner per pool, on files and on block devices, and what happens when it is killed.
#![allow(clippy::unwrap_used)]

use hostio::loopdev::LoopDevice;
use hostio::pool::PoolFile;
use hostio::{HostError, Op, Ring, Token};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use types::{BLOCK, Buf, BufMut};

const SIZE: u64 = 16 << 20;

fn pool_file(dir: &Path) -> PathBuf {
    let path = dir.join("pool");
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

/// One test at a time: a child begins with all that its parent has open, so that a device which another test
/// has closed meanwhile stays in use until the child's exec.
static TURN: Mutex<()> = Mutex::new(());

/// Where a test works.
struct Place {
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// A directory whose filesystem takes direct I/O (tmpfs may not).
fn dir() -> Place {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Place { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), _turn: turn }
}

fn in_use(path: &Path) -> bool {
    matches!(PoolFile::open(path), Err(HostError::InUse { path: named }) if named == path)
}

/// A loop device over `backing`, detached when dropped; `None`, said in words, without the right.
struct Device(Option<LoopDevice>);

impl Device {
    fn over(backing: &Path) -> Option<Self> {
        match LoopDevice::attach(backing, 4096) {
            Ok(device) => Some(Self(Some(device))),
            Err(error) => {
                eprintln!("skipped: no loop device: {error}");
                None
            }
        }
    }

    fn get(&self) -> &LoopDevice {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(device) = self.0.take() {
            let _ = device.detach();
        }
    }
}

#[test]
fn a_second_open_is_refused_until_the_last_share_of_the_first_is_gone() {
    let dir = dir();
    let file = pool_file(dir.path());
    let device = Device::over(&pool_file(&{
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        sub
    }));
    let mut paths = vec![(file, false)];
    paths.extend(device.iter().map(|device| (device.get().path().to_owned(), true)));
    for (path, block_device) in paths {
        let pool = PoolFile::open(&path).unwrap();
        assert_eq!((pool.size(), pool.is_block_device()), (SIZE, block_device));
        assert!(pool.logical_block() <= 4096);
        assert!(in_use(&path), "{path:?}");
        let share = pool.fd();
        drop(pool);
        assert!(in_use(&path), "an operation in flight holds it: {path:?}");
        drop(share);
        assert!(PoolFile::open(&path).is_ok(), "{path:?}");
    }
}

#[test]
fn blocks_are_read_written_and_zeroed() {
    let dir = dir();
    let file = pool_file(dir.path());
    let Some(device) = Device::over(&file) else { return };
    let pool = PoolFile::open(device.get().path()).unwrap();
    let data = Buf::copy_of(&[3; 3 * 4096]);
    pool.write_at(4096, &data).unwrap();
    pool.sync().unwrap();
    let mut ring = Ring::new(4).unwrap();
    let token = Token { owner: 0, op: 0 };
    ring.submit(token, Op::Zero { fd: pool.fd(), offset: 8192, len: 4096 });
    let mut out = Vec::new();
    while out.is_empty() {
        ring.wait(None, &mut out).unwrap();
    }
    assert_eq!(out[0].result, Ok(0));
    let mut buf = BufMut::with_len(5 * 4096);
    pool.read_at(0, &mut buf).unwrap();
    let expected = [0u8, 3, 0, 3, 0].map(|byte| [byte; 4096]).concat();
    assert!(buf.as_slice() == expected);
    for (offset, len, errno) in
        [(1, 4096, 22), (0, 100, 22), (SIZE, 4096, 5), (u64::MAX - 4095, 4096, 22)]
    {
        let result = pool.read_at(offset, &mut BufMut::with_len(len));
        assert_eq!(result, Err(errno), "{len} at {offset}");
        let written = pool.write_at(offset, &Buf::zeroed(len));
        assert!(written.is_err(), "{len} at {offset}");
    }
}

#[test]
fn what_is_no_pool_is_refused_by_kind() {
    let dir = dir();
    assert!(matches!(PoolFile::open(dir.path()), Err(HostError::WrongKind { .. })));
    assert!(matches!(PoolFile::open(Path::new("/dev/null")), Err(HostError::WrongKind { .. })));
    let missing = PoolFile::open(&dir.path().join("none")).unwrap_err();
    assert_eq!(missing.errno(), 2);
    assert!(!dir.path().join("none").exists(), "opening creates nothing");
}

#[test]
fn a_loop_device_follows_its_file() {
    let dir = dir();
    let file = pool_file(dir.path());
    let Some(device) = Device::over(&file) else { return };
    let path = device.get().path().to_owned();
    assert!(device.get().direct_io());
    assert_eq!(hostio::loopdev::find_by_backing(&file).unwrap(), std::slice::from_ref(&path));
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(2 * SIZE).unwrap();
    device.get().set_capacity().unwrap();
    assert_eq!(PoolFile::open(&path).unwrap().size(), 2 * SIZE);
    assert!(LoopDevice::open(&path, &file).unwrap().direct_io());
    LoopDevice::open(&path, &file).unwrap().detach().unwrap();
    // The handle that `device` still has keeps it attached until it is closed.
    drop(device);
    assert!(hostio::loopdev::find_by_backing(&file).unwrap().is_empty());
    assert!(LoopDevice::attach(&file, 100).is_err(), "a block of 100 bytes");
}

const CHILD: &str = "HOLDFAST_TEST_POOL";

/// Not a test of its own: the process that the next test kills.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let pool = PoolFile::open(Path::new(&path)).unwrap();
    let mut ring = Ring::new(64).unwrap();
    let mut out = Vec::new();
    let mut next = 0u64;
    println!("writing");
    loop {
        while ring.in_flight() < 64 {
            let mut data = BufMut::zeroed(65536);
            data.as_mut_slice().chunks_mut(8).for_each(|c| c.copy_from_slice(&next.to_le_bytes()));
            let token = Token { owner: 0, op: 0 };
            let offset = (next * 65536) % SIZE;
            let data = data.freeze();
            ring.submit(token, Op::WriteAt { fd: pool.fd(), offset, data, dsync: false });
            next += 1;
        }
        ring.wait(None, &mut out).unwrap();
        out.drain(..).for_each(|completion| assert_eq!(completion.result, Ok(65536)));
    }
}

#[test]
fn a_killed_owners_writes_do_not_land_after_the_next_one_has_opened() {
    let dir = dir();
    let path = pool_file(dir.path());
    for round in 0..5u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.by_ref().any(|line| line.unwrap().contains("writing")));
        assert!(in_use(&path));
        std::thread::sleep(Duration::from_millis(20 + u64::from(round) * 7));
        child.kill().unwrap();
        // Nobody waits for the child here: only the lock says when its writes are over.
        let deadline = Instant::now() + Duration::from_secs(20);
        let pool = loop {
            match PoolFile::open(&path) {
                Ok(pool) => break pool,
                Err(HostError::InUse { .. }) => assert!(Instant::now() < deadline),
                Err(error) => panic!("{error}"),
            }
        };
        let mut before = BufMut::with_len(SIZE as usize);
        pool.read_at(0, &mut before).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let mut after = BufMut::with_len(SIZE as usize);
        pool.read_at(0, &mut after).unwrap();
        let changed = (0..SIZE / BLOCK).find(|block| {
            let range = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
            before.as_slice()[range.clone()] != after.as_slice()[range]
        });
        assert_eq!(changed, None, "a block that changed under its new owner");
        child.wait().unwrap();
    }
}
