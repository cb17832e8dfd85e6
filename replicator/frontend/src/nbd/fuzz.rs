//! The stream of an NBD client, handshake and requests, fed with damaged bytes; see the `fuzz` crate.
#![allow(clippy::unwrap_used)]

use super::proto::{FIXED_NEWSTYLE, IHAVEOPT, NO_ZEROES, REQUEST_MAGIC, cmd, opt};
use super::*;
use crate::owner_of;
use ::fuzz::{Target, no_repair, run};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use types::BlockOp;

const SIZE: u64 = 64 << 20;
const NAME: &str = "volume-name";

#[derive(Default)]
struct Device(Vec<(IoId, BlockOp)>);

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        SIZE
    }

    fn submit(&mut self, id: IoId, op: BlockOp) {
        self.0.push((id, op));
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let head = [&IHAVEOPT.to_be_bytes()[..], &number.to_be_bytes()].concat();
    [&head[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn request(command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [REQUEST_MAGIC.to_be_bytes().to_vec(), flags.to_be_bytes().to_vec()].concat();
    let rest = [&command.to_be_bytes()[..], &7u64.to_be_bytes(), &offset.to_be_bytes()].concat();
    [head, rest, len.to_be_bytes().to_vec()].concat()
}

/// What the device answers; as many zeros as the longest piece.
fn answer(nbd: &mut NbdConnection, device: &mut Device, zeros: &Buf) {
    for (id, op) in std::mem::take(&mut device.0) {
        assert_eq!(owner_of(id), 3);
        let data = match op {
            BlockOp::Read { offset, len } => {
                assert!(types::in_bounds(offset, len.into(), SIZE));
                Some(zeros.slice(0..len as usize))
            }
            BlockOp::Write { offset, data, .. } => {
                assert!(types::in_bounds(offset, data.len() as u64, SIZE));
                None
            }
            BlockOp::Discard { offset, len } | BlockOp::WriteZeroes { offset, len, .. } => {
                assert!(types::in_bounds(offset, len, SIZE));
                None
            }
            BlockOp::Flush => None,
        };
        if let Some(answer) = nbd.requests.done(index_of(id), Ok(data), nbd.structured) {
            nbd.answer(answer);
        }
    }
}

#[test]
fn nbd_streams() {
    let fd: Fd = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
    let zeros = Buf::zeroed(MAX_IO as usize);
    let flags = u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes().to_vec();
    let go = [&11u32.to_be_bytes()[..], NAME.as_bytes(), &[0, 1, 0, 3]].concat();
    let open = [flags.clone(), option(opt::GO, &go)].concat();
    let structured = [flags.clone(), option(opt::STRUCTURED_REPLY, &[]), option(opt::GO, &go)];
    let corpus = vec![
        [
            flags.clone(),
            option(opt::LIST, &[]),
            option(opt::INFO, b"\0\0\0\0\0\0"),
            option(opt::ABORT, &[]),
        ]
        .concat(),
        [flags, option(opt::EXPORT_NAME, NAME.as_bytes()), request(cmd::FLUSH, 0, 0, 0)].concat(),
        [
            open.clone(),
            request(cmd::READ, 0, 8192, 4096),
            request(cmd::TRIM, 1, 4096, 1 << 20),
            request(cmd::WRITE_ZEROES, 2, 0, 4096),
            request(cmd::DISC, 0, 0, 0),
        ]
        .concat(),
        [
            structured.concat(),
            request(cmd::READ, 4, 0, 2 << 20),
            request(cmd::WRITE, 1, 4096, 4096),
            vec![5; 4096],
            request(cmd::READ, 0, 4096, 4096),
        ]
        .concat(),
        [open, request(cmd::WRITE, 0, 5000, 100), vec![6; 100], request(cmd::FLUSH, 0, 0, 0)]
            .concat(),
    ];
    run(&Target {
        name: "NBD streams",
        corpus,
        words: &[&IHAVEOPT.to_be_bytes(), &REQUEST_MAGIC.to_be_bytes(), NAME.as_bytes()],
        longest: 6000,
        repair: &no_repair,
        decode: &|bytes| {
            let export = Export { name: NAME.to_owned(), size: SIZE };
            let mut nbd = NbdConnection::new(3, fd.clone(), export, Instant::default());
            let mut device = Device::default();
            let mut input = bytes;
            loop {
                // The client reads all that is sent, and the device is quick.
                nbd.out.clear();
                nbd.queued = (0, 0);
                if nbd.closing || input.is_empty() {
                    break;
                }
                let Some(used) = nbd.take(input, &mut device) else { break };
                assert!(used <= input.len());
                input = &input[used..];
                answer(&mut nbd, &mut device, &zeros);
                assert!(nbd.requests.bytes() <= u64::from(MAX_REQUEST));
            }
            matches!(nbd.phase, Phase::Transmission) || nbd.closing && input.len() < bytes.len()
        },
    });
}
