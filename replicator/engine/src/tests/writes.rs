//! Scenarios of foreground I/O (R4, R8, R13, R16, R24, R28, R29).

use super::attach::ms;
use super::world::{RaftMode, World};
use types::{BLOCK, BlockOp, IoError};

#[test]
fn a_write_is_acknowledged_when_every_member_has_it() {
    let (mut world, slot) = World::active(3);
    world.replicas[2].stuck_until = world.now.after(ms(700));
    let write = world.write(slot, 5, 1, false);
    world.run(ms(690));
    assert_eq!(world.result(write), None);
    world.run(ms(20));
    assert_eq!(world.result(write), Some(Ok(())));
    assert!(world.replicas.iter().all(|r| r.value(5) != 0 && r.durable_value(5) == 0), "R28");
}

#[test]
fn no_acknowledgement_before_the_shrink_is_known() {
    for mode in [RaftMode::Lost, RaftMode::Unknown, RaftMode::Silent] {
        let (mut world, slot) = World::active(2);
        world.write(slot, 6, 1, false);
        world.run(ms(10));
        world.raft.mode = mode;
        world.kill(1, false);
        let write = world.write(slot, 5, 1, false);
        let flush = world.io(slot, BlockOp::Flush);
        world.run(ms(5000));
        assert_eq!((world.result(write), world.result(flush)), (None, None), "{mode:?}");
        if mode == RaftMode::Silent {
            continue;
        }
        world.raft.mode = RaftMode::Normal;
        world.run(ms(400));
        assert_eq!((world.result(write), world.result(flush)), (Some(Ok(())), Some(Ok(()))));
        assert_eq!(world.isr(), [0]);
    }
}

#[test]
fn what_cannot_be_decided_fails_in_the_stated_time() {
    let (mut world, slot) = World::active(2);
    world.raft.mode = RaftMode::Silent;
    world.silence(1, ms(60_000));
    let write = world.write(slot, 5, 1, false);
    world.run(ms(9_900));
    assert_eq!(world.result(write), None);
    world.run(ms(500));
    assert_eq!(world.result(write), Some(Err(IoError::Io)));
    assert!(world.slots[slot].failed.is_some(), "it stays failed until restaged (R4)");
    let read = world.read(slot, 5);
    assert_eq!(world.result(read), Some(Err(IoError::Io)));
}

