//! FUSE requests, fed with damaged bytes; see the `fuzz` crate.
#![allow(clippy::unwrap_used)]

use super::*;
use ::fuzz::{Target, run};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const SIZE: u64 = 16 << 20;

/// Every operation that reaches it lies within the volume.
#[derive(Default)]
struct Device(Vec<IoId>);

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        SIZE
    }

    fn submit(&mut self, id: IoId, op: BlockOp) {
        let (offset, len) = match op {
            BlockOp::Read { offset, len } => (offset, len.into()),
            BlockOp::Write { offset, data, .. } => (offset, data.len() as u64),
            BlockOp::Discard { offset, len } | BlockOp::WriteZeroes { offset, len, .. } => {
                (offset, len)
            }
            BlockOp::Flush => (0, 4096),
        };
        assert!(in_bounds(offset, len, SIZE));
        self.0.push(id);
    }
}

fn request(opcode: u32, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let len = (abi::IN_HEADER + body.len()) as u32;
    let header = InHeader { len, opcode, unique: 99, nodeid, ..InHeader::zeroed() };
    [bytes_of(&header), body].concat()
}

#[test]
fn fuse_requests() {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let fd: Fd = Arc::new(OwnedFd::from(null));
    let io = |offset, size| bytes_of(&abi::IoIn { offset, size, ..abi::IoIn::zeroed() }).to_vec();
    let range = |mode| {
        bytes_of(&abi::FallocateIn { fh: 0, offset: 4096, length: 8192, mode, padding: 0 }).to_vec()
    };
    let start = abi::InitIn { major: 7, minor: 38, max_readahead: 0, flags: !0, flags2: 0 };
    let corpus = vec![
        request(op::INIT, 0, bytes_of(&start)),
        request(op::LOOKUP, ROOT, b"volume\0"),
        request(op::GETATTR, FILE, &[0; 16]),
        request(op::SETATTR, FILE, &[0; 88]),
        request(op::OPEN, FILE, &[0; 8]),
        request(op::READDIR, ROOT, &io(0, 4096)),
        request(op::READ, FILE, &io(4096, 8192)),
        request(op::FSYNC, FILE, &[0; 16]),
        request(op::WRITE, FILE, &[io(8192, 4096), vec![1; 4096]].concat()),
        request(op::FALLOCATE, FILE, &range(falloc::PUNCH_HOLE | falloc::KEEP_SIZE)),
        request(op::FALLOCATE, FILE, &range(falloc::ZERO_RANGE)),
        request(op::STATFS, ROOT, &[]),
        request(op::FORGET, FILE, &[0; 8]),
    ];
    let fuse = RefCell::new(Fuse::new(7, fd, "volume", SIZE));
    run(&Target {
        name: "FUSE requests",
        corpus,
        words: &[b"volume\0"],
        longest: 6000,
        repair: &|bytes| {
            // The kernel's length is always right, and so is that of a write.
            let len = (bytes.len() as u32).to_le_bytes();
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&len);
            }
            let write = bytes.get(4..8) == Some(&op::WRITE.to_le_bytes()[..]);
            if write && bytes.len() >= WRITE_HEAD {
                let size = (bytes.len() - WRITE_HEAD) as u32;
                let at = abi::IN_HEADER + std::mem::offset_of!(abi::IoIn, size);
                bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
            }
        },
        decode: &|bytes| {
            let mut fuse = fuse.borrow_mut();
            let mut head = [0; WRITE_HEAD];
            let front = bytes.len().min(WRITE_HEAD);
            head[..front].copy_from_slice(&bytes[..front]);
            let mut rest = fuse.receive.take().unwrap_or_else(|| BufMut::with_len(MAX_IO as usize));
            rest.as_mut_slice()[..bytes.len() - front].copy_from_slice(&bytes[front..]);
            let mut device = Device::default();
            fuse.request(&head, rest, bytes.len(), &mut device);
            let taken = !device.0.is_empty();
            for id in device.0 {
                let pending = fuse.pending[index_of(id) as usize].take();
                fuse.bytes -= pending.map_or(0, |pending| pending.answer.payload());
                fuse.free.push(index_of(id));
            }
            assert_eq!(fuse.in_flight(), 0);
            taken
                || bytes
                    .first_chunk()
                    .is_some_and(|len| u32::from_le_bytes(*len) as usize == bytes.len())
        },
    });
}
