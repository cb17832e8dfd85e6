//! The applied state in sled: it saves a restart from replaying the log, and nothing rests on it.
//!
//! Every record carries a CRC32C over its key and value, and the header the number and a digest of
//! all records, so a state that sled lost parts of is noticed. Whatever is wrong with it, it is set
//! aside and made again from the log's snapshot and entries.

use super::wal::{APPLIED, Identity};
use metadata::{AppliedStore, Changed, Membership, State};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use thiserror::Error;
use types::{NodeId, SnapshotId, VolumeId, crc32c, crc32c_append};

/// Where a bad one goes; an earlier bad one makes room for it.
const SET_ASIDE: &str = "applied.set-aside";
const HEADER_KEY: &[u8] = b"h";
const CACHE_BYTES: u64 = 16 << 20;

/// Everything that is not a record of its own. Written with each batch.
#[derive(Serialize, Deserialize)]
struct Header {
    identity: Identity,
    applied: u64,
    applied_term: u64,
    membership: Membership,
    retired: BTreeSet<NodeId>,
    last_event: u64,
    records: u64,
    digest: u64,
}

#[derive(Debug, Error)]
pub(super) enum AppliedError {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked while opening")]
    Panicked,
    #[error("{0}")]
    Codec(#[from] metadata::CodecError),
    #[error("a record's checksum is wrong")]
    Checksum,
    #[error("records are missing or surplus")]
    Digest,
    #[error("it belongs to another node or cluster")]
    Foreign,
    #[error("cannot set it aside: {0}")]
    SetAside(#[from] io::Error),
}

/// The applied state on disk. After an error of sled's it does nothing more: a stale one is as good
/// as none.
pub(super) struct SledApplied {
    db: Option<sled::Db>,
    identity: Identity,
    /// Checksum of each record, for the digest.
    sums: BTreeMap<Vec<u8>, u64>,
    digest: u64,
}

fn key(changed: Changed) -> Vec<u8> {
    match changed {
        Changed::Node(NodeId(node)) => [b"n".as_slice(), &node.to_be_bytes()].concat(),
        Changed::Volume(VolumeId(volume)) => [b"v".as_slice(), volume.as_bytes()].concat(),
        Changed::Snapshot(SnapshotId(snapshot)) => [b"s".as_slice(), snapshot.as_bytes()].concat(),
        Changed::Event(sequence) => [b"e".as_slice(), &sequence.to_be_bytes()].concat(),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c_append(crc32c(key), value)
}

/// One record's part of the digest.
fn sum(key: &[u8], value: &[u8]) -> u64 {
    let low = u64::from(checksum(key, value));
    let high = u64::from(crc32c_append(crc32c(value), key));
    high << 32 | low
}

fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&checksum(key, value).to_le_bytes(), value].concat()
}

fn opened<'a>(key: &[u8], stored: &'a [u8]) -> Result<&'a [u8], AppliedError> {
    let (crc, value) = stored.split_first_chunk().ok_or(AppliedError::Checksum)?;
    if u32::from_le_bytes(*crc) != checksum(key, value) {
        return Err(AppliedError::Checksum);
    }
    Ok(value)
}

fn open_db(path: &Path) -> Result<sled::Db, AppliedError> {
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    // Damage makes sled 0.34 panic in places; to us it is one more way to be set aside.
    catch_unwind(AssertUnwindSafe(|| config.open()))
        .map_err(|_| AppliedError::Panicked)?
        .map_err(Into::into)
}

fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.join(SET_ASIDE);
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(dir.join(APPLIED), &aside)?;
    Ok(aside)
}

impl SledApplied {
    /// Opens the applied state under `dir`. A bad one is set aside and an empty one begun.
    pub(super) fn open(dir: &Path, identity: Identity) -> (Self, Option<State>) {
        let path = dir.join(APPLIED);
        let mut store = Self { db: None, identity, sums: BTreeMap::new(), digest: 0 };
        let existed = path.exists();
        match open_db(&path).and_then(|db| {
            let state = catch_unwind(AssertUnwindSafe(|| store.load(&db)));
            Ok((db, state.map_err(|_| AppliedError::Panicked)??))
        }) {
            Ok((db, state)) => {
                store.db = Some(db);
                return (store, state);
            }
            Err(error) if existed => {
                tracing::warn!(%error, "the applied state is bad; it is made again from the log");
            }
            Err(error) => tracing::warn!(%error, "no applied state is kept"),
        }
        store.sums.clear();
        store.digest = 0;
        let fresh = set_aside(dir).map_err(AppliedError::from).and_then(|_| open_db(&path));
        match fresh {
            Ok(db) => store.db = Some(db),
            Err(error) => tracing::error!(%error, "no applied state is kept; restarts take longer"),
        }
        (store, None)
    }

