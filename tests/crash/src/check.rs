//! Opens an image and compares it with the model.
//!
//! What is checked: the pool opens; replicas that were acknowledged are there and deleted ones are
//! not; promised epochs, sealed eras and sizes never go back and are none that nobody asked for;
//! `clean` and `unbroken` tell the truth (R9); every 512-byte sector holds its last flushed value or
//! a later one of its own place, after the death of the process alone its last acknowledged or a
//! later one (R23, R28, R29); the region of whatever is found is tagged at least as high as its
//! write (R17); whatever differs from the content at the last sealed era is in a region with a
//! higher tag (R19), and a region keeps a tag that it got without a write; snapshots are there and right (R26, see [`crate::snapshots`]); new writes change
//! nothing beside them (R23).
//!
//! What is not: I/O errors, damage (see [`crate::rot`]), and what the engine does with the answers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use kit::Rng;
use kit::content::{BLOCK, Content, SECTOR, SECTORS, block_bytes, read_sector};
use kit::ids::replica;
use store::SessionId;
use types::{Buf, Epoch, Era, REGION, SnapshotId, Tag, crc32c};
use wire::{Reply, Request, SealInfo, WireError};

use crate::image::Image;
use crate::model::{Life, Model, Volume};
use crate::opened::Opened;
use crate::snapshots;

/// A volume as it was found.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its number.
    pub n: u8,
    /// What its seal said.
    pub info: SealInfo,
    /// What it had promised before.
    pub sealed: Epoch,
    /// Its blocks, as far as they were read.
    pub content: Vec<Content>,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotId>,
}

/// What a pool held.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Its replicas.
    pub volumes: Vec<Seen>,
}

/// What happened, and how much to look at.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// The boot that opens it.
    pub boot: u8,
    /// Only the process died.
    pub killed: bool,
    /// Read everything, not only where the work went.
    pub all: bool,
    /// Write to it afterwards, at places of this seed.
    pub write: Option<u64>,
}

macro_rules! ensure {
    ($condition:expr, $($said:tt)*) => {
        if !$condition {
            return Err(format!($($said)*));
        }
    };
}

/// Checks an image.
///
/// # Errors
/// What was lost.
pub fn check(image: &mut Image<'_>, model: &Model, how: How) -> Result<Observed, String> {
    let mut opened =
        Opened::open(image, how.boot).map_err(|error| format!("it opens no more: {error}"))?;
    let there = opened.store.replicas();
    for volume in &model.volumes {
        let found = there.iter().any(|info| info.replica == replica(volume.n));
        let n = volume.n;
        ensure!(found || volume.life != Life::Live, "volume {n} is gone");
        ensure!(!found || volume.life != Life::Gone, "volume {n} came back");
    }
    let mut seals = Vec::new();
    for info in &there {
        let Some(volume) = model.volumes.iter().find(|v| replica(v.n) == info.replica) else {
            return Err(format!("replica {} was never made", info.replica));
        };
        let (n, sealed) = (volume.n, info.sealed);
        ensure!(sealed.0 >= volume.sealed_epoch, "volume {n} forgot its seal: {sealed}");
        ensure!(sealed.0 <= volume.epoch, "volume {n} promised {sealed}");
        ensure!(info.failed.is_none(), "volume {n} failed: {:?}", info.failed);
        snapshots::check(&mut opened, volume, info, how.all)?;
        let (session, seq) = opened.attach(n, volume.epoch + 1);
        seals.push((volume, session, seq, info));
    }
    opened.wait_for_leases();
    let mut seen = Vec::new();
    for (volume, session, seq, found) in seals {
        let (n, sealed, snapshots) = (volume.n, found.sealed, found.snapshots.clone());
        let info = match opened.replies.remove(&(session, seq)) {
            Some(Reply::Sealed(info)) => info,
            other => return Err(format!("volume {n} does not seal: {other:?}")),
        };
        check_info(volume, &info, how)?;
        let content = read(&mut opened, volume, session, &info, how)?;
        check_tags(&mut opened, model, volume, session, &info, &content)?;
        let content = content.into_values().collect();
        seen.push(Seen { n, info, sealed, content, snapshots });
    }
    if let Some(seed) = how.write.filter(|_| how.all) {
        write(&mut opened, &seen, &mut Rng::new(seed))?;
    }
    Ok(Observed { volumes: seen })
}

fn check_info(volume: &Volume, info: &SealInfo, how: How) -> Result<(), String> {
    let n = volume.n;
    ensure!(info.clean || volume.maybe_used, "volume {n} is unclean without a write");
    ensure!(!info.clean || !volume.surely_used, "volume {n} is clean although it was written");
    if !how.killed {
        ensure!(info.unbroken == info.clean, "volume {n} says that its host kept running");
    }
    let sealed = info.last_sealed;
    ensure!(sealed >= volume.sealed_for_sure, "volume {n} forgot a sealed era: {sealed:?}");
    ensure!(volume.sealed.contains_key(&sealed), "volume {n}: nobody sealed {sealed:?}");
    let blocks = (info.size / BLOCK) as usize;
    ensure!(
        (volume.size..=volume.blocks.len()).contains(&blocks),
        "volume {n} has {blocks} blocks, not {}",
        volume.size
    );
    Ok(())
}

