//! Requests that a kernel would not send, over a socket in place of /dev/fuse.
#![allow(clippy::unwrap_used)]

use super::*;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

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

const SIZE: u64 = 16 << 20;

/// A `Fuse` whose descriptor is one end of a datagram pair: it keeps message borders as /dev/fuse.
struct Kernel {
    fuse: Fuse,
    ring: Ring,
    device: Recorder,
    socket: UnixDatagram,
}

impl Kernel {
    fn new() -> Self {
        let (socket, served) = UnixDatagram::pair().unwrap();
        for end in [&socket, &served] {
            end.set_nonblocking(true).unwrap();
        }
        let fuse = Fuse::new(7, Arc::new(OwnedFd::from(served)), "volume", SIZE);
        Self { fuse, ring: Ring::new(4).unwrap(), device: Recorder::default(), socket }
    }

    /// Sends `opcode` and returns the errno or the body of the answer, if there was one.
    fn ask(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        let header = InHeader {
            len: (abi::IN_HEADER + body.len()) as u32,
            opcode,
            unique: 99,
            nodeid,
            ..InHeader::zeroed()
        };
        self.raw(&[bytes_of(&header), body].concat())
    }

    fn raw(&mut self, request: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        self.socket.send(request).unwrap();
        self.fuse.serve(&mut self.device);
        self.answer()
    }

    fn answer(&mut self) -> Option<Result<Vec<u8>, i32>> {
        let mut reply = vec![0; 2 << 20];
        let len = self.socket.recv(&mut reply).ok()?;
        let header: OutHeader = decode(&reply[..len]).unwrap();
        assert_eq!((header.len as usize, header.unique), (len, 99));
        let body = reply[size_of::<OutHeader>()..len].to_vec();
        Some(if header.error == 0 { Ok(body) } else { Err(-header.error) })
    }
}

fn io(offset: u64, size: u32) -> Vec<u8> {
    bytes_of(&abi::IoIn { offset, size, ..abi::IoIn::zeroed() }).to_vec()
}

fn fallocate(mode: u32, offset: u64, length: u64) -> Vec<u8> {
    bytes_of(&abi::FallocateIn { fh: 0, offset, length, mode, padding: 0 }).to_vec()
}

