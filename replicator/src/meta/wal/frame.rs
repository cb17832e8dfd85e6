//! The frames of the write-ahead log.
//!
//! A file is a sequence of frames without gaps. Each is synced before the next one is written, so
//! after a crash at most the last is torn. All numbers are little-endian:
//!
//! ```text
//!  0 magic     4   "HFW\x01"
//!  4 kind      1
//!  5 zero      3
//!  8 length    4   of the payload
//! 12 sequence  8   0 for the first frame of the file, then 1, 2, ...
//! 20 crc       4   CRC32C of the payload
//! 24 crc       4   CRC32C of bytes 0..24
//! 28 payload
//!  . end       4   no zero byte
//! ```
//!
//! The header has a checksum of its own so that a frame's extent can be believed when its payload
//! cannot. Magic and end contain no zero byte, so a 512-byte sector of the frame that never reached
//! the disk (and reads as zeros) shows as such, in the first and last partial sectors too.

use types::crc32c;

/// Bytes before the payload.
pub(super) const HEADER: usize = 28;
/// Bytes after the payload.
pub(super) const END: [u8; 4] = [0xE5, 0x4E, 0x44, 0x5E];
const MAGIC: [u8; 4] = [b'H', b'F', b'W', 1];
/// Disks write this much at a time.
const SECTOR: usize = 512;
/// Largest payload; a longer one is not written, so it is not read either.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

/// What a payload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Whose directory this is; alone in its file.
    Identity = 1,
    /// The whole log as of the file's creation; the first frame of a log file.
    Start = 2,
    /// One batch.
    Batch = 3,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Identity),
            2 => Some(Self::Start),
            3 => Some(Self::Batch),
            _ => None,
        }
    }
}

/// A frame as bytes; `None` if the payload is too long.
pub(super) fn encode(kind: Kind, sequence: u64, payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() > MAX_PAYLOAD {
        return None;
    }
    let length = u32::try_from(payload.len()).ok()?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len() + END.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[kind as u8, 0, 0, 0]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&crc32c(payload).to_le_bytes());
    let crc = crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&END);
    Some(bytes)
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: Kind,
    length: usize,
    sequence: u64,
    crc: u32,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let covered = bytes.get(..HEADER - 4)?;
        let crc = u32::from_le_bytes(number(bytes, 24)?);
        if covered[..4] != MAGIC || crc32c(covered) != crc {
            return None;
        }
        let length = u32::from_le_bytes(number(bytes, 8)?) as usize;
        Some(Self {
            kind: Kind::from_byte(bytes[4])?,
            length: (length <= MAX_PAYLOAD).then_some(length)?,
            sequence: u64::from_le_bytes(number(bytes, 12)?),
            crc: u32::from_le_bytes(number(bytes, 20)?),
        })
    }

    const fn total(&self) -> usize {
        HEADER + self.length + END.len()
    }
}

/// A good frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub kind: Kind,
    pub payload: &'a [u8],
}

/// What a file holds: its good frames, and how many bytes of it they are. The rest is the torn end
/// of a write that was never acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan<'a> {
    pub frames: Vec<Frame<'a>>,
    pub good: usize,
}

/// Bytes that no crash explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub offset: usize,
    pub detail: &'static str,
}

fn read(bytes: &[u8], offset: usize, sequence: u64) -> Option<(Frame<'_>, usize)> {
    let rest = bytes.get(offset..)?;
    let header = Header::read(rest)?;
    let payload = rest.get(HEADER..HEADER + header.length)?;
    let end = rest.get(HEADER + header.length..header.total())?;
    let good = end == END && header.sequence == sequence && crc32c(payload) == header.crc;
    good.then_some((Frame { kind: header.kind, payload }, offset + header.total()))
}

/// Reads all frames of a file.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan<'_>, Damage> {
    let mut frames = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        match read(bytes, offset, frames.len() as u64) {
            Some((frame, next)) => {
                frames.push(frame);
                offset = next;
            }
            None => {
                check_torn(bytes, offset, frames.len() as u64)?;
                break;
            }
        }
    }
    Ok(Scan { frames, good: offset })
}

/// Whether the bad frame at `offset` is the torn last write, and nothing else.
fn check_torn(bytes: &[u8], offset: usize, sequence: u64) -> Result<(), Damage> {
    let damage = |detail| Err(Damage { offset, detail });
    let rest = &bytes[offset..];
    if sequence == 0 {
        return damage("the first frame, synced before the file got its name, is damaged");
    }
    // The next frame is written only after this one was synced, thus acknowledged.
    let later = rest.windows(HEADER).skip(1).any(|window| {
        window.starts_with(&MAGIC)
            && Header::read(window).is_some_and(|header| header.sequence > sequence)
    });
    if later {
        return damage("a damaged frame is followed by later ones");
    }
    if rest.len() < HEADER {
        return Ok(());
    }
    if let Some(header) = Header::read(rest) {
        if header.sequence != sequence {
            return damage("a frame is out of sequence");
        }
        if rest.len() < header.total() {
            return Ok(());
        }
        if rest.len() > header.total() {
            return damage("a damaged frame is followed by other bytes");
        }
    }
    if has_unwritten_sector(bytes, offset) {
        return Ok(());
    }
    damage("every sector of the last frame was written, but not as it should be")
}

/// Whether a sector, or the part of it that belongs to the bytes from `offset` on, reads as zeros.
fn has_unwritten_sector(bytes: &[u8], offset: usize) -> bool {
    let mut from = offset;
    while from < bytes.len() {
        let to = ((from / SECTOR + 1) * SECTOR).min(bytes.len());
        if types::is_zeros(&bytes[from..to]) {
            return true;
        }
        from = to;
    }
    false
}
