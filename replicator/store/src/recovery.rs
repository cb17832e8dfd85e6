//! Making a pool, and opening one: superblock, checkpoint, log, checksum table.
//!
//! Opening always writes a fresh checkpoint of a new generation to the other area and makes it the
//! one that counts. So whatever lies beyond the point where the log was cut can never be believed
//! later, and the log starts empty.

use types::plant::{Bug, planted};
use types::{BLOCK, BootId, Buf, ClusterId, PoolId};

use crate::OpenError;
use crate::checkpoint;
use crate::disk::{self, PoolDisk};
use crate::layout::{Area, Generation, Layout, Lsn, Slot};
use crate::log_block;
use crate::probe;
use crate::state::PoolState;
use crate::sums::Sums;
use crate::superblock::{Found, Superblock};

/// How to make a pool.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// The cluster that it will belong to.
    pub cluster: ClusterId,
    /// Its id, never used before.
    pub pool: PoolId,
    /// Bytes per slot: a power of two between 64 KiB and 1 MiB; see [`DEFAULT_SLOT_SIZE`].
    pub slot_size: u64,
    /// Format even if the device is not blank. Whatever it holds is lost.
    pub force: bool,
}

/// Slot size unless something else was measured to be better, in bytes.
pub const DEFAULT_SLOT_SIZE: u64 = 256 << 10;

/// What a pool must be to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// The cluster of this node.
    pub cluster: ClusterId,
    /// The pool that this node had before, if known.
    pub expected_pool: Option<PoolId>,
    /// Boot of the host (R9).
    pub boot: BootId,
}

/// Makes a pool on `disk`.
///
/// # Errors
/// The device is not blank (without `force`), too small, or failed.
pub fn format(disk: &mut dyn PoolDisk, options: &FormatOptions) -> Result<(), OpenError> {
    let layout = Layout::new(disk.size(), options.slot_size)?;
    if let Some(found) = probe::contents(disk)?.filter(|_| !options.force) {
        return Err(OpenError::NotBlank { found });
    }
    // The old superblocks go first: a crash from here on leaves a device that is no pool at all.
    // The checksum table is cleared because pages of an earlier pool would look valid.
    let zeros = Buf::zeroed(1 << 20);
    clear(disk, &zeros, 0, layout.area(Area(0)))?;
    disk::sync(disk)?;
    clear(disk, &zeros, layout.area(Area(0)), layout.slot(Slot(0)))?;
    let generation = Generation(1);
    let body = checkpoint::encode(&PoolState::new(layout), generation, Lsn(1));
    disk::write(disk, layout.area(Area(0)), &body)?;
    disk::sync(disk)?;
    let superblock = Superblock {
        sequence: 1,
        cluster: options.cluster,
        pool: options.pool,
        layout,
        area: Area(0),
        generation,
        reserved: generation,
        failed: 0,
    };
    write_pair(disk, &superblock)
}

fn clear(disk: &mut dyn PoolDisk, zeros: &Buf, mut at: u64, end: u64) -> Result<(), OpenError> {
    while at < end {
        let len = (end - at).min(zeros.len() as u64);
        disk::write(disk, at, &zeros.slice(0..len as usize))?;
        at += len;
    }
    Ok(())
}

fn write_pair(disk: &mut dyn PoolDisk, superblock: &Superblock) -> Result<(), OpenError> {
    let block = superblock.encode();
    for copy in 0..2 {
        disk::write(disk, Layout::superblock(copy), &block)?;
        disk::sync(disk)?;
    }
    Ok(())
}

/// What opening found out.
pub(crate) struct Recovered {
    pub(crate) superblock: Superblock,
    pub(crate) state: PoolState,
    pub(crate) next_lsn: Lsn,
    pub(crate) sums: Sums,
    /// Slots whose checksums have to be settled.
    pub(crate) unsettled: Vec<Slot>,
}

pub(crate) fn recover(
    disk: &mut dyn PoolDisk,
    options: &OpenOptions,
) -> Result<Recovered, OpenError> {
    let mut superblock = read_superblock(disk)?;
    if superblock.cluster != options.cluster {
        let (found, expected) = (superblock.cluster, options.cluster);
        return Err(OpenError::OtherCluster { found, expected });
    }
    let other = |pool: &PoolId| *pool != superblock.pool && !planted(Bug::TrustSwappedPool);
    if let Some(expected) = options.expected_pool.filter(other) {
        return Err(OpenError::OtherPool { found: superblock.pool, expected });
    }
    let layout = superblock.layout;
    if disk.size() < layout.size {
        return Err(OpenError::TooSmall { size: disk.size(), needed: layout.size });
    }
    let Superblock { area, generation, .. } = superblock;
    let (mut state, first) = checkpoint::read(disk, &layout, area, generation)?;
    let next_lsn = log_block::replay(disk, &layout, area, generation, first, &mut state)?;
    let (sums, unsettled) = Sums::load(disk, &state)?;

    // Generation `reserved` may have left log blocks behind; this one has not, and until the
    // superblock names it nothing but this checkpoint carries it.
    let area = area.other();
    let generation = Generation(superblock.reserved.0 + 1);
    disk::write(disk, layout.area(area), &checkpoint::encode(&state, generation, next_lsn))?;
    disk::sync(disk)?;
    superblock.sequence += 1;
    superblock.area = area;
    superblock.generation = generation;
    superblock.reserved = generation;
    write_pair(disk, &superblock)?;
    Ok(Recovered { superblock, state, next_lsn, sums, unsettled })
}

/// Which cluster and pool the device says that it is.
///
/// # Errors
/// It is not a pool, or a damaged one; see [`OpenError`].
pub fn identify(disk: &mut dyn PoolDisk) -> Result<(ClusterId, PoolId), OpenError> {
    let superblock = read_superblock(disk)?;
    Ok((superblock.cluster, superblock.pool))
}

/// The newest superblock; a damaged or older copy is replaced by it.
fn read_superblock(disk: &mut dyn PoolDisk) -> Result<Superblock, OpenError> {
    let size = disk.size();
    if size < 2 * BLOCK {
        return Err(OpenError::TooSmall { size, needed: crate::layout::MIN_POOL });
    }
    let mut valid = Vec::new();
    let mut damaged = false;
    let mut foreign = false;
    for copy in 0..2 {
        let block = disk::read(disk, Layout::superblock(copy), BLOCK)?;
        match Superblock::decode(block.as_slice())? {
            Found::Valid(superblock) => valid.push((copy, superblock)),
            Found::Damaged => damaged = true,
            // No crash does this to a superblock that was ours: torn or not, it keeps the magic.
            Found::Other => foreign |= !types::is_zeros(block.as_slice()),
        }
    }
    if let Some(found) = probe::contents(disk)?.filter(|_| foreign) {
        return Err(OpenError::Foreign { found });
    }
    let Some((_, newest)) = valid.iter().max_by_key(|(_, found)| found.sequence).copied() else {
        return Err(match probe::contents(disk)? {
            _ if damaged => OpenError::SuperblocksCorrupt,
            None => OpenError::Blank,
            Some(found) => OpenError::Foreign { found },
        });
    };
    if let Some((_, other)) = valid.iter().find(|(_, found)| found.pool != newest.pool) {
        return Err(OpenError::OtherPool { found: other.pool, expected: newest.pool });
    }
    for copy in 0..2 {
        if !valid.contains(&(copy, newest)) {
            disk::write(disk, Layout::superblock(copy), &newest.encode())?;
            disk::sync(disk)?;
        }
    }
    Ok(newest)
}
