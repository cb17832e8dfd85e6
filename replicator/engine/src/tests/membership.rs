//! Scenarios of members that leave and come back (R5, R9, R10, R16, R18, R19, R21).

use super::attach::ms;
use super::replica::Replica;
use super::world::{RaftMode, SIZE, World, replica_id};
use crate::Input;
use crate::member::Standing;
use crate::resync::Stage;
use types::{BlockOp, Era, IoError, REGION};

#[test]
fn a_member_that_was_away_catches_up_and_rejoins() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 2, false);
    world.run(ms(20));
    world.kill(1, false);
    for block in [1, 256, 559] {
        world.write(slot, block, 1, false);
    }
    world.run(ms(2000));
    assert_eq!(world.isr(), [0]);
    world.revive(1);
    world.run(ms(2000));
    assert_eq!((world.isr(), world.slots[slot].resynced.as_slice()), (vec![0, 1], [1].as_slice()));
    world.assert_identical();
    let replica = &world.replicas[1];
    assert!([1, 256, 559].iter().all(|b| replica.durable_value(*b) == replica.value(*b)), "R5");
}

#[test]
fn only_what_may_differ_is_compared() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.write(slot, 300, 1, false);
    world.run(ms(32_000));
    assert!(world.replicas.iter().all(|r| r.eras == [Era(1)]), "an era was sealed (R18)");
    world.kill(1, false);
    world.write(slot, 512, 1, false);
    world.run(ms(1000));
    world.revive(1);
    world.run(ms(3000));
    assert_eq!(world.isr(), [0, 1]);
    let progress = world.slots[slot].engine.status().members[1].progress;
    let compared = (progress.total, progress.compared);
    assert_eq!((compared, progress.copied), ((192 << 10, 192 << 10), 64 << 10), "{progress:?}");
}

/// R19: a write that the source alone was sent is on its disk before the source says what may differ.
#[test]
fn what_was_begun_without_the_target_is_not_missed_by_its_resync() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.run(ms(32_000));
    world.kill(1, false);
    world.run(ms(1000));
    assert_eq!(world.isr(), [0]);
    let usual = world.disk;
    world.disk = (1_000_000_000, 1_000_000_001);
    let write = world.write(slot, 300, 1, false);
    world.run(ms(5));
    world.disk = usual;
    world.revive(1);
    world.run(ms(900));
    assert_eq!((world.result(write), world.isr()), (None, vec![0]));
    let standing = &world.slots[slot].engine.members[1].standing;
    assert!(matches!(standing, Standing::Syncing(_)), "it is being resynced: {standing:?}");
    world.run(ms(2000));
    assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0, 1]));
    world.assert_identical();
}

#[test]
fn a_resync_does_not_wait_for_writes_that_its_target_has_too() {
    let (mut world, slot) = World::active(2);
    // There is always something in flight.
    world.disk = (2_000_000, 4_000_000);
    for round in 0..3000 {
        match round {
            1000 => world.kill(1, false),
            2000 => world.revive(1),
            _ => {}
        }
        world.write(slot, round % 500, 1, false);
        world.run(ms(1));
    }
    assert_eq!(world.isr(), [0, 1]);
}

/// R18: an era in which nothing was written tells nothing.
#[test]
fn an_idle_volume_seals_no_eras() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.run(ms(200_000));
    assert!(world.replicas.iter().all(|replica| replica.eras == [Era(1)]));
}

#[test]
fn a_source_that_lost_what_the_target_has_sealed_is_compared() {
    let mut world = World::new(3, 2, &[0]);
    for (replica, value, sealed) in [(0, 235, 5), (1, 257, 6)] {
        let tag = |era| types::Tag { epoch: types::Epoch(0), era: Era(era) };
        let replica = &mut world.replicas[replica];
        replica.blocks.insert(16, (value, 1));
        replica.tags.insert(0, tag(6));
        replica.last_sealed = tag(sealed);
    }
    world.attach(0, &[]);
    world.run(ms(2000));
    assert_eq!((world.isr(), world.replicas[1].value(16)), (vec![0, 1], 235));
}

