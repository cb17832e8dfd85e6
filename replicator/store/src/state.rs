//! The durable state of a pool, and the one function that changes it.
//!
//! Serving and recovery apply the same [`Change`]s by the same [`PoolState::apply`], so what is
//! recovered is by construction what was logged.

use std::collections::BTreeMap;

use types::{
    BLOCK, BootId, EngineInstance, Epoch, Incarnation, MAX_VOLUME, Process, ReplicaId, Tag,
    VolumeId,
};

use crate::layout::{
    self, Layout, MAX_REPLICAS, MAX_SNAPSHOTS, Region, ReplicaIndex, Slot, VSlot, Version,
};
use crate::record::Change;
use crate::versions::{Retained, Snapshot, Versions};

/// What the pool remembers of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaState {
    pub(crate) volume: VolumeId,
    pub(crate) replica: ReplicaId,
    pub(crate) incarnation: Incarnation,
    /// Bytes.
    pub(crate) size: u64,
    /// Lower epochs are refused, and so is another instance at this one (R3).
    pub(crate) sealed: Epoch,
    pub(crate) instance: EngineInstance,
    /// The daemon of the engine that may hold a lease under this seal; no lease of an earlier one is
    /// left. `None`: nobody does yet, and one of an earlier seal may run on (R3).
    pub(crate) leased: Option<Process>,
    /// R18; the checksum table is right for all regions with a tag up to this.
    pub(crate) last_sealed: Tag,
    /// Boot of the writes since the last clean close (R9).
    pub(crate) in_use: Option<BootId>,
    /// Errno of the permanent failure (R13).
    pub(crate) failed: Option<i32>,
    /// It has no contents of its own any more, only snapshots.
    pub(crate) retired: bool,
    /// Its slots and those of its snapshots.
    pub(crate) versions: Versions,
    /// Last write of each region (R17).
    tags: Vec<Tag>,
}

impl ReplicaState {
    pub(crate) fn slot(&self, vslot: VSlot) -> Option<Slot> {
        self.versions.slot(vslot)
    }

    pub(crate) fn tag(&self, region: Region) -> Tag {
        self.tags.get(region.0 as usize).copied().unwrap_or_default()
    }

    pub(crate) fn tags(&self) -> &[Tag] {
        &self.tags
    }

    pub(crate) fn vslots(&self) -> u32 {
        self.versions.vslots()
    }

    /// The allocated pieces of `first..end`, ascending.
    pub(crate) fn mapped(
        &self,
        first: u32,
        end: u32,
    ) -> impl Iterator<Item = (VSlot, Slot)> + use<'_> {
        self.versions.mapped(first, end)
    }

    /// Slots that it and its snapshots occupy.
    pub(crate) fn occupied(&self) -> u64 {
        u64::from(self.versions.allocated) + self.versions.retained().len() as u64
    }
}

/// Everything durable of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolState {
    pub(crate) layout: Layout,
    pub(crate) replicas: BTreeMap<ReplicaIndex, ReplicaState>,
    /// One bit per slot: some replica or one of its snapshots owns it.
    used: Vec<u64>,
}

/// A change that contradicts the state: only damage can cause it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contradiction(pub(crate) &'static str);

impl PoolState {
    pub(crate) fn new(layout: Layout) -> Self {
        let words = (layout.slots as usize).div_ceil(64);
        Self { layout, replicas: BTreeMap::new(), used: vec![0; words] }
    }

    pub(crate) fn is_used(&self, slot: Slot) -> bool {
        self.used[slot.0 as usize / 64] & (1 << (slot.0 % 64)) != 0
    }

    fn set_used(&mut self, slot: Slot, used: bool) {
        let bit = 1 << (slot.0 % 64);
        let word = &mut self.used[slot.0 as usize / 64];
        *word = if used { *word | bit } else { *word & !bit };
    }

    /// Regions of all replicas.
    pub(crate) fn regions(&self) -> u64 {
        self.replicas.values().map(|replica| layout::regions(replica.size) as u64).sum()
    }

    /// Whether the pool can describe so many more regions. What it cannot describe is never logged, so
    /// recovery need not have memory for it.
    fn has_room(&self, regions: usize) -> bool {
        self.regions() + regions as u64 <= self.layout.max_regions
    }