#[test]
fn a_short_break_before_the_shrink_commits_costs_nothing() {
    let (mut world, slot) = World::active(2);
    world.raft.mode = RaftMode::Lost;
    world.cut(1, ms(1));
    let write = world.write(slot, 5, 1, false);
    world.run(ms(1000));
    assert_eq!(world.result(write), Some(Ok(())), "it was sent again");
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

#[test]
fn reads_wait_for_all_leases() {
    let (mut world, slot) = World::active(2);
    world.raft.mode = RaftMode::Lost;
    world.run(ms(1000));
    world.silence(1, ms(6000));
    let before = world.read(slot, 5);
    world.run(ms(10));
    assert_eq!(world.result(before), Some(Ok(())), "the leases are still good");
    world.run(ms(2700));
    let after = world.read(slot, 5);
    world.run(ms(2500));
    assert_eq!(world.result(after), None, "the local copy alone may be stale");
    world.run(ms(2000));
    assert_eq!(world.result(after), Some(Ok(())), "the lease came back");

    world.silence(1, ms(60_000));
    world.run(ms(2700));
    let shrunk = world.read(slot, 5);
    world.run(ms(500));
    assert_eq!(world.result(shrunk), None);
    world.raft.mode = RaftMode::Normal;
    world.run(ms(500));
    assert_eq!((world.result(shrunk), world.isr()), (Some(Ok(())), vec![0]));
}

#[test]
fn overlapping_writes_go_one_by_one() {
    let (mut world, slot) = World::active(2);
    world.replicas[1].stuck_until = world.now.after(ms(100));
    let first = world.write(slot, 4, 3, false);
    let second = world.write(slot, 5, 1, false);
    let apart = world.write(slot, 7, 1, false);
    world.run(ms(90));
    let value = world.replicas[0].value(4);
    assert_eq!((world.replicas[0].value(5), world.result(first)), (value, None));
    assert_ne!(world.replicas[0].value(7), 0, "others pass");
    world.run(ms(50));
    for id in [first, second, apart] {
        assert_eq!(world.result(id), Some(Ok(())));
    }
    world.assert_identical();
}

#[test]
fn a_flush_syncs_everybody_once() {
    let (mut world, slot) = World::active(2);
    world.run(ms(100));
    let idle = world.io(slot, BlockOp::Flush);
    assert_eq!(world.result(idle), Some(Ok(())), "nothing was written since a clean end");
    world.write(slot, 1, 1, false);
    world.run(ms(10));
    let flush = world.io(slot, BlockOp::Flush);
    world.run(ms(10));
    let again = world.io(slot, BlockOp::Flush);
    assert_eq!((world.result(flush), world.result(again)), (Some(Ok(())), Some(Ok(()))));
    for replica in &world.replicas {
        assert_eq!((replica.flushes, replica.durable_value(1)), (1, replica.value(1)));
    }
    let fua = world.write(slot, 1, 1, true);
    world.run(ms(10));
    assert_eq!(world.result(fua), Some(Ok(())));
    assert!(world.replicas.iter().all(|r| r.flushes == 2 && r.durable_value(1) == r.value(1)));
}

#[test]
fn a_full_pool_changes_nothing() {
    for full in [vec![0, 1], vec![0], vec![1]] {
        let (mut world, slot) = World::active(2);
        world.write(slot, 0, 2, false);
        world.run(ms(10));
        full.iter().for_each(|r| world.replicas[*r].full = true);
        let before: Vec<u64> = (0..8).map(|b| world.replicas[0].value(b)).collect();
        let write = world.write(slot, 1, 4, false);
        let behind = world.write(slot, 0, 2, false);
        world.run(ms(30));
        assert_eq!(world.result(write), Some(Err(IoError::NoSpace)), "{full:?}");
        assert_eq!(world.result(behind), Some(Ok(())), "allocated blocks can be written");
        world.assert_identical();
        let after: Vec<u64> = (2..8).map(|b| world.replicas[0].value(b)).collect();
        assert_eq!((after.as_slice(), world.isr()), (&before[2..], vec![0, 1]));
    }
}

/// What was there cannot be put back: the copy that cannot say leaves, and the others agree.
#[test]
fn a_full_pool_that_cannot_be_read_is_resynced() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 2, false);
    world.run(ms(10));
    world.replicas[1].full = true;
    world.replicas[1].rot(1);
    let write = world.write(slot, 1, 4, false);
    world.run(ms(50));
    assert_eq!(world.result(write), Some(Err(IoError::NoSpace)));
    assert_eq!(world.isr(), [0]);
    world.replicas[1].full = false;
    world.run(ms(12_000));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

/// Whatever was put back by then: a copy that is back before the ISR could change leaves all the same, the write
/// is answered, and its range is free again.
#[test]
fn a_copy_that_is_lost_while_a_write_is_taken_back_leaves() {
    for (cut, lost) in (0..60).flat_map(|cut| [(cut, 0), (cut, 1)]) {
        let (mut world, slot) = World::active(4);
        world.write(slot, 0, 2, false);
        world.run(ms(10));
        world.replicas[2].full = true;
        world.disk = (4_000_000, 8_000_000);
        let write = world.write(slot, 1, 4, false);
        world.run(core::time::Duration::from_micros(500 * cut));
        // Another member is about to leave: this one cannot leave as well for its link alone.
        world.raft.mode = RaftMode::Lost;
        world.kill(3, false);
        world.run(ms(7));
        world.kill(lost, false);
        world.revive(lost);
        world.run(ms(1500));
        world.raft.mode = RaftMode::Normal;
        world.run(ms(1000));
        let behind = world.write(slot, 1, 1, false);
        world.run(ms(500));
        let results = (world.result(write), world.result(behind));
        let expected = (Some(Err(IoError::NoSpace)), Some(Ok(())));
        assert_eq!(results, expected, "cut {cut}, replica {lost}");
        world.replicas[2].full = false;
        world.revive(3);
        world.run(ms(5000));
        assert_eq!(world.isr(), [0, 1, 2, 3], "cut {cut}, replica {lost}");
        world.assert_identical();
    }
}

#[test]
fn a_full_pool_of_a_target_ends_its_resync_only() {
    let mut world = World::new(3, 2, &[0]);
    world.replicas[0].had(100, 1_000_000);
    world.replicas[1].full = true;
    let slot = world.attach(0, &[]);
    world.run(ms(1000));
    for block in 0..20 {
        let write = world.write(slot, block, 1, false);
        world.run(ms(200));
        assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0]));
    }
    world.replicas[1].full = false;
    world.run(ms(12_000));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

