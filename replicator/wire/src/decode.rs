//! From received bytes to frames, with one staging buffer per connection and no unbounded memory.

use crate::frame::{
    Fields, Frame, HASH_LEN, HEADER, HELD_LEN, HELLO_LEN, MAGIC, MAX_PAYLOAD, SNAPSHOT_LEN, code,
    kind,
};
use crate::message::{HeldSnapshot, Hello, Reply, Request, Role, SealInfo, WireError};
use crate::{VERSION, VERSIONS};
use thiserror::Error;
use types::{
    BootId, Buf, BufMut, ClusterId, EngineInstance, Epoch, Era, Incarnation, NodeId, Process,
    ReplicaId, SnapshotId, Tag, VolumeId, crc32c,
};

/// Bytes of the staging buffer: several small frames per receive.
const STAGE: usize = 64 << 10;

/// A payload with at least this much missing is received in place instead of through the stage.
const DIRECT: usize = 16 << 10;

/// Bytes that are not a frame. The connection must be closed: nothing after them can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Not this protocol at all.
    #[error("not a Holdfast frame: magic {0:#010x}")]
    Magic(u32),
    /// Another version of it.
    #[error("protocol version {found}, this build speaks {VERSION} (of {} known)", VERSIONS.len())]
    Version {
        /// What the peer speaks.
        found: u16,
    },
    /// The header is damaged.
    #[error("header checksum mismatch")]
    HeaderChecksum,
    /// The payload of a control message is damaged.
    #[error("payload checksum mismatch in a frame of kind {kind}")]
    PayloadChecksum {
        /// Frame kind.
        kind: u8,
    },
    /// A field has no accepted value.
    #[error("frame kind {kind}: {field} is {value}, accepted: {accepted}")]
    Field {
        /// Frame kind.
        kind: u8,
        /// Which field.
        field: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        accepted: &'static str,
    },
}

/// Where the next bytes of the connection must be received: into `buf` from `start` on.
#[derive(Debug)]
pub struct Receive {
    /// The buffer; give it back with [`Decoder::received`].
    pub buf: BufMut,
    /// First byte to fill.
    pub start: usize,
}

struct Partial {
    fields: Fields,
    payload: BufMut,
    filled: usize,
}

/// Incremental decoder of one direction of a connection.
#[derive(Default)]
pub struct Decoder {
    stage: Option<BufMut>,
    start: usize,
    end: usize,
    partial: Option<Partial>,
    direct: bool,
}