#[test]
fn what_is_refused_and_with_what() {
    let write = |offset, len: usize| [io(offset, len as u32), vec![1; len]].concat();
    let old = abi::InitIn { major: 7, minor: 31, max_readahead: 0, flags: !0, flags2: 0 };
    type Case = (&'static str, u32, u64, Vec<u8>, Option<i32>);
    let cases: &[Case] = &[
        ("an unknown opcode", 4000, FILE, vec![], Some(ENOSYS)),
        ("GETXATTR", 22, FILE, vec![0; 20], Some(ENOSYS)),
        ("INIT too short", op::INIT, 0, vec![7, 0], Some(EPROTO)),
        ("INIT of an old kernel", op::INIT, 0, bytes_of(&old).to_vec(), Some(EPROTO)),
        ("another name", op::LOOKUP, ROOT, b"volum\0".to_vec(), Some(ENOENT)),
        ("a longer name", op::LOOKUP, ROOT, [b'v'; 600].to_vec(), Some(ENOENT)),
        ("a name in the file", op::LOOKUP, FILE, b"volume\0".to_vec(), Some(ENOENT)),
        ("attributes of nothing", op::GETATTR, 3, vec![0; 16], Some(ENOENT)),
        ("OPEN of the directory", op::OPEN, ROOT, vec![0; 8], Some(ENOSYS)),
        ("READ too short", op::READ, FILE, vec![0; 8], Some(EINVAL)),
        ("READ misaligned", op::READ, FILE, io(1, 4096), Some(EINVAL)),
        ("READ of part of a block", op::READ, FILE, io(0, 512), Some(EINVAL)),
        ("WRITE without arguments", op::WRITE, FILE, vec![0; 10], Some(EINVAL)),
        ("WRITE with less data than said", op::WRITE, FILE, io(0, 4096), Some(EINVAL)),
        ("WRITE misaligned", op::WRITE, FILE, write(512, 4096), Some(EINVAL)),
        ("WRITE of nothing", op::WRITE, FILE, write(0, 0), Some(EINVAL)),
        ("WRITE at the end", op::WRITE, FILE, write(SIZE, 4096), Some(EINVAL)),
        ("WRITE over the end", op::WRITE, FILE, write(SIZE - 4096, 8192), Some(EINVAL)),
        ("WRITE at the top", op::WRITE, FILE, write(u64::MAX - 4095, 4096), Some(EINVAL)),
        ("FALLOCATE plain", op::FALLOCATE, FILE, fallocate(0, 0, 4096), Some(EOPNOTSUPP)),
        ("FALLOCATE odd", op::FALLOCATE, FILE, fallocate(3, 1, 4096), Some(EINVAL)),
        ("FALLOCATE wide", op::FALLOCATE, FILE, fallocate(3, 4096, u64::MAX), Some(EINVAL)),
        ("FALLOCATE short", op::FALLOCATE, FILE, vec![0; 31], Some(EINVAL)),
        ("FORGET", op::FORGET, FILE, vec![0; 8], None),
        ("FORGET of many", op::BATCH_FORGET, 0, vec![0; 8], None),
    ];
    let mut kernel = Kernel::new();
    for (what, opcode, node, body, expected) in cases {
        let answer = kernel.ask(*opcode, *node, body);
        assert_eq!(answer.map(|a| a.expect_err(what)), *expected, "{what}");
    }
    let mut header = InHeader { len: 40, opcode: op::GETATTR, nodeid: 1, ..InHeader::zeroed() };
    for (len, cut) in [(41, 40), (39, 40), (u32::MAX, 40), (40, 39), (3, 3)] {
        header.len = len;
        assert!(kernel.raw(&bytes_of(&header)[..cut]).is_none(), "{len} in {cut}");
    }
    assert!(kernel.device.0.is_empty(), "nothing of all this reached the device");
    assert!(kernel.ask(op::GETATTR, FILE, &[0; 16]).unwrap().is_ok(), "and it still serves");
}

#[test]
fn requests_become_block_requests_and_answers() {
    let mut kernel = Kernel::new();
    let mut data = vec![0; 8192];
    data[0] = 5;
    let write = [io(4096, 8192), data.clone()].concat();
    let punch = fallocate(falloc::PUNCH_HOLE | falloc::KEEP_SIZE, 0, SIZE);
    let zero = fallocate(falloc::ZERO_RANGE | falloc::KEEP_SIZE, 4096, 4096);
    let data = types::Buf::copy_of(&data);
    let cases = [
        (
            op::WRITE,
            write,
            BlockOp::Write { offset: 4096, data: data.clone(), fua: false },
            None,
            8,
        ),
        (op::READ, io(4096, 8192), BlockOp::Read { offset: 4096, len: 8192 }, Some(data), 8192),
        // Over the end a read is short.
        (
            op::READ,
            io(SIZE - 4096, 1 << 20),
            BlockOp::Read { offset: SIZE - 4096, len: 4096 },
            Some(types::Buf::zeroed(4096)),
            4096,
        ),
        (op::FSYNC, vec![0; 16], BlockOp::Flush, None, 0),
        (op::FALLOCATE, punch, BlockOp::Discard { offset: 0, len: SIZE }, None, 0),
        (
            op::FALLOCATE,
            zero,
            BlockOp::WriteZeroes { offset: 4096, len: 4096, fua: false },
            None,
            0,
        ),
    ];
    for (opcode, body, expected, result, answer) in cases {
        for failing in [false, true] {
            assert!(kernel.ask(opcode, FILE, &body).is_none(), "no answer before the device's");
            assert_eq!(kernel.fuse.in_flight(), 1);
            let (id, op) = kernel.device.0.pop().unwrap();
            assert_eq!(op, expected);
            assert_eq!(crate::owner_of(id), 7);
            let result = if failing { Err(IoError::NoSpace) } else { Ok(result.clone()) };
            assert_eq!(kernel.fuse.on_block_done(id, result, &mut kernel.ring), Status::Open);
            match kernel.answer().unwrap() {
                Ok(body) => assert_eq!((body.len(), failing), (answer, false)),
                Err(errno) => assert_eq!((errno, failing), (28, true)),
            }
        }
    }
    assert_eq!(kernel.fuse.in_flight(), 0);
}

#[test]
fn a_read_answered_with_another_length_is_an_error() {
    let mut kernel = Kernel::new();
    for wrong in [None, Some(types::Buf::zeroed(4095)), Some(types::Buf::zeroed(8192))] {
        kernel.ask(op::READ, FILE, &io(0, 4096));
        let (id, _) = kernel.device.0.pop().unwrap();
        kernel.fuse.on_block_done(id, Ok(wrong), &mut kernel.ring);
        assert_eq!(kernel.answer(), Some(Err(EIO)));
    }
}

#[test]
fn in_flight_requests_are_bounded() {
    let mut kernel = Kernel::new();
    // The socket pair holds fewer messages than the bound, so they are handed in one by one.
    for _ in 0..MAX_REQUESTS {
        assert!(kernel.ask(op::FSYNC, FILE, &[0; 16]).is_none());
    }
    kernel.ask(op::FSYNC, FILE, &[0; 16]);
    assert_eq!(kernel.device.0.len(), MAX_REQUESTS, "one more stays with the kernel");
    let (id, _) = kernel.device.0.pop().unwrap();
    kernel.fuse.on_block_done(id, Ok(None), &mut kernel.ring);
    kernel.fuse.serve(&mut kernel.device);
    assert_eq!(kernel.device.0.len(), MAX_REQUESTS, "and is read when there is room");

    let mut kernel = Kernel::new();
    for _ in 0..MAX_BYTES / MAX_IO + 3 {
        assert!(kernel.ask(op::READ, FILE, &io(0, MAX_IO as u32)).is_none());
    }
    assert_eq!(kernel.device.0.len() as u64, MAX_BYTES / MAX_IO, "and by bytes");
    while let Some((id, _)) = kernel.device.0.pop() {
        kernel.fuse.on_block_done(id, Err(IoError::Io), &mut kernel.ring);
        kernel.answer().unwrap().unwrap_err();
    }
    assert!(kernel.fuse.has_room());
}

#[test]
fn the_listing_can_be_read_in_pieces() {
    let mut kernel = Kernel::new();
    let whole = kernel.ask(op::READDIR, ROOT, &io(0, 4096)).unwrap().unwrap();
    assert_eq!(whole.len(), 32 + 32 + 32);
    assert_eq!(kernel.ask(op::READDIR, ROOT, &io(2, 4096)).unwrap().unwrap(), whole[64..]);
    assert_eq!(kernel.ask(op::READDIR, ROOT, &io(0, 40)).unwrap().unwrap(), whole[..32]);
    assert_eq!(kernel.ask(op::READDIR, ROOT, &io(3, 4096)).unwrap().unwrap(), []);
    assert_eq!(kernel.ask(op::READDIR, ROOT, &io(u64::MAX, 4096)).unwrap().unwrap(), []);
}

#[test]
fn stopping_waits_for_what_is_in_flight() {
    let mut kernel = Kernel::new();
    kernel.fuse.start(&mut kernel.ring);
    kernel.ask(op::FSYNC, FILE, &[0; 16]);
    kernel.fuse.stop(&mut kernel.ring);
    let mut out = Vec::new();
    while out.is_empty() {
        kernel.ring.wait(None, &mut out).unwrap();
    }
    let poll = out.remove(0);
    let status = kernel.fuse.on_completion(poll, &mut kernel.ring, &mut kernel.device);
    assert_eq!(status, Status::Open);
    let (id, _) = kernel.device.0.pop().unwrap();
    assert_eq!(kernel.fuse.on_block_done(id, Ok(None), &mut kernel.ring), Status::Closed);
}
