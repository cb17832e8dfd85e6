//! Damage that no cut of the power explains: bits that rot, writes that are lost although the disk
//! acknowledged them, writes that land elsewhere; in data and in every kind of metadata.
//!
//! What is checked: nothing wrong is ever served. A damaged pool is refused, or the read is, or the
//! answer is what was written; replicas, sizes, seals and eras are the right ones. Two things cannot
//! be known by one copy alone and are counted apart: after a restart, blocks of regions that were
//! written since the last sealed era have no trusted checksum (`unprotected`; it is checked that
//! wrong bytes come from such regions only, which a resync compares with another copy: R19), and the
//! newest log blocks, which no later block vouches for, look torn when they are damaged (`tail`).
//! What is not: two faults at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kit::Rng;
use kit::content::SECTOR;
use store::{ReplicaInfo, SessionId};
use types::{BLOCK, Buf, BufMut, REGION};
use wire::{Reply, Request, WireError};

use crate::disk::{Disk, Lie, Piece};
use crate::image::Image;
use crate::model::{Life, Model};
use crate::opened::Opened;
use crate::run::formatted;
use crate::workload::{Taste, Work};

/// What became of injected faults.
#[derive(Clone, Debug, Default)]
pub struct RotTally {
    /// Faults injected.
    pub faults: u64,
    /// The pool was refused.
    pub refused: u64,
    /// A read was refused.
    pub detected: u64,
    /// Everything was right all the same.
    pub harmless: u64,
    /// Wrong bytes of blocks without a trusted checksum.
    pub unprotected: u64,
    /// Damage of the newest log blocks that was taken for a torn write.
    pub tail: u64,
    /// Wrong bytes that should never have been served, with all that it takes to see it again.
    pub served: Vec<String>,
}

impl RotTally {
    /// Adds another one's numbers.
    pub fn add(&mut self, other: Self) {
        self.faults += other.faults;
        self.refused += other.refused;
        self.detected += other.detected;
        self.harmless += other.harmless;
        self.unprotected += other.unprotected;
        self.tail += other.tail;
        self.served.extend(other.served);
    }
}

/// When the damage happens, and what the pool can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// To an open pool, in its data.
    Open,
    /// To a closed pool whose eras are all sealed.
    Sealed,
    /// To a closed pool with unsealed eras.
    Unsealed,
}

/// What a pool is and answers.
struct Truth {
    replicas: Vec<ReplicaInfo>,
    /// By volume: its bytes, and its regions with a tag above the last sealed one.
    volumes: BTreeMap<u8, (Vec<Buf>, BTreeSet<u32>)>,
}

/// Bytes of one read.
const READ: u64 = 256 << 10;

fn attach(opened: &mut Opened<'_, '_>, model: &Model) {
    for volume in model.volumes.iter().filter(|volume| volume.life == Life::Live) {
        opened.attach(volume.n, volume.epoch + 1);
    }
    opened.wait_for_leases();
}

/// Reads a volume piece by piece.
fn read(opened: &mut Opened<'_, '_>, n: u8, size: u64) -> Vec<Result<Buf, Option<WireError>>> {
    let session = SessionId(n.into());
    let mut pieces = Vec::new();
    for offset in (0..size).step_by(READ as usize) {
        let len = READ.min(size - offset) as u32;
        let seq = opened.send(session, Request::Read { offset, len });
        opened.finish();
        pieces.push(match opened.replies.remove(&(session, seq)) {
            Some(Reply::Data { data, .. }) => Ok(data),
            Some(Reply::Failed(error)) => Err(Some(error)),
            _ => Err(None),
        });
    }
    pieces
}

fn truth(opened: &mut Opened<'_, '_>, model: &Model, replicas: Vec<ReplicaInfo>) -> Truth {
    let mut volumes = BTreeMap::new();
    for volume in model.volumes.iter().filter(|volume| volume.life == Life::Live) {
        let Some(info) = replicas.iter().find(|r| r.replica == kit::ids::replica(volume.n)) else {
            panic!("volume {} is gone", volume.n);
        };
        let pieces = read(opened, volume.n, info.size).into_iter().map(|piece| match piece {
            Ok(data) => data,
            Err(error) => panic!("an undamaged read failed: {error:?}"),
        });
        let pieces = pieces.collect();
        let above = info.last_sealed;
        let session = SessionId(volume.n.into());
        let regions = match opened.ask(session, Request::Tags { above, first: 0 }) {
            Ok(Reply::Regions { regions, .. }) => regions.into_iter().collect(),
            other => panic!("{other:?}"),
        };
        volumes.insert(volume.n, (pieces, regions));
    }
    Truth { replicas, volumes }
}

/// A fault: blocks in place of others, and what it is, for people.
struct Fault {
    blocks: Vec<(u32, Piece)>,
    said: String,
}

