//! Scenarios of attach, fencing, stop (R2, R3, R8, R10, R14, R20, R22).

use super::replica::Replica;
use super::world::{RaftMode, SIZE, World};
use crate::Input;
use crate::member::{Join, Standing};
use core::time::Duration;
use types::{BlockOp, IoError};

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    /// Replicas in sync, an engine on node 0, active.
    pub(super) fn active(count: usize) -> (Self, usize) {
        let all: Vec<usize> = (0..count).collect();
        let mut world = Self::new(7, count, &all);
        let slot = world.attach(0, &[]);
        world.run(ms(100));
        assert!(world.slots[slot].engine.is_active());
        (world, slot)
    }

    pub(super) fn result(&self, id: types::IoId) -> Option<Result<(), IoError>> {
        self.results.get(&id).map(|(_, result)| result.clone().map(|_| ()))
    }

    pub(super) fn isr(&self) -> Vec<usize> {
        self.raft.isr.iter().copied().collect()
    }

    pub(super) fn assert_identical(&self) {
        for block in 0..SIZE / types::BLOCK {
            for replica in &self.replicas {
                assert_eq!(replica.value(block), self.replicas[0].value(block), "block {block}");
            }
        }
    }
}

/// R10: what a living consumer was told may be lost only if it hears of it.
#[test]
fn an_engine_that_resumes_is_poisoned_if_no_copy_kept_its_boot() {
    // (who rebooted, whether the consumer outlived the former engine, whether I/O may go on)
    let table: [(&[usize], bool, bool); 4] =
        [(&[0, 1], true, false), (&[0, 1], false, true), (&[1], true, true), (&[], true, true)];
    for (row, (rebooted, resumed, serves)) in table.into_iter().enumerate() {
        let (mut world, slot) = World::active(2);
        let write = world.write(slot, 3, 2, false);
        world.run(ms(20));
        assert_eq!(world.result(write), Some(Ok(())));
        world.slots[slot].alive = false;
        for replica in rebooted {
            world.kill(*replica, true);
            world.revive(*replica);
        }
        world.resumed = resumed;
        let next = world.attach(0, &[]);
        world.run(ms(8000));
        let slot = &world.slots[next];
        assert_eq!(slot.engine.is_active(), serves, "row {row}: {:?}", slot.failed);
        let poisoned = slot.failed.as_ref().is_some_and(|reason| reason.contains("poisoned"));
        assert_eq!(poisoned, !serves, "row {row}: {:?}", slot.failed);
    }
}

#[test]
fn after_a_clean_stop_all_stay_and_nothing_is_compared() {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 3, 2, false);
    world.run(ms(20));
    assert_eq!(world.result(write), Some(Ok(())));
    world.tell(slot, Input::Stop);
    world.run(ms(200));
    assert_eq!(world.slots[slot].stopped, Some(true));
    for replica in &world.replicas {
        assert_eq!((replica.in_use, replica.durable_value(3)), (None, replica.value(3)));
        assert!(
            replica.last_sealed > *replica.tags.values().max().unwrap() || replica.eras.len() == 1
        );
    }
    let next = world.attach(1, &[]);
    world.run(ms(100));
    assert_eq!(world.slots[next].activations, [[0, 1]]);
    assert_eq!(world.slots[next].resynced, [0; 0]);
    let flush = world.io(next, BlockOp::Flush);
    world.run(ms(10));
    assert_eq!((world.result(flush), world.replicas[0].flushes), (Some(Ok(())), 1), "skipped");
}

/// Each replica ends its session behind its answer to the close; the other one may still be at it.
#[test]
fn a_member_that_closed_first_is_not_lost() {
    for writes in 0..20 {
        let (mut world, slot) = World::active(2);
        for block in 0..writes {
            world.write(slot, block, 1, false);
        }
        world.run(ms(20));
        world.tell(slot, Input::Stop);
        world.run(ms(200));
        assert_eq!((world.slots[slot].stopped, world.isr()), (Some(true), vec![0, 1]), "{writes}");
    }
}

