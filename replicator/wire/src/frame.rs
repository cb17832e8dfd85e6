//! Frames: a fixed header of 64 bytes, little-endian, then a payload.
//!
//! ```text
//!  0 magic u32 | 4 version u16 | 6 kind u8 | 7 small u8 | 8 seq u64 | 16 a u64 | 24 b u64
//! 32 era u32 | 36 payload length u32 | 40 payload CRC32C u32 | 44 zero [16] | 60 header CRC32C u32
//! ```
//!
//! `small`, `a`, `b` and `era` mean what the kind says (see [`encode`]). The CRC of a write's or a
//! read's payload is the one that the engine or the store made of the data (R15): it travels
//! through, so that the same number that left the sender's memory is checked against the
//! receiver's; the decoder checks it for every other payload.

use crate::message::{Hello, Reply, Request, WireError};
use types::{Buf, BufMut, crc32c};

/// Length of the header in bytes.
pub const HEADER: usize = 64;

/// Longest payload of any frame in bytes.
pub const MAX_PAYLOAD: usize = types::MAX_IO as usize;

/// Payload of a Hello: seven ids and an epoch.
pub(crate) const HELLO_LEN: usize = 7 * 16 + 8;
/// Payload of a request about one snapshot: its id.
pub(crate) const SNAPSHOT_LEN: usize = 16;
/// Bytes of each snapshot in a list: id and size.
pub(crate) const HELD_LEN: usize = 24;
/// Bytes of one entry of [`Reply::Hashes`].
pub(crate) const HASH_LEN: usize = 16;

/// Longest text of an error in bytes.
const MAX_REASON: usize = 512;

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"HFdp");

/// Frame kinds on the wire; numbers are never reused.
pub(crate) mod kind {
    pub const HELLO: u8 = 1;
    pub const SEAL: u8 = 2;
    pub const WRITE: u8 = 3;
    pub const READ: u8 = 4;
    pub const FLUSH: u8 = 5;
    pub const DISCARD: u8 = 6;
    pub const WRITE_ZEROES: u8 = 7;
    pub const PING: u8 = 8;
    pub const SEAL_ERA: u8 = 9;
    pub const TAGS: u8 = 10;
    pub const HASH: u8 = 11;
    pub const CLOSE: u8 = 12;
    pub const SNAPSHOT: u8 = 13;
    pub const SNAPSHOTS: u8 = 14;
    pub const READ_SNAPSHOT: u8 = 15;
    pub const HASH_SNAPSHOT: u8 = 16;
    pub const ALLOCATED: u8 = 17;
    pub const MARK: u8 = 18;
    pub const SEALED: u8 = 64;
    pub const DONE: u8 = 65;
    pub const DATA: u8 = 66;
    pub const REGIONS: u8 = 67;
    pub const HASHES: u8 = 68;
    pub const FAILED: u8 = 69;
    pub const HELD: u8 = 70;
}

/// Codes of [`WireError`] on the wire; numbers are never reused.
pub(crate) mod code {
    pub const FENCED: u8 = 1;
    pub const REPLICA_FAILED: u8 = 2;
    pub const DISK: u8 = 3;
    pub const NO_SPACE: u8 = 4;
    pub const CHECKSUM: u8 = 5;
    pub const INVALID: u8 = 6;
    pub const REFUSED: u8 = 7;
    pub const NO_SNAPSHOT: u8 = 8;
}

/// One message of a connection, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame of an engine.
    Hello(Hello),
    /// From the engine.
    Request {
        /// Unique in the session; at least 1.
        seq: u64,
        /// The request.
        request: Request,
    },
    /// From the replica.
    Reply {
        /// The request's number; 0 if it answers the [`Hello`].
        seq: u64,
        /// The answer.
        reply: Reply,
    },
}

/// An encoded frame: the header and the payload, which is shared, not copied.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// [`HEADER`] bytes.
    pub header: [u8; HEADER],
    /// What follows.
    pub payload: Option<Buf>,
}

/// The fields of a header, before the kind gives them meaning.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fields {
    pub kind: u8,
    pub small: u8,
    pub seq: u64,
    pub a: u64,
    pub b: u64,
    pub era: u32,
    pub payload_len: u32,
    pub payload_crc: u32,
}

