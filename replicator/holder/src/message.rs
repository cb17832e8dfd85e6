//! What a daemon and its holder say to each other: one JSON value a message, so that a holder
//! understands daemons that are newer than itself.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// Longest message in bytes: two paths and a note.
pub(crate) const MAX_MESSAGE: usize = 32 << 10;

/// A kernel device, as the holder knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name: the volume's id.
    pub volume: String,
    /// Where its FUSE filesystem is mounted.
    pub mount: PathBuf,
    /// The file in there that the loop device is on.
    pub backing: PathBuf,
    /// What the daemon wants its successor to know; the holder does not look into it.
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Keep this device; its descriptor comes along. In place of one of the same volume.
    Keep(Device),
    /// Replace the note of a kept device.
    Note { volume: String, note: String },
    /// Keep it no longer.
    Forget { volume: String },
    /// Hand out a copy of the next device after this one, in the order of names.
    Next { after: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Response {
    Done,
    /// Its descriptor comes along.
    Device(Device),
    /// There is none after the one that was named.
    End,
    Refused {
        reason: String,
    },
}

pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} bytes; a message may have {MAX_MESSAGE}", bytes.len()),
        ));
    }
    Ok(bytes)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}
