//! One encoding for everything metadata writes or sends: a version byte, then postcard.

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// History: 1 = first; 2 = zones, pinned volumes, leaving replicas; 3 = snapshots, limits;
/// 4 = boots of in-sync replicas; 5 = what replicas have sealed.
const VERSION: u8 = 5;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Nothing there.
    #[error("empty record")]
    Empty,
    /// Written by another version of the software.
    #[error("format version {found}, this software reads version {VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Not decodable, or with bytes left over.
    #[error("malformed record: {0}")]
    Malformed(String),
}

/// Encodes a command, an outcome or a state.
///
/// # Errors
/// [`CodecError::Malformed`] if the value cannot be represented (no such value exists today).
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_extend(value, vec![VERSION]).map_err(|e| CodecError::Malformed(e.to_string()))
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// For an unknown version, malformed or surplus bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != VERSION {
        return Err(CodecError::Version { found: *version });
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(CodecError::Malformed(format!("{} surplus bytes", rest.len()))),
        Err(e) => Err(CodecError::Malformed(e.to_string())),
    }
}