/// It counts, because Raft may count on it already, but it is no member that could be asked what was
/// there (R5): it leaves, and the write is done.
#[test]
fn a_full_pool_of_a_target_whose_grow_is_undecided_costs_its_place_only() {
    for mode in [RaftMode::Lost, RaftMode::Unknown] {
        let (mut world, slot) = World::joining(mode, 800);
        world.replicas[1].full = true;
        let write = world.write(slot, 2, 1, false);
        world.run(ms(2000));
        assert_eq!(world.result(write), None, "{mode:?}: it may be in the ISR already");
        world.raft.mode = RaftMode::Normal;
        world.run(ms(1000));
        assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0]), "{mode:?}");
        world.replicas[1].full = false;
        world.run(ms(12_000));
        assert_eq!(world.isr(), [0, 1]);
        world.assert_identical();
    }
}

#[test]
fn a_bad_sector_is_read_elsewhere() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 8, 1, false);
    world.run(ms(10));
    world.replicas[0].unreadable.insert(8);
    let read = world.read(slot, 8);
    world.run(ms(10));
    assert_eq!((world.result(read), world.isr()), (Some(Ok(())), vec![0, 1]));
    world.replicas.iter_mut().for_each(|replica| assert!(replica.unreadable.insert(8)));
    let read = world.read(slot, 8);
    world.run(ms(10));
    assert_eq!(world.result(read), Some(Err(IoError::Io)));
    assert_eq!(world.slots[slot].failed, None);
}

#[test]
fn a_write_error_removes_the_replica_for_good() {
    let (mut world, slot) = World::active(2);
    world.replicas[1].write_errors = true;
    let write = world.write(slot, 8, 1, false);
    world.run(ms(50));
    assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0]));
    assert_eq!(world.slots[slot].replica_failed, [1]);
    world.run(ms(5000));
    assert_eq!(world.isr(), [0], "R13");
    assert_eq!(world.slots[slot].engine.status().members[1].role, "failed");
    assert!(world.replicas[1].sessions.is_empty(), "it is left alone");
}

#[test]
fn a_write_error_of_a_resync_removes_its_target_for_good() {
    let mut world = World::new(3, 2, &[0]);
    world.replicas[0].had(100, 1_000_000);
    world.replicas[1].write_errors = true;
    let slot = world.attach(0, &[]);
    world.run(ms(3000));
    assert_eq!(
        (world.slots[slot].replica_failed.as_slice(), world.isr()),
        ([1].as_slice(), vec![0])
    );
    assert_eq!(world.slots[slot].engine.status().members[1].role, "failed");
}

#[test]
fn a_stuck_disk_is_dropped_before_the_io_fails() {
    let (mut world, slot) = World::active(2);
    world.replicas[1].stuck_until = world.now.after(ms(30_000));
    let write = world.write(slot, 8, 1, false);
    world.run(ms(7000));
    assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0]));
}

#[test]
fn nonsense_is_refused() {
    let (mut world, slot) = World::active(1);
    let table = [
        BlockOp::Read { offset: 1, len: BLOCK as u32 },
        BlockOp::Read { offset: 0, len: 0 },
        BlockOp::Read { offset: 0, len: (1 << 20) + BLOCK as u32 },
        BlockOp::Read { offset: super::world::SIZE - BLOCK, len: 2 * BLOCK as u32 },
        BlockOp::Discard { offset: super::world::SIZE, len: BLOCK },
        BlockOp::WriteZeroes { offset: u64::MAX - 4095, len: BLOCK, fua: false },
    ];
    for op in table {
        let id = world.io(slot, op.clone());
        assert_eq!(world.result(id), Some(Err(IoError::Invalid)), "{op:?}");
    }
    let largest = BlockOp::Read { offset: 0, len: 1 << 20 };
    let last = BlockOp::Read { offset: super::world::SIZE - BLOCK, len: BLOCK as u32 };
    for op in [largest, last] {
        let id = world.io(slot, op.clone());
        world.run(ms(20));
        assert_eq!(world.result(id), Some(Ok(())), "{op:?}");
    }
}

#[test]
fn what_was_served_is_counted() {
    let (mut world, slot) = World::active(2);
    for block in 0..3 {
        world.write(slot, block, 1, false);
        world.run(ms(20));
    }
    world.io(slot, BlockOp::Flush);
    world.run(ms(20));
    // Nothing was written since: it is answered at once, and is a flush all the same.
    world.io(slot, BlockOp::Flush);
    for block in 0..4 {
        world.read(slot, block);
    }
    world.run(ms(20));
    let status = world.slots[slot].engine.status();
    assert_eq!((status.reads, status.writes, status.flushes), (4, 3, 2));
}
