//! The durable Raft log: one append-only file of checksummed frames.
//!
//! A batch is one frame and one fdatasync. Truncation and snapshots write a new file in full, sync
//! it, and put it in the old one's place by a rename, so the log is always one whole file. A torn
//! last frame was never acknowledged and is cut off; any other damage is refused.
//!
//! The log reaches its files through [`Directory`] alone, so that a test can lose power anywhere.

mod directory;
mod frame;

pub use directory::{Directory, LogFile, RealDirectory};

use super::error::MetaError;
use frame::Kind;
use metadata::{HardState, LogBatch, LogContents, LogEntry, LogSnapshot, LogStore, StoreError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use types::{ClusterId, NodeId};

const LOG: &str = "raft.wal";
const LOG_NEW: &str = "raft.wal.new";
const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
/// Where sled lives; named here because its presence alone shows that the directory was in use.
pub(super) const APPLIED: &str = "applied";

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub node: NodeId,
}

/// First frame of a log file.
#[derive(Serialize, Deserialize)]
struct Start {
    identity: Identity,
    hard_state: HardState,
    snapshot: LogSnapshot,
    entries: Vec<LogEntry>,
}

/// Failure of a running log; always fatal.
#[derive(Debug, Error)]
pub enum WalError {
    /// A file operation failed, errno kept.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Nothing is written any more (R13).
    #[error("an earlier write of the log failed")]
    Failed,
    /// A record is too long.
    #[error("a record cannot be encoded: {0}")]
    Encode(String),
}

/// The log of one node, held exclusively while it exists.
#[derive(Debug)]
pub struct Wal<D: Directory = RealDirectory> {
    dir: D,
    identity: Identity,
    file: D::File,
    /// Number of frames in the file.
    frames: u64,
    /// A write failed: what the file holds is no longer known, nothing more is written (R13).
    failed: bool,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MetaError {
    let path = path.to_path_buf();
    move |source| MetaError::Io { action, path, source }
}

fn read_file(dir: &impl Directory, name: &str) -> Result<Option<Vec<u8>>, MetaError> {
    dir.read(name).map_err(io_error("read", &dir.path().join(name)))
}

/// Writes a file that is either there in full or not at all, also after a power cut.
fn write_whole<D: Directory>(
    dir: &D,
    new: &str,
    name: &str,
    bytes: &[u8],
) -> Result<D::File, WalError> {
    let step = |action, name: &str| {
        let path = dir.path().join(name);
        move |source| WalError::Io { action, path, source }
    };
    let mut file = dir.create(new).map_err(step("create", new))?;
    file.write_all(bytes).map_err(step("write", new))?;
    file.sync_all().map_err(step("sync", new))?;
    dir.rename(new, name).map_err(step("rename to", name))?;
    dir.sync().map_err(step("sync", ""))?;
    Ok(file)
}

fn start_error(error: WalError, dir: &Path) -> MetaError {
    match error {
        WalError::Io { action, path, source } => MetaError::Io { action, path, source },
        other => MetaError::Io {
            action: "write",
            path: dir.to_path_buf(),
            source: io::Error::other(other),
        },
    }
}

fn payload<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, MetaError> {
    metadata::decode(bytes).map_err(|error| MetaError::Corrupt {
        path: path.to_path_buf(),
        offset: 0,
        detail: format!("a frame with a good checksum cannot be read: {error}"),
    })
}

fn scan<'a>(path: &Path, bytes: &'a [u8]) -> Result<frame::Scan<'a>, MetaError> {
    frame::scan(bytes).map_err(|damage| MetaError::Corrupt {
        path: path.to_path_buf(),
        offset: damage.offset as u64,
        detail: damage.detail.into(),
    })
}

fn encoded<T: Serialize>(kind: Kind, sequence: u64, value: &T) -> Result<Vec<u8>, WalError> {
    let bytes = metadata::encode(value).map_err(|e| WalError::Encode(e.to_string()))?;
    frame::encode(kind, sequence, &bytes)
        .ok_or_else(|| WalError::Encode(format!("{} bytes are too many", bytes.len())))
}

impl Wal {
    /// Opens the log in `dir`, or founds it with `founding` if the directory was never used.
    pub(super) fn open(
        dir: &Path,
        identity: Identity,
        founding: impl FnOnce() -> Result<LogContents, MetaError>,
    ) -> Result<(Self, LogContents), MetaError> {
        Self::open_in(RealDirectory::lock(dir)?, identity, founding)
    }
}

