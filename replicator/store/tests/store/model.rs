//! Random work, crashes and restarts against a model.
//!
//! What is checked, per 512-byte sector: a read answers the last acknowledged value; after a crash
//! every sector holds its last flushed value or one written later, never anything else (another
//! volume's or an earlier owner's bytes would be seen: each sector names its volume, block and
//! write); everything that differs from the content at the last sealed era is in a region with a
//! higher tag (R19); a snapshot holds what its volume held, for as long as it is not dropped (R26); `clean` and `unbroken` tell the truth (R9); slots are neither lost nor owned
//! twice. Not checked here: I/O errors, and engines that overlap writes (R16).

use std::collections::BTreeMap;

use store::{Admin, Input, SessionId};
use types::{BufMut, Epoch, Era, SnapshotId, Tag, content_hash, crc32c};
use wire::{Reply, Request, Role, SealInfo, WireError};

use crate::disk::Rng;
use crate::node::{DiskOp, MIB, Node, incarnation, replica, volume, write};
use kit::content::{BLOCK, Block, Content, SECTORS, Value, block_bytes, parse};

mod snapshots;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Creating,
    Live,
    Deleting,
    Gone,
}

struct Volume {
    n: u8,
    life: Life,
    blocks: Vec<Block>,
    epoch: u64,
    era: u32,
    session: Option<SessionId>,
    /// Content when a seal of this tag was asked for.
    sealed: BTreeMap<Tag, Vec<Content>>,
    sealed_for_sure: Tag,
    /// Tags that were acknowledged without a write, by region.
    marked: BTreeMap<u32, Tag>,
    maybe_used: bool,
    surely_used: bool,
    snapshots: Vec<snapshots::Snapshot>,
    /// No write may come before the answer.
    snapshotting: bool,
}

#[derive(Debug)]
enum Pending {
    Write { first: usize, count: usize, id: u64 },
    Read { first: usize, expected: Vec<Option<Content>> },
    Hash { first: usize, expected: Vec<Content> },
    Flush { last: Vec<u64>, seal: Option<Tag>, close: bool },
    Snapshot { id: SnapshotId, last: Vec<u64>, given_up: bool },
    Mark { region: u32, tag: Tag },
}

struct Model {
    node: Node,
    rng: Rng,
    volumes: Vec<Volume>,
    pending: BTreeMap<(SessionId, u64), (u8, Pending)>,
    admin: BTreeMap<u64, u8>,
    drops: BTreeMap<u64, (u8, SnapshotId)>,
    next_id: u64,
    next_volume: u8,
    boot: u8,
    no_space: u64,
    taste: u64,
}

