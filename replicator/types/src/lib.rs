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

/// What copies are compared by (R19): SipHash-1-3 of 128 bits, under the random id of the engine that compares,
/// so that nobody who writes a volume can make two contents that agree. Not a CRC: that of data which end with
/// their own CRC is the same for all of them, and PostgreSQL's pg_control or a filesystem's metadata are such
/// data.
#[must_use]
pub fn content_hash(key: EngineInstance, bytes: &[u8]) -> u128 {
    if plant::planted(plant::Bug::CompareByCrc) {
        return crc32c(bytes).into();
    }
    siphasher::sip128::SipHasher13::new_with_key(key.as_bytes()).hash(bytes).as_u128()
}

/// CRC32C of the concatenation of `bytes` after data whose CRC32C is `crc`.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

/// Whether all of `bytes` are zeros.
#[must_use]
pub fn is_zeros(bytes: &[u8]) -> bool {
    // By pieces, so that the compiler takes many bytes at once.
    bytes.chunks(64).all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
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
    fn one_byte_anywhere_is_not_all_zeros() {
        for len in [0, 1, 63, 64, 65, 200] {
            let mut bytes = vec![0; len];
            assert!(is_zeros(&bytes), "{len}");
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zeros(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn contents_that_carry_their_own_crc_are_told_apart() {
        let (first, second) = (page(1), page(2));
        assert_eq!(crc32c(&first), crc32c(&second), "this is why it is no CRC");
        let key = EngineInstance::from_bytes([7; 16]);
        assert_ne!(content_hash(key, &first), content_hash(key, &second));
    }
}