impl Decoder {
    /// Lends the buffer for the next receive. There must be none outstanding.
    #[must_use]
    pub fn receive(&mut self) -> Receive {
        if let Some(partial) = &mut self.partial
            && self.start == self.end
            && partial.payload.len() - partial.filled >= DIRECT
        {
            self.direct = true;
            let buf = core::mem::replace(&mut partial.payload, BufMut::with_len(0));
            return Receive { buf, start: partial.filled };
        }
        let mut stage = self.stage.take().unwrap_or_else(|| BufMut::with_len(STAGE));
        if self.start > 0 {
            stage.as_mut_slice().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        Receive { buf: stage, start: self.end }
    }

    /// Takes the buffer back with `bytes` more bytes in it (0 if the receive failed).
    pub fn received(&mut self, buf: BufMut, bytes: usize) {
        if core::mem::take(&mut self.direct) {
            if let Some(partial) = &mut self.partial {
                partial.payload = buf;
                partial.filled += bytes;
            }
        } else {
            self.stage = Some(buf);
            self.end += bytes;
        }
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// [`DecodeError`]: close the connection.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        if self.partial.is_none() {
            let Some(stage) = &self.stage else { return Ok(None) };
            let bytes = &stage.as_slice()[self.start..self.end];
            let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
            let fields = decode_header(header)?;
            self.start += HEADER;
            let payload = BufMut::with_len(fields.payload_len as usize);
            self.partial = Some(Partial { fields, payload, filled: 0 });
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        if let Some(stage) = &self.stage {
            let missing = partial.payload.len() - partial.filled;
            let count = missing.min(self.end - self.start);
            partial.payload.as_mut_slice()[partial.filled..partial.filled + count]
                .copy_from_slice(&stage.as_slice()[self.start..self.start + count]);
            partial.filled += count;
            self.start += count;
        }
        if partial.filled < partial.payload.len() {
            return Ok(None);
        }
        let Some(whole) = self.partial.take() else { return Ok(None) };
        decode(&whole.fields, whole.payload.freeze()).map(Some)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    id
}

fn decode_header(bytes: &[u8; HEADER]) -> Result<Fields, DecodeError> {
    let magic = u32_at(bytes, 0);
    if magic != MAGIC {
        return Err(DecodeError::Magic(magic));
    }
    let version = u16_at(bytes, 4);
    if version != VERSION {
        return Err(DecodeError::Version { found: version });
    }
    if crc32c(&bytes[..60]) != u32_at(bytes, 60) {
        return Err(DecodeError::HeaderChecksum);
    }
    let fields = Fields {
        kind: bytes[6],
        small: bytes[7],
        seq: u64_at(bytes, 8),
        a: u64_at(bytes, 16),
        b: u64_at(bytes, 24),
        era: u32_at(bytes, 32),
        payload_len: u32_at(bytes, 36),
        payload_crc: u32_at(bytes, 40),
    };
    let (accepted, ok): (&str, fn(usize) -> bool) = match fields.kind {
        kind::HELLO => ("112", |len| len == HELLO_LEN),
        kind::SEALED => ("32", |len| len == 32),
        kind::WRITE | kind::DATA => ("1 to 1048576", |len| len > 0 && len <= MAX_PAYLOAD),
        kind::REGIONS => {
            ("multiples of 4 up to 1048576", |len| len <= MAX_PAYLOAD && len.is_multiple_of(4))
        }
        kind::HASHES => ("multiples of 16 up to 1048576", |len| {
            len <= MAX_PAYLOAD && len.is_multiple_of(HASH_LEN)
        }),
        kind::FAILED => ("0 to 1024", |len| len <= 1024),
        kind::SNAPSHOT | kind::READ_SNAPSHOT | kind::HASH_SNAPSHOT | kind::ALLOCATED => {
            ("16", |len| len == SNAPSHOT_LEN)
        }
        kind::HELD => ("multiples of 24 up to 1048576", |len| {
            len <= MAX_PAYLOAD && len.is_multiple_of(HELD_LEN)
        }),
        _ => ("0", |len| len == 0),
    };
    if ok(fields.payload_len as usize) {
        Ok(fields)
    } else {
        Err(refuse(&fields, "payload length", u64::from(fields.payload_len), accepted))
    }
}

fn refuse(fields: &Fields, field: &'static str, value: u64, accepted: &'static str) -> DecodeError {
    DecodeError::Field { kind: fields.kind, field, value, accepted }
}

fn decode(fields: &Fields, payload: Buf) -> Result<Frame, DecodeError> {
    let passes_through = matches!(fields.kind, kind::WRITE | kind::DATA);
    if !passes_through && !payload.is_empty() && crc32c(payload.as_slice()) != fields.payload_crc {
        return Err(DecodeError::PayloadChecksum { kind: fields.kind });
    }
    match fields.kind {
        kind::HELLO => decode_hello(fields, payload.as_slice()).map(Frame::Hello),
        kind::SEAL..=kind::MARK => {
            if fields.seq == 0 {
                return Err(refuse(fields, "seq", 0, "1 or more"));
            }
            Ok(Frame::Request { seq: fields.seq, request: decode_request(fields, payload)? })
        }
        kind::SEALED..=kind::HELD => {
            Ok(Frame::Reply { seq: fields.seq, reply: decode_reply(fields, payload)? })
        }
        other => Err(refuse(fields, "kind", u64::from(other), "1 to 18, 64 to 70")),
    }
}

fn decode_hello(fields: &Fields, payload: &[u8]) -> Result<Hello, DecodeError> {
    let role = match fields.small {
        0 => Role::Engine,
        1 => Role::Sealer,
        2 => Role::Reader,
        other => return Err(refuse(fields, "role", u64::from(other), "0 to 2")),
    };
    Ok(Hello {
        cluster: ClusterId::from_bytes(id_at(payload, 0)),
        volume: VolumeId::from_bytes(id_at(payload, 16)),
        replica: ReplicaId::from_bytes(id_at(payload, 32)),
        incarnation: Incarnation::from_bytes(id_at(payload, 48)),
        instance: EngineInstance::from_bytes(id_at(payload, 64)),
        sealed: Epoch(u64_at(payload, 112)),
        epoch: Epoch(fields.a),
        process: Process {
            node: NodeId(fields.b),
            boot: BootId::from_bytes(id_at(payload, 80)),
            run: EngineInstance::from_bytes(id_at(payload, 96)),
        },
        role,
    })
}

fn decode_request(fields: &Fields, payload: Buf) -> Result<Request, DecodeError> {
    let era = Era(fields.era);
    let narrow =
        |field, value| u32::try_from(value).map_err(|_| refuse(fields, field, value, "32 bits"));
    Ok(match fields.kind {
        kind::SEAL => Request::Seal,
        kind::WRITE => {
            Request::Write { offset: fields.a, data: payload, crc: fields.payload_crc, era }
        }
        kind::READ => Request::Read { offset: fields.a, len: narrow("length", fields.b)? },
        kind::FLUSH => Request::Flush,
        kind::DISCARD => Request::Discard { offset: fields.a, len: fields.b, era },
        kind::WRITE_ZEROES => Request::WriteZeroes { offset: fields.a, len: fields.b, era },
        kind::MARK => Request::Mark { offset: fields.a, len: fields.b, era },
        kind::PING => Request::Ping,
        kind::SEAL_ERA => Request::SealEra { era },
        kind::TAGS => Request::Tags {
            above: Tag { epoch: Epoch(fields.a), era },
            first: narrow("first region", fields.b)?,
        },
        kind::HASH => Request::Hash { offset: fields.a, len: fields.b },
        kind::SNAPSHOT => Request::Snapshot { snapshot: snapshot(&payload), size: fields.a },
        kind::SNAPSHOTS => Request::Snapshots,
        kind::READ_SNAPSHOT => Request::ReadSnapshot {
            snapshot: snapshot(&payload),
            offset: fields.a,
            len: narrow("length", fields.b)?,
        },
        kind::HASH_SNAPSHOT => {
            Request::HashSnapshot { snapshot: snapshot(&payload), offset: fields.a, len: fields.b }
        }
        kind::ALLOCATED => Request::Allocated {
            snapshot: snapshot(&payload),
            first: narrow("first region", fields.b)?,
        },
        _ => Request::Close { clean: fields.small != 0 },
    })
}

fn snapshot(payload: &Buf) -> SnapshotId {
    SnapshotId::from_bytes(id_at(payload.as_slice(), 0))
}

fn decode_reply(fields: &Fields, payload: Buf) -> Result<Reply, DecodeError> {
    Ok(match fields.kind {
        kind::SEALED => {
            let bytes = payload.as_slice();
            Reply::Sealed(SealInfo {
                epoch: Epoch(fields.a),
                size: fields.b,
                last_sealed: Tag { epoch: Epoch(u64_at(bytes, 0)), era: Era(u32_at(bytes, 8)) },
                unbroken: fields.small & 1 != 0,
                clean: fields.small & 2 != 0,
                boot: BootId::from_bytes(id_at(bytes, 16)),
            })
        }
        kind::DONE => Reply::Done,
        kind::DATA => Reply::Data { data: payload, crc: fields.payload_crc },
        kind::REGIONS => Reply::Regions {
            regions: words(&payload),
            next: match fields.a {
                u64::MAX => None,
                next => Some(
                    u32::try_from(next)
                        .map_err(|_| refuse(fields, "next region", next, "32 bits, or none"))?,
                ),
            },
        },
        kind::HASHES => {
            let hashes = payload.as_slice().chunks_exact(HASH_LEN);
            Reply::Hashes(hashes.map(|chunk| u128::from_le_bytes(id_at(chunk, 0))).collect())
        }
        kind::HELD => Reply::Snapshots(
            payload
                .as_slice()
                .chunks_exact(HELD_LEN)
                .map(|chunk| HeldSnapshot {
                    snapshot: SnapshotId::from_bytes(id_at(chunk, 0)),
                    size: u64_at(chunk, 16),
                })
                .collect(),
        ),
        _ => Reply::Failed(decode_error(fields, &payload)?),
    })
}

fn words(payload: &Buf) -> Vec<u32> {
    payload.as_slice().chunks_exact(4).map(|chunk| u32_at(chunk, 0)).collect()
}

fn decode_error(fields: &Fields, payload: &Buf) -> Result<WireError, DecodeError> {
    let reason = String::from_utf8_lossy(payload.as_slice()).into_owned();
    Ok(match fields.small {
        code::FENCED => WireError::Fenced { sealed: Epoch(fields.a) },
        code::REPLICA_FAILED => WireError::ReplicaFailed { reason },
        code::DISK => WireError::Disk { errno: i32::try_from(fields.a).unwrap_or(5) },
        code::NO_SPACE => WireError::NoSpace,
        code::CHECKSUM => WireError::Checksum { offset: fields.a },
        code::INVALID => WireError::Invalid { reason },
        code::REFUSED => WireError::Refused { reason },
        code::NO_SNAPSHOT => WireError::NoSnapshot,
        other => return Err(refuse(fields, "error code", u64::from(other), "1 to 8")),
    })
}

#[cfg(test)]
mod tests;
