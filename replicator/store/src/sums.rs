//! The checksum table: CRC32C of every block of every slot, kept beside the data.
//!
//! In memory the checksums of allocated slots are always right or unknown. On disk they are
//! settled only when an era is sealed or a snapshot is made, so that an overwrite stays one write; a
//! region whose tag is above the last sealed one is therefore not trusted after a restart (R17 makes
//! the tag durable before the data), except for what a snapshot uses and so was not written since. Each
//! page has two copies: one is written and synced before what it says is relied upon, in turns, so that a
//! torn write leaves the one before; the other one follows.
//!
//! A slot that was settled must be in its page. One that the page says had no owner when it was written
//! shows that the page's last writes were lost, both: what is in the slot cannot be judged, and is not
//! served.
//!
//! What is unknown is learnt from the first read that no write falls into, a user's or the scrub's: damage from
//! then on is noticed.
//!
//! All pages of the pool are read when it is opened and the checksums of allocated slots stay in
//! memory: 4 bytes per 4 KiB.

use bytemuck::{Pod, Zeroable};
use std::collections::VecDeque;
use types::plant::{Bug, planted};
use types::{BLOCK, Buf, BufMut, crc32c};

use crate::OpenError;
use crate::disk::{self, PoolDisk};
use crate::layout::{Layout, PAGE_HEADER, Slot};
use crate::state::PoolState;
use crate::superblock::{block_is_intact, seal_block};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    /// CRC32C of the block with this field zero.
    crc: u32,
    /// Higher is newer; its parity is the copy that was written first.
    sequence: u64,
    page: u32,
    zero: [u32; 3],
}

const _: () = assert!(size_of::<Header>() as u64 == PAGE_HEADER);
const MAGIC: [u8; 4] = *b"HFC2";
/// Of pages in which zero stands for [`UNKNOWN`], too.
const OLD_MAGIC: [u8; 4] = *b"HFCS";
pub(crate) const CRC_AT: usize = 4;
/// Blocks of the table read at once.
const SCAN: u64 = 256;

/// In a page: the slot had no owner when the page was written.
const NOBODY: u32 = 0;
/// Stands for "not known": the block is served as it is.
pub(crate) const UNKNOWN: u32 = 1;
/// Stands for "cannot be known any more": the block is not served until it is written.
const LOST: u32 = 2;

/// What is remembered of a block with this CRC32C: three in 2^32 are not verified.
const fn known(crc: u32) -> u32 {
    if crc <= LOST { UNKNOWN } else { crc }
}

/// Ended writes that are remembered: more than end while a disk reads a few blocks.
const RECENT: usize = 1024;

/// What is known of a slot in memory.
#[derive(Clone, Debug, Default)]
struct SlotSums {
    /// One per block while the slot is allocated.
    sums: Option<Box<[u32]>>,
    /// When it was last written, by [`Sums::clock`].
    last_write: u64,
    /// Writes under way: what a read finds meanwhile is not learnt.
    writing: u32,
    /// Differs from its page on disk, and its replica knows.
    unsettled: bool,
}

/// The checksums of a pool.
#[derive(Debug)]
pub(crate) struct Sums {
    layout: Layout,
    slots: Vec<SlotSums>,
    /// Sequence of each page's newest copy.
    pages: Vec<u64>,
    /// Counts beginnings and ends of writes.
    clock: u64,
    /// The last writes that ended, by the clock, with pool offset and length in bytes: what a read found of
    /// blocks that one of them changed meanwhile cannot be judged.
    recent: VecDeque<(u64, u64, u64)>,
    /// All that ended later are among them.
    forgotten: u64,
    zero_sum: u32,
}

