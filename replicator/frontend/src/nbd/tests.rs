//! Streams that no good client sends, through a ring and a socket, with a device that answers when
//! the test says so.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::owner_of;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use types::{BLOCK, BlockOp, IoError};

const SIZE: u64 = 64 << 20;
const NAME: &str = "volume-name";

#[derive(Default)]
struct Recorder(Vec<(IoId, BlockOp)>);

impl BlockDevice for Recorder {
    fn size(&self) -> u64 {
        SIZE
    }
    fn submit(&mut self, id: IoId, op: BlockOp) {
        self.0.push((id, op));
    }
}

/// A connection and its client in one thread: the client's socket never blocks the server.
struct Pair {
    nbd: NbdConnection,
    ring: Ring,
    device: Recorder,
    client: UnixStream,
    status: Status,
    /// Whether the device answers at once, with zeros.
    answering: bool,
}

impl Pair {
    fn new() -> Self {
        Self::with(NbdConnection::new)
    }

    fn of_kernel() -> Self {
        Self::with(NbdConnection::of_kernel)
    }

    fn with(make: impl FnOnce(u32, Fd, Export, Instant) -> NbdConnection) -> Self {
        let (client, served) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let export = Export { name: NAME.to_owned(), size: SIZE };
        let fd = Arc::new(OwnedFd::from(served));
        let mut nbd = make(3, fd, export, hostio::clock::boottime());
        let mut ring = Ring::new(8).unwrap();
        nbd.start(&mut ring);
        let device = Recorder::default();
        Self { nbd, ring, device, client, status: Status::Open, answering: true }
    }

    /// Past the handshake.
    fn transmitting(structured: bool) -> Self {
        let mut pair = Self::new();
        let mut hello = vec![0, 0, 0, 3];
        if structured {
            hello.extend(option(8, &[]));
        }
        hello.extend(option(1, NAME.as_bytes()));
        let got = pair.exchange(&hello);
        assert_eq!(got.len(), 18 + if structured { 20 } else { 0 } + 10);
        assert!(pair.nbd.deadline().is_none());
        pair
    }

    /// Lets the server do everything it can do now.
    fn settle(&mut self, got: &mut Vec<u8>) {
        let mut out = Vec::new();
        let mut idle = 0;
        while idle < 2 {
            self.ring.wait(Some(Duration::from_millis(2)), &mut out).unwrap();
            idle += 1;
            for completion in out.drain(..) {
                idle = 0;
                self.status = self.nbd.on_completion(completion, &mut self.ring, &mut self.device);
            }
            while self.answering && !self.device.0.is_empty() {
                idle = 0;
                self.answer_one(Ok(()));
            }
            let mut buf = [0; 65536];
            while let Ok(count @ 1..) = self.client.read(&mut buf) {
                idle = 0;
                got.extend_from_slice(&buf[..count]);
            }
        }
    }

    fn answer_one(&mut self, result: Result<(), IoError>) {
        let (id, op) = self.device.0.remove(0);
        assert_eq!(owner_of(id), 3);
        let data = match op {
            BlockOp::Read { len, .. } => Some(Buf::zeroed(len as usize)),
            _ => None,
        };
        self.status = self.nbd.on_block_done(id, result.map(|()| data), &mut self.ring);
    }

    /// Sends `bytes` and returns all that comes back.
    fn exchange(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            match self.client.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            self.settle(&mut got);
        }
        self.settle(&mut got);
        got
    }

    fn hang_up(&mut self) {
        self.client.shutdown(std::net::Shutdown::Both).unwrap();
        self.settle(&mut Vec::new());
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(77u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn simple_reply(errno: u32) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &errno.to_be_bytes(), &77u64.to_be_bytes()].concat()
}

/// The type of the last option reply in `got`, which begins with the greeting.
fn option_replies(got: &[u8]) -> Vec<u32> {
    let mut rest = &got[18..];
    let mut kinds = Vec::new();
    while !rest.is_empty() {
        assert_eq!(rest[..8], proto::OPTION_REPLY_MAGIC.to_be_bytes());
        kinds.push(u32::from_be_bytes(rest[12..16].try_into().unwrap()));
        let len = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
        rest = &rest[20 + len..];
    }
    kinds
}

