//! A replica as the wire protocol describes it, in memory: volatile and durable blocks, tags,
//! seals, leases. Every effect happens when its disk operation completes, in any order.

use super::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use types::{
    BLOCK, BootId, Buf, BufMut, EngineInstance, Epoch, Era, HASH_BLOCK, Instant, LEASE, REGION,
    SnapshotId, Tag, crc32c,
};
use wire::{HeldSnapshot, Hello, Reply, Request, Role, SealInfo, WireError};

/// A session: which engine of the world, which of its links.
pub(super) type SessionKey = (usize, u64);

/// A block's content: its value, and the replica's own count of writes.
pub(super) type Cell = (u64, u64);

/// What a rotten block holds, for who does not know better.
const ROT: u64 = u64::MAX;

/// What a snapshot holds: its size, and the value of each block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) size: u64,
    pub(super) values: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) hello: Hello,
    pub(super) sealed: bool,
}

#[derive(Clone)]
pub(super) struct Replica {
    pub(super) size: u64,
    pub(super) blocks: BTreeMap<u64, Cell>,
    pub(super) durable: BTreeMap<u64, Cell>,
    writes: u64,
    pub(super) tags: BTreeMap<u32, Tag>,
    pub(super) last_sealed: Tag,
    pub(super) sealed: (Epoch, EngineInstance),
    pub(super) boot: u128,
    /// Boot of the last write since the last clean close.
    pub(super) in_use: Option<u128>,
    pub(super) sessions: BTreeMap<SessionKey, Session>,
    pub(super) in_flight: BTreeMap<SessionKey, u32>,
    pub(super) sealing: Vec<(SessionKey, u64)>,
    pub(super) lease: (Instant, EngineInstance),
    /// Counts process starts: operations of an earlier one are void.
    pub(super) process: u64,
    pub(super) alive: bool,
    /// Nothing comes from or goes to it before this.
    pub(super) silent_until: Instant,
    /// Its disk completes nothing before this.
    pub(super) stuck_until: Instant,
    /// No room for blocks that were never written.
    pub(super) full: bool,
    pub(super) unreadable: BTreeSet<u64>,
    /// Blocks that do not match their checksum: now, and after a loss of power.
    pub(super) rotten: BTreeSet<u64>,
    rotten_durable: BTreeSet<u64>,
    /// As a store does, a new process does not know the checksums of regions that were written since
    /// the last sealed era: rot in them passes for content from then on.
    pub(super) forgets_checksums: bool,
    pub(super) write_errors: bool,
    /// How many of its next answers with data arrive damaged.
    pub(super) garbled: u32,
    /// Its pool has as many snapshots as it can have.
    pub(super) snapshots_full: bool,
    /// Oldest first.
    pub(super) snapshots: Vec<(SnapshotId, Held)>,
    /// Bytes of snapshots that were read.
    pub(super) past_read: u64,
    /// Flushes and era seals that were done, for tests that count them.
    pub(super) flushes: u64,
    pub(super) eras: Vec<Era>,
}