impl Sums {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            slots: vec![SlotSums::default(); layout.slots as usize],
            pages: vec![0; layout.pages() as usize],
            clock: 0,
            recent: VecDeque::new(),
            forgotten: 0,
            zero_sum: known(crc32c(&[0; BLOCK as usize])),
        }
    }

    /// Reads the table; keeps what `state` says to be allocated and settled. Every other allocated
    /// slot is returned: unknown, and to be settled as that.
    pub(crate) fn load(
        disk: &mut dyn PoolDisk,
        state: &PoolState,
    ) -> Result<(Self, Vec<Slot>), OpenError> {
        let layout = state.layout;
        let mut sums = Self::new(layout);
        for replica in state.replicas.values() {
            for (_, slot, _) in replica.versions.slots() {
                sums.slots[slot.0 as usize].sums =
                    Some(vec![NOBODY; layout.slot_blocks()].into_boxed_slice());
            }
        }
        let copies = u64::from(layout.pages()) * 2;
        let mut at = 0;
        while at < copies {
            let count = SCAN.min(copies - at);
            let buf = disk::read(disk, layout.page(0, 0) + at * BLOCK, count * BLOCK)?;
            for (pair, index) in
                buf.as_slice().chunks_exact(2 * BLOCK as usize).zip((at / 2) as u32..)
            {
                sums.load_page(index, pair);
            }
            at += count;
        }
        let mut unsettled = Vec::new();
        for replica in state.replicas.values() {
            for (vslot, slot, frozen) in replica.versions.slots() {
                let entry = &mut sums.slots[slot.0 as usize];
                let Some(sums) = entry.sums.as_mut() else { continue };
                // What a snapshot uses was settled before the snapshot was, and not written since.
                if !frozen && replica.tag(layout.region_of(vslot)) > replica.last_sealed {
                    sums.fill(UNKNOWN);
                    entry.unsettled = true;
                    unsettled.push(slot);
                } else {
                    sums.iter_mut().filter(|sum| **sum == NOBODY).for_each(|sum| *sum = LOST);
                }
            }
        }
        Ok((sums, unsettled))
    }

    fn load_page(&mut self, page: u32, pair: &[u8]) {
        let mut newest: Option<(Header, &[u8])> = None;
        let mut damaged = false;
        for block in pair.chunks_exact(BLOCK as usize) {
            let header: Header = bytemuck::pod_read_unaligned(&block[..PAGE_HEADER as usize]);
            let ours = [MAGIC, OLD_MAGIC].contains(&header.magic) && header.page == page;
            if ours && block_is_intact(block, CRC_AT) {
                let newer = newest.is_none_or(|(other, _)| header.sequence > other.sequence);
                newest = if newer { Some((header, block)) } else { newest };
            } else {
                // One that was never written is no proof of damage.
                damaged |= !types::is_zeros(block);
            }
        }
        if let Some((header, _)) = newest {
            self.pages[page as usize] = header.sequence;
        }
        let slot_bytes = self.layout.slot_blocks() * 4;
        let old = newest.is_some_and(|(header, _)| header.magic == OLD_MAGIC);
        let words = newest.map(|(_, block)| &block[PAGE_HEADER as usize..]);
        let first = page * self.layout.slots_per_page();
        for at in 0..self.layout.slots_per_page() {
            let Some(sums) =
                self.slots.get_mut((first + at) as usize).and_then(|slot| slot.sums.as_mut())
            else {
                continue;
            };
            let from = at as usize * slot_bytes;
            if let Some(bytes) = words.and_then(|words| words.get(from..from + slot_bytes)) {
                for (sum, bytes) in sums.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *sum = u32::from_le_bytes(*bytes);
                }
            }
            // What is missing may have been in the copy that is damaged.
            if damaged || old {
                sums.iter_mut().filter(|sum| **sum == NOBODY).for_each(|sum| *sum = UNKNOWN);
            }
        }
    }

    /// The page that a slot's checksums are settled in.
    pub(crate) fn page_of(&self, slot: Slot) -> u32 {
        slot.0 / self.layout.slots_per_page()
    }

    /// Makes the next copy of a page: where to write what.
    pub(crate) fn settle_page(&mut self, page: u32) -> (u64, Buf) {
        self.pages[page as usize] += 1;
        let sequence = self.pages[page as usize];
        (self.layout.page(page, sequence & 1), self.encode_page(page))
    }

    /// Makes the other copy of a page whose newest one is on stable storage. What has changed since is not
    /// trusted after a restart, whichever copy is read.
    pub(crate) fn settle_other(&self, page: u32) -> (u64, Buf) {
        let other = (self.pages[page as usize] + 1) & 1;
        (self.layout.page(page, other), self.encode_page(page))
    }

    /// A page as it is now.
    fn encode_page(&self, page: u32) -> Buf {
        let sequence = self.pages[page as usize];
        let mut header = Header::zeroed();
        header.magic = MAGIC;
        header.sequence = sequence;
        header.page = page;
        let mut buf = BufMut::zeroed(BLOCK as usize);
        let bytes = buf.as_mut_slice();
        bytes[..PAGE_HEADER as usize].copy_from_slice(bytemuck::bytes_of(&header));
        let slot_bytes = self.layout.slot_blocks() * 4;
        let first = page * self.layout.slots_per_page();
        for (out, slot) in bytes[PAGE_HEADER as usize..].chunks_exact_mut(slot_bytes).zip(first..) {
            if let Some(sums) = self.slots.get(slot as usize).and_then(|s| s.sums.as_ref()) {
                for (out, sum) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
                    *out = sum.to_le_bytes();
                }
            }
        }
        seal_block(bytes, CRC_AT);
        buf.freeze()
    }

    /// A zeroed slot got an owner, which must remember to settle it: that an earlier owner
    /// remembers it helps nobody.
    pub(crate) fn allocate(&mut self, slot: Slot) {
        let entry = &mut self.slots[slot.0 as usize];
        entry.sums = Some(vec![self.zero_sum; self.layout.slot_blocks()].into_boxed_slice());
        entry.unsettled = true;
        entry.writing = 0;
    }

    /// A slot got the contents of another one, right or wrong: the same checksums judge them.
    pub(crate) fn copy(&mut self, from: Slot, to: Slot) {
        let sums = self.slots[from.0 as usize].sums.clone();
        let entry = &mut self.slots[to.0 as usize];
        entry.sums = sums;
        entry.unsettled = true;
    }

    /// A slot lost its owner.
    pub(crate) fn free(&mut self, slot: Slot) {
        self.slots[slot.0 as usize].sums = None;
    }

    /// The owner's list of unsettled slots was taken.
    pub(crate) fn settled(&mut self, slot: Slot) {
        self.slots[slot.0 as usize].unsettled = false;
    }

    /// When something begins that must not fall into a write.
    pub(crate) fn clock(&self) -> u64 {
        self.clock
    }

    /// A write to `len` bytes at pool offset `offset` begins: its blocks are unknown until it ends.
    pub(crate) fn write_begins(&mut self, offset: u64, len: u64) {
        self.clock += 1;
        let clock = self.clock;
        let mut at = offset;
        while at < offset + len {
            let (slot, within) = self.layout.slot_at(at);
            let end = (at - within + self.layout.slot_size).min(offset + len);
            let entry = &mut self.slots[slot.0 as usize];
            entry.last_write = clock;
            entry.writing += 1;
            if let Some(sums) = entry.sums.as_mut() {
                let first = (within / BLOCK) as usize;
                sums[first..first + ((end - at) / BLOCK) as usize].fill(UNKNOWN);
            }
            at = end;
        }
    }

    /// A write of `data` at pool offset `offset` ended well. Slots that now have to be settled go
    /// to `unsettled`. `crc` is that of all of `data`, if it is at hand.
    pub(crate) fn write_ended(
        &mut self,
        offset: u64,
        data: &[u8],
        crc: Option<u32>,
        unsettled: &mut Vec<Slot>,
    ) {
        self.clock += 1;
        let clock = self.clock;
        self.recent.push_back((clock, offset, data.len() as u64));
        if self.recent.len() > RECENT
            && let Some((ended, ..)) = self.recent.pop_front()
        {
            self.forgotten = ended;
        }
        let (Slot(first), _) = self.layout.slot_at(offset);
        let (Slot(last), _) = self.layout.slot_at(offset + data.len() as u64 - 1);
        for entry in &mut self.slots[first as usize..=last as usize] {
            entry.writing = entry.writing.saturating_sub(1);
        }
        let crc = crc.filter(|_| data.len() as u64 == BLOCK);
        for (block, at) in data.chunks_exact(BLOCK as usize).zip((offset..).step_by(BLOCK as usize))
        {
            let (slot, within) = self.layout.slot_at(at);
            let entry = &mut self.slots[slot.0 as usize];
            entry.last_write = clock;
            let Some(sums) = entry.sums.as_mut() else { continue };
            sums[(within / BLOCK) as usize] = known(crc.unwrap_or_else(|| crc32c(block)));
            if !std::mem::replace(&mut entry.unsettled, true) {
                unsettled.push(slot);
            }
        }
    }

    /// Blocks were read from pool offset `offset` by a read submitted at `began`, and nothing was wrong with
    /// them: what was unknown of them is known from here on. Slots that now have to be settled go to `unsettled`.
    pub(crate) fn learn(
        &mut self,
        offset: u64,
        data: &[u8],
        began: u64,
        crc: Option<u32>,
        unsettled: &mut Vec<Slot>,
    ) {
        let crc = crc.filter(|_| data.len() as u64 == BLOCK);
        for (block, at) in data.chunks_exact(BLOCK as usize).zip((offset..).step_by(BLOCK as usize))
        {
            let (slot, within) = self.layout.slot_at(at);
            let entry = &mut self.slots[slot.0 as usize];
            let still = entry.writing == 0 && entry.last_write <= began;
            let Some(sums) = entry.sums.as_mut().filter(|_| still) else { continue };
            let sum = &mut sums[(within / BLOCK) as usize];
            if *sum == UNKNOWN {
                *sum = known(crc.unwrap_or_else(|| crc32c(block)));
                if !std::mem::replace(&mut entry.unsettled, true) {
                    unsettled.push(slot);
                }
            }
        }
    }

    /// Whether the checksum of the block at pool offset `offset` is known.
    pub(crate) fn knows(&self, offset: u64) -> bool {
        let (slot, within) = self.layout.slot_at(offset);
        let sums = self.slots[slot.0 as usize].sums.as_ref();
        sums.is_some_and(|sums| sums[(within / BLOCK) as usize] != UNKNOWN)
    }

    /// Whether the block at pool offset `offset` may have been written since `began`; one that is being
    /// written is unknown.
    fn written_since(&self, began: u64, offset: u64) -> bool {
        let mut since = self.recent.iter().rev().take_while(|(ended, ..)| *ended > began);
        began < self.forgotten || since.any(|(_, at, len)| (*at..*at + *len).contains(&offset))
    }

    /// Checks `data` that was read from pool offset `offset` by a read submitted at `began`; returns whether
    /// all checksums were known. `Err` is the offset within `data` of a block that is not what was written. `crc` is that of
    /// all of `data`, if it is at hand.
    pub(crate) fn verify(
        &self,
        offset: u64,
        data: &[u8],
        began: u64,
        crc: Option<u32>,
    ) -> Result<bool, usize> {
        let crc = crc.filter(|_| data.len() as u64 == BLOCK);
        let mut all_known = true;
        for (index, block) in data.chunks_exact(BLOCK as usize).enumerate() {
            let at = index * BLOCK as usize;
            let (slot, within) = self.layout.slot_at(offset + at as u64);
            let entry = &self.slots[slot.0 as usize];
            let Some(sums) = entry.sums.as_ref() else { continue };
            let sum = sums[(within / BLOCK) as usize];
            all_known &= sum != UNKNOWN;
            if sum != UNKNOWN
                && !planted(Bug::SkipChecksums)
                && !(entry.last_write > began && self.written_since(began, offset + at as u64))
                && sum != crc.unwrap_or_else(|| crc32c(block))
            {
                return Err(at);
            }
        }
        Ok(all_known)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::layout::{MIN_POOL, ReplicaIndex, VSlot};
    use crate::record::Change;

    struct Pages(u64, Vec<u8>);

    impl PoolDisk for Pages {
        fn size(&self) -> u64 {
            MIN_POOL
        }
        fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
            if offset == self.0 {
                buf.as_mut_slice()[..self.1.len()].copy_from_slice(&self.1);
            }
            Ok(())
        }
        fn write_at(&mut self, _: u64, _: &Buf) -> Result<(), i32> {
            Err(30)
        }
        fn sync(&mut self) -> Result<(), i32> {
            Err(30)
        }
    }

    #[derive(Debug, PartialEq)]
    enum Known {
        Right,
        Nothing,
        Refused,
    }

    /// What is known of slot 1, which is settled and holds zeros, after these two copies of its page.
    fn known(copies: [&[u8]; 2]) -> Known {
        let layout = Layout::new(MIN_POOL, 64 << 10).unwrap();
        let mut state = PoolState::new(layout);
        let (volume, replica, incarnation) = Default::default();
        for change in [
            Change::Create { volume, replica, incarnation, size: 1 << 20 },
            Change::Map { vslot: VSlot(0), slot: Slot(1) },
        ] {
            state.apply(ReplicaIndex(0), &change, &mut Vec::new()).unwrap();
        }
        let mut disk = Pages(layout.page(0, 0), copies.concat());
        let (sums, _) = Sums::load(&mut disk, &state).unwrap();
        let at = layout.slot(Slot(1));
        let takes = |byte| sums.verify(at, &[byte; BLOCK as usize], u64::MAX, None).is_ok();
        match (takes(0), takes(1)) {
            (true, false) => Known::Right,
            (true, true) => Known::Nothing,
            (false, _) => Known::Refused,
        }
    }

    #[test]
    fn a_settled_slot_is_in_its_page_or_is_not_served() {
        let mut sums = Sums::new(Layout::new(MIN_POOL, 64 << 10).unwrap());
        sums.allocate(Slot(0));
        let without = sums.settle_page(0).1;
        sums.allocate(Slot(1));
        let with = sums.settle_page(0).1;
        let (without, with) = (without.as_slice(), with.as_slice());
        let blank = [0; BLOCK as usize];
        let mut damaged = with.to_vec();
        damaged[2000] ^= 1;
        let mut old = without.to_vec();
        old[..4].copy_from_slice(&OLD_MAGIC);
        seal_block(&mut old, CRC_AT);
        for (copies, expected) in [
            ([with, without], Known::Right),
            ([without, with], Known::Right),
            ([blank.as_slice(), with], Known::Right),
            ([blank.as_slice(), without], Known::Refused),
            ([blank.as_slice(), blank.as_slice()], Known::Refused),
            ([damaged.as_slice(), without], Known::Nothing),
            ([damaged.as_slice(), damaged.as_slice()], Known::Nothing),
            ([blank.as_slice(), old.as_slice()], Known::Nothing),
            ([with, old.as_slice()], Known::Right),
        ] {
            assert_eq!(known(copies), expected);
        }
    }

    /// Whatever else is written in its slot while it is read. Found by the simulation.
    #[test]
    fn a_block_is_judged_unless_it_was_written_itself() {
        let layout = Layout::new(MIN_POOL, 64 << 10).unwrap();
        let mut sums = Sums::new(layout);
        sums.allocate(Slot(1));
        let at = |block: u64| layout.slot(Slot(1)) + block * BLOCK;
        let (old, new) = ([0; BLOCK as usize], [7; BLOCK as usize]);
        let write = |sums: &mut Sums, block| {
            sums.write_begins(at(block), BLOCK);
            sums.write_ended(at(block), &new, None, &mut Vec::new());
        };
        let takes = |sums: &Sums, block, data: &[u8], began| {
            sums.verify(at(block), data, began, None).is_ok()
        };
        let began = sums.clock();
        write(&mut sums, 3);
        assert!(!takes(&sums, 2, &new, began), "its neighbour was written, it was not");
        assert!(takes(&sums, 2, &old, began));
        assert!(takes(&sums, 3, &old, began) && takes(&sums, 3, &new, began), "before or after");
        assert!(!takes(&sums, 3, &old, sums.clock()), "read after it was written");
        sums.write_begins(at(2), BLOCK);
        assert!(takes(&sums, 2, &new, began), "being written");
        for _ in 0..RECENT {
            write(&mut sums, 5);
        }
        assert!(takes(&sums, 4, &new, began), "too long ago to know");
        assert!(!takes(&sums, 4, &new, sums.clock() - 100));
    }
}