impl Fields {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&crate::VERSION.to_le_bytes());
        bytes[6] = self.kind;
        bytes[7] = self.small;
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.a.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.b.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.era.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// Encodes a frame. A text longer than 512 bytes is cut; every other bound is the caller's
/// (`Request` and `Reply` say them), and the receiver enforces it.
#[must_use]
pub fn encode(frame: &Frame) -> Encoded {
    let (mut fields, payload) = match frame {
        Frame::Hello(hello) => encode_hello(hello),
        Frame::Request { seq, request } => {
            let (fields, payload) = encode_request(request);
            (Fields { seq: *seq, ..fields }, payload)
        }
        Frame::Reply { seq, reply } => {
            let (fields, payload) = encode_reply(reply);
            (Fields { seq: *seq, ..fields }, payload)
        }
    };
    if let Some(payload) = &payload {
        // A Buf never holds more than the encoders put in; the receiver refuses what is too long.
        fields.payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if fields.kind != kind::WRITE && fields.kind != kind::DATA {
            fields.payload_crc = crc32c(payload.as_slice());
        }
    }
    Encoded { header: fields.to_bytes(), payload }
}

fn encode_hello(hello: &Hello) -> (Fields, Option<Buf>) {
    let mut payload = BufMut::with_len(HELLO_LEN);
    let ids = [
        hello.cluster.as_bytes(),
        hello.volume.as_bytes(),
        hello.replica.as_bytes(),
        hello.incarnation.as_bytes(),
        hello.instance.as_bytes(),
        hello.process.boot.as_bytes(),
        hello.process.run.as_bytes(),
    ];
    for (chunk, id) in payload.as_mut_slice().chunks_exact_mut(16).zip(ids) {
        chunk.copy_from_slice(id);
    }
    payload.as_mut_slice()[7 * 16..].copy_from_slice(&hello.sealed.0.to_le_bytes());
    let fields = Fields {
        kind: kind::HELLO,
        small: hello.role as u8,
        a: hello.epoch.0,
        b: hello.process.node.0,
        ..Fields::default()
    };
    (fields, Some(payload.freeze()))
}

fn encode_request(request: &Request) -> (Fields, Option<Buf>) {
    let none = Fields::default();
    match request {
        Request::Seal => (Fields { kind: kind::SEAL, ..none }, None),
        Request::Write { offset, data, crc, era } => (
            Fields { kind: kind::WRITE, a: *offset, era: era.0, payload_crc: *crc, ..none },
            Some(data.clone()),
        ),
        Request::Read { offset, len } => {
            (Fields { kind: kind::READ, a: *offset, b: u64::from(*len), ..none }, None)
        }
        Request::Flush => (Fields { kind: kind::FLUSH, ..none }, None),
        Request::Discard { offset, len, era } => {
            (Fields { kind: kind::DISCARD, a: *offset, b: *len, era: era.0, ..none }, None)
        }
        Request::WriteZeroes { offset, len, era } => {
            (Fields { kind: kind::WRITE_ZEROES, a: *offset, b: *len, era: era.0, ..none }, None)
        }
        Request::Mark { offset, len, era } => {
            (Fields { kind: kind::MARK, a: *offset, b: *len, era: era.0, ..none }, None)
        }
        Request::Ping => (Fields { kind: kind::PING, ..none }, None),
        Request::SealEra { era } => (Fields { kind: kind::SEAL_ERA, era: era.0, ..none }, None),
        Request::Tags { above, first } => (
            Fields {
                kind: kind::TAGS,
                a: above.epoch.0,
                b: u64::from(*first),
                era: above.era.0,
                ..none
            },
            None,
        ),
        Request::Hash { offset, len } => {
            (Fields { kind: kind::HASH, a: *offset, b: *len, ..none }, None)
        }
        Request::Close { clean } => {
            (Fields { kind: kind::CLOSE, small: u8::from(*clean), ..none }, None)
        }
        Request::Snapshot { snapshot, size } => (
            Fields { kind: kind::SNAPSHOT, a: *size, ..none },
            Some(Buf::copy_of(snapshot.as_bytes())),
        ),
        Request::Snapshots => (Fields { kind: kind::SNAPSHOTS, ..none }, None),
        Request::ReadSnapshot { snapshot, offset, len } => (
            Fields { kind: kind::READ_SNAPSHOT, a: *offset, b: u64::from(*len), ..none },
            Some(Buf::copy_of(snapshot.as_bytes())),
        ),
        Request::HashSnapshot { snapshot, offset, len } => (
            Fields { kind: kind::HASH_SNAPSHOT, a: *offset, b: *len, ..none },
            Some(Buf::copy_of(snapshot.as_bytes())),
        ),
        Request::Allocated { snapshot, first } => (
            Fields { kind: kind::ALLOCATED, b: u64::from(*first), ..none },
            Some(Buf::copy_of(snapshot.as_bytes())),
        ),
    }
}