fn read(
    opened: &mut Opened<'_, '_>,
    volume: &Volume,
    session: SessionId,
    info: &SealInfo,
    how: How,
) -> Result<BTreeMap<usize, Content>, String> {
    let count = (info.size / BLOCK) as usize;
    let ranges = if how.all {
        (0..count).step_by(256).map(|first| first..(first + 256).min(count)).collect()
    } else {
        volume.windows.clone()
    };
    let mut found = BTreeMap::new();
    let n = volume.n;
    for range in ranges {
        let data = read_range(opened, session, &range)?;
        for (bytes, at) in data.as_slice().chunks_exact(BLOCK as usize).zip(range) {
            let block = &volume.blocks[at];
            let mut content = [0; SECTORS];
            for (index, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                let Some(value) = read_sector(n, at as u64, index, sector) else {
                    return Err(format!("foreign bytes in volume {n} block {at} sector {index}"));
                };
                let fine =
                    if how.killed { block.keeps(index, value) } else { block.allows(index, value) };
                ensure!(fine, "volume {n} block {at} sector {index} is {value}, of {block:?}");
                content[index] = value;
            }
            found.insert(at, content);
        }
    }
    Ok(found)
}

fn read_range(
    opened: &mut Opened<'_, '_>,
    session: SessionId,
    range: &std::ops::Range<usize>,
) -> Result<Buf, String> {
    let len = (range.len() as u64 * BLOCK) as u32;
    match opened.ask(session, Request::Read { offset: range.start as u64 * BLOCK, len })? {
        Reply::Data { data, crc } if data.len() == len as usize => {
            ensure!(crc == crc32c(data.as_slice()), "the checksum of a reply is wrong");
            Ok(data)
        }
        other => Err(format!("a read was answered with {other:?}")),
    }
}

fn tagged(
    opened: &mut Opened<'_, '_>,
    session: SessionId,
    above: Tag,
) -> Result<BTreeSet<u32>, String> {
    match opened.ask(session, Request::Tags { above, first: 0 })? {
        Reply::Regions { regions, next: None } => Ok(regions.into_iter().collect()),
        other => Err(format!("tags were answered with {other:?}")),
    }
}

fn check_tags(
    opened: &mut Opened<'_, '_>,
    model: &Model,
    volume: &Volume,
    session: SessionId,
    info: &SealInfo,
    content: &BTreeMap<usize, Content>,
) -> Result<(), String> {
    let n = volume.n;
    let region = |block: usize| (block as u64 * BLOCK / REGION) as u32;
    let sealed = tagged(opened, session, info.last_sealed)?;
    let then = &volume.sealed[&info.last_sealed];
    let mut needed: BTreeSet<(Tag, u32)> =
        volume.marked.iter().map(|(region, tag)| (*tag, *region)).collect();
    for (at, now) in content {
        let unchanged = then.get(*at).is_none_or(|then| then.is_none_or(|then| then == *now));
        ensure!(
            unchanged || sealed.contains(&region(*at)),
            "volume {n} block {at} changed without a tag above {:?}",
            info.last_sealed
        );
        needed.extend(now.iter().filter_map(|value| Some((model.tag(*value)?, region(*at)))));
    }
    let mut known: BTreeMap<Tag, BTreeSet<u32>> = BTreeMap::new();
    for (tag, region) in needed {
        let below = Tag { era: Era(tag.era.0 - 1), ..tag };
        let regions = match known.entry(tag) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(tagged(opened, session, below)?),
        };
        let fine = regions.contains(&region);
        ensure!(
            fine,
            "volume {n} region {region} was written or marked under {tag:?} but has a lower tag"
        );
    }
    Ok(())
}

/// Writes a few blocks; what is beside them stays as it was found.
fn write(opened: &mut Opened<'_, '_>, seen: &[Seen], rng: &mut Rng) -> Result<(), String> {
    opened.start_zeroing();
    for Seen { n, content, .. } in seen {
        let session = SessionId(u64::from(*n));
        let mut after = content.clone();
        for _ in 0..3 {
            let at = rng.index(after.len());
            let new = [u64::MAX; SECTORS];
            let data = Buf::copy_of(&block_bytes(*n, at as u64, &new));
            let (offset, crc) = (at as u64 * BLOCK, crc32c(data.as_slice()));
            let seq = opened.send(session, Request::Write { offset, data, crc, era: Era(1) });
            opened.finish();
            match opened.replies.remove(&(session, seq)) {
                Some(Reply::Done) => after[at] = new,
                Some(Reply::Failed(WireError::NoSpace)) => {}
                other => return Err(format!("a write was answered with {other:?}")),
            }
        }
        for first in (0..after.len()).step_by(256) {
            let range = first..(first + 256).min(after.len());
            let data = read_range(opened, session, &range)?;
            for (bytes, at) in data.as_slice().chunks_exact(BLOCK as usize).zip(range) {
                ensure!(
                    bytes == block_bytes(*n, at as u64, &after[at]),
                    "volume {n} block {at} was changed by a write beside it"
                );
            }
        }
    }
    Ok(())
}