    /// Applies a change to replica `index`; slots that lost their owner are added to `freed`.
    pub(crate) fn apply(
        &mut self,
        index: ReplicaIndex,
        change: &Change,
        freed: &mut Vec<Slot>,
    ) -> Result<(), Contradiction> {
        if let Change::Create { volume, replica, incarnation, size } = *change {
            if !size_is_valid(size) {
                return Err(Contradiction("size"));
            }
            if self.replicas.contains_key(&index) {
                return Err(Contradiction("replica exists"));
            }
            if self.replicas.len() as u32 >= MAX_REPLICAS || !self.has_room(layout::regions(size)) {
                return Err(Contradiction("too much is provisioned"));
            }
            let state = ReplicaState {
                volume,
                replica,
                incarnation,
                size,
                sealed: Epoch(0),
                instance: EngineInstance::default(),
                leased: None,
                last_sealed: Tag::default(),
                in_use: None,
                failed: None,
                retired: false,
                versions: Versions::new(self.layout.vslots(size)),
                tags: vec![Tag::default(); layout::regions(size)],
            };
            self.replicas.insert(index, state);
            return Ok(());
        }
        let layout = self.layout;
        let present = self.replicas.get(&index).ok_or(Contradiction("no such replica"))?.size;
        if let Change::Resize { size } = *change {
            if size < present || !size_is_valid(size) {
                return Err(Contradiction("size"));
            }
            if !self.has_room(layout::regions(size) - layout::regions(present)) {
                return Err(Contradiction("too much is provisioned"));
            }
        }
        if matches!(change, Change::Snapshot { .. }) && self.snapshots() >= MAX_SNAPSHOTS {
            return Err(Contradiction("too many snapshots"));
        }
        let from = freed.len();
        let replica = self.replicas.get_mut(&index).ok_or(Contradiction("no such replica"))?;
        match *change {
            Change::Create { .. } => {}
            Change::Delete => {
                replica.versions.clear(freed);
                self.replicas.remove(&index);
            }
            Change::Resize { size } => {
                replica.size = size;
                replica.versions.grow(layout.vslots(size));
                replica.tags.resize(layout::regions(size), Tag::default());
            }
            Change::Seal { epoch, instance } => {
                if epoch < replica.sealed {
                    return Err(Contradiction("epoch goes back"));
                }
                replica.sealed = epoch;
                replica.instance = instance;
                replica.leased = None;
            }
            Change::Leased { process } => replica.leased = Some(process),
            Change::SealEra { tag } => {
                if tag < replica.last_sealed {
                    return Err(Contradiction("era goes back"));
                }
                replica.last_sealed = tag;
            }
            Change::InUse { boot } => replica.in_use = Some(boot),
            Change::Clean => replica.in_use = None,
            Change::Failed { errno } => replica.failed = Some(errno),
            Change::Tag { tag, first, count } => {
                let end = first.0 as usize + count as usize;
                let tags = replica.tags.get_mut(first.0 as usize..end);
                tags.ok_or(Contradiction("region"))?.fill(tag);
            }
            Change::Map { vslot, slot } => {
                let born = replica.versions.now;
                return self.restore_piece(index, vslot, slot, born);
            }
            Change::Unmap { first, count } => {
                let end = first.0.checked_add(count).ok_or(Contradiction("map entry"))?;
                if !replica.versions.unmap(first.0, end, freed) {
                    return Err(Contradiction("map entry"));
                }
            }
            Change::Snapshot { snapshot, size } => {
                if size > replica.size || !replica.versions.snapshot(snapshot, size) {
                    return Err(Contradiction("snapshot"));
                }
            }
            Change::DropSnapshot { snapshot } => {
                if !replica.versions.drop_snapshot(snapshot, freed) {
                    return Err(Contradiction("no such snapshot"));
                }
            }
            Change::Copied { vslot, slot } => {
                if !replica.versions.replace(vslot, slot, freed) {
                    return Err(Contradiction("map entry"));
                }
                self.own(slot)?;
            }
            Change::Retired => {
                replica.retired = true;
                let vslots = replica.vslots();
                replica.versions.unmap(0, vslots, freed);
            }
        }
        for slot in &freed[from..] {
            self.set_used(*slot, false);
        }
        Ok(())
    }

    /// Snapshots of all replicas.
    pub(crate) fn snapshots(&self) -> u32 {
        self.replicas.values().map(|replica| replica.versions.snapshots().len() as u32).sum()
    }

    fn own(&mut self, slot: Slot) -> Result<(), Contradiction> {
        if slot.0 >= self.layout.slots {
            return Err(Contradiction("slot"));
        }
        if self.is_used(slot) {
            return Err(Contradiction("slot owned twice"));
        }
        self.set_used(slot, true);
        Ok(())
    }

    /// What a checkpoint says of a replica's snapshots; its slots come after that.
    pub(crate) fn restore_snapshots(
        &mut self,
        index: ReplicaIndex,
        now: Version,
        snapshots: &[Snapshot],
        retired: bool,
    ) -> Result<(), Contradiction> {
        if self.snapshots() + snapshots.len() as u32 > MAX_SNAPSHOTS {
            return Err(Contradiction("too many snapshots"));
        }
        let replica = self.replicas.get_mut(&index).ok_or(Contradiction("no such replica"))?;
        replica.retired = retired;
        replica.versions.now = now;
        if now == Version(0) || !snapshots.iter().all(|found| replica.versions.restore(*found)) {
            return Err(Contradiction("snapshots"));
        }
        Ok(())
    }

    /// Gives an empty piece of the head a slot.
    pub(crate) fn restore_piece(
        &mut self,
        index: ReplicaIndex,
        vslot: VSlot,
        slot: Slot,
        born: Version,
    ) -> Result<(), Contradiction> {
        self.own(slot)?;
        let replica = self.replicas.get_mut(&index).ok_or(Contradiction("no such replica"))?;
        if born > replica.versions.now || !replica.versions.map(vslot, slot, born) {
            return Err(Contradiction("map entry"));
        }
        Ok(())
    }

    /// Gives a replica's snapshots a slot.
    pub(crate) fn restore_retained(
        &mut self,
        index: ReplicaIndex,
        vslot: VSlot,
        born: Version,
        retained: Retained,
    ) -> Result<(), Contradiction> {
        self.own(retained.slot)?;
        let replica = self.replicas.get_mut(&index).ok_or(Contradiction("no such replica"))?;
        if !replica.versions.retain(vslot, born, retained) {
            return Err(Contradiction("retained slot"));
        }
        Ok(())
    }
}

/// Whether `size` (bytes) can be a replica's.
pub(crate) const fn size_is_valid(size: u64) -> bool {
    size > 0 && size.is_multiple_of(BLOCK) && size <= MAX_VOLUME
}