    /// Reads everything; `None` if there is nothing.
    fn load(&mut self, db: &sled::Db) -> Result<Option<State>, AppliedError> {
        let mut state = State::default();
        let mut header: Option<Header> = None;
        for record in db.iter() {
            let (key, stored) = record?;
            let value = opened(&key, &stored)?;
            if key == HEADER_KEY {
                header = Some(metadata::decode(value)?);
                continue;
            }
            let sum = sum(&key, value);
            self.digest = self.digest.wrapping_add(sum);
            self.sums.insert(key.to_vec(), sum);
            match key.first() {
                Some(b'n') => {
                    let node: metadata::Node = metadata::decode(value)?;
                    state.nodes.insert(node.node, node);
                }
                Some(b'v') => {
                    let volume: metadata::Volume = metadata::decode(value)?;
                    state.volumes.insert(volume.volume, volume);
                }
                Some(b's') => {
                    let snapshot: metadata::Snapshot = metadata::decode(value)?;
                    state.snapshots.insert(snapshot.snapshot, snapshot);
                }
                Some(b'e') => {
                    let event: metadata::Event = metadata::decode(value)?;
                    state.events.insert(event.sequence, event);
                }
                _ => return Err(AppliedError::Digest),
            }
        }
        let Some(header) = header else {
            return if self.sums.is_empty() { Ok(None) } else { Err(AppliedError::Digest) };
        };
        if header.identity != self.identity {
            return Err(AppliedError::Foreign);
        }
        if header.records != self.sums.len() as u64 || header.digest != self.digest {
            return Err(AppliedError::Digest);
        }
        state.applied = header.applied;
        state.applied_term = header.applied_term;
        state.membership = header.membership;
        state.retired = header.retired;
        state.last_event = header.last_event;
        Ok(Some(state))
    }

    /// Value of a record; `None` if the state has none.
    fn value(state: &State, changed: Changed) -> Result<Option<Vec<u8>>, metadata::CodecError> {
        match changed {
            Changed::Node(node) => state.nodes.get(&node).map(metadata::encode).transpose(),
            Changed::Volume(volume) => state.volumes.get(&volume).map(metadata::encode).transpose(),
            Changed::Snapshot(snapshot) => {
                state.snapshots.get(&snapshot).map(metadata::encode).transpose()
            }
            Changed::Event(event) => state.events.get(&event).map(metadata::encode).transpose(),
        }
    }

    fn stage(
        &mut self,
        batch: &mut sled::Batch,
        state: &State,
        changed: Changed,
    ) -> Result<(), AppliedError> {
        let key = key(changed);
        match Self::value(state, changed)? {
            Some(value) => {
                let sum = sum(&key, &value);
                let before = self.sums.insert(key.clone(), sum).unwrap_or(0);
                self.digest = self.digest.wrapping_add(sum).wrapping_sub(before);
                batch.insert(key.as_slice(), sealed(&key, &value));
            }
            None => {
                let before = self.sums.remove(&key).unwrap_or(0);
                self.digest = self.digest.wrapping_sub(before);
                batch.remove(key);
            }
        }
        Ok(())
    }

    fn commit(
        &mut self,
        db: &sled::Db,
        state: &State,
        changed: &BTreeSet<Changed>,
        mut batch: sled::Batch,
    ) -> Result<(), AppliedError> {
        for one in changed {
            self.stage(&mut batch, state, *one)?;
        }
        let header = metadata::encode(&Header {
            identity: self.identity,
            applied: state.applied,
            applied_term: state.applied_term,
            membership: state.membership.clone(),
            retired: state.retired.clone(),
            last_event: state.last_event,
            records: self.sums.len() as u64,
            digest: self.digest,
        })?;
        batch.insert(HEADER_KEY, sealed(HEADER_KEY, &header));
        db.apply_batch(batch)?;
        Ok(())
    }

    fn attempt(&mut self, action: impl FnOnce(&mut Self, &sled::Db) -> Result<(), AppliedError>) {
        let Some(db) = self.db.take() else { return };
        match action(self, &db) {
            Ok(()) => self.db = Some(db),
            Err(error) => {
                tracing::error!(%error, "the applied state is no longer kept; restarts take longer");
            }
        }
    }
}

impl AppliedStore for SledApplied {
    fn write(&mut self, state: &State, changed: &BTreeSet<Changed>) {
        self.attempt(|store, db| store.commit(db, state, changed, sled::Batch::default()));
    }

    fn replace(&mut self, state: &State) {
        self.attempt(|store, db| {
            let mut batch = sled::Batch::default();
            for key in core::mem::take(&mut store.sums).into_keys() {
                batch.remove(key);
            }
            store.digest = 0;
            let all = state
                .nodes
                .keys()
                .map(|node| Changed::Node(*node))
                .chain(state.volumes.keys().map(|volume| Changed::Volume(*volume)))
                .chain(state.snapshots.keys().map(|snapshot| Changed::Snapshot(*snapshot)))
                .chain(state.events.keys().map(|event| Changed::Event(*event)))
                .collect();
            store.commit(db, state, &all, batch)
        });
    }

    fn flush(&mut self) {
        self.attempt(|_, db| {
            db.flush()?;
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests;
