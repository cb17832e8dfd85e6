//! Frames between engine and replica, over a connection that cuts them anywhere.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;

use fuzz::{Target, run};
use kit::Rng;
use types::{BootId, Buf, Epoch, Era, SnapshotId, Tag, crc32c};
use wire::{
    Decoder, Frame, HEADER, HeldSnapshot, Reply, Request, Role, SealInfo, WireError, encode,
};

fn frames() -> Vec<Frame> {
    let data = Buf::copy_of(&[7; 4096]);
    let crc = crc32c(data.as_slice());
    let (era, above) = (Era(3), Tag { epoch: Epoch(2), era: Era(1) });
    let snapshot = SnapshotId::from_bytes([3; 16]);
    let requests = [
        Request::Seal,
        Request::Write { offset: 8192, data: data.clone(), crc, era },
        Request::Read { offset: 4096, len: 8192 },
        Request::Flush,
        Request::Discard { offset: 0, len: 1 << 20, era },
        Request::WriteZeroes { offset: 0, len: 4096, era },
        Request::Mark { offset: 0, len: 1 << 20, era },
        Request::Ping,
        Request::SealEra { era },
        Request::Tags { above, first: 7 },
        Request::Hash { offset: 0, len: 1 << 20 },
        Request::Close { clean: true },
        Request::Snapshot { snapshot, size: 1 << 30 },
        Request::Snapshots,
        Request::ReadSnapshot { snapshot, offset: 4096, len: 8192 },
        Request::HashSnapshot { snapshot, offset: 0, len: 1 << 20 },
        Request::Allocated { snapshot, first: 0 },
    ];
    let replies = [
        Reply::Sealed(SealInfo {
            epoch: Epoch(4),
            last_sealed: above,
            unbroken: true,
            clean: false,
            size: 1 << 30,
            boot: BootId::from_bytes([9; 16]),
        }),
        Reply::Done,
        Reply::Data { data, crc },
        Reply::Regions { regions: vec![1, 2, 900], next: Some(901) },
        Reply::Hashes(vec![u128::MAX - 5; 16]),
        Reply::Snapshots(vec![HeldSnapshot { snapshot, size: 1 << 30 }; 2]),
        Reply::Failed(WireError::Fenced { sealed: Epoch(9) }),
        Reply::Failed(WireError::Invalid { reason: "offset of a write".into() }),
    ];
    let mut frames = vec![Frame::Hello(kit::ids::hello(1, 5, Role::Engine))];
    frames.extend(requests.into_iter().map(|request| Frame::Request { seq: 6, request }));
    frames.extend(replies.into_iter().map(|reply| Frame::Reply { seq: 6, reply }));
    frames
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let encoded = encode(frame);
    let payload = encoded.payload.as_ref().map_or(&[][..], |payload| payload.as_slice());
    [&encoded.header[..], payload].concat()
}

#[test]
fn wire_frames() {
    let mut corpus: Vec<Vec<u8>> = frames().iter().map(bytes_of).collect();
    corpus.push([corpus[0].clone(), corpus[1].clone(), corpus[3].clone()].concat());
    let cuts = RefCell::new(Rng::new(1));
    run(&Target {
        name: "wire frames",
        corpus,
        words: &[b"HFdp"],
        longest: 6000,
        repair: &|bytes| {
            let end = bytes.len().saturating_sub(HEADER) as u32;
            if bytes.len() < HEADER {
                return;
            }
            // Magic, version; the payload's length and checksum; the header's checksum.
            let valid = bytes_of(&frames()[1]);
            bytes[..6].copy_from_slice(&valid[..6]);
            if end <= 5000 {
                bytes[36..40].copy_from_slice(&end.to_le_bytes());
            }
            let crc = crc32c(&bytes[HEADER..]);
            bytes[40..44].copy_from_slice(&crc.to_le_bytes());
            let crc = crc32c(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        },
        decode: &|mut bytes| {
            let mut decoder = Decoder::default();
            let mut cuts = cuts.borrow_mut();
            let mut frames = 0;
            while !bytes.is_empty() {
                let mut receive = decoder.receive();
                let room = receive.buf.len() - receive.start;
                let count = if cuts.one_in(4) { 1 + cuts.index(bytes.len()) } else { bytes.len() };
                let count = count.min(room);
                receive.buf.as_mut_slice()[receive.start..receive.start + count]
                    .copy_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                decoder.received(receive.buf, count);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(frame)) => {
                            frames += 1;
                            // It says the same when it is sent on.
                            assert!(!bytes_of(&frame).is_empty());
                        }
                        Ok(None) => break,
                        Err(_) => return frames > 0,
                    }
                }
            }
            frames > 0
        },
    });
}