impl Replica {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            blocks: BTreeMap::new(),
            durable: BTreeMap::new(),
            writes: 0,
            tags: BTreeMap::new(),
            last_sealed: Tag::default(),
            sealed: (Epoch(0), EngineInstance::default()),
            boot: 1,
            in_use: None,
            sessions: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            sealing: Vec::new(),
            lease: (Instant(0), EngineInstance::default()),
            process: 0,
            alive: true,
            silent_until: Instant(0),
            stuck_until: Instant(0),
            full: false,
            unreadable: BTreeSet::new(),
            rotten: BTreeSet::new(),
            rotten_durable: BTreeSet::new(),
            forgets_checksums: false,
            write_errors: false,
            garbled: 0,
            snapshots_full: false,
            past_read: 0,
            snapshots: Vec::new(),
            flushes: 0,
            eras: Vec::new(),
        }
    }

    pub(super) fn value(&self, block: u64) -> u64 {
        self.blocks.get(&block).map_or(0, |cell| cell.0)
    }

    pub(super) fn durable_value(&self, block: u64) -> u64 {
        self.durable.get(&block).map_or(0, |cell| cell.0)
    }

    /// A block was written before the world began, under epoch 1.
    pub(super) fn had(&mut self, block: u64, value: u64) {
        self.writes += 1;
        self.blocks.insert(block, (value, self.writes));
        self.tags.insert((block * BLOCK / REGION) as u32, Tag { epoch: Epoch(1), era: Era(1) });
    }

    /// A block rots on the disk.
    pub(super) fn rot(&mut self, block: u64) {
        self.rotten.insert(block);
        self.rotten_durable.insert(block);
    }

    /// Why these blocks cannot be served.
    fn damage(&self, blocks: core::ops::Range<u64>) -> Option<WireError> {
        if self.unreadable.range(blocks.clone()).next().is_some() {
            return Some(WireError::Disk { errno: 5 });
        }
        let rotten = self.rotten.range(blocks).next();
        rotten.map(|block| WireError::Checksum { offset: block * BLOCK })
    }

    /// Refuses a hello, or opens its session.
    pub(super) fn hello(&mut self, key: SessionKey, hello: Hello) -> Result<(), WireError> {
        let (epoch, instance) = self.sealed;
        let older = hello.epoch < epoch || (hello.epoch == epoch && hello.instance != instance);
        if epoch < hello.sealed {
            return Err(WireError::ReplicaFailed { reason: "an older image".to_owned() });
        }
        if hello.role != Role::Reader && older {
            return Err(WireError::Fenced { sealed: epoch });
        }
        self.sessions.insert(key, Session { hello, sealed: false });
        Ok(())
    }

    /// Starts a seal; returns the sessions that it closes.
    pub(super) fn seal(&mut self, key: SessionKey, seq: u64) -> Result<Vec<SessionKey>, WireError> {
        let hello = &self.sessions[&key].hello;
        let (epoch, instance) = self.sealed;
        if hello.epoch < epoch || (hello.epoch == epoch && hello.instance != instance) {
            return Err(WireError::Fenced { sealed: epoch });
        }
        self.sealed = (hello.epoch, hello.instance);
        let older: Vec<SessionKey> = self.sessions.keys().copied().filter(|k| *k != key).collect();
        self.sessions.retain(|k, _| *k == key);
        self.sealing.retain(|(k, _)| *k == key);
        self.sealing.push((key, seq));
        Ok(older)
    }

    /// R3: seals that can be answered now.
    pub(super) fn finished_seals(&mut self, now: Instant) -> Vec<(SessionKey, u64, Reply)> {
        let mut done = Vec::new();
        for (key, seq) in core::mem::take(&mut self.sealing) {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let busy = self.in_flight.iter().any(|(k, count)| *k != key && *count > 0);
            let leased = self.lease.1 != session.hello.instance && self.lease.0 > now;
            if busy || leased {
                self.sealing.push((key, seq));
                continue;
            }
            session.sealed = true;
            let info = SealInfo {
                epoch: self.sealed.0,
                last_sealed: self.last_sealed,
                unbroken: self.in_use.is_none_or(|boot| boot == self.boot),
                clean: self.in_use.is_none(),
                size: self.size,
                boot: BootId::from_bytes(self.boot.to_be_bytes()),
            };
            done.push((key, seq, Reply::Sealed(info)));
        }
        done
    }

    pub(super) fn grant_lease(&mut self, key: SessionKey, now: Instant) {
        if let Some(session) = self.sessions.get(&key) {
            let until = now.after(LEASE);
            let same = self.lease.1 == session.hello.instance;
            let until = if same { self.lease.0.max(until) } else { until };
            self.lease = (until, session.hello.instance);
        }
    }

    /// Carries out a request. `snapshot` is the content when it arrived, for a flush.
    pub(super) fn execute(
        &mut self,
        epoch: Epoch,
        request: &Request,
        snapshot: &BTreeMap<u64, Cell>,
        now: Instant,
    ) -> Reply {
        match request {
            Request::Write { .. } | Request::Discard { .. } | Request::WriteZeroes { .. } => {
                self.mutate(epoch, request)
            }
            Request::Mark { offset, era, .. } => {
                let tag = self.tags.entry((offset / REGION) as u32).or_default();
                *tag = (*tag).max(Tag { epoch, era: *era });
                Reply::Done
            }
            Request::Read { offset, len } => {
                let first = offset / BLOCK;
                let count = u64::from(*len) / BLOCK;
                match self.damage(first..first + count) {
                    Some(error) => Reply::Failed(error),
                    None => data(first, *len, |block| self.value(block)),
                }
            }
            Request::ReadSnapshot { snapshot, offset, len } => {
                match self.held(*snapshot).cloned() {
                    Some(held) if offset + u64::from(*len) <= held.size => {
                        self.past_read += u64::from(*len);
                        data(offset / BLOCK, *len, |block| {
                            held.values.get(&block).copied().unwrap_or_default()
                        })
                    }
                    _ => Reply::Failed(WireError::NoSnapshot),
                }
            }
            Request::Allocated { snapshot, first } => match self.held(*snapshot) {
                Some(held) => {
                    let per_region = REGION / BLOCK;
                    let mut found: Vec<u32> =
                        held.values.keys().map(|block| (block / per_region) as u32).collect();
                    found.dedup();
                    found.retain(|region| region >= first);
                    // One a page, so that paging is exercised.
                    let next = found.get(1).copied();
                    found.truncate(1);
                    Reply::Regions { regions: found, next }
                }
                None => Reply::Failed(WireError::NoSnapshot),
            },
            Request::HashSnapshot { snapshot, offset, len } => match self.held(*snapshot) {
                Some(held) => hashes(*offset, *len, |block| {
                    held.values.get(&block).copied().unwrap_or_default()
                }),
                None => Reply::Failed(WireError::NoSnapshot),
            },
            Request::Snapshot { .. } if self.snapshots_full => Reply::Failed(WireError::NoSpace),
            Request::Snapshot { snapshot, size } => {
                if self.held(*snapshot).is_none() {
                    let values = self.blocks.iter().filter(|(block, _)| **block < size / BLOCK);
                    let values = values.map(|(block, cell)| (*block, cell.0)).collect();
                    self.snapshots.push((*snapshot, Held { size: *size, values }));
                }
                Reply::Done
            }
            Request::Snapshots => self.list(),
            Request::Flush => {
                self.flushes += 1;
                self.rotten_durable.clone_from(&self.rotten);
                for (block, cell) in snapshot {
                    let durable = self.durable.entry(*block).or_default();
                    *durable = if cell.1 > durable.1 { *cell } else { *durable };
                }
                Reply::Done
            }
            Request::SealEra { era } => {
                self.eras.push(*era);
                self.last_sealed = self.last_sealed.max(Tag { epoch, era: *era });
                Reply::Done
            }
            Request::Tags { above, first } => {
                let mut found: Vec<u32> = self
                    .tags
                    .range(first..)
                    .filter(|(_, tag)| *tag > above)
                    .map(|(region, _)| *region)
                    .collect();
                // Two a page, so that paging is exercised.
                let next = found.get(2).copied();
                found.truncate(2);
                Reply::Regions { regions: found, next }
            }
            Request::Hash { offset, len } => {
                if let Some(error) = self.damage(offset / BLOCK..(offset + len) / BLOCK) {
                    return Reply::Failed(error);
                }
                hashes(*offset, *len, |block| self.value(block))
            }
            Request::Close { clean } => {
                if *clean {
                    self.in_use = None;
                }
                self.lease.0 = now;
                Reply::Done
            }
            Request::Ping | Request::Seal => Reply::Done,
        }
    }

    pub(super) fn list(&self) -> Reply {
        let held = |(snapshot, held): &(SnapshotId, Held)| HeldSnapshot {
            snapshot: *snapshot,
            size: held.size,
        };
        Reply::Snapshots(self.snapshots.iter().map(held).collect())
    }

    pub(super) fn held(&self, snapshot: SnapshotId) -> Option<&Held> {
        self.snapshots.iter().find(|(id, _)| *id == snapshot).map(|(_, held)| held)
    }

    fn mutate(&mut self, epoch: Epoch, request: &Request) -> Reply {
        if self.write_errors {
            return Reply::Failed(WireError::Disk { errno: 5 });
        }
        let (offset, len, era, data) = match request {
            Request::Write { offset, data, crc, era } => {
                assert_eq!(crc32c(data.as_slice()), *crc, "R15");
                (*offset, data.len() as u64, *era, Some(data))
            }
            Request::Discard { offset, len, era } | Request::WriteZeroes { offset, len, era } => {
                (*offset, *len, *era, None)
            }
            _ => return Reply::Done,
        };
        let blocks = offset / BLOCK..(offset + len) / BLOCK;
        if self.full && data.is_some() && blocks.clone().any(|b| !self.blocks.contains_key(&b)) {
            return Reply::Failed(WireError::NoSpace);
        }
        assert!(era != Era(0), "an era was given");
        for region in offset / REGION..=(offset + len - 1) / REGION {
            let tag = self.tags.entry(region as u32).or_default();
            *tag = (*tag).max(Tag { epoch, era });
        }
        self.in_use = Some(self.boot);
        for (index, block) in blocks.enumerate() {
            self.writes += 1;
            self.rotten.remove(&block);
            self.unreadable.remove(&block);
            let value = data.map_or(0, |data| value_at(data, index));
            self.blocks.insert(block, (value, self.writes));
        }
        Reply::Done
    }

    /// The process ended; its sessions are gone.
    pub(super) fn kill(&mut self) {
        self.process += 1;
        self.alive = false;
        self.sessions.clear();
        self.sealing.clear();
        self.in_flight.clear();
        if self.forgets_checksums {
            let tag = |block: u64| self.tags.get(&((block * BLOCK / REGION) as u32));
            let unknown = |block: &u64| tag(*block).is_some_and(|tag| *tag > self.last_sealed);
            for block in self.rotten.iter().copied().filter(unknown).collect::<Vec<_>>() {
                self.rotten.remove(&block);
                self.blocks.insert(block, (ROT, 0));
            }
        }
    }

    /// Power loss: each block that was not flushed is kept or lost.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        self.kill();
        self.boot += 1;
        for (block, cell) in &mut self.blocks {
            let durable = self.durable.get(block).copied().unwrap_or_default();
            if durable != *cell && rng.chance(70) {
                *cell = durable;
                if self.rotten_durable.contains(block) {
                    self.rotten.insert(*block);
                }
            }
        }
        self.durable = self.blocks.clone();
    }
}

