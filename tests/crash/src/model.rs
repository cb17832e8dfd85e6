//! What the volumes of a pool may hold, and what the pool may remember of them, at this moment.

use std::collections::BTreeMap;
use std::ops::Range;

use kit::Rng;
use kit::content::{BLOCK, Block, Content, SECTORS};
use store::SessionId;
use types::Tag;

use crate::check::Observed;
use crate::snapshots::Snapshot;

/// How far the making or deleting of a replica got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Asked for.
    Creating,
    /// Acknowledged.
    Live,
    /// Its deletion was asked for.
    Deleting,
    /// Its deletion was acknowledged.
    Gone,
}

/// A volume of one replica.
pub struct Volume {
    /// Its number; see [`kit::ids`].
    pub n: u8,
    /// Whether it is there.
    pub life: Life,
    /// Its blocks, as many as it will have.
    pub blocks: Vec<Block>,
    /// Blocks that were acknowledged to be there.
    pub size: usize,
    /// Where most of the work goes.
    pub windows: Vec<Range<usize>>,
    /// Highest epoch that anybody asked a seal for…
    pub epoch: u64,
    /// …and that was acknowledged.
    pub sealed_epoch: u64,
    /// Of the next write.
    pub era: u32,
    /// The session of its engine.
    pub session: Option<SessionId>,
    /// Content when a seal of this tag was asked for; `None` where nobody could know it.
    pub sealed: BTreeMap<Tag, Vec<Option<Content>>>,
    /// The highest acknowledged one.
    pub sealed_for_sure: Tag,
    /// Regions that were acknowledged to be tagged without a write, and how high.
    pub marked: BTreeMap<u32, Tag>,
    /// A write began after the last acknowledged clean close.
    pub maybe_used: bool,
    /// A write was acknowledged, and no clean close was asked for since.
    pub surely_used: bool,
    /// Snapshots that may be there.
    pub snapshots: Vec<Snapshot>,
    /// One is being made, and no write may come before its answer.
    pub snapshotting: bool,
}

impl Volume {
    /// A new one of `count` blocks.
    #[must_use]
    pub fn new(n: u8, count: usize, rng: &mut Rng) -> Self {
        let zeros = vec![Some([0; SECTORS]); count];
        Self {
            n,
            life: Life::Creating,
            blocks: vec![Block::default(); count],
            size: count,
            windows: windows(count, rng),
            epoch: 0,
            sealed_epoch: 0,
            era: 1,
            session: None,
            sealed: BTreeMap::from([(Tag::default(), zeros)]),
            sealed_for_sure: Tag::default(),
            marked: BTreeMap::new(),
            maybe_used: false,
            surely_used: false,
            snapshots: Vec::new(),
            snapshotting: false,
        }
    }

    /// The content of each block, where it is known.
    #[must_use]
    pub fn present(&self) -> Vec<Option<Content>> {
        let known = |block: &Block| block.later.last().is_none_or(|(.., acked)| *acked);
        self.blocks.iter().map(|block| known(block).then(|| block.present())).collect()
    }

    /// The last acknowledged write of each block.
    #[must_use]
    pub fn acked(&self) -> Vec<u64> {
        self.blocks.iter().map(Block::acked).collect()
    }

    /// `region` was tagged without a write.
    pub fn marked(&mut self, region: u32, tag: Tag) {
        let known = self.marked.entry(region).or_default();
        *known = (*known).max(tag);
    }

    /// Whether a write is in flight.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.blocks.iter().any(|block| block.busy)
    }
}

/// Places at the edges of slots and regions, at both ends, and one anywhere.
fn windows(count: usize, rng: &mut Rng) -> Vec<Range<usize>> {
    const LENGTH: usize = 12;
    let edges = [0, 16, 64, 256, count];
    let mut starts: Vec<usize> = edges.iter().map(|edge| edge.saturating_sub(6)).collect();
    starts.push(rng.index(count - LENGTH));
    starts.iter().map(|at| (*at).min(count - LENGTH)).map(|at| at..at + LENGTH).collect()
}

/// All volumes that there ever were.
#[derive(Default)]
pub struct Model {
    /// Those that may be there, and those that must not come back.
    pub volumes: Vec<Volume>,
    /// The tag of each write, by its number from 1 on.
    tags: Vec<Tag>,
    snapshots: u64,
}

impl Model {
    /// The number of a new write under `tag`.
    pub fn number(&mut self, tag: Tag) -> u64 {
        self.tags.push(tag);
        self.tags.len() as u64
    }

    /// The number of a new snapshot.
    pub fn next_snapshot(&mut self) -> u64 {
        self.snapshots += 1;
        self.snapshots
    }

    /// The tag of write `number`.
    #[must_use]
    pub fn tag(&self, number: u64) -> Option<Tag> {
        self.tags.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }

    /// Volume `n`.
    ///
    /// # Panics
    /// There never was one.
    pub fn volume(&mut self, n: u8) -> &mut Volume {
        match self.volumes.iter_mut().find(|volume| volume.n == n) {
            Some(volume) => volume,
            None => panic!("volume {n} was never made"),
        }
    }

    /// Power was lost and this is what was found: nothing more can be lost.
    pub fn settle(&mut self, found: &Observed) {
        for volume in &mut self.volumes {
            volume.session = None;
            volume.era = 1;
            let Some(seen) = found.volumes.iter().find(|seen| seen.n == volume.n) else {
                volume.life = Life::Gone;
                continue;
            };
            volume.life = Life::Live;
            volume.size = (seen.info.size / BLOCK) as usize;
            volume.blocks.resize_with(volume.size, Block::default);
            for (block, content) in volume.blocks.iter_mut().zip(&seen.content) {
                *block = Block { flushed: *content, ..Block::default() };
            }
            for content in volume.sealed.values_mut() {
                content.resize(volume.size, Some([0; SECTORS]));
            }
            volume.sealed_epoch = seen.sealed.0;
            volume.sealed_for_sure = seen.info.last_sealed;
            (volume.maybe_used, volume.surely_used) = (!seen.info.clean, !seen.info.clean);
            volume.keep_snapshots(&seen.snapshots);
        }
    }

    /// The process died: sessions are gone, what was not acknowledged may have happened.
    pub fn killed(&mut self) {
        for volume in &mut self.volumes {
            volume.session = None;
            volume.era = 1;
            volume.snapshotting = false;
            for block in &mut volume.blocks {
                block.busy = false;
            }
        }
    }
}