/// R19: a copy that joins may hold what was written meanwhile without a single write, as a new one does what
/// was discarded. Who left before must be compared with it all the same. Found by the simulation.
#[test]
fn what_a_new_copy_held_already_is_compared_with_who_returns() {
    let mut world = World::new(7, 3, &[0, 1]);
    world.kill(2, false);
    let slot = world.attach(0, &[2]);
    world.run(ms(100));
    world.write(slot, 5, 1, false);
    world.run(ms(32_000));
    assert_eq!(world.replicas[1].eras, [Era(1)]);
    world.kill(1, false);
    world.io(slot, BlockOp::Discard { offset: 0, len: REGION });
    world.run(ms(2000));
    world.revive(2);
    world.run(ms(2000));
    assert_eq!(world.isr(), [0, 2]);
    world.tell(slot, Input::Stop);
    world.run(ms(500));
    world.attach(2, &[]);
    world.run(ms(500));
    world.revive(1);
    world.run(ms(3000));
    assert_eq!((world.isr(), world.replicas[1].value(5)), (vec![0, 1, 2], 0));
}

#[test]
fn eras_are_sealed_under_load() {
    let (mut world, slot) = World::active(2);
    for round in 0..700 {
        world.write(slot, round % 500, 1, false);
        world.run(ms(100));
    }
    assert_eq!(world.replicas[0].eras, [Era(1), Era(2)]);
    assert_eq!(world.replicas[1].eras, [Era(1), Era(2)]);
}

#[test]
fn a_rebooted_member_leaves_and_resyncs() {
    let (mut world, slot) = World::active(2);
    for block in 0..40 {
        world.write(slot, block, 1, false);
    }
    world.run(ms(50));
    world.raft.mode = RaftMode::Lost;
    world.kill(1, true);
    world.revive(1);
    world.run(ms(1000));
    let write = world.write(slot, 3, 1, false);
    let flush = world.io(slot, BlockOp::Flush);
    world.run(ms(1000));
    assert_eq!((world.result(write), world.result(flush)), (None, None), "its word counts no more");
    world.raft.mode = RaftMode::Normal;
    world.run(ms(3000));
    assert_eq!((world.result(write), world.result(flush)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
    assert_ne!(world.replicas[1].value(39), 0);
}

/// R4, R9: what a member acknowledged before it lost its memory is owed again, while others are still at it.
#[test]
fn a_rebooted_member_owes_again_what_is_not_complete() {
    let (mut world, slot) = World::active(3);
    world.raft.mode = RaftMode::Lost;
    world.replicas[2].stuck_until = world.now.after(ms(1400));
    let write = world.write(slot, 5, 1, false);
    world.run(ms(20));
    world.kill(1, true);
    world.revive(1);
    world.run(ms(2000));
    assert_ne!(world.replicas[2].value(5), 0, "it has written by now");
    assert_eq!(world.result(write), None, "one of the ISR may lack it");
    world.raft.mode = RaftMode::Normal;
    world.run(ms(5000));
    assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0, 1, 2]));
    world.assert_identical();
}

/// R4: nobody leaves for somebody who is not there any more. One copy stands still, the host of the other one loses
/// power behind a link that still looks alive; neither is on the engine's host.
#[test]
fn nobody_leaves_before_one_that_stays_has_spoken() {
    let mut world = World::new(7, 2, &[0, 1]);
    let slot = world.attach(5, &[]);
    world.run(ms(100));
    let write = world.write(slot, 5, 1, false);
    world.run(ms(20));
    assert_eq!(world.result(write), Some(Ok(())));
    world.silence(1, ms(4000));
    world.run(ms(1500));
    world.reboot_unnoticed(0);
    world.run(ms(8000));
    let read = world.read(slot, 5);
    world.run(ms(1000));
    assert_eq!((world.result(read), world.isr()), (Some(Ok(())), vec![0, 1]));
    assert_ne!(world.replicas[0].value(5), 0);
    world.assert_identical();
}

#[test]
fn the_only_member_is_waited_for_and_sent_to_again() {
    let mut world = World::new(5, 1, &[0]);
    let slot = world.attach(0, &[]);
    world.run(ms(100));
    world.kill(0, false);
    let write = world.write(slot, 2, 1, false);
    world.run(ms(3000));
    assert_eq!(world.result(write), None);
    world.revive(0);
    world.run(ms(1000));
    assert_eq!(world.result(write), Some(Ok(())));
}