fn data(first: u64, len: u32, value: impl Fn(u64) -> u64) -> Reply {
    let mut data = BufMut::zeroed(len as usize);
    for (block, chunk) in (first..).zip(data.as_mut_slice().chunks_mut(BLOCK as usize)) {
        chunk[..8].copy_from_slice(&value(block).to_le_bytes());
    }
    let data = data.freeze();
    let crc = crc32c(data.as_slice());
    Reply::Data { data, crc }
}

fn hashes(offset: u64, len: u64, value: impl Fn(u64) -> u64) -> Reply {
    let hash = |start: u64| {
        let blocks = start / BLOCK..(start + HASH_BLOCK).min(offset + len) / BLOCK;
        blocks.fold(7_u64, |hash, block| {
            (hash ^ value(block)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
        })
    };
    let blocks = 0..len.div_ceil(HASH_BLOCK);
    Reply::Hashes(blocks.map(|i| hash(offset + i * HASH_BLOCK).into()).collect())
}

pub(super) fn value_at(data: &Buf, block: usize) -> u64 {
    let start = block * BLOCK as usize;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data.as_slice()[start..start + 8]);
    u64::from_le_bytes(bytes)
}

/// A payload of `blocks` blocks that all hold `value`.
pub(super) fn payload(value: u64, blocks: u64) -> Buf {
    let mut data = BufMut::zeroed((blocks * BLOCK) as usize);
    for chunk in data.as_mut_slice().chunks_mut(BLOCK as usize) {
        chunk[..8].copy_from_slice(&value.to_le_bytes());
    }
    data.freeze()
}