fn go(name: &[u8], said: u32, infos: &[u16], count: u16) -> Vec<u8> {
    let mut data = said.to_be_bytes().to_vec();
    data.extend(name);
    data.extend(count.to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    option(7, &data)
}

#[test]
fn handshakes_that_are_refused() {
    const FLAGS: &[u8] = &[0, 0, 0, 3];
    let old = [0u8; 4];
    let ok = |after: Vec<u8>| [FLAGS, &after].concat();
    let (unsup, invalid, unknown, too_big) = (1 << 31 | 1, 1 << 31 | 3, 1 << 31 | 6, 1 << 31 | 9);
    let n = NAME.len() as u32;
    let cases: [(&str, Vec<u8>, &[u32], bool); 20] = [
        // What was sent, the option replies, whether the server then closes.
        ("unknown client flags", vec![0, 0, 0, 7], &[], true),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".to_vec(), &[], true),
        ("no magic", ok(vec![0; 16]), &[], true),
        ("a wrong first byte", ok(vec![b'X']), &[], true),
        ("half a magic", ok(b"IHAVE".to_vec()), &[], false),
        ("half an option", ok(option(7, &[0; 64])[..40].to_vec()), &[], false),
        ("a huge option", ok([&option(7, &[])[..12], &[255; 4]].concat()), &[too_big], true),
        ("an option before fixed newstyle", [&old[..], &option(3, &[])].concat(), &[], true),
        ("another export by name", ok(option(1, b"other")), &[], true),
        ("another export by GO", ok(go(b"other", 5, &[], 0)), &[unknown], false),
        ("GO with a long name length", ok(go(b"", u32::MAX, &[], 0)), &[invalid], false),
        ("GO with too few infos", ok(go(NAME.as_bytes(), n, &[3], 2)), &[invalid], false),
        ("GO with too many infos", ok(go(NAME.as_bytes(), n, &[3, 3], 1)), &[invalid], false),
        ("GO without data", ok(option(7, &[])), &[invalid], false),
        ("LIST with data", ok(option(3, &[0])), &[invalid], false),
        ("STRUCTURED_REPLY with data", ok(option(8, &[0])), &[invalid], false),
        ("STARTTLS", ok(option(5, &[])), &[unsup], false),
        ("an unknown option", ok(option(0xdead_beef, &[1; 100])), &[unsup], false),
        ("many options", ok(option(99, &[]).repeat(3)), &[unsup, unsup, unsup], false),
        ("ABORT", ok(option(2, &[])), &[1], true),
    ];
    for (what, bytes, kinds, closes) in cases {
        let mut pair = Pair::new();
        let got = pair.exchange(&bytes);
        assert_eq!(got[..18], *b"NBDMAGICIHAVEOPT\0\x03", "{what}");
        assert_eq!(option_replies(&got), kinds, "{what}");
        assert_eq!(pair.status == Status::Closed, closes, "{what}");
        assert!(pair.device.0.is_empty());
        if !closes {
            assert!(pair.nbd.deadline().is_some(), "{what}: still has to hurry");
            pair.hang_up();
            assert_eq!(pair.status, Status::Closed, "{what}, then gone");
        }
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let mut pair = Pair::new();
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(go(NAME.as_bytes(), NAME.len() as u32, &[0, 3], 2));
    bytes.extend(request(0, 0, 0, 4096));
    let mut got = Vec::new();
    for byte in &bytes {
        got.extend(pair.exchange(&[*byte]));
    }
    assert_eq!(got[got.len() - 4096 - 16..][..16], simple_reply(0));
    assert_eq!(option_replies(&got[..got.len() - 4096 - 16]), [3, 3, 1]);
}

#[test]
fn a_silent_client_is_dropped_at_the_deadline() {
    let mut pair = Pair::new();
    pair.exchange(&[0, 0]);
    let deadline = pair.nbd.deadline().unwrap();
    pair.nbd.tick(Instant(deadline.0 - 1), &mut pair.ring);
    pair.settle(&mut Vec::new());
    assert_eq!(pair.status, Status::Open);
    pair.nbd.tick(deadline, &mut pair.ring);
    pair.settle(&mut Vec::new());
    assert_eq!(pair.status, Status::Closed);
}

#[test]
fn requests_that_are_refused() {
    let write = |offset, len: usize| [request(1, 0, offset, len as u32), vec![1; len]].concat();
    // What was sent, the errno, whether the server then closes.
    let cases = [
        ("an unknown command", request(99, 0, 0, 0), EINVAL, false),
        ("CACHE", request(5, 0, 0, 4096), EINVAL, false),
        ("BLOCK_STATUS", request(7, 0, 0, 4096), EINVAL, false),
        ("an unknown flag", request(0, 1 << 9, 0, 4096), EINVAL, false),
        ("DF without structured replies", request(0, 4, 0, 4096), EINVAL, false),
        ("FAST_ZERO", request(6, 16, 0, 4096), EINVAL, false),
        ("a read of nothing", request(0, 0, 0, 0), EINVAL, false),
        ("a misaligned read", request(0, 0, 512, 4096), EINVAL, false),
        ("a read of 1 byte", request(0, 0, 0, 1), EINVAL, false),
        ("a read over the end", request(0, 0, SIZE - 4096, 8192), EINVAL, false),
        ("a read from the top", request(0, 0, u64::MAX - 4095, 4096), EINVAL, false),
        ("a read too long", request(0, 0, 0, u32::MAX), EINVAL, false),
        ("a misaligned write", write(1, 4096), EINVAL, false),
        ("a write of 3 bytes", write(0, 3), EINVAL, false),
        ("a write of nothing", write(0, 0), EINVAL, false),
        ("a long write over the end", write(SIZE - 4096, 3 << 20), proto::ENOSPC, false),
        ("a write too long", request(1, 0, 0, MAX_REQUEST + 1), EINVAL, true),
        ("a FLUSH with a length", request(3, 0, 0, 4096), EINVAL, false),
        ("a TRIM over the end", request(4, 0, 0, u32::MAX - 4095), EINVAL, false),
        ("zeroes over the end", request(6, 0, SIZE, 4096), proto::ENOSPC, false),
    ];
    for (what, bytes, errno, closes) in cases {
        let mut pair = Pair::transmitting(false);
        assert_eq!(pair.exchange(&bytes), simple_reply(errno), "{what}");
        assert_eq!(pair.status == Status::Closed, closes, "{what}");
        if !closes {
            assert_eq!(pair.exchange(&request(3, 0, 0, 0)), simple_reply(0), "{what}, then FLUSH");
        }
    }
}

#[test]
fn streams_that_break_off_or_are_garbage() {
    let cases = [
        ("garbage", vec![0x5a; 100]),
        ("half a header", request(1, 0, 0, 4096)[..20].to_vec()),
        ("half a payload", [request(1, 0, 0, 8192), vec![1; 5000]].concat()),
        ("a long payload cut", [request(1, 0, 0, 3 << 20), vec![1; 2 << 20]].concat()),
        ("a refused payload cut", [request(1, 0, 1, 3 << 20), vec![1; 2 << 20]].concat()),
        ("a disconnect", request(2, 0, 0, 0)),
    ];
    for (what, bytes) in cases {
        let mut pair = Pair::transmitting(true);
        let got = pair.exchange(&bytes);
        assert!(got.is_empty(), "{what}");
        pair.hang_up();
        assert_eq!(pair.status, Status::Closed, "{what}");
        assert_eq!(pair.nbd.in_flight(), 0, "{what}");
    }
}

#[test]
fn requests_become_pieces_and_one_answer() {
    let mut pair = Pair::transmitting(true);
    pair.answering = false;
    // 2.5 MiB from 1 MiB on, whose pieces come back in the wrong order.
    assert!(pair.exchange(&request(0, 4, 1 << 20, 5 << 19)).is_empty());
    let ops: Vec<_> = pair.device.0.iter().map(|(_, op)| op.clone()).collect();
    let read = |offset, len| BlockOp::Read { offset, len };
    assert_eq!(ops, [read(1 << 20, 1 << 20), read(2 << 20, 1 << 20), read(3 << 20, 1 << 19)]);
    let ids: Vec<_> = pair.device.0.drain(..).map(|(id, _)| id).collect();
    for (id, fill, len) in [(ids[2], 3, 1 << 19), (ids[0], 1, 1 << 20), (ids[1], 2, 1 << 20)] {
        let data = Buf::copy_of(&vec![fill; len]);
        pair.nbd.on_block_done(id, Ok(Some(data)), &mut pair.ring);
    }
    let mut got = Vec::new();
    pair.settle(&mut got);
    assert_eq!(got.len(), 28 + (5 << 19));
    assert_eq!(got[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1], "one last chunk of data");
    assert_eq!(got[20..28], (1u64 << 20).to_be_bytes());
    let data = &got[28..];
    assert!(data[..1 << 20].iter().all(|byte| *byte == 1));
    assert!(data[1 << 20..2 << 20].iter().all(|byte| *byte == 2));
    assert!(data[2 << 20..].iter().all(|byte| *byte == 3));

    let payload: Vec<u8> = (0..3u32 << 20).map(|i| (i >> 12) as u8).collect();
    assert!(pair.exchange(&[request(1, 1, 8192, 3 << 20), payload.clone()].concat()).is_empty());
    let mut at = 8192;
    for (_, op) in &pair.device.0 {
        let BlockOp::Write { offset, data, fua: true } = op else { panic!("{op:?}") };
        assert_eq!(*offset, at);
        assert!(data.as_slice() == &payload[at as usize - 8192..][..data.len()]);
        at += data.len() as u64;
    }
    assert_eq!((at, pair.device.0.len()), (8192 + (3 << 20), 3));
    // One piece fails: so does the request, once, after the last piece.
    pair.answer_one(Ok(()));
    pair.answer_one(Err(IoError::NoSpace));
    assert_eq!(pair.nbd.in_flight(), 1);
    pair.answer_one(Ok(()));
    assert_eq!(pair.exchange(&[]), simple_reply(proto::ENOSPC));

    for (command, flags, expected) in [
        (3, 0, BlockOp::Flush),
        (4, 0, BlockOp::Discard { offset: 4096, len: 8192 }),
        (4, 1, BlockOp::WriteZeroes { offset: 4096, len: 8192, fua: true }),
        (6, 0, BlockOp::WriteZeroes { offset: 4096, len: 8192, fua: false }),
        (6, 3, BlockOp::WriteZeroes { offset: 4096, len: 8192, fua: true }),
    ] {
        let (offset, len) = if command == 3 { (0, 0) } else { (4096, 8192) };
        assert!(pair.exchange(&request(command, flags, offset, len)).is_empty());
        assert_eq!(pair.device.0[0].1, expected);
        pair.answer_one(Ok(()));
        assert_eq!(pair.exchange(&[]), simple_reply(0));
    }
    // A failed read with structured replies is an error chunk.
    pair.exchange(&request(0, 0, 0, 4096));
    pair.answer_one(Err(IoError::Fenced));
    let got = pair.exchange(&[]);
    assert_eq!(got[6..8], [0x80, 1]);
    assert_eq!(got[20..], [0, 0, 0, 108, 0, 0]);
}

#[test]
fn what_a_client_can_make_the_server_hold_is_bounded() {
    let mut pair = Pair::transmitting(false);
    pair.answering = false;
    pair.exchange(&request(0, 0, 0, 4096).repeat(1000));
    assert_eq!(pair.device.0.len(), MAX_REQUESTS, "by number");
    pair.answering = true;
    let got = pair.exchange(&[]);
    assert_eq!(got.len(), 1000 * (16 + 4096), "all of them are served in the end");

    pair.answering = false;
    pair.exchange(&request(0, 0, 0, 8 << 20).repeat(10));
    let pieces = pair.device.0.len() as u64;
    assert_eq!(pieces * MAX_IO, u64::from(MAX_REQUEST), "by bytes");
    // Answered, but not read by the client: they still count.
    for _ in 0..pieces {
        pair.answer_one(Ok(()));
    }
    let mut out = Vec::new();
    pair.ring.wait(Some(Duration::from_millis(5)), &mut out).unwrap();
    assert!(out.is_empty() && pair.device.0.is_empty(), "no further request is taken");
    pair.answering = true;
    let got = pair.exchange(&[]);
    assert_eq!(got.len(), 10 * (16 + (8 << 20)));
    assert!(got.len() as u64 > BLOCK);
}

#[test]
fn stopping_finishes_what_is_in_flight_and_fails_half_a_write() {
    let mut pair = Pair::transmitting(false);
    pair.answering = false;
    pair.exchange(&request(3, 0, 0, 0));
    // Two of three MiB: one piece is with the device when the stop comes.
    pair.exchange(&[request(1, 0, 0, 3 << 20), vec![1; (1 << 20) + 5]].concat());
    assert_eq!(pair.device.0.len(), 2);
    pair.nbd.stop(&mut pair.ring);
    assert!(pair.exchange(&[]).is_empty());
    assert_eq!(pair.status, Status::Open, "waits for the device");
    pair.answer_one(Ok(()));
    pair.answer_one(Ok(()));
    let got = pair.exchange(&[]);
    assert_eq!(got, [simple_reply(0), simple_reply(proto::ESHUTDOWN)].concat());
    assert_eq!(pair.status, Status::Closed);
}

#[test]
fn a_closing_connection_does_not_wait_for_ever_for_its_client() {
    let mut pair = Pair::transmitting(false);
    pair.answering = false;
    pair.exchange(&request(0, 0, 0, 8 << 20));
    for _ in 0..8 {
        pair.answer_one(Ok(()));
    }
    pair.nbd.stop(&mut pair.ring);
    let mut out = Vec::new();
    pair.ring.wait(Some(Duration::from_millis(5)), &mut out).unwrap();
    for completion in out.drain(..) {
        pair.status = pair.nbd.on_completion(completion, &mut pair.ring, &mut pair.device);
    }
    assert_eq!(pair.status, Status::Open, "8 MiB do not fit into the socket");
    let deadline = pair.nbd.deadline().unwrap();
    pair.nbd.tick(deadline, &mut pair.ring);
    while pair.status == Status::Open {
        pair.ring.wait(None, &mut out).unwrap();
        for completion in out.drain(..) {
            pair.status = pair.nbd.on_completion(completion, &mut pair.ring, &mut pair.device);
        }
    }
    assert_eq!(pair.nbd.in_flight(), 0);
}

fn write_block(offset: u64) -> Vec<u8> {
    [request(1, 0, offset, BLOCK as u32), vec![1; BLOCK as usize]].concat()
}

#[test]
fn the_kernel_does_not_negotiate() {
    let mut pair = Pair::of_kernel();
    let got = pair.exchange(&write_block(BLOCK));
    assert_eq!((got.len(), &got[..8]), (16, &[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..]));
}

/// What waits in a connection that the kernel gave up was sent again on another one, and must not
/// land behind what followed there.
#[test]
fn nothing_is_taken_from_a_connection_that_the_kernel_gave_up() {
    for shut in [false, true] {
        let mut pair = Pair::of_kernel();
        pair.client.write_all(&write_block(0)).unwrap();
        if shut {
            pair.client.shutdown(std::net::Shutdown::Both).unwrap();
        }
        pair.answering = false;
        pair.settle(&mut Vec::new());
        assert_eq!(pair.device.0.len(), usize::from(!shut));
        assert_eq!(pair.status == Status::Closed, shut);
    }
}

#[test]
fn a_write_of_the_kernel_that_a_stop_cuts_off_is_not_answered() {
    let mut pair = Pair::of_kernel();
    assert!(pair.exchange(&write_block(0)[..100]).is_empty());
    pair.nbd.stop(&mut pair.ring);
    let mut got = Vec::new();
    pair.settle(&mut got);
    assert_eq!((got.len(), pair.status), (0, Status::Closed));
}