#[test]
fn the_only_member_with_lost_writes_poisons_the_device() {
    for flushed in [false, true] {
        let mut world = World::new(5, 1, &[0]);
        let slot = world.attach(0, &[]);
        world.run(ms(100));
        world.write(slot, 2, 1, flushed);
        world.run(ms(20));
        world.kill(0, true);
        world.revive(0);
        world.run(ms(2000));
        let read = world.read(slot, 2);
        world.run(ms(20));
        let expected = if flushed { Ok(()) } else { Err(IoError::Io) };
        assert_eq!(world.result(read), Some(expected), "R10");
    }
}

#[test]
fn all_members_with_lost_writes_poison_the_device() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 2, 1, false);
    world.run(ms(20));
    for replica in 0..2 {
        world.kill(replica, true);
        world.revive(replica);
    }
    world.run(ms(3000));
    assert!(world.slots[slot].failed.is_some());
}

impl World {
    /// A second copy is resynced and proposed, which Raft treats as `mode` says for `time` milliseconds.
    pub(super) fn joining(mode: RaftMode, time: u64) -> (Self, usize) {
        let mut world = Self::new(9, 2, &[0]);
        let slot = world.attach(0, &[]);
        world.run(ms(8));
        world.raft.mode = mode;
        world.run(ms(time));
        (world, slot)
    }
}

#[test]
fn while_a_grow_is_undecided_the_target_counts() {
    let (mut world, slot) = World::joining(RaftMode::Unknown, 800);
    assert_eq!((world.isr(), world.slots[slot].resynced.as_slice()), (vec![0, 1], [1].as_slice()));
    world.silence(1, ms(60_000));
    let write = world.write(slot, 2, 1, false);
    world.run(ms(2600));
    let read = world.read(slot, 2);
    world.run(ms(2000));
    assert_eq!(world.result(write), None, "it may be in the ISR already");
    assert_eq!(world.result(read), None, "it may be another engine's source already");
    world.raft.mode = RaftMode::Normal;
    world.run(ms(1000));
    assert_eq!((world.result(write), world.result(read)), (Some(Ok(())), Some(Ok(()))));
    assert_eq!(world.isr(), [0]);
}