#[test]
fn a_stop_that_loses_a_member_ends_unclean_or_without_it() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 3, 2, false);
    world.run(ms(20));
    world.raft.mode = RaftMode::Lost;
    world.kill(1, false);
    world.tell(slot, Input::Stop);
    world.run(ms(6000));
    assert_eq!(world.slots[slot].stopped, Some(false), "the ISR could not be changed");
    assert!(world.replicas.iter().all(|r| r.in_use.is_some()));

    let (mut world, slot) = World::active(2);
    world.write(slot, 3, 2, false);
    world.run(ms(20));
    world.kill(1, false);
    world.run(ms(6));
    world.tell(slot, Input::Stop);
    world.run(ms(6000));
    assert_eq!((world.slots[slot].stopped, world.isr()), (Some(true), vec![0]));
    assert!(world.replicas[1].in_use.is_some());
}

/// R20: nothing waits for it, and nobody is called clean.
#[test]
fn a_stop_whose_member_is_lost_in_a_step_ends_unclean_at_once() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 3, 2, false);
    world.run(ms(20));
    world.replicas[1].stuck_until = world.now.after(ms(10_000));
    world.tell(slot, Input::Stop);
    world.run(ms(10));
    assert_eq!((world.replicas[0].flushes, world.replicas[1].flushes), (1, 0));
    world.kill(1, false);
    world.run(ms(1000));
    assert_eq!(world.slots[slot].stopped, Some(false));
    assert!(world.replicas.iter().all(|replica| replica.in_use.is_some()));
}

/// R20: whichever step it was in.
#[test]
fn a_stop_is_clean_only_if_whoever_is_in_the_isr_has_closed() {
    let mut clean = [0, 0];
    for cut in 0..60 {
        let (mut world, slot) = World::active(2);
        world.write(slot, 3, 2, false);
        world.run(ms(20));
        world.tell(slot, Input::Stop);
        world.run(Duration::from_micros(50 * cut));
        world.kill(1, false);
        world.run(ms(1000));
        let stopped = world.slots[slot].stopped.expect("it ends soon");
        let closed = world.isr().iter().all(|index| world.replicas[*index].in_use.is_none());
        assert!(!stopped || closed, "cut {cut}");
        clean[usize::from(stopped)] += 1;
    }
    assert!(clean[0] > 5 && clean[1] > 5, "{clean:?}");
}

/// R4: what was begun before the stop needs the smaller ISR to be acknowledged.
#[test]
fn a_stop_finishes_what_was_begun_without_the_member_that_it_loses() {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 3, 2, false);
    world.kill(1, false);
    world.tell(slot, Input::Stop);
    world.run(ms(3000));
    assert_eq!(world.result(write), Some(Ok(())));
    assert_eq!((world.slots[slot].stopped, world.isr()), (Some(true), vec![0]));
}

/// R20: whether a target is in the ISR must be known before anything is called clean.
#[test]
fn a_stop_waits_for_a_grow_that_is_undecided() {
    let (mut world, slot) = World::joining(RaftMode::Unknown, 800);
    assert_eq!(world.isr(), [0, 1]);
    world.write(slot, 3, 1, false);
    world.run(ms(20));
    world.tell(slot, Input::Stop);
    world.run(ms(500));
    assert_eq!(world.slots[slot].stopped, None);
    world.raft.mode = RaftMode::Normal;
    world.run(ms(2000));
    assert_eq!(world.slots[slot].stopped, Some(true));
    assert!(world.replicas.iter().all(|r| r.in_use.is_none() && r.durable_value(3) == r.value(3)));
}

