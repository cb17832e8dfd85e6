#![allow(clippy::unwrap_used)]
use super::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use types::Buf;

const T: Token = Token { owner: 1, op: 1 };

fn one(ring: &mut Ring) -> Completion {
    let mut out = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while out.is_empty() && Instant::now() < deadline {
        ring.wait(Some(Duration::from_secs(10)), &mut out).unwrap();
    }
    assert_eq!(out.len(), 1, "one completion: {out:?}");
    out.remove(0)
}

fn many(ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while out.len() < count && Instant::now() < deadline {
        ring.wait(Some(Duration::from_secs(10)), &mut out).unwrap();
    }
    assert_eq!(out.len(), count);
    out
}

fn pair() -> (Fd, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Arc::new(OwnedFd::from(here)), there)
}

fn file(len: u64) -> Fd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    Arc::new(OwnedFd::from(file))
}

#[test]
fn a_file_is_written_synced_zeroed_and_read_back() {
    let mut ring = Ring::new(8).unwrap();
    let fd = file(64 << 10);
    let data = Buf::copy_of(&[7; 16384]);
    ring.submit(T, Op::WriteAt { fd: fd.clone(), offset: 4096, data, dsync: true });
    assert_eq!(one(&mut ring).result, Ok(16384));
    ring.submit(T, Op::Sync { fd: fd.clone() });
    assert_eq!(one(&mut ring).result, Ok(0));
    ring.submit(T, Op::Zero { fd: fd.clone(), offset: 8192, len: 4096 });
    assert_eq!(one(&mut ring).result, Ok(0));
    ring.submit(T, Op::ReadAt { fd, offset: 4096, buf: BufMut::with_len(16384) });
    let done = one(&mut ring);
    assert_eq!(done.result, Ok(16384));
    let buf = done.buf.unwrap();
    let expected = [[7u8; 4096], [0; 4096], [7; 4096], [7; 4096]].concat();
    assert!(buf.as_slice() == expected);
}

#[test]
fn a_read_past_the_end_is_short_and_errors_keep_their_errno() {
    let mut ring = Ring::new(8).unwrap();
    let fd = file(5000);
    ring.submit(T, Op::ReadAt { fd, offset: 4096, buf: BufMut::with_len(4096) });
    assert_eq!(one(&mut ring).result, Ok(904));
    let full: Fd =
        Arc::new(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into());
    let data = Buf::zeroed(4096);
    ring.submit(T, Op::WriteAt { fd: full.clone(), offset: 0, data, dsync: false });
    assert_eq!(one(&mut ring).result, Err(libc::ENOSPC));
    ring.submit(T, Op::ReadAt { fd: pair().0, offset: 4096, buf: BufMut::with_len(1) });
    let done = one(&mut ring);
    assert!(done.result.is_err() || done.result == Ok(0));
    assert!(done.buf.is_some(), "the buffer comes back after an error too");
}

#[test]
fn more_operations_than_entries_all_complete_once() {
    let mut ring = Ring::new(4).unwrap();
    let fd = file(0);
    for op in 0..500u32 {
        let data = Buf::copy_of(&[op as u8; 512]);
        let offset = u64::from(op) * 512;
        ring.submit(
            Token { owner: 9, op },
            Op::WriteAt { fd: fd.clone(), offset, data, dsync: false },
        );
    }
    assert_eq!(ring.in_flight(), 500);
    let mut seen: Vec<_> = many(&mut ring, 500).iter().map(|c| (c.token.op, c.result)).collect();
    seen.sort_unstable();
    assert!(seen.iter().enumerate().all(|(i, (op, result))| i as u32 == *op && *result == Ok(512)));
    assert_eq!(ring.in_flight(), 0);
    ring.submit(T, Op::ReadAt { fd, offset: 499 * 512, buf: BufMut::with_len(512) });
    assert!(one(&mut ring).buf.unwrap().as_slice().iter().all(|byte| *byte == 499u32 as u8));
}

#[test]
fn a_long_send_is_resumed_until_all_is_sent_in_order() {
    let mut ring = Ring::new(8).unwrap();
    let (fd, mut peer) = pair();
    // More buffers than one sendmsg takes and far more bytes than the socket holds.
    let bufs: Vec<Buf> = (0..3000u32).map(|i| Buf::copy_of(&[i as u8; 1500])).collect();
    let expected: Vec<u8> = bufs.iter().flat_map(|buf| buf.as_slice().to_vec()).collect();
    let total = expected.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; total];
        std::io::Read::read_exact(&mut peer, &mut got).unwrap();
        got
    });
    ring.submit(T, Op::Send { fd, bufs });
    assert_eq!(one(&mut ring).result, Ok(total as u32));
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn recv_takes_what_there_is_or_waits_for_all() {
    let mut ring = Ring::new(8).unwrap();
    let (fd, mut peer) = pair();
    std::io::Write::write_all(&mut peer, b"abc").unwrap();
    let buf = BufMut::zeroed(8);
    ring.submit(T, Op::Recv { fd: fd.clone(), buf, start: 2, all: false });
    let done = one(&mut ring);
    assert_eq!(done.result, Ok(3));
    assert_eq!(done.buf.as_ref().unwrap().as_slice(), b"\0\0abc\0\0\0");
    ring.submit(T, Op::Recv { fd: fd.clone(), buf: BufMut::zeroed(6), start: 0, all: true });
    let writer = std::thread::spawn(move || {
        std::io::Write::write_all(&mut peer, b"123").unwrap();
        std::io::Write::write_all(&mut peer, b"456").unwrap();
    });
    let done = one(&mut ring);
    assert_eq!(done.buf.unwrap().as_slice(), b"123456");
    writer.join().unwrap();
    ring.submit(T, Op::Recv { fd: fd.clone(), buf: BufMut::zeroed(6), start: 0, all: false });
    assert_eq!(one(&mut ring).result, Ok(0), "the end of the stream");
    ring.submit(T, Op::Recv { fd, buf: BufMut::zeroed(6), start: 6, all: false });
    assert_eq!(one(&mut ring).result, Err(libc::EINVAL), "a recv of nothing");
}