#[test]
fn a_target_has_a_write_before_the_next_one_on_its_range() {
    let mut world = World::new(9, 2, &[0]);
    (0..560).for_each(|block| world.replicas[0].had(block, 1_000_000 + block));
    world.replicas[1].stuck_until = world.now.after(ms(900));
    let slot = world.attach(0, &[]);
    world.run(ms(600));
    let first = world.write(slot, 559, 1, false);
    let second = world.write(slot, 559, 1, false);
    world.run(ms(200));
    assert_eq!((world.result(first), world.result(second)), (Some(Ok(())), None), "R5, R16");
    world.run(ms(2000));
    assert_eq!(world.result(second), Some(Ok(())));
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

/// Raft is asked again at a pace that it can stand, whether it cannot tell or says no.
#[test]
fn a_change_that_is_not_made_is_asked_for_again_at_a_pace() {
    for mode in [RaftMode::Lost, RaftMode::Refused] {
        let (mut world, slot) = World::active(2);
        world.raft.mode = mode;
        world.kill(1, false);
        let write = world.write(slot, 5, 1, false);
        world.run(ms(3000));
        let asked = world.raft.proposals;
        assert!((10..=20).contains(&asked), "{mode:?}: {asked} times in 3 s");
        assert_eq!(world.result(write), None);
        world.raft.mode = RaftMode::Normal;
        world.run(ms(300));
        assert_eq!((world.result(write), world.isr()), (Some(Ok(())), vec![0]));
    }
}

/// It may have missed something meanwhile, whatever the reason was.
#[test]
fn a_target_that_raft_refuses_is_resynced_again() {
    let (mut world, slot) = World::joining(RaftMode::Refused, 5000);
    let (asked, resynced) = (world.raft.proposals, world.slots[slot].resynced.len() as u64);
    assert!(asked <= 10 && resynced >= 3 && resynced <= asked, "{asked} times, {resynced} resyncs");
    world.raft.mode = RaftMode::Normal;
    world.run(ms(3000));
    assert_eq!(world.isr(), [0, 1]);
}

/// The reconciler tells an engine of its members again and again.
#[test]
fn news_of_the_members_do_not_hold_a_resync_up() {
    let mut world = World::new(9, 2, &[0]);
    (0..560).for_each(|block| world.replicas[0].had(block, 1_000_000 + block));
    let slot = world.attach(0, &[]);
    for _ in 0..1500 {
        world.run(ms(1));
        let specs = (0..2).map(|index| world.member(index, 0, &[])).collect();
        world.tell(slot, Input::Members(specs));
    }
    assert_eq!(world.isr(), [0, 1]);
    world.assert_identical();
}

#[test]
fn an_engine_has_at_most_sixteen_members() {
    let (mut world, slot) = World::active(2);
    let specs = (0..40).map(|index| world.member(index, 0, &[])).collect();
    world.tell(slot, Input::Members(specs));
    assert_eq!(world.slots[slot].engine.status().members.len(), 16);
}

#[test]
fn one_comparison_at_a_time_and_only_while_active() {
    let (mut world, slot) = World::active(2);
    world.tell(slot, Input::Compare { ticket: 1 });
    world.tell(slot, Input::Compare { ticket: 2 });
    assert_eq!(world.slots[slot].compared, [None]);
    world.run(ms(100));
    assert_eq!(world.slots[slot].compared.len(), 2);
    assert!(world.slots[slot].compared[1].is_some_and(|result| result.bytes == SIZE));
    world.tell(slot, Input::Stop);
    world.run(ms(200));
    world.tell(slot, Input::Compare { ticket: 3 });
    assert_eq!(world.slots[slot].compared[2..], [None]);
}

/// A volume's size is a multiple of its blocks, not of what is compared at once.
#[test]
fn the_odd_end_of_a_volume_is_resynced_and_compared() {
    let mut world = World::new(9, 2, &[0]);
    world.size = SIZE - 3 * types::BLOCK;
    let end = world.size / types::BLOCK;
    for replica in &mut world.replicas {
        replica.size = end * types::BLOCK;
    }
    world.replicas[0].had(end - 1, 1_000_000);
    let slot = world.attach(0, &[]);
    world.run(ms(3000));
    assert_eq!((world.isr(), world.replicas[1].value(end - 1)), (vec![0, 1], 1_000_000));
    world.replicas[1].blocks.insert(end - 1, (99, 99));
    world.tell(slot, Input::Compare { ticket: 1 });
    world.run(ms(100));
    let result = world.slots[slot].compared[0].unwrap();
    assert_eq!((result.different, result.bytes), (1, world.size));
    assert!((end..SIZE / types::BLOCK).all(|block| world.replicas[1].value(block) == 0));
}

#[test]
fn a_comparison_finds_every_difference() {
    let (mut world, slot) = World::active(3);
    world.write(slot, 0, 4, false);
    world.run(ms(20));
    world.tell(slot, Input::Compare { ticket: 1 });
    world.run(ms(100));
    world.replicas[2].blocks.insert(17, (99, 99));
    world.replicas[1].blocks.insert(559, (98, 98));
    world.tell(slot, Input::Compare { ticket: 2 });
    world.run(ms(100));
    let counts: Vec<_> =
        world.slots[slot].compared.iter().map(|r| r.map(|r| (r.different, r.replicas))).collect();
    assert_eq!(counts, [Some((0, 3)), Some((2, 3))]);
    world.tell(slot, Input::Compare { ticket: 3 });
    world.cut(1, ms(1));
    world.run(ms(100));
    assert_eq!(world.slots[slot].compared.len(), 3, "it is answered in any case");
}

impl World {
    /// Another replica, which holds nothing.
    fn add_replica(&mut self) -> usize {
        self.replicas.push(Replica::new(SIZE));
        self.power_lost.push(None);
        self.repaired.push(0);
        self.replicas.len() - 1
    }

    /// Raft takes the newest replica for a new one; the ISR stays.
    pub(super) fn replace_newest(&mut self, slot: usize) -> usize {
        let old = self.replicas.len() - 1;
        let new = self.add_replica();
        let keep = (0..=new).filter(|index| *index == 0 || *index > old);
        let specs = keep.map(|index| self.member(index, 0, &[])).collect();
        self.tell(slot, Input::Members(specs));
        new
    }
}

/// R27: replacements come and go for as long as the engine lives.
#[test]
fn a_removed_replica_is_left_alone_and_its_place_is_taken() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 2, false);
    world.run(ms(20));
    world.kill(1, false);
    world.write(slot, 300, 1, false);
    world.run(ms(3000));
    assert_eq!(world.isr(), [0]);
    for _ in 0..40 {
        // Each is lost in the middle of its resync, or before it is reached.
        let new = world.replace_newest(slot);
        world.run(ms(3));
        world.kill(new, false);
        world.run(ms(1000));
        let members = world.slots[slot].engine.status().members;
        assert!(members.len() <= 3, "{members:?}");
    }
    let new = world.replace_newest(slot);
    world.run(ms(5000));
    assert_eq!(world.isr(), [0, new]);
    assert!((0..560).all(|b| world.replicas[new].value(b) == world.replicas[0].value(b)));
    world.revive(1);
    world.run(ms(5000));
    assert!(world.replicas[1].sessions.is_empty(), "nobody asks for what was removed");
}