/// Neither an answer nor the end of the connection: a network that drops everything.
#[test]
fn what_is_lost_while_a_link_is_made_is_asked_again() {
    for step in 0..24 {
        let mut world = World::new(step, 2, &[0, 1]);
        world.net = (1_000_000, 1_000_001);
        let slot = world.attach(0, &[]);
        world.run(core::time::Duration::from_micros(250 * step));
        world.cut(1, ms(600_000));
        world.run(ms(8000));
        assert!(world.slots[slot].engine.is_active(), "step {step}");
        assert_eq!(world.isr(), [0, 1], "step {step}");
    }
}

#[test]
fn small_differences_go_before_the_first_io() {
    let (mut world, slot) = World::active(2);
    world.replicas[1].stuck_until = world.now.after(ms(50));
    world.write(slot, 255, 3, false);
    world.run(ms(10));
    world.crash(slot);
    assert_ne!(world.replicas[0].value(256), world.replicas[1].value(256));
    let next = world.attach(1, &[]);
    // The old engine's lease runs out first (R3).
    world.run(ms(2500));
    assert!(!world.slots[next].engine.is_active());
    world.run(ms(700));
    assert!(world.slots[next].engine.is_active());
    assert_eq!(world.slots[next].activations, [[0, 1]]);
    assert_eq!(world.slots[next].resynced, [0], "the source is the local one");
    world.assert_identical();
}

/// R5: a sync that was begun for an earlier source says nothing of what was copied from this one.
#[test]
fn a_copy_that_gets_another_source_is_synced_again() {
    let mut world = World::new(7, 3, &[0, 1, 2]);
    for (index, replica) in world.replicas.iter_mut().enumerate() {
        replica.had(256, 5 + index as u64 % 2);
        replica.in_use = Some(replica.boot);
    }
    let usual = world.disk;
    let next = world.attach(0, &[]);
    world.replicas[1].stuck_until = world.now.after(ms(100));
    let until_flushing = |world: &mut World, wanted: bool| {
        let end = world.now.after(ms(3000));
        let flushing = |world: &World| {
            let standing = &world.slots[next].engine.members[2].standing;
            matches!(standing, Standing::Joining(Join::Flushing))
        };
        while flushing(world) != wanted {
            assert!(world.now < end);
            world.run(Duration::from_micros(20));
        }
    };
    let sync_slowly = |world: &mut World, time: u64| {
        until_flushing(world, true);
        world.disk = (time, time + 1);
        world.run(ms(1));
        world.disk = usual;
    };
    // The first sync ends while the second one is under way.
    sync_slowly(&mut world, 1_000_000_000);
    world.kill(0, false);
    until_flushing(&mut world, false);
    sync_slowly(&mut world, 800_000_000);
    while world.slots[next].activations.is_empty() {
        world.run(Duration::from_micros(20));
    }
    let replica = &world.replicas[2];
    let synced = (0..560).all(|block| replica.durable_value(block) == replica.value(block));
    assert!(synced || !world.slots[next].activations[0].contains(&2));
    world.run(ms(5000));
    assert_eq!(world.isr(), [1, 2]);
}

#[test]
fn large_differences_do_not_hold_the_first_io_up() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 255, 3, false);
    world.run(ms(10));
    world.crash(slot);
    world.run(ms(3100));
    let next = world.attach(0, &[]);
    world.run(ms(2));
    world.replicas[1].stuck_until = world.now.after(ms(3000));
    world.run(ms(900));
    assert_eq!(world.slots[next].activations.len(), 0, "up to a second is spent");
    world.run(ms(200));
    assert_eq!(world.slots[next].activations, [[0]]);
    let write = world.write(next, 255, 1, false);
    let read = world.read(next, 256);
    world.run(ms(20));
    assert_eq!(world.result(read), Some(Ok(())));
    world.run(ms(1000));
    assert_eq!(world.result(write), Some(Ok(())), "a slow resync gives its range up (R21)");
    world.run(ms(7000));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

