//! Scenarios of blocks that a replica has but cannot serve.

use super::attach::ms;
use super::world::{RaftMode, SIZE, World};
use crate::Input;
use types::{BlockOp, IoError};

/// Two in-sync replicas with something in the blocks 0 to 39.
fn written() -> (World, usize) {
    let (mut world, slot) = World::active(2);
    for block in 0..40 {
        world.write(slot, block, 1, false);
    }
    world.run(ms(50));
    (world, slot)
}

#[test]
fn what_a_read_finds_rotten_comes_from_the_other_copy_and_is_repaired() {
    let (mut world, slot) = written();
    [3, 5, 17, 30].into_iter().for_each(|block| world.replicas[0].rot(block));
    let read = world.io(slot, BlockOp::Read { offset: 0, len: 32 << 12 });
    world.run(ms(100));
    assert!(matches!(world.result(read), Some(Ok(()))));
    assert_eq!((world.repaired.as_slice(), world.unrepairable), ([4, 0].as_slice(), 0));
    let status = world.slots[slot].engine.status();
    assert_eq!((status.repaired, status.unrepairable), (4, 0));
    assert!(world.replicas[0].rotten.is_empty());
    world.assert_identical();
    assert_eq!(world.isr(), [0, 1], "it costs nobody its place");
}

#[test]
fn what_the_disk_cannot_read_is_written_again() {
    let (mut world, slot) = written();
    world.replicas[0].unreadable.insert(20);
    let read = world.read(slot, 20);
    world.run(ms(100));
    assert!(matches!(world.result(read), Some(Ok(()))));
    assert_eq!(world.repaired, [16, 0], "the whole unit: nobody says which block it is");
    world.assert_identical();
}

#[test]
fn a_read_of_blocks_that_are_bad_here_and_there_is_put_together() {
    let (mut world, slot) = written();
    [3, 5].into_iter().for_each(|block| world.replicas[0].rot(block));
    [4, 30].into_iter().for_each(|block| world.replicas[1].rot(block));
    let read = world.io(slot, BlockOp::Read { offset: 0, len: 32 << 12 });
    world.run(ms(100));
    assert_eq!(world.result(read), Some(Ok(())));
    world.replicas.iter_mut().for_each(|replica| replica.rot(9));
    let read = world.io(slot, BlockOp::Read { offset: 0, len: 32 << 12 });
    world.run(ms(100));
    assert_eq!(world.result(read), Some(Err(IoError::Io)));
    assert!(world.slots[slot].engine.is_active());
}

#[test]
fn what_nobody_has_is_an_error_and_is_counted_by_a_comparison() {
    let (mut world, slot) = written();
    for replica in &mut world.replicas {
        replica.rot(7);
    }
    world.replicas[1].rot(25);
    let read = world.read(slot, 7);
    world.run(ms(100));
    assert!(matches!(world.result(read), Some(Err(IoError::Io))));
    world.tell(slot, Input::Compare { ticket: 1 });
    world.run(ms(1000));
    let result = world.slots[slot].compared[0].unwrap();
    // Block 7 on each of the two.
    assert_eq!((result.repaired, result.unrepairable, result.different), (1, 2, 0));
    let status = world.slots[slot].engine.status();
    assert_eq!(
        (status.repaired, status.unrepairable),
        (1, 2 + 2),
        "the read has found both before"
    );
    assert!(world.slots[slot].engine.is_active());
    // Writing it is all that helps.
    world.write(slot, 7, 1, false);
    world.tell(slot, Input::Compare { ticket: 2 });
    world.run(ms(1000));
    let result = world.slots[slot].compared[1].unwrap();
    assert_eq!((result.repaired, result.unrepairable, result.different), (0, 0, 0));
    world.assert_identical();
}

#[test]
fn writes_wait_for_a_repair_and_are_not_undone_by_it() {
    let (mut world, slot) = written();
    world.replicas[1].rot(9);
    world.tell(slot, Input::Compare { ticket: 1 });
    for _ in 0..40 {
        world.write(slot, 8, 4, false);
        world.run(ms(1));
    }
    world.run(ms(1000));
    world.assert_identical();
    assert!(world.replicas[1].rotten.is_empty());
}