/// Also while nobody takes its place.
#[test]
fn a_removed_replica_gets_no_link_once_it_does_not_count() {
    let (mut world, slot) = World::active(2);
    world.kill(1, false);
    world.run(ms(1000));
    assert_eq!(world.isr(), [0]);
    let specs = vec![world.member(0, 0, &[])];
    world.tell(slot, Input::Members(specs));
    world.revive(1);
    world.run(ms(3000));
    assert!(world.replicas[1].sessions.is_empty());
    assert_eq!(world.isr(), [0]);
}

/// A member may still answer what was asked of it as the source of an earlier resync: that is no list for the
/// replica that got the place of the one that was resynced then.
#[test]
fn what_was_asked_for_a_removed_replica_is_not_taken_for_its_successor() {
    let mut world = World::new(9, 3, &[1, 2]);
    world.kill(0, false);
    let slot = world.attach(7, &[]);
    world.run(ms(100));
    for block in [0, 256, 559] {
        world.write(slot, block, 1, false);
    }
    // What is sealed is not listed for who has sealed it.
    world.run(ms(61_000));
    world.kill(2, false);
    world.run(ms(100));
    world.read(slot, 0);
    world.run(ms(8000));
    assert_eq!(world.isr(), [1]);
    world.raft.mode = RaftMode::Lost;
    world.revive(0);
    world.run(ms(2000));
    assert_eq!(world.slots[slot].resynced, [0], "its Grow is undecided");

    let listing = |world: &World, replica: usize| {
        world.slots[slot].engine.members.iter().any(|member| {
            member.spec.replica == replica_id(replica)
                && matches!(&member.standing, Standing::Syncing(resync) if matches!(resync.stage, Stage::Listing { .. }))
        })
    };
    let until_listing = |world: &mut World, replica: usize| {
        let end = world.now.after(ms(3000));
        while !listing(world, replica) {
            assert!(world.now < end, "replica {replica} is not resynced");
            world.run(core::time::Duration::from_micros(20));
        }
    };
    world.revive(2);
    until_listing(&mut world, 2);
    world.silence(1, ms(1200));
    let answers = world.now.after(ms(1200));
    world.raft.mode = RaftMode::Normal;
    world.run(ms(300));
    assert_eq!(world.isr(), [0, 1]);
    let new = world.add_replica();
    let specs = [0, 1, new].map(|index| world.member(index, 7, &[])).to_vec();
    world.tell(slot, Input::Members(specs));
    until_listing(&mut world, new);
    assert!(world.now < answers);
    // The list of its own source comes after the answer for its predecessor.
    world.replicas[0].silent_until = answers.after(ms(50));
    world.run(ms(5000));
    assert_eq!(world.isr(), [0, 1, new]);
    assert!((0..560).all(|b| world.replicas[new].value(b) == world.replicas[0].value(b)));
}
