//! The words of Holdfast as types: ids, units, epochs, time and buffers, without any I/O.
//!
//! This crate must never read a clock, open a file or start a thread: the state machines above it
//! (`metadata`, `store`, `engine`) are driven by production and by tests alike.
#![forbid(unsafe_code)]

mod block;
mod buf;
mod epoch;
mod error;
mod id;
pub mod plant;
mod process;
mod time;
mod units;

pub use block::{BlockOp, BlockResult, IoId};
pub use buf::{Buf, BufMut};
pub use epoch::{Epoch, Era, IsrVersion, Tag};
pub use error::IoError;
pub use id::{
    BootId, ClusterId, EngineInstance, Incarnation, NodeId, ParseIdError, PoolId, ReplicaId,
    SnapshotId, VolumeId,
};
pub use process::Process;
pub use time::Instant;
pub use units::*;

/// CRC32C (Castagnoli) of `bytes`, the checksum of every frame, block and record (R15, R23).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// What copies are compared by (R19). Not a CRC: that of data which end with their own CRC is the same for
/// all of them, and PostgreSQL's pg_control or a filesystem's metadata are such data. Versions that disagree
/// on it copy more than they have to, and nothing less.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> u32 {
    let hash = siphasher::sip::SipHasher13::new().hash(bytes);
    (hash ^ (hash >> 32)) as u32
}

/// CRC32C of the concatenation of `bytes` after data whose CRC32C is `crc`.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as PostgreSQL's pg_control: contents, their CRC32C, zeros.
    fn page(number: u8) -> Vec<u8> {
        let mut page = vec![number; 288];
        page.extend_from_slice(&crc32c(&page).to_le_bytes());
        page.resize(8192, 0);
        page
    }

    #[test]
    fn contents_that_carry_their_own_crc_are_told_apart() {
        let (first, second) = (page(1), page(2));
        assert_eq!(crc32c(&first), crc32c(&second), "this is why it is no CRC");
        assert_ne!(content_hash(&first), content_hash(&second));
    }
}