fn encode_reply(reply: &Reply) -> (Fields, Option<Buf>) {
    let none = Fields::default();
    match reply {
        Reply::Sealed(info) => {
            let mut payload = BufMut::zeroed(32);
            let bytes = payload.as_mut_slice();
            bytes[0..8].copy_from_slice(&info.last_sealed.epoch.0.to_le_bytes());
            bytes[8..12].copy_from_slice(&info.last_sealed.era.0.to_le_bytes());
            bytes[16..32].copy_from_slice(info.boot.as_bytes());
            let small = u8::from(info.unbroken) | u8::from(info.clean) << 1;
            let fields =
                Fields { kind: kind::SEALED, small, a: info.epoch.0, b: info.size, ..none };
            (fields, Some(payload.freeze()))
        }
        Reply::Done => (Fields { kind: kind::DONE, ..none }, None),
        Reply::Data { data, crc } => {
            (Fields { kind: kind::DATA, payload_crc: *crc, ..none }, Some(data.clone()))
        }
        Reply::Regions { regions, next } => {
            // u64::MAX cannot be a region index: those are 32 bits wide.
            let a = next.map_or(u64::MAX, u64::from);
            (Fields { kind: kind::REGIONS, a, ..none }, Some(words(regions)))
        }
        Reply::Hashes(hashes) => {
            let mut payload = BufMut::with_len(hashes.len() * HASH_LEN);
            for (chunk, hash) in payload.as_mut_slice().chunks_exact_mut(HASH_LEN).zip(hashes) {
                chunk.copy_from_slice(&hash.to_le_bytes());
            }
            (Fields { kind: kind::HASHES, ..none }, Some(payload.freeze()))
        }
        Reply::Snapshots(held) => {
            let mut payload = BufMut::with_len(held.len() * HELD_LEN);
            for (chunk, held) in payload.as_mut_slice().chunks_exact_mut(HELD_LEN).zip(held) {
                chunk[..16].copy_from_slice(held.snapshot.as_bytes());
                chunk[16..].copy_from_slice(&held.size.to_le_bytes());
            }
            (Fields { kind: kind::HELD, ..none }, Some(payload.freeze()))
        }
        Reply::Failed(error) => encode_error(error),
    }
}

fn encode_error(error: &WireError) -> (Fields, Option<Buf>) {
    let (small, a, reason) = match error {
        WireError::Fenced { sealed } => (code::FENCED, sealed.0, ""),
        WireError::ReplicaFailed { reason } => (code::REPLICA_FAILED, 0, reason.as_str()),
        WireError::Disk { errno } => (code::DISK, u64::from(errno.unsigned_abs()), ""),
        WireError::NoSpace => (code::NO_SPACE, 0, ""),
        WireError::NoSnapshot => (code::NO_SNAPSHOT, 0, ""),
        WireError::Checksum { offset } => (code::CHECKSUM, *offset, ""),
        WireError::Invalid { reason } => (code::INVALID, 0, reason.as_str()),
        WireError::Refused { reason } => (code::REFUSED, 0, reason.as_str()),
    };
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let payload = (end > 0).then(|| Buf::copy_of(&reason.as_bytes()[..end]));
    (Fields { kind: kind::FAILED, small, a, ..Fields::default() }, payload)
}

fn words(values: &[u32]) -> Buf {
    let mut payload = BufMut::with_len(values.len() * 4);
    for (chunk, value) in payload.as_mut_slice().chunks_exact_mut(4).zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes());
    }
    payload.freeze()
}