#[test]
fn a_replica_that_lost_power_is_no_source_and_leaves() {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 0, 4, false);
    world.run(ms(10));
    assert_eq!(world.result(write), Some(Ok(())));
    world.crash(slot);
    world.kill(0, true);
    world.revive(0);
    // Node 0 is local, but replica 1 has what replica 0 may have lost.
    let next = world.attach(0, &[]);
    world.run(ms(4000));
    assert_eq!(world.slots[next].activations, [[1]]);
    assert_eq!(world.isr(), [0, 1], "it is resynced behind");
    world.assert_identical();
    assert_ne!(world.replicas[0].value(3), 0);
}

#[test]
fn after_power_loss_of_all_one_is_chosen() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 4, false);
    world.write(slot, 300, 4, false);
    world.run(ms(10));
    world.crash(slot);
    (0..2).for_each(|r| {
        world.kill(r, true);
        world.revive(r);
    });
    let next = world.attach(1, &[]);
    world.run(ms(9000));
    assert_eq!(
        (world.slots[next].activations.as_slice(), world.isr()),
        ([vec![1]].as_slice(), vec![0, 1])
    );
    world.assert_identical();
}

#[test]
fn a_lost_member_is_not_waited_for() {
    for (lost, wait) in [(vec![1], 50), (vec![], 1100)] {
        let mut world = World::new(1, 2, &[0, 1]);
        world.silence(1, ms(60_000));
        let slot = world.attach(0, &lost);
        world.run(ms(wait));
        assert!(world.slots[slot].engine.is_active(), "{lost:?}");
        assert_eq!(world.isr(), [0]);
    }
}

#[test]
fn without_any_member_the_attach_fails_in_time() {
    let mut world = World::new(1, 3, &[1, 2]);
    world.silence(1, ms(60_000));
    world.kill(2, false);
    let slot = world.attach(0, &[]);
    world.run(ms(9_900));
    assert_eq!(world.slots[slot].failed, None);
    world.run(ms(400));
    assert!(world.slots[slot].failed.is_some(), "replica 0 is not in the ISR (R2)");
}

/// R25: it would fail what lies beyond its end. Once it is grown it is a copy like any other.
#[test]
fn a_copy_that_missed_an_expansion_is_left_out_until_it_has_grown() {
    let mut world = World::new(1, 2, &[0, 1]);
    world.replicas[1].size = SIZE / 2;
    let slot = world.attach(0, &[]);
    world.run(ms(3000));
    assert_eq!(
        (world.slots[slot].activations.as_slice(), world.isr()),
        ([vec![0]].as_slice(), vec![0])
    );
    let write = world.write(slot, 559, 1, false);
    world.run(ms(20));
    assert_eq!(world.result(write), Some(Ok(())));
    world.replicas[1].size = SIZE;
    world.run(ms(3000));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

/// An engine is gone, and what it had acknowledged is not flushed on either of two copies.
fn left_behind() -> World {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 255, 3, false);
    world.run(ms(10));
    assert_eq!(world.result(write), Some(Ok(())));
    world.crash(slot);
    world.run(ms(3100));
    world
}

/// Engine `slot` began with the second copy alone, and the first one has got from it what was left behind.
fn assert_taken_from_the_second(world: &World, slot: usize) {
    assert_eq!(world.slots[slot].activations, [[1]]);
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
    assert_ne!(world.replicas[0].value(256), 0);
}

/// The other copy is left out of the attachment for being slow, so it must not be the only whole one.
#[test]
fn a_source_that_lost_its_memory_behind_a_live_link_is_noticed_before_it_serves_alone() {
    let mut world = left_behind();
    // On a third node: neither copy is local.
    let next = world.attach(5, &[]);
    world.run(ms(2));
    world.replicas[1].stuck_until = world.now.after(ms(3000));
    world.run(ms(500));
    world.reboot_unnoticed(0);
    world.run(ms(8000));
    assert_taken_from_the_second(&world, next);
}

