//! R12 against a disk that takes its time: a loop device over FUSE whose writes are held back until
//! the test lets them go. Needs root.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Attached, Counters, Mounted, succeed};
use hostio::pool::PoolFile;
use hostio::{HostError, Op, Ring, Token};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use types::Buf;

const POOL: &str = "HOLDFAST_TEST_POOL";
const SIZE: u64 = 64 << 20;
const WRITES: u64 = 16;

/// Not a test of its own: the process that is killed with its writes in flight.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(POOL) else { return };
    let pool = PoolFile::open(Path::new(&path)).unwrap();
    let mut ring = Ring::new(64).unwrap();
    for op in 0..WRITES as u32 {
        // Far apart, so that the kernel does not merge them.
        let offset = u64::from(op) << 20;
        let data = Buf::copy_of(&[0xEE; 4096]);
        let write = Op::WriteAt { fd: pool.fd(), offset, data, dsync: false };
        ring.submit(Token { owner: 0, op }, write);
    }
    ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
    println!("writing");
    loop {
        ring.wait(None, &mut Vec::new()).unwrap();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn in_use(pool: &Path) -> bool {
    match PoolFile::open(pool) {
        Ok(_) => false,
        Err(HostError::InUse { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

/// Kills the owner of `pool`, which lies on `mounted`, in the middle of its writes.
fn takeover(mounted: &Mounted, pool: &Path) {
    let counters = &mounted.server.counters;
    mounted.server.hold(true);
    let held = Counters::get(&counters.held);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture"])
        .env(POOL, pool)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("writing")));
    until("the writes arrive", || Counters::get(&counters.held) == held + WRITES);
    child.kill().unwrap();
    // However long the disk takes, and whether or not the process is gone already.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        assert!(in_use(pool), "opened over writes in flight");
        std::thread::sleep(Duration::from_millis(5));
    }
    mounted.server.hold(false);
    let mut taken = None;
    until("the successor opens", || {
        taken = PoolFile::open(pool).ok();
        taken.is_some()
    });
    let writes = Counters::get(&counters.writes);
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(Counters::get(&counters.writes), writes, "a write landed under the new owner");
    let mut block = types::BufMut::zeroed(4096);
    taken.unwrap().read_at((WRITES - 1) << 20, &mut block).unwrap();
    assert!(block.as_slice().iter().all(|byte| *byte == 0xEE));
}

#[test]
fn a_block_device_is_free_only_when_the_killed_owners_writes_are_over() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached = mounted.attach();
    takeover(&mounted, &attached.path);
}

#[test]
fn a_file_is_free_only_when_the_killed_owners_writes_are_over() {
    let Some(mounted) = Mounted::new(SIZE) else { return };
    let attached: Attached = mounted.attach();
    if succeed("mkfs.ext4", &["-q", attached.text()]).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    succeed("mount", &["-t", "ext4", attached.text(), at]).unwrap();
    let filesystem = common::Filesystem(dir.path().to_owned());
    let pool = dir.path().join("pool");
    // Written once, so that what is held back later are the writes themselves, no journal.
    std::fs::write(&pool, vec![1; (WRITES << 20) as usize]).unwrap();
    std::fs::File::open(&pool).unwrap().sync_all().unwrap();
    succeed("sync", &["-f", at]).unwrap();
    takeover(&mounted, &pool);
    drop(filesystem);
}