impl<D: Directory> Wal<D> {
    /// Opens the log in a directory that belongs to nobody else, or founds it with `founding` if
    /// the directory was never used.
    ///
    /// # Errors
    /// The log is lost, damaged or another node's, or cannot be read or written.
    pub fn open_in(
        dir: D,
        identity: Identity,
        founding: impl FnOnce() -> Result<LogContents, MetaError>,
    ) -> Result<(Self, LogContents), MetaError> {
        let known = Self::read_identity(&dir, identity)?;
        let path = dir.path().join(LOG);
        let Some(bytes) = read_file(&dir, LOG)? else {
            if known || dir.exists(APPLIED) {
                let detail = format!("{LOG} is absent");
                return Err(MetaError::LogLost { dir: dir.path().to_path_buf(), detail });
            }
            let contents = founding()?;
            let file = Self::write_log(&dir, identity, &contents)
                .and_then(|file| Self::write_identity(&dir, identity).map(|()| file))
                .map_err(|e| start_error(e, dir.path()))?;
            return Ok((Self { dir, identity, file, frames: 1, failed: false }, contents));
        };
        let found = scan(&path, &bytes)?;
        let (contents, found_identity) = Self::replay(&path, &found.frames)?;
        Self::check_identity(dir.path(), identity, found_identity)?;
        let mut file = dir.append(LOG).map_err(io_error("open", &path))?;
        if found.good < bytes.len() {
            tracing::info!(
                path = %path.display(), from = found.good, to = bytes.len(),
                "the last write of the log was torn and is cut off; it was never acknowledged"
            );
            file.set_len(found.good as u64).map_err(io_error("truncate", &path))?;
        }
        // Also what an earlier process wrote but did not live to sync is durable from here on.
        file.sync_all().map_err(io_error("sync", &path))?;
        if !known {
            Self::write_identity(&dir, identity).map_err(|e| start_error(e, dir.path()))?;
        }
        let frames = found.frames.len() as u64;
        Ok((Self { dir, identity, file, frames, failed: false }, contents))
    }

    fn check_identity(dir: &Path, ours: Identity, found: Identity) -> Result<(), MetaError> {
        if ours == found {
            return Ok(());
        }
        Err(MetaError::Foreign {
            dir: dir.to_path_buf(),
            node: ours.node,
            cluster: ours.cluster,
            found_node: found.node,
            found_cluster: found.cluster,
        })
    }

    /// Whether the directory says whose it is.
    fn read_identity(dir: &D, ours: Identity) -> Result<bool, MetaError> {
        let path = dir.path().join(IDENTITY);
        let Some(bytes) = read_file(dir, IDENTITY)? else { return Ok(false) };
        let found = scan(&path, &bytes)?;
        match found.frames.as_slice() {
            [only] if only.kind == Kind::Identity && found.good == bytes.len() => {
                Self::check_identity(dir.path(), ours, payload(&path, only.payload)?)?;
                Ok(true)
            }
            _ => Err(MetaError::Corrupt { path, offset: 0, detail: "not an identity".into() }),
        }
    }

    fn write_identity(dir: &D, identity: Identity) -> Result<(), WalError> {
        let bytes = encoded(Kind::Identity, 0, &identity)?;
        write_whole(dir, IDENTITY_NEW, IDENTITY, &bytes).map(drop)
    }

    fn write_log(dir: &D, identity: Identity, contents: &LogContents) -> Result<D::File, WalError> {
        let start = Start {
            identity,
            hard_state: contents.hard_state,
            snapshot: contents.snapshot.clone(),
            entries: contents.entries.clone(),
        };
        write_whole(dir, LOG_NEW, LOG, &encoded(Kind::Start, 0, &start)?)
    }

    fn replay(
        path: &Path,
        frames: &[frame::Frame<'_>],
    ) -> Result<(LogContents, Identity), MetaError> {
        let corrupt = |detail: &str| MetaError::Corrupt {
            path: path.to_path_buf(),
            offset: 0,
            detail: detail.into(),
        };
        let Some((first, batches)) = frames.split_first() else {
            return Err(corrupt("the file is empty"));
        };
        if first.kind != Kind::Start {
            return Err(corrupt("the first frame is not the start of a log"));
        }
        let Start { identity, hard_state, snapshot, entries } = payload(path, first.payload)?;
        let mut contents = LogContents { hard_state, snapshot, entries };
        for frame in batches {
            if frame.kind != Kind::Batch {
                return Err(corrupt("a frame within the log is not a batch"));
            }
            let batch: LogBatch = payload(path, frame.payload)?;
            if let Some(hard_state) = batch.hard_state {
                contents.hard_state = hard_state;
            }
            if let Some(first) = batch.entries.first() {
                let keep = contents.entries.partition_point(|entry| entry.index < first.index);
                contents.entries.truncate(keep);
                contents.entries.extend(batch.entries);
            }
        }
        Ok((contents, identity))
    }

    fn append(&mut self, batch: &LogBatch) -> Result<(), WalError> {
        let bytes = encoded(Kind::Batch, self.frames, batch)?;
        let path = || self.dir.path().join(LOG);
        self.file.write_all(&bytes).map_err(|source| WalError::Io {
            action: "write",
            path: path(),
            source,
        })?;
        self.file.sync_data().map_err(|source| WalError::Io {
            action: "sync",
            path: path(),
            source,
        })?;
        self.frames += 1;
        Ok(())
    }

    fn attempt(
        &mut self,
        action: impl FnOnce(&mut Self) -> Result<(), WalError>,
    ) -> Result<(), StoreError> {
        if self.failed {
            return Err(WalError::Failed.into());
        }
        self.failed = true;
        action(self)?;
        self.failed = false;
        Ok(())
    }
}

impl<D: Directory> LogStore for Wal<D> {
    fn persist(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        self.attempt(|wal| wal.append(batch))
    }

    fn rewrite(&mut self, contents: &LogContents) -> Result<(), StoreError> {
        self.attempt(|wal| {
            wal.file = Self::write_log(&wal.dir, wal.identity, contents)?;
            wal.frames = 1;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