/// Nor if nobody else had sealed: whoever has everything may only be slow. Found by the simulation.
#[test]
fn an_only_source_that_lost_its_memory_behind_a_live_link_is_noticed_before_it_serves() {
    let mut world = left_behind();
    world.silence(1, ms(5000));
    let next = world.attach(5, &[]);
    // Sealed; the other one cannot be connected to.
    world.run(core::time::Duration::from_micros(500));
    world.reboot_unnoticed(0);
    world.run(ms(12_000));
    assert_taken_from_the_second(&world, next);
}

#[test]
fn a_failed_engine_says_why() {
    let (mut world, slot) = World::active(2);
    assert_eq!(world.slots[slot].engine.status().failed, None);
    world.tell(slot, Input::Fenced);
    let failed = world.slots[slot].engine.status().failed.unwrap();
    assert!(failed.contains("later epoch"), "{failed}");
}

#[test]
fn a_superseded_engine_fails_everything_at_once() {
    let (mut world, old) = World::active(2);
    world.run(ms(50));
    world.attach(1, &[]);
    world.run(ms(20));
    let write = world.write(old, 0, 1, false);
    let read = world.read(old, 0);
    world.run(ms(5000));
    assert!(world.result(write).unwrap().is_err());
    assert!(world.result(read).unwrap().is_err() || world.slots[1].activations.is_empty());
    assert!(world.slots[old].failed.is_some());
    let late = world.read(old, 0);
    assert_eq!(world.result(late), Some(Err(IoError::Fenced)));

    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 0, 1, false);
    world.tell(slot, Input::Fenced);
    assert_eq!(world.result(write), Some(Err(IoError::Fenced)));
}

#[test]
fn the_first_flush_covers_what_an_older_engine_acknowledged() {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 9, 1, false);
    world.run(ms(20));
    assert_eq!(world.result(write), Some(Ok(())));
    world.crash(slot);
    let next = world.attach(0, &[]);
    world.run(ms(3500));
    let flush = world.io(next, BlockOp::Flush);
    world.run(ms(20));
    assert_eq!(world.result(flush), Some(Ok(())));
    assert!(world.replicas.iter().all(|r| r.durable_value(9) == r.value(9) && r.value(9) != 0));
}

#[test]
fn a_frozen_process_does_not_blame_its_peers() {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 0, 1, false);
    let read = world.read(slot, 0);
    world.now = world.now.after(ms(15_000));
    world.run(ms(500));
    assert_eq!(world.result(write), Some(Ok(())), "{:?}", world.slots[slot].failed);
    assert_eq!(world.result(read), Some(Ok(())));
    assert_eq!(world.isr(), [0, 1]);
}

/// R11: a copy that comes back as an older image of itself counts for nothing any more.
#[test]
fn an_older_image_is_failed_at_attach() {
    let (mut world, slot) = World::active(2);
    let write = world.write(slot, 3, 2, false);
    world.run(ms(20));
    assert_eq!(world.result(write), Some(Ok(())));
    world.slots[slot].alive = false;
    let size = world.size;
    world.restore(0, Replica::new(size));
    let next = world.attach(0, &[]);
    world.run(ms(8000));
    assert!(world.slots[next].engine.is_active(), "{:?}", world.slots[next].failed);
    assert_eq!((world.isr(), world.slots[next].replica_failed[0]), (vec![1], 0));
    let read = world.read(next, 3);
    world.run(ms(20));
    assert_eq!(world.result(read), Some(Ok(())), "what was written, as the history knows");
}

/// Likewise within one attachment: Raft knows nothing of its eras, the engine does.
#[test]
fn an_older_image_is_failed_where_an_engine_knows_it() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 3, 2, false);
    world.run(ms(20));
    let image = world.replicas[1].clone();
    world.run(ms(35_000));
    assert_eq!(world.replicas[1].eras.len(), 1);
    world.restore(1, image);
    world.run(ms(5000));
    assert_eq!((world.isr(), world.slots[slot].replica_failed[0]), (vec![0], 1));
}
