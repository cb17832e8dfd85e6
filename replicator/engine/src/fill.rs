//! Copying a snapshot, of this volume or another, into a volume that is new (restore and clone, R26).
//!
//! The copies of the new volume all read as zeros, so only what the snapshot has allocated is read, and what
//! is not zeros is written, through the same path as any other write. Holders of the snapshot never change what
//! they hold of it: whichever can be reached is read, and another one goes on where one was lost.

use crate::api::{LinkId, Output};
use crate::core::{Engine, Phase};
use crate::member::RECONNECT;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use types::{
    BlockOp, BlockResult, Epoch, Incarnation, Instant, IoId, REGION, ReplicaId, SnapshotId,
    VolumeId, crc32c, is_zeros,
};
use wire::{Hello, Reply, Request, Role};

/// Bytes read by one request.
const CHUNK: u64 = 256 << 10;
/// Chunks under way, read or written.
const WINDOW: usize = 16;
/// A holder that owes an answer and says nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(6);
/// Holders tried in a row without getting anything.
const TRIES: u32 = 8;
/// Requests with this bit are the engine's own.
const OWN: u64 = 1 << 63;

/// A replica that has the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillHolder {
    /// The replica.
    pub replica: ReplicaId,
    /// Its life (R11).
    pub incarnation: Incarnation,
    /// Data address of its node; `None` if it is this node.
    pub address: Option<SocketAddr>,
}

/// What is to be copied into the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillSource {
    /// The volume that the snapshot is of.
    pub volume: VolumeId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Bytes; not more than the engine's volume has.
    pub size: u64,
    /// Who has it.
    pub holders: Vec<FillHolder>,
}

/// A copy under way.
#[derive(Debug)]
pub(crate) struct Fill {
    ticket: u64,
    source: FillSource,
    /// Which holder is read.
    holder: usize,
    failures: u32,
    link: Option<LinkId>,
    up: bool,
    retry: Instant,
    heard: Instant,
    next_seq: u64,
    /// What a holder was asked for and owes, by the number of the request.
    asked: BTreeMap<u64, Asked>,
    /// Where the list of allocated regions goes on; `None` when it is complete.
    unlisted: Option<u32>,
    /// Regions that are listed and not begun.
    regions: VecDeque<u32>,
    /// Chunks that are to be read next: offset and length.
    chunks: VecDeque<(u64, u64)>,
    /// Writes of chunks under way. One of an earlier filling, which was given up, may end behind it.
    writes: BTreeSet<IoId>,
}

/// A request to a holder.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// The list, from this region on.
    Regions(u32),
    /// A chunk: offset and length.
    Chunk(u64, u64),
}

impl Fill {
    /// What to ask for next, if anything can be asked for now.
    fn next(&mut self) -> Option<Asked> {
        if self.chunks.is_empty()
            && let Some(region) = self.regions.pop_front()
        {
            let start = u64::from(region) * REGION;
            let end = (start + REGION).min(self.source.size);
            let chunks = (start..end).step_by(CHUNK as usize);
            self.chunks.extend(chunks.map(|at| (at, CHUNK.min(end - at))));
        }
        if let Some((offset, len)) = self.chunks.pop_front() {
            return Some(Asked::Chunk(offset, len));
        }
        self.unlisted.take().map(Asked::Regions)
    }
}

impl Engine {
    pub(crate) fn start_fill(&mut self, ticket: u64, source: FillSource, out: &mut Vec<Output>) {
        let refused = match &self.phase {
            Phase::Active if source.holders.is_empty() => Some("nobody has the snapshot"),
            Phase::Active if source.size > self.config.size => Some("the volume is too small"),
            Phase::Active if self.fill.is_none() => None,
            Phase::Active => Some("the volume is being filled already"),
            _ => Some("the volume is not active"),
        };
        if let Some(reason) = refused {
            return out.push(Output::Filled { ticket, result: Err(reason.to_owned()) });
        }
        // One on this node first.
        let near = source.holders.iter().position(|holder| holder.address.is_none());
        self.fill = Some(Fill {
            ticket,
            holder: near.unwrap_or(0),
            source,
            failures: 0,
            link: None,
            up: false,
            retry: self.now,
            heard: self.now,
            next_seq: 0,
            asked: BTreeMap::new(),
            unlisted: Some(0),
            regions: VecDeque::new(),
            chunks: VecDeque::new(),
            writes: BTreeSet::new(),
        });
        self.tick_fill(out);
    }

    pub(crate) fn fills(&self, link: LinkId) -> bool {
        self.fill.as_ref().is_some_and(|fill| fill.link == Some(link))
    }

    pub(crate) fn tick_fill(&mut self, out: &mut Vec<Output>) {
        let Some(fill) = &self.fill else { return };
        if fill.link.is_none() {
            if fill.retry <= self.now {
                self.connect_fill(out);
            }
        } else if (!fill.up || !fill.asked.is_empty()) && self.now.since(fill.heard) > PATIENCE {
            self.fill_link_lost(out);
        }
    }