impl Model {
    fn new(seed: u64, zero_unsupported: bool) -> Self {
        let mut node = Node::new(16 * MIB);
        if zero_unsupported {
            node.fault = Some(|op| matches!(op, DiskOp::Zero { .. }).then_some(95));
        }
        Self {
            node,
            rng: Rng::new(seed),
            volumes: Vec::new(),
            pending: BTreeMap::new(),
            admin: BTreeMap::new(),
            drops: BTreeMap::new(),
            next_id: 0,
            next_volume: 0,
            boot: 1,
            no_space: 0,
            taste: seed % 3,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn create(&mut self) {
        self.next_volume += 1;
        let n = self.next_volume;
        // Not a multiple of anything.
        let blocks = 1100 + self.rng.below(900);
        let op = self.node.unique();
        let admin = Admin::CreateReplica {
            volume: volume(n),
            replica: replica(n),
            incarnation: incarnation(n),
            size: blocks * BLOCK,
        };
        let zeros = vec![[0; SECTORS]; blocks as usize];
        self.volumes.push(Volume {
            n,
            life: Life::Creating,
            blocks: vec![Block::default(); blocks as usize],
            epoch: 0,
            era: 1,
            session: None,
            sealed: BTreeMap::from([(Tag::default(), zeros)]),
            sealed_for_sure: Tag::default(),
            maybe_used: false,
            surely_used: false,
            marked: BTreeMap::new(),
            snapshots: Vec::new(),
            snapshotting: false,
        });
        self.admin.insert(op, n);
        self.node.step(Input::Admin { op, admin });
    }

    fn delete(&mut self, at: usize) {
        let op = self.node.unique();
        let n = self.volumes[at].n;
        self.volumes[at].life = Life::Deleting;
        self.volumes[at].session = None;
        self.pending.retain(|_, (of, _)| *of != n);
        self.admin.insert(op, n);
        self.node.step(Input::Admin { op, admin: Admin::DeleteReplica { replica: replica(n) } });
    }

    /// Takes the replies that came.
    fn collect(&mut self) {
        for (op, result) in std::mem::take(&mut self.node.admin) {
            result.unwrap();
            if self.dropped(op) {
                continue;
            }
            let n = self.admin.remove(&op).unwrap();
            let at = self.volumes.iter().position(|volume| volume.n == n).unwrap();
            match self.volumes[at].life {
                Life::Creating => self.volumes[at].life = Life::Live,
                _ => self.volumes[at].life = Life::Gone,
            }
        }
        for (key, reply) in std::mem::take(&mut self.node.replies) {
            if let Some((n, pending)) = self.pending.remove(&key) {
                self.answered(n, pending, reply);
            }
        }
    }

    fn answered(&mut self, n: u8, pending: Pending, reply: Reply) {
        if let Pending::Snapshot { id, last, given_up } = pending {
            return self.snapshot_made(n, (id, given_up), last, reply);
        }
        let volume = self.volumes.iter_mut().find(|volume| volume.n == n).unwrap();
        match (pending, reply) {
            (Pending::Write { first, count, id }, reply) => {
                for block in &mut volume.blocks[first..first + count] {
                    block.busy = false;
                    let (of, value, acked) = block.later.last_mut().unwrap();
                    assert_eq!(*of, id);
                    match reply {
                        Reply::Done => {
                            *acked = true;
                            volume.surely_used |= *value != 0;
                        }
                        Reply::Failed(WireError::NoSpace) => drop(block.later.pop()),
                        ref other => panic!("{other:?}"),
                    }
                }
                self.no_space += u64::from(reply != Reply::Done);
            }
            (Pending::Read { first, expected }, Reply::Data { data, crc }) => {
                assert_eq!(crc, crc32c(data.as_slice()));
                let blocks = data.as_slice().chunks_exact(BLOCK as usize);
                for ((bytes, expected), block) in blocks.zip(expected).zip(first as u64..) {
                    if let Some(expected) = expected {
                        let right = block_bytes(n, block, &expected);
                        assert!(bytes == right, "volume {n} block {block} is not {expected:?}");
                    }
                }
            }
            (Pending::Hash { first, expected }, Reply::Hashes(hashes)) => {
                let key = kit::ids::instance(volume.epoch as u8);
                for ((contents, hash), first) in
                    expected.chunks(16).zip(hashes).zip((first as u64..).step_by(16))
                {
                    let bytes: Vec<u8> = contents
                        .iter()
                        .zip(first..)
                        .flat_map(|(content, block)| block_bytes(n, block, content))
                        .collect();
                    assert_eq!(content_hash(key, &bytes), hash);
                }
            }
            (Pending::Flush { last, seal, close }, Reply::Done) => {
                for (block, last) in volume.blocks.iter_mut().zip(last) {
                    block.flush(last);
                }
                if let Some(tag) = seal {
                    volume.sealed_for_sure = tag;
                }
                if close {
                    (volume.maybe_used, volume.surely_used) = (false, false);
                    volume.session = None;
                }
            }
            (Pending::Mark { region, tag }, Reply::Done) => {
                volume.marked.insert(region, tag);
            }
            (_, reply) => panic!("{reply:?}"),
        }
    }

    fn send(&mut self, at: usize, request: Request, pending: Pending) {
        let volume = &self.volumes[at];
        let (session, n) = (volume.session.unwrap(), volume.n);
        let seq = self.node.unique();
        self.pending.insert((session, seq), (n, pending));
        self.node.step(Input::Request { session, seq, request });
        self.collect();
    }

    /// Hello and seal while other things are in flight; afterwards reads everything.
    fn attach(&mut self, at: usize) -> SealInfo {
        let n = self.volumes[at].n;
        self.volumes[at].epoch += 1;
        let epoch = self.volumes[at].epoch;
        let session = self.node.session(Node::hello(n, epoch, Role::Engine)).unwrap();
        let seq = self.node.send(session, Request::Seal);
        self.pending.retain(|_, (of, _)| *of != n);
        let mut wait = 0;
        let info = loop {
            self.collect_keeping(session, seq);
            match self.node.take(session, seq) {
                Some(Reply::Sealed(info)) => break info,
                Some(other) => panic!("{other:?}"),
                None if self.node.in_flight.is_empty() => {
                    wait += 1;
                    assert!(wait < 3, "the seal hangs");
                    self.node.pass(3000);
                }
                None => self.complete_one(),
            }
        };
        self.volumes[at].session = Some(session);
        self.volumes[at].era = 1;
        self.volumes[at].snapshotting = false;
        self.observe(at);
        info
    }

    fn collect_keeping(&mut self, session: SessionId, seq: u64) {
        let kept = self.node.take(session, seq);
        self.collect();
        if let Some(reply) = kept {
            self.node.replies.insert((session, seq), reply);
        }
    }

    fn complete_one(&mut self) {
        let at = self.rng.below(self.node.in_flight.len() as u64) as usize;
        self.node.complete(at);
    }

    /// Reads a whole volume and takes what is there for its content, if that is allowed.
    fn observe(&mut self, at: usize) {
        let session = self.volumes[at].session.unwrap();
        let n = self.volumes[at].n;
        let count = self.volumes[at].blocks.len();
        for first in (0..count).step_by(256) {
            let len = 256.min(count - first);
            let seq = self.node.send(
                session,
                Request::Read { offset: first as u64 * BLOCK, len: (len as u64 * BLOCK) as u32 },
            );
            let data = loop {
                self.collect_keeping(session, seq);
                match self.node.take(session, seq) {
                    Some(Reply::Data { data, .. }) => break data,
                    Some(other) => panic!("volume {n}: {other:?}"),
                    None => self.complete_one(),
                }
            };
            for (bytes, index) in data.as_slice().chunks_exact(BLOCK as usize).zip(first..) {
                let block = &mut self.volumes[at].blocks[index];
                let mut content = [0; SECTORS];
                for (sector, bytes) in bytes.chunks_exact(512).enumerate() {
                    content[sector] = parse(n, index as u64, sector, bytes);
                    assert!(
                        block.allows(sector, content[sector]),
                        "volume {n} block {index}: {} is not of {block:?}",
                        content[sector]
                    );
                }
                block.busy = false;
                if content != block.present() {
                    // A write of the old session that did or did not happen: whole, since no power
                    // was lost, or nothing can be lost any more.
                    block.later.retain(|(_, value, _)| [*value; SECTORS] == content);
                    if block.later.is_empty() {
                        block.flushed = content;
                    }
                }
            }
        }
    }

    fn act(&mut self) {
        let live: Vec<usize> =
            (0..self.volumes.len()).filter(|at| self.volumes[*at].life == Life::Live).collect();
        let count = self.volumes.iter().filter(|volume| volume.life != Life::Gone).count();
        if count < 4 && (live.is_empty() || self.rng.one_in(60)) {
            self.create();
        }
        if live.is_empty() {
            self.node.settle();
            return self.collect();
        }
        let at = live[self.rng.below(live.len() as u64) as usize];
        let Some(session) = self.volumes[at].session else {
            self.attach(at);
            return;
        };
        if self.node.in_flight.is_empty() {
            self.collect();
            assert!(self.pending.is_empty(), "{:?} hang", self.pending);
        }
        let dice = self.rng.below(100);
        // Seeds differ in what they like: most of all, eras, or neither flushes nor eras.
        let dice = match self.taste {
            1 if (60..75).contains(&dice) => 90,
            2 if (75..96).contains(&dice) => 50,
            _ => dice,
        };
        match dice {
            0..46 => self.write(at),
            46..48 => self.snapshot(at),
            48 => self.drop_snapshot(at),
            49 => self.check_any_snapshots(at),
            50..60 => self.zero(at),
            60..75 => self.read(at),
            75..78 => self.hash(at),
            78..90 => {
                let last = self.acked(at);
                self.send(at, Request::Flush, Pending::Flush { last, seal: None, close: false });
            }
            90..96 => self.seal_era(at),
            96 => self.close(at),
            97 if self.rng.one_in(3) => {
                self.node.step(Input::Disconnected { session });
                let n = self.volumes[at].n;
                self.pending.retain(|_, (of, _)| *of != n);
                self.volumes[at].session = None;
            }
            98 => {
                self.attach(at);
            }
            99 if self.rng.one_in(6) => self.delete(at),
            99 => self.mark(at),
            _ => {}
        }
    }

    /// The last acknowledged write of each block.
    fn acked(&self, at: usize) -> Vec<u64> {
        self.volumes[at].blocks.iter().map(Block::acked).collect()
    }

    /// A range of blocks that nothing writes to at present.
    fn range(&mut self, at: usize, longest: u64) -> Option<(usize, usize)> {
        if self.volumes[at].snapshotting {
            return None;
        }
        let blocks = &self.volumes[at].blocks;
        let count = 1 + self.rng.below(longest.min(blocks.len() as u64));
        let first = self.rng.below(blocks.len() as u64 - count + 1);
        let (first, count) = (first as usize, count as usize);
        let free = blocks[first..first + count].iter().all(|block| !block.busy);
        free.then_some((first, count))
    }

    fn begin(&mut self, at: usize, first: usize, count: usize, value: Value, id: u64) {
        let volume = &mut self.volumes[at];
        volume.maybe_used = true;
        for block in &mut volume.blocks[first..first + count] {
            block.busy = true;
            block.later.push((id, value, false));
        }
    }

    fn write(&mut self, at: usize) {
        let longest = if self.rng.one_in(8) { 256 } else { 6 };
        let Some((first, count)) = self.range(at, longest) else { return };
        let id = self.id();
        self.begin(at, first, count, id, id);
        let mut data = BufMut::zeroed(count * BLOCK as usize);
        for (out, block) in data.as_mut_slice().chunks_exact_mut(BLOCK as usize).zip(first as u64..)
        {
            out.copy_from_slice(&block_bytes(self.volumes[at].n, block, &[id; SECTORS]));
        }
        let era = self.volumes[at].era;
        let request = write(first as u64 * BLOCK, data.freeze(), era);
        self.send(at, request, Pending::Write { first, count, id });
    }

    fn zero(&mut self, at: usize) {
        let longest = if self.rng.one_in(4) { 2000 } else { 40 };
        let Some((first, count)) = self.range(at, longest) else { return };
        let id = self.id();
        self.begin(at, first, count, 0, id);
        let (offset, len) = (first as u64 * BLOCK, count as u64 * BLOCK);
        let era = Era(self.volumes[at].era);
        let request = if self.rng.one_in(2) {
            Request::Discard { offset, len, era }
        } else {
            Request::WriteZeroes { offset, len, era }
        };
        self.send(at, request, Pending::Write { first, count, id });
    }

    fn read(&mut self, at: usize) {
        let blocks = &self.volumes[at].blocks;
        let count = 1 + self.rng.below(256);
        let first = self.rng.below(blocks.len() as u64 - count + 1) as usize;
        let expected = blocks[first..first + count as usize]
            .iter()
            .map(|block| (!block.busy).then(|| block.present()))
            .collect();
        let request = Request::Read { offset: first as u64 * BLOCK, len: (count * BLOCK) as u32 };
        let session = self.volumes[at].session.unwrap();
        let before = self.node.unique();
        self.send(at, request, Pending::Read { first, expected });
        // Nothing may change below the read, or the model could not tell what is right.
        while self.pending.range((session, before)..(session, u64::MAX)).next().is_some() {
            self.complete_one();
            self.collect();
        }
    }

    fn hash(&mut self, at: usize) {
        let volume = &self.volumes[at];
        let session = volume.session.unwrap();
        if volume.blocks.iter().any(|block| block.busy) {
            return;
        }
        let count = volume.blocks.len();
        let expected = volume.blocks.iter().map(Block::present).collect();
        let request = Request::Hash { offset: 0, len: count as u64 * BLOCK };
        let before = self.node.unique();
        self.send(at, request, Pending::Hash { first: 0, expected });
        while self.pending.range((session, before)..(session, u64::MAX)).next().is_some() {
            self.complete_one();
            self.collect();
        }
    }

    fn seal_era(&mut self, at: usize) {
        let volume = &mut self.volumes[at];
        if volume.blocks.iter().any(|block| block.busy) {
            return;
        }
        let tag = Tag { epoch: Epoch(volume.epoch), era: Era(volume.era) };
        volume.sealed.insert(tag, volume.blocks.iter().map(Block::present).collect());
        volume.era += 1;
        let last = self.acked(at);
        let request = Request::SealEra { era: tag.era };
        self.send(at, request, Pending::Flush { last, seal: Some(tag), close: false });
    }

    /// As a resync does what it found to be equal.
    fn mark(&mut self, at: usize) {
        let volume = &self.volumes[at];
        let regions = (volume.blocks.len() as u64 * BLOCK).div_ceil(MIB);
        let region = self.rng.below(regions) as u32;
        let tag = Tag { epoch: Epoch(volume.epoch), era: Era(volume.era) };
        let request = Request::Mark { offset: u64::from(region) * MIB, len: BLOCK, era: tag.era };
        self.send(at, request, Pending::Mark { region, tag });
    }

    fn close(&mut self, at: usize) {
        let n = self.volumes[at].n;
        if self.pending.values().any(|(of, _)| *of == n) {
            return;
        }
        let last = self.acked(at);
        let request = Request::Close { clean: true };
        let (session, before) = (self.volumes[at].session.unwrap(), self.node.unique());
        self.send(at, request, Pending::Flush { last, seal: None, close: true });
        if self.rng.one_in(2) {
            while self.pending.range((session, before)..(session, u64::MAX)).next().is_some() {
                self.complete_one();
                self.collect();
            }
        } else {
            // Its outcome will not be known.
            self.pending.retain(|_, (of, _)| *of != n);
            self.volumes[at].session = None;
            self.volumes[at].surely_used = false;
        }
    }

    /// Ends this life of the node and checks what the next one finds.
    fn again(mut self, power: bool) -> Self {
        if power {
            self.boot += 1;
        }
        let fault = self.node.fault;
        let crashed = if power {
            self.node.crash(&mut self.rng, self.boot)
        } else {
            self.node.restart(self.boot)
        };
        self.node = crashed;
        self.node.fault = fault;
        self.pending.clear();
        self.admin.clear();
        self.drops.clear();
        let there: Vec<_> = self.node.store.replicas();
        self.volumes.retain_mut(|volume| {
            let gone = volume.life == Life::Gone;
            let found = there.iter().any(|info| info.replica == replica(volume.n));
            assert!(found || volume.life != Life::Live, "volume {} is gone", volume.n);
            assert!(!found || !gone, "volume {} came back", volume.n);
            volume.life = Life::Live;
            volume.session = None;
            found
        });
        assert_eq!(there.len(), self.volumes.len());
        for at in 0..self.volumes.len() {
            if power {
                for block in &mut self.volumes[at].blocks {
                    block.busy = false;
                }
            }
            let info = self.attach(at);
            let volume = &mut self.volumes[at];
            assert!(info.clean || volume.maybe_used, "unclean without a write");
            assert!(!info.clean || !volume.surely_used, "clean although it was written");
            if power {
                assert_eq!(info.unbroken, info.clean);
                // What was observed is durable now.
                for block in &mut volume.blocks {
                    block.flushed = block.present();
                    block.later.clear();
                }
            } else {
                assert!(info.unbroken || volume.maybe_used);
            }
            self.check_tags(at, info.last_sealed);
            self.check_snapshots(at, true);
        }
        self
    }

    /// R19: everything that differs from the sealed content is tagged above the seal.
    fn check_tags(&mut self, at: usize, sealed: Tag) {
        let (session, n) = (self.volumes[at].session.unwrap(), self.volumes[at].n);
        assert!(sealed >= self.volumes[at].sealed_for_sure, "volume {n} forgot a sealed era");
        let seq = self.node.send(session, Request::Tags { above: sealed, first: 0 });
        let Some(Reply::Regions { regions, next: None }) = self.node.take(session, seq) else {
            panic!("no tags")
        };
        let volume = &self.volumes[at];
        for (region, tag) in volume.marked.iter().filter(|(_, tag)| **tag > sealed) {
            assert!(regions.contains(region), "volume {n} forgot the mark {tag:?} of {region}");
        }
        for (index, (block, then)) in volume.blocks.iter().zip(&volume.sealed[&sealed]).enumerate()
        {
            let region = (index as u64 * BLOCK / MIB) as u32;
            assert!(
                block.present() == *then || regions.contains(&region),
                "volume {n} block {index} changed without a tag above {sealed:?}"
            );
        }
    }

    fn finish(mut self) {
        self.node.settle();
        self.collect();
        assert!(self.pending.is_empty(), "{:?} hang", self.pending);
        let stats = self.node.store.stats();
        let used: u64 = self.node.store.replicas().iter().map(|info| info.allocated).sum();
        assert_eq!(stats.free + used, stats.capacity, "slots were lost");
    }
}

fn run(seed: u64) -> (u64, u64) {
    let mut model = Model::new(seed, seed % 5 == 4);
    let (mut full, mut checkpoints) = (0, 0);
    for _ in 0..6 {
        for _ in 0..20 + model.rng.below(250) {
            model.act();
            for _ in 0..model.rng.below(5) {
                if !model.node.in_flight.is_empty() {
                    model.complete_one();
                    model.collect();
                }
            }
        }
        checkpoints += model.node.store.stats().checkpoints;
        full += model.no_space;
        let power = !model.rng.one_in(4);
        model = model.again(power);
    }
    model.finish();
    (full, checkpoints)
}

#[test]
fn random_work_survives_crashes() {
    let told = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seeds = match (told("HOLDFAST_SEED"), told("HOLDFAST_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (1..=count.unwrap_or(30)).collect(),
    };
    let (mut full, mut checkpoints) = (0, 0);
    let many = seeds.len() > 1;
    for seed in seeds {
        // Shown when the test fails: HOLDFAST_SEED replays it alone.
        println!("seed {seed}");
        let (more_full, more_checkpoints) = run(seed);
        full += more_full;
        checkpoints += more_checkpoints;
    }
    println!("{full} writes found the pool full, {checkpoints} checkpoints");
    assert!(!many || (full > 0 && checkpoints > 0), "the work did not reach its corners");
}