fn spoil(piece: &Piece, rng: &mut Rng) -> Piece {
    let mut bytes = piece
        .as_ref()
        .map_or_else(|| BufMut::zeroed(BLOCK as usize), |piece| BufMut::copy_of(piece.as_slice()));
    let block = bytes.as_mut_slice();
    match rng.below(4) {
        0 => block[rng.index(BLOCK as usize)] ^= 1 << rng.below(8),
        1 => {
            let at = rng.index(8) * SECTOR;
            block[at..at + SECTOR].fill(if rng.one_in(2) { 0 } else { 0xff });
        }
        2 => block.iter_mut().for_each(|byte| *byte = rng.next() as u8),
        _ => block.fill(0),
    }
    Some(bytes.freeze())
}

/// Where things are, as the blocks themselves say.
struct Places {
    /// Superblocks, log blocks, checkpoint, pages of checksums.
    metadata: Vec<u32>,
    data: Vec<u32>,
    /// Blocks that hold something else than at the time of `then`.
    changed: Vec<u32>,
    /// Log blocks that no later one vouches for.
    tail: BTreeSet<u32>,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

fn places(now: &[Piece], then: &[Piece], data: u32) -> Places {
    let used = |range: std::ops::Range<u32>| -> Vec<u32> {
        range.filter(|block| now[*block as usize].is_some()).collect()
    };
    let metadata = used(0..data);
    // (generation, LSN, durable LSN) of `log_block::Header`.
    let logs: Vec<(u32, u64, u64, u64)> = metadata
        .iter()
        .filter_map(|block| {
            let bytes = now[*block as usize].as_ref()?.as_slice();
            let log = bytes.starts_with(b"HFLG");
            log.then(|| (*block, word(bytes, 8), word(bytes, 16), word(bytes, 24)))
        })
        .collect();
    let newest = logs.iter().map(|(_, generation, ..)| *generation).max();
    let logs = logs.iter().filter(|(_, generation, ..)| Some(*generation) == newest);
    let durable = logs.clone().map(|(.., durable)| *durable).max().unwrap_or(0);
    let tail = logs.filter(|(_, _, lsn, _)| *lsn > durable).map(|(block, ..)| *block).collect();
    let changed = (0..now.len() as u32)
        .filter(|block| now[*block as usize] != then[*block as usize])
        .collect();
    Places { metadata, data: used(data..now.len() as u32), changed, tail }
}

fn pick(blocks: &[u32], rng: &mut Rng) -> u32 {
    if blocks.is_empty() { 0 } else { blocks[rng.index(blocks.len())] }
}

fn fault(now: &[Piece], then: &[Piece], places: &Places, only_data: bool, rng: &mut Rng) -> Fault {
    let class = if only_data || rng.one_in(2) { &places.data } else { &places.metadata };
    let target = pick(class, rng);
    let at = |block: u32| now[block as usize].clone();
    let changed: Vec<u32> = if only_data {
        places.changed.iter().copied().filter(|b| places.data.binary_search(b).is_ok()).collect()
    } else {
        places.changed.clone()
    };
    match rng.below(4) {
        0 if !changed.is_empty() => {
            let block = pick(&changed, rng);
            let blocks = vec![(block, then[block as usize].clone())];
            Fault { blocks, said: format!("a lost write of block {block}") }
        }
        1 if !changed.is_empty() => {
            let block = pick(&changed, rng);
            let blocks = vec![(block, then[block as usize].clone()), (target, at(block))];
            Fault { blocks, said: format!("a write of block {block} that went to {target}") }
        }
        _ => {
            let blocks = vec![(target, spoil(&at(target), rng))];
            Fault { blocks, said: format!("rot of block {target}") }
        }
    }
}

/// What a damaged pool answers.
enum Outcome {
    Refused,
    Detected,
    Harmless,
    Unprotected,
    Wrong(String),
}

fn compare(opened: &mut Opened<'_, '_>, truth: &Truth, moment: Moment) -> Outcome {
    let mut outcome = Outcome::Harmless;
    for (n, (pieces, tagged)) in &truth.volumes {
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        for (at, (found, right)) in read(opened, *n, size).into_iter().zip(pieces).enumerate() {
            let from = at as u64 * READ;
            match found {
                Err(Some(WireError::Checksum { .. })) => outcome = Outcome::Detected,
                Err(error) => return Outcome::Wrong(format!("a read answered {error:?}")),
                Ok(found) if found == *right => {}
                Ok(found) => {
                    let blocks = found.as_slice().chunks(BLOCK as usize);
                    let wrong = blocks
                        .zip(right.as_slice().chunks(BLOCK as usize))
                        .zip((from..).step_by(BLOCK as usize))
                        .filter(|((found, right), _)| found != right)
                        .map(|(_, offset)| offset);
                    for offset in wrong {
                        let region = (offset / REGION) as u32;
                        if moment != Moment::Unsealed || !tagged.contains(&region) {
                            return Outcome::Wrong(format!("volume {n} at {offset} is wrong"));
                        }
                    }
                    outcome = Outcome::Unprotected;
                }
            }
        }
    }
    outcome
}

fn damaged(
    media: &[Piece],
    fault: &Fault,
    model: &Model,
    truth: &Truth,
    moment: Moment,
) -> Outcome {
    let mut image = Image::new(media, fault.blocks.iter().cloned().collect());
    let mut opened = match Opened::open(&mut image, 9) {
        Ok(opened) => opened,
        Err(_) => return Outcome::Refused,
    };
    let replicas = opened.store.replicas();
    if replicas != truth.replicas {
        return Outcome::Wrong(format!("{replicas:?} instead of {:?}", truth.replicas));
    }
    attach(&mut opened, model);
    compare(&mut opened, truth, moment)
}

/// Damages an open pool.
fn open_and_damaged(
    opened: &mut Opened<'_, '_>,
    fault: &Fault,
    truth: &Truth,
    moment: Moment,
) -> Outcome {
    let before: Vec<(u32, Piece)> =
        fault.blocks.iter().map(|(block, _)| (*block, opened.image.get(*block).cloned())).collect();
    for (block, piece) in &fault.blocks {
        opened.image.put(*block, piece.clone());
    }
    let outcome = compare(opened, truth, moment);
    for (block, piece) in before {
        opened.image.put(block, piece);
    }
    outcome
}

/// A pool that worked for a while: its disk, what was there halfway, and its volumes.
fn worked(rng: &mut Rng, moment: Moment) -> (Disk, Vec<Piece>, Model) {
    let slot_size = [64 << 10, 256 << 10, 1 << 20][rng.index(3)];
    let mut disk = Disk::of(formatted(slot_size).media, Lie::Honest);
    let mut image = Image::new(&disk.media, BTreeMap::new());
    let store = match store::open(&mut image, &Work::options(1)) {
        Ok(store) => store,
        Err(error) => panic!("{error}"),
    };
    disk = Disk::of(image.flatten(), Lie::Honest);
    let taste = Taste { no_zero: false, likes: rng.below(4), haste: 4 };
    let mut work = Work::new(disk, store, Model::default(), rng.fork(), taste);
    let nothing: &mut dyn FnMut(&Disk, &Model) = &mut |_, _| {};
    for _ in 0..100 {
        work.act(nothing);
    }
    work.quiesce(true);
    let halfway = work.disk.view().to_vec();
    for _ in 0..40 + work.rng.below(120) {
        work.act(nothing);
    }
    work.quiesce(moment != Moment::Unsealed);
    let Work { disk, model, .. } = work;
    (disk, halfway, model)
}

/// Injects `faults` faults, one at a time, into a pool of this seed.
#[must_use]
pub fn run(seed: u64, moment: Moment, faults: u64) -> RotTally {
    let mut rng = Rng::new(seed ^ 0x0bad);
    let (disk, then, model) = worked(&mut rng, moment);
    let now = disk.view().to_vec();
    let places = places(&now, &then, disk.data());
    let mut image = Image::new(&now, BTreeMap::new());
    let mut opened = match Opened::open(&mut image, 9) {
        Ok(opened) => opened,
        Err(error) => panic!("seed {seed}: {error}"),
    };
    let replicas = opened.store.replicas();
    attach(&mut opened, &model);
    let truth = truth(&mut opened, &model, replicas);
    let mut tally = RotTally::default();
    for number in 0..faults {
        let fault = fault(&now, &then, &places, moment == Moment::Open, &mut rng);
        let outcome = catch_unwind(AssertUnwindSafe(|| match moment {
            Moment::Open => open_and_damaged(&mut opened, &fault, &truth, moment),
            _ => damaged(&now, &fault, &model, &truth, moment),
        }));
        tally.faults += 1;
        let tail = fault.blocks.iter().any(|(block, _)| places.tail.contains(block));
        match outcome {
            Ok(Outcome::Refused) => tally.refused += 1,
            Ok(Outcome::Detected) => tally.detected += 1,
            Ok(Outcome::Harmless) => tally.harmless += 1,
            Ok(Outcome::Unprotected) => tally.unprotected += 1,
            Ok(Outcome::Wrong(_)) if tail => tally.tail += 1,
            Ok(Outcome::Wrong(what)) => tally
                .served
                .push(format!("seed {seed}, {moment:?}, fault {number}, {}: {what}", fault.said)),
            Err(_) => tally.served.push(format!(
                "seed {seed}, {moment:?}, fault {number}, {}: it panicked",
                fault.said
            )),
        }
    }
    tally
}