    fn connect_fill(&mut self, out: &mut Vec<Output>) {
        self.next_link += 1;
        let link = LinkId(self.next_link);
        let (cluster, process) = (self.config.cluster, self.config.process);
        let (epoch, instance) = (self.config.epoch, self.config.instance);
        let Some(fill) = &mut self.fill else { return };
        let Some(holder) = fill.source.holders.get(fill.holder) else { return };
        fill.link = Some(link);
        fill.heard = self.now;
        let hello = Hello {
            cluster,
            volume: fill.source.volume,
            replica: holder.replica,
            incarnation: holder.incarnation,
            // A snapshot does not change: that it is there is enough.
            sealed: Epoch(0),
            epoch,
            instance,
            process,
            role: Role::Reader,
        };
        out.push(Output::Connect { link, address: holder.address, hello });
    }

    pub(crate) fn fill_connected(&mut self, out: &mut Vec<Output>) {
        if let Some(fill) = &mut self.fill {
            fill.up = true;
            fill.heard = self.now;
        }
        self.advance_fill(out);
    }

    /// The holder is gone, or not worth asking: the next one.
    pub(crate) fn fill_link_lost(&mut self, out: &mut Vec<Output>) {
        let Some(fill) = &mut self.fill else { return };
        if let Some(link) = fill.link.take() {
            out.push(Output::Disconnect { link });
        }
        fill.up = false;
        for asked in core::mem::take(&mut fill.asked).into_values() {
            match asked {
                Asked::Regions(first) => fill.unlisted = Some(first),
                Asked::Chunk(offset, len) => fill.chunks.push_front((offset, len)),
            }
        }
        fill.failures += 1;
        fill.holder = (fill.holder + 1) % fill.source.holders.len();
        fill.retry = self.now.after(RECONNECT);
        if fill.failures >= TRIES {
            let snapshot = fill.source.snapshot;
            let reason = format!("no copy of snapshot {snapshot} could be read to its end");
            self.end_fill(Err(reason), out);
        }
    }

    fn advance_fill(&mut self, out: &mut Vec<Output>) {
        let Some(fill) = &mut self.fill else { return };
        let Some(link) = fill.link.filter(|_| fill.up) else { return };
        while fill.asked.len() + fill.writes.len() < WINDOW {
            let Some(asked) = fill.next() else { break };
            fill.next_seq += 1;
            if fill.asked.is_empty() {
                fill.heard = self.now;
            }
            fill.asked.insert(fill.next_seq, asked);
            let snapshot = fill.source.snapshot;
            let request = match asked {
                Asked::Regions(first) => Request::Allocated { snapshot, first },
                Asked::Chunk(offset, len) => {
                    Request::ReadSnapshot { snapshot, offset, len: len as u32 }
                }
            };
            out.push(Output::Send { link, seq: fill.next_seq, request });
        }
        if fill.asked.is_empty() && fill.writes.is_empty() {
            self.end_fill(Ok(()), out);
        }
    }

    pub(crate) fn fill_reply(&mut self, seq: u64, reply: Reply, out: &mut Vec<Output>) {
        let Some(fill) = &mut self.fill else { return };
        fill.heard = self.now;
        match (fill.asked.get(&seq).copied(), reply) {
            (Some(Asked::Regions(first)), Reply::Regions { regions, next })
                if next.is_none_or(|next| next > first) =>
            {
                fill.asked.remove(&seq);
                fill.failures = 0;
                let within = |region: &u32| u64::from(*region) * REGION < fill.source.size;
                fill.regions.extend(regions.into_iter().filter(within));
                fill.unlisted = next;
                self.advance_fill(out);
            }
            (Some(Asked::Chunk(offset, len)), Reply::Data { data, crc })
                if data.len() as u64 == len && crc32c(data.as_slice()) == crc =>
            {
                fill.asked.remove(&seq);
                fill.failures = 0;
                if !is_zeros(data.as_slice()) {
                    self.last_own += 1;
                    let id = IoId(OWN | self.last_own);
                    fill.writes.insert(id);
                    self.submit(id, BlockOp::Write { offset, data, fua: false }, out);
                }
                self.advance_fill(out);
            }
            _ => self.fill_link_lost(out),
        }
    }

    /// Answers a request of a front-end, or one of our own.
    pub(crate) fn answer(&mut self, id: IoId, result: BlockResult, out: &mut Vec<Output>) {
        if id.0 & OWN == 0 {
            return out.push(Output::Complete { id, result });
        }
        let Some(fill) = &mut self.fill else { return };
        if !fill.writes.remove(&id) {
            return;
        }
        match result {
            Ok(_) => self.advance_fill(out),
            Err(error) => self.end_fill(Err(format!("a write failed: {error}")), out),
        }
    }

    pub(crate) fn end_fill(&mut self, result: Result<(), String>, out: &mut Vec<Output>) {
        let Some(Fill { ticket, link, .. }) = self.fill.take() else { return };
        if let Some(link) = link {
            out.push(Output::Disconnect { link });
        }
        out.push(Output::Filled { ticket, result });
    }
}