#[test]
fn connections_are_accepted_and_made() {
    let mut ring = Ring::new(8).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener: Fd = Arc::new(OwnedFd::from(UnixListener::bind(&path).unwrap()));
    ring.submit(T, Op::Accept { fd: listener });
    let mut client = UnixStream::connect(&path).unwrap();
    let server = Arc::new(one(&mut ring).fd.unwrap());
    std::io::Write::write_all(&mut client, b"x").unwrap();
    ring.submit(T, Op::Recv { fd: server, buf: BufMut::with_len(1), start: 0, all: false });
    assert_eq!(one(&mut ring).buf.unwrap().as_slice(), b"x");

    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = tcp.local_addr().unwrap();
    let fd = crate::net::tcp_socket(&addr).unwrap();
    ring.submit(T, Op::Connect { fd, addr });
    assert_eq!(one(&mut ring).result, Ok(0));
    drop(tcp);
    let fd = crate::net::tcp_socket(&addr).unwrap();
    ring.submit(T, Op::Connect { fd, addr });
    assert_eq!(one(&mut ring).result, Err(libc::ECONNREFUSED));
}

#[test]
fn a_send_to_a_closed_peer_is_an_error_not_a_signal() {
    let mut ring = Ring::new(8).unwrap();
    let (fd, peer) = pair();
    drop(peer);
    ring.submit(T, Op::Send { fd, bufs: vec![Buf::zeroed(10)] });
    assert_eq!(one(&mut ring).result, Err(libc::EPIPE));
}

#[test]
fn poll_sees_readiness() {
    let mut ring = Ring::new(8).unwrap();
    let (fd, mut peer) = pair();
    ring.submit(T, Op::PollIn { fd });
    let mut out = Vec::new();
    ring.wait(Some(Duration::from_millis(20)), &mut out).unwrap();
    assert!(out.is_empty());
    std::io::Write::write_all(&mut peer, b"x").unwrap();
    assert_eq!(one(&mut ring).result, Ok(libc::POLLIN as u32));
}

#[test]
fn cancel_ends_what_waits_and_only_that() {
    let mut ring = Ring::new(8).unwrap();
    let (a, mut peer_a) = pair();
    let (b, _peer_b) = pair();
    let other = Token { owner: 1, op: 2 };
    ring.submit(T, Op::Recv { fd: b, buf: BufMut::with_len(1), start: 0, all: false });
    ring.submit(other, Op::PollIn { fd: a });
    let mut out = Vec::new();
    ring.wait(Some(Duration::from_millis(1)), &mut out).unwrap();
    ring.cancel(T);
    let done = one(&mut ring);
    assert_eq!((done.token, done.result), (T, Err(libc::ECANCELED)));
    assert!(done.buf.is_some());
    std::io::Write::write_all(&mut peer_a, b"x").unwrap();
    assert_eq!(one(&mut ring).token, other);
    // Cancelled before the kernel ever saw it, and a send stuck on a full socket.
    let (c, _peer_c) = pair();
    ring.submit(T, Op::Send { fd: c, bufs: vec![Buf::zeroed(16 << 20)] });
    ring.wait(Some(Duration::from_millis(1)), &mut out).unwrap();
    ring.cancel(T);
    assert_eq!(one(&mut ring).result, Err(libc::ECANCELED));
}

#[test]
fn a_wake_from_another_thread_ends_the_wait_and_is_not_lost() {
    let mut ring = Ring::new(8).unwrap();
    let waker = ring.waker();
    let mut out = Vec::new();
    for early in [true, false] {
        let (started, begun) = std::sync::mpsc::channel();
        let waker = waker.clone();
        let thread = std::thread::spawn(move || {
            if !early {
                begun.recv().unwrap();
            }
            waker.wake();
            waker.wake();
        });
        let thread = if early {
            thread.join().unwrap();
            None
        } else {
            Some(thread)
        };
        let begin = Instant::now();
        let _ = started.send(());
        ring.wait(Some(Duration::from_secs(30)), &mut out).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "woken");
        assert!(out.is_empty());
        thread.into_iter().for_each(|thread| thread.join().unwrap());
        // The second of a pair of wakes may be left over; after that the ring sleeps again.
        ring.wait(Some(Duration::from_millis(10)), &mut out).unwrap();
        let begin = Instant::now();
        ring.wait(Some(Duration::from_millis(30)), &mut out).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(29), "asleep");
    }
}

#[test]
fn dropping_a_ring_takes_its_operations_back() {
    let (fd, peer) = pair();
    let begin = Instant::now();
    {
        let mut ring = Ring::new(4).unwrap();
        for op in 0..64 {
            let (fd, buf) = (fd.clone(), BufMut::with_len(4096));
            ring.submit(Token { owner: 0, op }, Op::Recv { fd, buf, start: 0, all: true });
        }
        ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        let data = Buf::zeroed(1 << 20);
        ring.submit(T, Op::WriteAt { fd: file(0), offset: 0, data, dsync: true });
    }
    assert!(begin.elapsed() < DROP_WAIT, "cancelled, not leaked");
    assert_eq!(Arc::strong_count(&fd), 1, "every share of the descriptor came back");
    drop(peer);
}
