#![allow(clippy::unwrap_used)]
use super::*;
use crate::encode;

fn samples() -> Vec<Frame> {
    let hello = Hello {
        cluster: ClusterId::from_bytes([1; 16]),
        volume: VolumeId::from_bytes([2; 16]),
        replica: ReplicaId::from_bytes([3; 16]),
        incarnation: Incarnation::from_bytes([4; 16]),
        instance: EngineInstance::from_bytes([5; 16]),
        sealed: Epoch(6),
        epoch: Epoch(7),
        process: Process {
            node: NodeId(3),
            boot: BootId::from_bytes([8; 16]),
            run: EngineInstance::from_bytes([9; 16]),
        },
        role: Role::Sealer,
    };
    let info = SealInfo {
        epoch: Epoch(9),
        last_sealed: Tag { epoch: Epoch(8), era: Era(4) },
        unbroken: true,
        clean: false,
        size: 1 << 30,
        boot: BootId::from_bytes([6; 16]),
    };
    let mut data = BufMut::with_len(200_000);
    for (i, byte) in data.as_mut_slice().iter_mut().enumerate() {
        *byte = (i * 7 % 251) as u8;
    }
    let data = data.freeze();
    let crc = crc32c(data.as_slice());
    let era = Era(11);
    let snapshot = SnapshotId::from_bytes([13; 16]);
    let requests = [
        Request::Seal,
        Request::Write { offset: 4096, data: data.slice(0..4096), crc: 77, era },
        Request::Write { offset: 1 << 20, data: data.clone(), crc, era },
        Request::Read { offset: 8192, len: 4096 },
        Request::Flush,
        Request::Discard { offset: 0, len: 1 << 30, era },
        Request::WriteZeroes { offset: 4096, len: 4096, era },
        Request::Mark { offset: 1 << 20, len: 4096, era },
        Request::Ping,
        Request::SealEra { era },
        Request::Tags { above: Tag { epoch: Epoch(3), era: Era(2) }, first: 9 },
        Request::Hash { offset: 1 << 20, len: 1 << 20 },
        Request::Close { clean: true },
        Request::Snapshot { snapshot, size: 1 << 30 },
        Request::Snapshots,
        Request::ReadSnapshot { snapshot, offset: 8192, len: 4096 },
        Request::HashSnapshot { snapshot, offset: 1 << 20, len: 1 << 20 },
        Request::Allocated { snapshot, first: 9 },
    ];
    let errors = [
        WireError::Fenced { sealed: Epoch(12) },
        WireError::ReplicaFailed { reason: "gone".into() },
        WireError::Disk { errno: 5 },
        WireError::NoSpace,
        WireError::NoSnapshot,
        WireError::Checksum { offset: 4096 },
        WireError::Invalid { reason: String::new() },
        WireError::Refused { reason: "ü".repeat(100) },
    ];
    let replies = [
        Reply::Sealed(info),
        Reply::Done,
        Reply::Data { data, crc },
        Reply::Regions { regions: vec![1, 2, 9], next: Some(10) },
        Reply::Regions { regions: vec![], next: None },
        Reply::Hashes(vec![u128::MAX - 5; 16]),
        Reply::Snapshots(vec![HeldSnapshot { snapshot, size: 1 << 30 }; 3]),
    ];
    let mut frames = vec![Frame::Hello(hello)];
    frames.extend(
        requests.into_iter().zip(1..).map(|(request, seq)| Frame::Request { seq, request }),
    );
    frames.extend(
        replies
            .into_iter()
            .chain(errors.into_iter().map(Reply::Failed))
            .zip(0..)
            .map(|(reply, seq)| Frame::Reply { seq, reply }),
    );
    frames
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let encoded = encode(frame);
    let mut bytes = encoded.header.to_vec();
    bytes.extend(encoded.payload.iter().flat_map(|payload| payload.as_slice().to_vec()));
    bytes
}

/// Feeds `bytes` in pieces of at most `step` bytes, as a socket would.
fn run(bytes: &[u8], step: usize) -> Result<Vec<Frame>, DecodeError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Receive { mut buf, start } = decoder.receive();
        let count = rest.len().min(step).min(buf.len() - start);
        assert!(count > 0, "the decoder must always have room");
        buf.as_mut_slice()[start..start + count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        decoder.received(buf, count);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn every_frame_survives_any_cutting_of_the_stream() {
    let frames = samples();
    let bytes: Vec<u8> = frames.iter().flat_map(bytes_of).collect();
    for step in [1, 63, 64, 65, 1000, 4096, 70_000, usize::MAX] {
        assert_eq!(run(&bytes, step).unwrap(), frames, "step {step}");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_left_to_the_data_checksum() {
    for frame in samples() {
        let bytes = bytes_of(&frame);
        let passes_through = matches!(
            frame,
            Frame::Request { request: Request::Write { .. }, .. }
                | Frame::Reply { reply: Reply::Data { .. }, .. }
        );
        let checked = if passes_through { HEADER } else { bytes.len() };
        for bit in 0..checked.min(2 * HEADER) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(run(&damaged, usize::MAX).is_err(), "{frame:?} bit {bit}");
        }
    }
}

#[test]
fn a_truncated_frame_yields_nothing() {
    for frame in samples() {
        let bytes = bytes_of(&frame);
        for len in [1, HEADER - 1, bytes.len() - 1] {
            assert_eq!(run(&bytes[..len], usize::MAX), Ok(vec![]));
        }
    }
}

#[test]
fn hostile_lengths_are_refused_before_memory_is_taken() {
    for (kind, len) in [
        (kind::WRITE, MAX_PAYLOAD as u32 + 1),
        (kind::WRITE, 0),
        (kind::HELLO, 79),
        (kind::PING, 1),
        (kind::HASHES, 12),
        (kind::FAILED, 4096),
        (0, 0),
        (200, 0),
    ] {
        let mut header = encode(&Frame::Request { seq: 1, request: Request::Ping }).header;
        header[6] = kind;
        header[36..40].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c(&header[..60]);
        header[60..64].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(run(&header, 64), Err(DecodeError::Field { .. })), "{kind} {len}");
    }
}

#[test]
fn another_version_is_named() {
    let mut header = encode(&Frame::Request { seq: 1, request: Request::Ping }).header;
    header[4] = 9;
    assert_eq!(run(&header, 64), Err(DecodeError::Version { found: 9 }));
}