#[test]
fn a_target_with_rot_is_overwritten_and_a_source_with_rot_waits_for_its_own_repair() {
    let mut world = World::new(1, 3, &[0, 1, 2]);
    let slot = world.attach(0, &[]);
    world.run(ms(500));
    for block in 0..40 {
        world.write(slot, block, 1, false);
    }
    world.run(ms(50));
    world.kill(2, false);
    world.write(slot, 1, 1, false);
    world.run(ms(2000));
    assert_eq!(world.isr(), [0, 1]);
    world.replicas[2].rot(2);
    world.replicas[0].rot(3);
    world.revive(2);
    world.run(ms(5000));
    assert_eq!(world.isr(), [0, 1, 2]);
    assert_eq!(world.repaired, [1, 0, 0]);
    assert!(world.replicas.iter().all(|replica| replica.rotten.is_empty()));
    world.assert_identical();
}

#[test]
fn a_replica_that_is_lost_during_its_repair_leaves_and_resyncs() {
    // Wherever the cut falls: the write may have been under way, and it is forgotten what is rotten.
    for cut in 0..60 {
        let mut world = World::new(cut, 3, &[0, 1, 2]);
        let slot = world.attach(0, &[]);
        world.run(ms(500));
        for block in 0..40 {
            world.write(slot, block, 1, false);
        }
        world.run(ms(32_000));
        world.replicas[1].forgets_checksums = true;
        (0..40).for_each(|block| world.replicas[1].rot(block));
        // Another member is about to leave: the engine cannot have this one leave as well for its
        // link alone, which is back before that is settled.
        world.raft.mode = RaftMode::Lost;
        world.kill(2, false);
        world.run(ms(50));
        world.tell(slot, Input::Compare { ticket: 1 });
        world.run(core::time::Duration::from_micros(cut * 400));
        world.kill(1, false);
        world.revive(1);
        world.run(ms(1000));
        world.raft.mode = RaftMode::Normal;
        world.revive(2);
        world.run(ms(5000));
        world.tell(slot, Input::Compare { ticket: 2 });
        world.run(ms(2000));
        assert_eq!(world.isr(), [0, 1, 2], "cut {cut}");
        assert!(world.slots[slot].compared.last().unwrap().is_some(), "cut {cut}");
        assert!(world.replicas[1].rotten.is_empty(), "cut {cut}");
        world.assert_identical();
    }
}

#[test]
fn a_repair_is_not_left_behind_by_a_stop() {
    let (mut world, slot) = written();
    (0..40).for_each(|block| world.replicas[1].rot(block));
    world.tell(slot, Input::Compare { ticket: 1 });
    world.run(ms(3));
    world.tell(slot, Input::Stop);
    world.run(ms(2000));
    assert_eq!(world.slots[slot].stopped, Some(true));
    world.assert_identical();
}

#[test]
fn a_replica_under_repair_stays_when_the_one_that_gives_is_lost() {
    for cut in 0..40 {
        let (mut world, slot) = written();
        // Node 0's copy is the one that gives; the engine runs on node 0 all the same.
        (0..40).for_each(|block| world.replicas[1].rot(block));
        world.tell(slot, Input::Compare { ticket: 1 });
        world.run(core::time::Duration::from_micros(cut * 400));
        world.kill(0, false);
        world.run(ms(3000));
        assert_eq!(world.isr(), [1], "cut {cut}");
        let write = world.write(slot, 300, 1, false);
        world.run(ms(100));
        assert_eq!(world.result(write), Some(Ok(())), "cut {cut}");
        // What was still rotten then comes from nowhere until it is written again.
        for block in 0..40 {
            world.write(slot, block, 1, false);
        }
        world.revive(0);
        world.run(ms(5000));
        assert_eq!(world.isr(), [0, 1], "cut {cut}");
        world.assert_identical();
    }
}

