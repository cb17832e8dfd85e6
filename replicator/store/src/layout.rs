//! Where everything is in a pool, and the checked numbers that point there.
//!
//! ```text
//! block 0        superblock A          block 1  superblock B          up to block 16: zeros
//! area 0         checkpoint (header, body) | log blocks
//! area 1         checkpoint (header, body) | log blocks
//! checksum table page 0 copy A, page 0 copy B, page 1 copy A, …
//! slots          aligned to the slot size
//! ```
//!
//! The superblocks come first so that any tool recognises the device; the two areas and the table
//! have fixed places and sizes so that recovery needs nothing but a superblock to find them; the
//! slots come last because they are what grows with the device.

use types::{BLOCK, REGION};

use crate::OpenError;

/// Version of everything in this file, [`crate::superblock`], [`crate::record`],
/// [`crate::checkpoint`] and [`crate::sums`].
///
/// History: 1 = first; 2 = snapshots.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// Smallest pool, in bytes.
pub(crate) const MIN_POOL: u64 = 16 << 20;
/// Most replicas in a pool.
pub(crate) const MAX_REPLICAS: u32 = 1024;

/// Blocks before the first area.
const HEADER_BLOCKS: u64 = 16;
/// Bytes that a checkpoint keeps for each replica, without its map and tags.
pub(crate) const REPLICA_BYTES: u64 = 192;
/// Bytes of one run of equal tags in a checkpoint.
pub(crate) const TAG_RUN_BYTES: u64 = 20;
/// Most bytes of one slot in a checkpoint, whether the head or a snapshot has it.
pub(crate) const MAP_ENTRY_BYTES: u64 = 16;
/// Most snapshots in a pool.
pub(crate) const MAX_SNAPSHOTS: u32 = 4096;
/// Bytes of one snapshot in a checkpoint, without its slots.
const SNAPSHOT_BYTES: u64 = 28;
/// Volumes may be this many times larger in sum than their pool…
const OVERCOMMIT: u64 = 16;
/// …or at least this many regions.
const MIN_PROVISION: u64 = 16 << 10;
/// Header of a checksum page; see [`crate::sums`].
pub(crate) const PAGE_HEADER: u64 = 32;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(pub(crate) $inner);
    };
}

number!(
    /// A slot of the pool.
    Slot(u32));
number!(
    /// A slot-sized piece of a replica.
    VSlot(u32));
number!(
    /// A 1 MiB piece of a replica (R17).
    Region(u32));
number!(
    /// A replica within the pool's metadata; reused after deletion.
    ReplicaIndex(u32));
number!(
    /// A time in the life of a replica, between two of its snapshots; counts from 1.
    Version(u32));
number!(
    /// Number of a log block; never reused in a pool.
    Lsn(u64));
number!(
    /// One life of a metadata area: one checkpoint and the log behind it.
    Generation(u64));
number!(
    /// A record of the log, counted in memory since the pool was opened.
    RecordSeq(u64));
number!(
    /// One of the two metadata areas: 0 or 1.
    Area(u32));

impl Area {
    pub(crate) const fn other(self) -> Self {
        Self(1 - self.0)
    }
}

/// Geometry of a pool: a pure function of its size and slot size, so that it cannot be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the device that the pool uses.
    pub(crate) size: u64,
    pub(crate) slot_size: u64,
    pub(crate) slots: u32,
    pub(crate) checkpoint_blocks: u64,
    pub(crate) log_blocks: u64,
    table_start: u64,
    slots_start: u64,
    /// Regions of all replicas together, at most.
    pub(crate) max_regions: u64,
}

impl Layout {
    /// The layout of a pool of `size` bytes.
    pub(crate) fn new(size: u64, slot_size: u64) -> Result<Self, OpenError> {
        if !slot_size.is_power_of_two() || !(64 << 10..=REGION).contains(&slot_size) {
            return Err(OpenError::BadSlotSize { slot_size });
        }
        if size < MIN_POOL {
            return Err(OpenError::TooSmall { size, needed: MIN_POOL });
        }
        let size = size - size % BLOCK;
        let max_regions = (OVERCOMMIT * (size / REGION)).max(MIN_PROVISION);
        let log_blocks = (size / BLOCK / 1024).clamp(64, 2048);
        // An upper bound of the slots fixes the sizes of what comes before them.
        let most = u32::try_from(size / slot_size).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
        let checkpoint_bytes = u64::from(MAX_REPLICAS) * REPLICA_BYTES
            + max_regions * TAG_RUN_BYTES
            + u64::from(MAX_SNAPSHOTS) * SNAPSHOT_BYTES
            + u64::from(most) * MAP_ENTRY_BYTES;
        let checkpoint_blocks = 1 + checkpoint_bytes.div_ceil(BLOCK);
        let table_start = (HEADER_BLOCKS + 2 * (checkpoint_blocks + log_blocks)) * BLOCK;
        let per_page = (BLOCK - PAGE_HEADER) / (slot_size / BLOCK * 4);
        let table_bytes = 2 * BLOCK * u64::from(most).div_ceil(per_page);
        let slots_start = (table_start + table_bytes).next_multiple_of(slot_size);
        let slots = u32::try_from(size.saturating_sub(slots_start) / slot_size).unwrap_or(most);
        if slots == 0 {
            return Err(OpenError::TooSmall { size, needed: slots_start + slot_size });
        }
        Ok(Self {
            size,
            slot_size,
            slots: slots.min(most),
            checkpoint_blocks,
            log_blocks,
            table_start,
            slots_start,
            max_regions,
        })
    }

