//! Formatting, opening, and refusing what is not an intact pool of ours; administration.

use store::{Admin, OpenError, OpenOptions, StoreError};
use types::{ClusterId, Instant, PoolId};
use wire::{Reply, Request, Role};

use crate::disk::SimDisk;
use crate::node::{
    CLUSTER, MIB, Node, POOL, filled, format_options, incarnation, open_options, replica, volume,
};

fn find(disk: &mut SimDisk, magic: &[u8], from: usize) -> Option<usize> {
    let size = store::PoolDisk::size(disk) as usize;
    let bytes = disk.bytes(0, size);
    (from..size).step_by(4096).find(|at| bytes[*at..].starts_with(magic))
}

fn formatted() -> SimDisk {
    let mut disk = SimDisk::new(16 * MIB);
    store::format(&mut disk, &format_options()).unwrap();
    disk
}

fn open_error(disk: &mut SimDisk, options: &OpenOptions) -> OpenError {
    store::open(disk, options).unwrap_err()
}

#[test]
fn devices_that_are_not_our_pool_are_refused_by_name() {
    let signatures: [(usize, &[u8], &str); 5] = [
        (1080, &[0x53, 0xef], "ext4"),
        (0, b"XFSB", "xfs"),
        (512, b"LABELONE", "LVM"),
        (510, &[0x55, 0xaa], "boot sector"),
        (70000, b"x", "unknown data"),
    ];
    for (offset, magic, name) in signatures {
        let mut disk = SimDisk::new(16 * MIB);
        disk.bytes(offset as u64, magic.len()).copy_from_slice(magic);
        match open_error(&mut disk, &open_options(1)) {
            OpenError::Foreign { found } => assert!(found.contains(name), "{found}"),
            other => panic!("{name}: {other}"),
        }
        match store::format(&mut disk, &format_options()) {
            Err(OpenError::NotBlank { found }) => assert!(found.contains(name), "{found}"),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(disk.bytes(offset as u64, magic.len()), magic, "a refusal changed the device");
        let force = store::FormatOptions { force: true, ..format_options() };
        store::format(&mut disk, &force).unwrap();
        store::open(&mut disk, &open_options(1)).unwrap();
    }
}

#[test]
fn blank_small_swapped_and_foreign_pools_are_refused() {
    assert_eq!(open_error(&mut SimDisk::new(16 * MIB), &open_options(1)), OpenError::Blank);
    let small = store::format(&mut SimDisk::new(MIB), &format_options());
    assert!(matches!(small, Err(OpenError::TooSmall { .. })), "{small:?}");
    let mut disk = formatted();
    let cluster = ClusterId::from_bytes([7; 16]);
    let options = OpenOptions { cluster, ..open_options(1) };
    let refused = OpenError::OtherCluster { found: CLUSTER, expected: cluster };
    assert_eq!(open_error(&mut disk, &options), refused);
    let pool = PoolId::from_bytes([7; 16]);
    let options = OpenOptions { expected_pool: Some(pool), ..open_options(1) };
    let refused = OpenError::OtherPool { found: POOL, expected: pool };
    assert_eq!(open_error(&mut disk, &options), refused);
    let again = store::format(&mut disk, &format_options());
    assert!(matches!(again, Err(OpenError::NotBlank { .. })), "{again:?}");
    // The device shrank.
    let mut short = SimDisk::new(16 * MIB - 4096);
    let len = 16 * MIB as usize - 4096;
    short.bytes(0, len).copy_from_slice(&disk.bytes(0, len + 4096)[..len]);
    let error = open_error(&mut short, &open_options(1));
    assert!(matches!(error, OpenError::TooSmall { .. }), "{error}");
    // A filesystem was made over the start.
    disk.bytes(0, 4096).fill(0);
    disk.bytes(0, 4).copy_from_slice(b"XFSB");
    let error = open_error(&mut disk, &open_options(1));
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}

#[test]
fn superblocks_may_lose_one_copy_but_not_both() {
    for damaged in [vec![0], vec![1], vec![0, 1]] {
        let mut disk = formatted();
        for copy in &damaged {
            disk.bytes(copy * 4096 + 40, 1)[0] ^= 1;
        }
        let result = store::open(&mut disk, &open_options(1));
        if damaged.len() == 2 {
            assert_eq!(result.unwrap_err(), OpenError::SuperblocksCorrupt);
        } else {
            result.unwrap();
            // The copy was repaired.
            disk.bytes((1 - damaged[0]) * 4096 + 40, 1)[0] ^= 1;
            store::open(&mut disk, &open_options(1)).unwrap();
        }
    }
}

#[test]
fn a_newer_format_is_refused() {
    let mut disk = formatted();
    let block = disk.bytes(0, 4096);
    block[8] = 3;
    block[12..16].fill(0);
    let crc = types::crc32c(block).to_le_bytes();
    block[12..16].copy_from_slice(&crc);
    let error = open_error(&mut disk, &open_options(1));
    assert_eq!(error, OpenError::NewerFormat { found: 3, supported: 2 });
}

/// Every byte of the metadata that counts: damage is noticed, never believed.
#[test]
fn a_damaged_checkpoint_is_refused() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 2 * MIB);
    let mut disk = node.restart(1).disk;
    let first = find(&mut disk, b"HFCHECKP", 0).unwrap();
    let second = find(&mut disk, b"HFCHECKP", first + 4096).unwrap();
    for (at, len) in [(first, 40), (second, 40), (first + 4096, 120), (second + 4096, 120)] {
        for byte in (at..at + len).step_by(7) {
            disk.bytes(byte as u64, 1)[0] ^= 0x10;
            let result = store::open(&mut disk, &open_options(1));
            match result {
                Err(OpenError::CheckpointCorrupt { .. }) => {
                    disk.bytes(byte as u64, 1)[0] ^= 0x10;
                }
                // It was the area that does not count.
                Ok(store) => assert_eq!(store.replicas().len(), 1),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_damaged_log_is_cut_at_its_end_and_refused_in_its_middle() {
    let mut node = Node::new(16 * MIB);
    for n in 1..=3 {
        node.create(n, MIB);
    }
    let mut disk = node.disk;
    let first = find(&mut disk, b"HFLG", 0).unwrap();
    let blocks: Vec<usize> = (0..3).map(|block| first + block * 4096).collect();
    let damage = |at: usize| {
        let mut copy = SimDisk::new(16 * MIB);
        let len = 16 * MIB as usize;
        copy.bytes(0, len).copy_from_slice(disk.bytes(0, len));
        copy.bytes(at as u64 + 50, 1)[0] ^= 1;
        store::open(&mut copy, &open_options(1)).map(|store| store.replicas().len())
    };
    let mut damage = damage;
    assert!(matches!(damage(blocks[0]), Err(OpenError::LogCorrupt { block: 0, .. })));
    assert!(matches!(damage(blocks[1]), Err(OpenError::LogCorrupt { block: 1, .. })));
    // Nothing proves that the last one was ever durable.
    assert_eq!(damage(blocks[2]), Ok(2));
}

#[test]
fn administration_is_idempotent_durable_and_checked() {
    let mut node = Node::new(16 * MIB);
    let create = |size| Admin::CreateReplica {
        volume: volume(1),
        replica: replica(1),
        incarnation: incarnation(1),
        size,
    };
    for size in [0, 4095, 4097, types::MAX_VOLUME + 4096] {
        let refused = node.admin(create(size));
        assert!(matches!(refused, Err(StoreError::BadSize { .. })), "{size}: {refused:?}");
    }
    let refused = node.admin(create(types::MAX_VOLUME));
    assert!(matches!(refused, Err(StoreError::OverProvisioned { .. })), "{refused:?}");
    assert_eq!(node.admin(create(MIB)), Ok(()));
    assert_eq!(node.admin(create(MIB)), Ok(()));
    let refused = node.admin(create(2 * MIB));
    assert_eq!(refused, Err(StoreError::Exists { replica: replica(1), field: "size" }));
    let resize = |size| Admin::ResizeReplica { replica: replica(1), size };
    assert_eq!(node.admin(resize(3 * MIB)), Ok(()));
    assert_eq!(node.admin(resize(3 * MIB)), Ok(()));
    assert!(matches!(node.admin(resize(MIB)), Err(StoreError::Shrink { .. })));
    assert_eq!(node.admin(create(MIB)), Ok(()), "a late repeat changes nothing");
    let ghost = Admin::ResizeReplica { replica: replica(2), size: MIB };
    assert_eq!(node.admin(ghost), Err(StoreError::Unknown { replica: replica(2) }));
    let mut node = node.crash(&mut crate::disk::Rng::new(1), 2);
    assert_eq!(node.store.replicas()[0].size, 3 * MIB);
    let (session, info) = node.attach(1, 1, Role::Engine);
    assert_eq!(info.size, 3 * MIB);
    assert_eq!(node.read(session, 3 * MIB - 4096, 4096), filled(4096, 0));
}

#[test]
fn checkpoints_move_the_log_for_ever() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    let (session, _) = node.attach(1, 1, Role::Engine);
    for era in 1..400u32 {
        let byte = era as u8;
        let offset = u64::from(era % 64) * (64 << 10);
        assert_eq!(node.write(session, offset, filled(4096, byte), era), Reply::Done);
        if era % 3 == 0 {
            let reply = node.ask(session, Request::SealEra { era: types::Era(era) });
            assert_eq!(reply, Reply::Done);
        }
        if era % 50 == 0 {
            let (offset, len) = (0, 4 * MIB);
            let era = types::Era(era + 1);
            assert_eq!(node.ask(session, Request::Discard { offset, len, era }), Reply::Done);
        }
    }
    assert!(node.store.stats().checkpoints > 5, "{:?}", node.store.stats());
    let now = Instant(node.now.0 + 1);
    let disk = node.disk;
    let mut node = Node::open(disk, 1, now).unwrap();
    let (session, _) = node.attach(1, 2, Role::Engine);
    for era in 352..400u32 {
        let offset = u64::from(era % 64) * (64 << 10);
        assert_eq!(node.read(session, offset, 4096), filled(4096, era as u8));
    }
}

/// A crash after every single completion around an online checkpoint: flushed data and the map that
/// finds it must be there, whichever area counts by then.
#[test]
fn a_crash_at_any_step_of_a_checkpoint_loses_nothing() {
    let mut switched = 0;
    for seed in 1..=3 {
        for steps in (0..54).step_by(2).map(|step| step + (seed as usize & 1)) {
            let mut node = Node::new(16 * MIB);
            node.create(1, 4 * MIB);
            let (session, _) = node.attach(1, 1, Role::Engine);
            node.settle();
            let mut era = 0;
            // Each era is a log block of its tag, and one of a map.
            while node.store.stats().log_blocks < 31 {
                era += 1;
                let offset = u64::from(era) * (64 << 10);
                assert_eq!(node.write(session, offset, filled(4096, era as u8), era), Reply::Done);
            }
            assert_eq!(node.ask(session, Request::Flush), Reply::Done);
            let mut flushed = era;
            let mut last = (0, 0);
            for _ in 0..steps {
                if node.in_flight.is_empty() {
                    if last.1 != 0 && node.take(session, last.1).is_some() {
                        flushed = era;
                    }
                    era += 1;
                    let offset = u64::from(era) * (64 << 10);
                    let write = crate::node::write(offset, filled(4096, era as u8), era);
                    last = (node.send(session, write), 0);
                } else {
                    node.complete(0);
                    if last.1 == 0 && node.take(session, last.0).is_some() {
                        last.1 = node.send(session, Request::Flush);
                    }
                }
            }
            switched += node.store.stats().checkpoints;
            let mut node = node.crash(&mut crate::disk::Rng::new(seed * 100 + steps as u64), 2);
            let (session, _) = node.attach(1, 2, Role::Engine);
            for era in 1..=flushed {
                let data = node.read(session, u64::from(era) * (64 << 10), 4096);
                assert_eq!(data, filled(4096, era as u8), "seed {seed}, {steps} steps, era {era}");
            }
        }
    }
    assert!(switched > 0, "no checkpoint was completed");
}