/// R15: what the network damages is not used, wherever it was wanted.
#[test]
fn what_arrives_damaged_is_asked_for_again() {
    // A read, by an engine without a copy of its own: what never left the host is not checked again.
    let mut world = World::new(7, 2, &[0, 1]);
    let slot = world.attach(5, &[]);
    world.run(ms(100));
    world.write(slot, 7, 1, false);
    world.run(ms(20));
    world.replicas[0].garbled = 1;
    let read = world.read(slot, 7);
    world.run(ms(3000));
    assert_eq!((world.result(read), world.isr()), (Some(Ok(())), vec![0, 1]));
    assert_eq!(world.replicas[0].garbled, 0);
    // What a repair takes from the other copy.
    let (mut world, slot) = written();
    world.replicas[0].rot(7);
    world.replicas[1].garbled = 1;
    world.read(slot, 7);
    world.run(ms(5000));
    let read = world.read(slot, 7);
    world.run(ms(5000));
    assert_eq!((world.result(read), world.isr()), (Some(Ok(())), vec![0, 1]));
    assert!(world.replicas[0].rotten.is_empty() && world.replicas[1].garbled == 0);
    world.assert_identical();
    // What a resync copies.
    let mut world = World::new(7, 2, &[0]);
    world.replicas[0].had(9, 1_000_000);
    world.replicas[0].garbled = 1;
    world.attach(5, &[]);
    world.run(ms(10_000));
    assert_eq!((world.isr(), world.replicas[1].value(9)), (vec![0, 1], 1_000_000));
    assert_eq!(world.replicas[0].garbled, 0);
    // What is put back behind a write that found no room.
    let (mut world, slot) = written();
    world.replicas[1].full = true;
    world.replicas[1].garbled = 1;
    let write = world.write(slot, 38, 4, false);
    world.run(ms(50));
    assert_eq!(world.result(write), Some(Err(IoError::NoSpace)));
    assert_eq!(world.replicas[1].garbled, 0);
    world.replicas[1].full = false;
    world.run(ms(12_000));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

/// A pass says something about every copy that counts, or nothing.
#[test]
fn nothing_counts_as_scrubbed_while_a_copy_is_out_of_reach() {
    let mut world = World::new(7, 2, &[0, 1]);
    world.scrub = ms(10_000);
    let slot = world.attach(0, &[]);
    world.run(ms(20_000));
    let checked = |world: &World| world.slots[slot].engine.status().scrub.checked;
    assert!(checked(&world) >= SIZE);
    world.raft.mode = RaftMode::Lost;
    world.kill(1, false);
    world.run(ms(50));
    let before = checked(&world);
    world.run(ms(8000));
    assert_eq!(checked(&world), before);
    world.revive(1);
    world.run(ms(20_000));
    assert!(checked(&world) > before);
}

#[test]
fn the_scrub_finds_what_nobody_reads_at_a_steady_pace() {
    let mut world = World::new(1, 2, &[0, 1]);
    // Three regions, one every 20 s.
    world.scrub = ms(60_000);
    let slot = world.attach(0, &[]);
    world.run(ms(500));
    for block in [1, 300, 559] {
        world.write(slot, block, 1, false);
    }
    world.run(ms(100));
    world.replicas[1].rot(1);
    world.replicas[1].rot(300);
    world.replicas[0].rot(559);
    let status = |world: &World| world.slots[slot].engine.status().scrub;
    world.run(ms(18_000));
    assert_eq!(status(&world).checked, 0);
    world.run(ms(24_000));
    assert!(status(&world).finished.is_none());
    world.run(ms(22_000));
    assert_eq!(status(&world).checked, SIZE);
    assert!(status(&world).finished.is_some());
    assert_eq!((world.repaired.as_slice(), world.unrepairable), ([1, 2].as_slice(), 0));
    // Over and over, and no faster.
    world.run(ms(120_000));
    assert_eq!(status(&world).checked, 3 * SIZE);
    assert_eq!(world.repaired, [1, 2]);
    // What differs without a checksum that tells is reported and left alone.
    let was = world.replicas[1].blocks.insert(300, (7, 0)).unwrap();
    world.run(ms(60_000));
    assert_eq!((world.differing, world.replicas[1].value(300)), (1, 7));
    world.replicas[1].blocks.insert(300, was);
}