    /// Pool offset of superblock `copy` (0 or 1).
    pub(crate) const fn superblock(copy: u64) -> u64 {
        copy * BLOCK
    }

    /// Pool offset of an area's checkpoint header.
    pub(crate) fn area(&self, area: Area) -> u64 {
        (HEADER_BLOCKS + u64::from(area.0) * (self.checkpoint_blocks + self.log_blocks)) * BLOCK
    }

    /// Pool offset of block `index` of an area's log.
    pub(crate) fn log(&self, area: Area, index: u64) -> u64 {
        self.area(area) + (self.checkpoint_blocks + index) * BLOCK
    }

    /// Checksums in a slot.
    pub(crate) fn slot_blocks(&self) -> usize {
        (self.slot_size / BLOCK) as usize
    }

    /// Slots whose checksums share a page.
    pub(crate) fn slots_per_page(&self) -> u32 {
        ((BLOCK - PAGE_HEADER) / (self.slot_size / BLOCK * 4)) as u32
    }

    /// Pages of the checksum table.
    pub(crate) fn pages(&self) -> u32 {
        self.slots.div_ceil(self.slots_per_page())
    }

    /// Pool offset of one copy (0 or 1) of a page of the checksum table.
    pub(crate) fn page(&self, page: u32, copy: u64) -> u64 {
        self.table_start + (u64::from(page) * 2 + copy) * BLOCK
    }

    /// Pool offset of a slot.
    pub(crate) fn slot(&self, slot: Slot) -> u64 {
        self.slots_start + u64::from(slot.0) * self.slot_size
    }

    /// The slot that holds a pool offset, and the offset within it.
    pub(crate) fn slot_at(&self, offset: u64) -> (Slot, u64) {
        let at = offset - self.slots_start;
        (Slot((at / self.slot_size) as u32), at % self.slot_size)
    }

    /// The piece of a replica that holds a volume offset, and the offset within it.
    pub(crate) fn vslot_at(&self, offset: u64) -> (VSlot, u64) {
        (VSlot((offset / self.slot_size) as u32), offset % self.slot_size)
    }

    /// Pieces of a replica of `size` bytes.
    pub(crate) fn vslots(&self, size: u64) -> usize {
        size.div_ceil(self.slot_size) as usize
    }

    /// The region that a piece of a replica lies in: slots never cross regions.
    pub(crate) fn region_of(&self, vslot: VSlot) -> Region {
        Region((u64::from(vslot.0) * self.slot_size / REGION) as u32)
    }
}

/// Regions of a replica of `size` bytes.
pub(crate) fn regions(size: u64) -> usize {
    size.div_ceil(REGION) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_overlaps_and_everything_fits() {
        for size in [MIN_POOL, 64 << 20, (10 << 30) + 12345, 1 << 40] {
            for slot_size in [64 << 10, 256 << 10, 1 << 20] {
                let layout = Layout::new(size, slot_size).unwrap();
                let end_of_log = layout.log(Area(1), layout.log_blocks);
                assert!(layout.log(Area(0), layout.log_blocks) <= layout.area(Area(1)));
                assert_eq!(end_of_log, layout.page(0, 0));
                assert!(layout.page(layout.pages(), 0) <= layout.slot(Slot(0)));
                assert!(layout.slot(Slot(layout.slots)) <= size);
                assert_eq!(layout.slot(Slot(0)) % slot_size, 0);
                assert!(
                    u64::from(layout.slots) * slot_size > size / 10 * 9 || size < 1 << 30,
                    "metadata takes too much of {size}"
                );
            }
        }
    }

    #[test]
    fn bad_geometry_is_named() {
        assert!(matches!(Layout::new(1 << 30, 5000), Err(OpenError::BadSlotSize { .. })));
        assert!(matches!(Layout::new(1 << 20, 64 << 10), Err(OpenError::TooSmall { .. })));
    }
}
