//! Snapshots (R26): one point for all, no loss of what returns without one, and volumes filled from one.

use super::attach::ms;
use super::replica::{Held, payload};
use super::world::{Event, RaftMode, SIZE, World, index_of, replica_id};
use crate::{FillHolder, FillSource, Input, SnapshotError, SnapshotTaken};
use types::{BLOCK, BlockOp, Incarnation, REGION, SnapshotId, VolumeId};
use wire::Request;

pub(super) fn id(n: u64) -> SnapshotId {
    SnapshotId::from_bytes(u128::from(n).to_be_bytes())
}

impl World {
    pub(super) fn snapshot(&mut self, slot: usize) -> SnapshotId {
        let ticket = self.rng.below(u64::MAX);
        self.tell(slot, Input::Snapshot { ticket, snapshot: id(ticket) });
        id(ticket)
    }

    /// Writes are held until the very step that says this, so all that is there is in the snapshot;
    /// Raft takes it if it is of its epoch, and everybody in the ISR has it.
    pub(super) fn snapshot_ended(
        &mut self,
        slot: usize,
        ticket: u64,
        result: Result<SnapshotTaken, SnapshotError>,
    ) {
        if let Ok(taken) = &result
            && taken.epoch == self.raft.epoch
        {
            let holders: Vec<usize> = taken.holders.iter().map(|r| index_of(*r)).collect();
            let held = self.replicas[holders[0]].held(id(ticket)).cloned().expect("durable");
            let at = self.history.tick();
            for index in &holders {
                let replica = &self.replicas[*index];
                for block in self.history.written() {
                    let value = value_in(replica.held(id(ticket)).unwrap(), block);
                    assert_eq!(value, value_in(&held, block), "block {block} of {holders:?}");
                    let stale = self.history.stale(block, value, slot, at, self.power_lost[*index]);
                    assert!(stale.is_none(), "snapshot: {stale:?}");
                    assert_eq!(value, replica.value(block), "block {block} of replica {index}");
                }
            }
            if self.raft.isr.iter().all(|index| holders.contains(index)) {
                self.committed.push((id(ticket), held));
            }
        }
        self.slots[slot].snapshots.push(result);
    }

    /// A member of the ISR has every snapshot that Raft knows, as it was.
    pub(super) fn check_committed(&self, index: usize) {
        for (snapshot, held) in &self.committed {
            let here = self.replicas[index].held(*snapshot);
            let here = here.unwrap_or_else(|| panic!("replica {index} lacks {snapshot}"));
            for block in 0..SIZE / BLOCK {
                let (found, right) = (value_in(here, block), value_in(held, block));
                assert_eq!(found, right, "block {block} of {snapshot} on replica {index}");
            }
        }
    }
}

fn value_in(held: &Held, block: u64) -> u64 {
    held.values.get(&block).copied().unwrap_or_default()
}

#[test]
fn a_snapshot_under_load_is_one_point_on_all_members() {
    let (mut world, slot) = World::active(2);
    for round in 0..40 {
        for block in 0..8 {
            world.write(slot, block * 60, 2, false);
        }
        if round % 8 == 3 {
            world.snapshot(slot);
        }
        world.run(ms(1));
    }
    world.run(ms(100));
    let taken: Vec<_> =
        world.slots[slot].snapshots.iter().filter_map(|r| r.as_ref().ok()).collect();
    assert!(taken.len() >= 3, "{:?}", world.slots[slot].snapshots);
    assert!(taken.iter().all(|taken| taken.holders.len() == 2));
    assert_eq!(world.committed.len(), taken.len());
    assert!(world.pending.is_empty(), "held writes went on");
}

#[test]
fn a_member_that_does_not_answer_is_dropped_first() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.run(ms(20));
    world.replicas[1].stuck_until = world.now.after(ms(60_000));
    world.snapshot(slot);
    world.write(slot, 8, 1, false);
    world.run(ms(12_500));
    let taken = world.slots[slot].snapshots[0].as_ref().unwrap();
    assert_eq!((world.isr(), taken.holders.as_slice()), (vec![0], [replica_id(0)].as_slice()));
    assert!(world.pending.is_empty());
}

#[test]
fn a_member_without_room_refuses_the_snapshot_and_stays() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.run(ms(20));
    world.replicas[1].snapshots_full = true;
    world.snapshot(slot);
    world.write(slot, 8, 1, false);
    world.run(ms(200));
    assert_eq!(world.slots[slot].snapshots, [Err(SnapshotError::Full(replica_id(1)))]);
    assert_eq!(world.isr(), [0, 1]);
    assert!(world.pending.is_empty(), "held writes went on");
    world.replicas[1].snapshots_full = false;
    world.snapshot(slot);
    world.run(ms(200));
    assert!(world.slots[slot].snapshots[1].is_ok());
}

#[test]
fn a_member_that_is_lost_within_the_pause_aborts_the_snapshot_and_nothing_else() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.run(ms(20));
    world.disk = (30_000_000, 30_000_000);
    world.snapshot(slot);
    // The era is flushed and sealed; then the members make the snapshot.
    world.run(ms(70));
    let held = world.write(slot, 8, 1, false);
    world.cut(1, ms(1));
    world.run(ms(20));
    assert!(
        matches!(world.slots[slot].snapshots[..], [Err(_)]),
        "{:?}",
        world.slots[slot].snapshots
    );
    assert!(world.committed.is_empty());
    world.run(ms(3000));
    assert_eq!(world.result(held), Some(Ok(())));
    assert_eq!(world.isr(), [0, 1]);
}

/// Nor is the replica that got its place among the members. Found by the simulation.
#[test]
fn a_member_that_left_after_its_answer_is_no_holder() {
    let (mut world, slot) = World::active(3);
    world.write(slot, 0, 1, false);
    world.run(ms(20));
    world.disk = (30_000_000, 30_000_000);
    world.snapshot(slot);
    // The era is flushed and sealed; then the members make the snapshot, the second one slowly.
    world.run(ms(70));
    world.replicas[1].stuck_until = world.now.after(ms(800));
    world.run(ms(40));
    world.kill(2, false);
    world.run(ms(100));
    assert_eq!(world.isr(), [0, 1]);
    let new = world.replace_newest(slot);
    world.run(ms(1000));
    let taken = world.slots[slot].snapshots[0].as_ref().unwrap();
    assert_eq!(taken.holders, [replica_id(0), replica_id(1)]);
    world.run(ms(5000));
    assert_eq!(world.isr(), [0, 1, new]);
    world.check_committed(new);
}

#[test]
fn a_replica_that_returns_is_given_the_snapshots_that_it_lacks() {
    let (mut world, slot) = World::active(2);
    let write = |world: &mut World, block| {
        world.write(slot, block, 1, false);
    };
    (0..20).for_each(|block| write(&mut world, block * 16));
    world.run(ms(50));
    world.snapshot(slot);
    world.run(ms(100));
    world.kill(1, false);
    world.run(ms(3000));
    assert_eq!(world.isr(), [0]);
    for round in 0..3 {
        (0..10).for_each(|block| write(&mut world, block * 32 + round));
        world.io(slot, BlockOp::Discard { offset: round * 16 * BLOCK, len: 16 * BLOCK });
        world.run(ms(50));
        world.snapshot(slot);
        world.run(ms(50));
    }
    (0..10).for_each(|block| write(&mut world, block * 32 + 5));
    world.revive(1);
    for _ in 0..40 {
        let block = world.now.0 % 500;
        write(&mut world, block);
        world.run(ms(50));
    }
    world.run(ms(2000));
    assert_eq!((world.isr(), world.committed.len()), (vec![0, 1], 4));
    world.check_committed(1);
    world.assert_identical();
}

#[test]
fn a_new_replica_gets_all_snapshots_and_a_late_one_too() {
    let mut world = World::new(7, 2, &[0]);
    world.kill(1, false);
    let slot = world.attach(0, &[]);
    world.run(ms(500));
    for round in 0..3 {
        for block in 0..30 {
            world.write(slot, block * 8 + round, 1, false);
        }
        world.run(ms(50));
        world.snapshot(slot);
        world.run(ms(50));
    }
    world.revive(1);
    world.run(ms(520));
    // While it is being built.
    world.run(ms(4));
    world.snapshot(slot);
    world.run(ms(6000));
    assert_eq!((world.isr(), world.committed.len()), (vec![0, 1], 4));
    world.check_committed(1);
    world.assert_identical();
}

/// What the volume has grown by since is no part of it.
#[test]
fn a_snapshot_of_a_smaller_volume_is_made_where_it_was_missed() {
    let mut world = World::new(7, 2, &[0, 1]);
    world.size = 2 * REGION;
    let slot = world.attach(0, &[]);
    world.run(ms(100));
    world.write(slot, 3, 1, false);
    world.run(ms(20));
    world.kill(1, false);
    world.run(ms(2000));
    assert_eq!(world.isr(), [0]);
    world.write(slot, 4, 1, false);
    world.run(ms(20));
    let snapshot = world.snapshot(slot);
    world.run(ms(100));
    world.tell(slot, Input::Resize(SIZE));
    for block in [3, 300, 559] {
        world.write(slot, block, 1, false);
    }
    world.run(ms(100));
    world.revive(1);
    world.run(ms(5000));
    assert_eq!(world.isr(), [0, 1]);
    world.check_committed(1);
    assert_eq!(world.replicas[1].held(snapshot).map(|held| held.size), Some(2 * REGION));
    world.assert_identical();
}

/// Who asked is told before the volume itself runs out of patience.
#[test]
fn a_snapshot_that_waits_for_a_lost_copy_is_given_up_in_time() {
    let (mut world, slot) = World::active(2);
    world.raft.mode = RaftMode::Lost;
    world.kill(1, false);
    world.snapshot(slot);
    world.run(ms(9_900));
    assert!(world.slots[slot].snapshots.is_empty());
    world.run(ms(300));
    assert!(matches!(world.slots[slot].snapshots[..], [Err(SnapshotError::Aborted(_))]));
    assert!(world.slots[slot].engine.is_active(), "nothing else was asked of it");
}

/// Writes are held while copies are asked: not for as long as a stuck disk takes.
#[test]
fn a_snapshot_does_not_hold_writes_behind_a_stuck_disk() {
    let mut held_up = 0;
    for step in 0..40 {
        let (mut world, slot) = World::active(2);
        world.write(slot, 3, 1, false);
        world.run(ms(20));
        world.snapshot(slot);
        world.run(core::time::Duration::from_micros(100 * step));
        world.replicas[1].stuck_until = world.now.after(ms(4000));
        world.run(ms(2200));
        let late = |reason: &str| reason.contains("did not answer within");
        if let [Err(SnapshotError::Aborted(reason))] = &world.slots[slot].snapshots[..]
            && late(reason)
        {
            held_up += 1;
        }
        let write = world.write(slot, 4, 1, false);
        world.run(ms(6000));
        assert_eq!(world.result(write), Some(Ok(())), "step {step}");
        assert_eq!(world.slots[slot].snapshots.len(), 1, "step {step}");
    }
    assert!(held_up > 0, "no disk was stuck while writes were held");
}

/// Who is late may still be at the attempt before, and makes this one behind it.
#[test]
fn an_answer_to_a_snapshot_that_was_given_up_does_not_end_the_next_one() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 3, 1, false);
    // There is no era left to be sealed before a snapshot.
    world.run(ms(32_000));
    world.replicas[1].stuck_until = world.now.after(ms(2500));
    world.snapshot(slot);
    world.run(ms(2200));
    assert!(matches!(world.slots[slot].snapshots[..], [Err(SnapshotError::Aborted(_))]));
    world.disk = (600_000_000, 600_000_001);
    world.snapshot(slot);
    let held = world.write(slot, 4, 1, false);
    world.run(ms(3000));
    let taken = world.slots[slot].snapshots[1].as_ref().unwrap();
    assert_eq!(taken.holders, [replica_id(0), replica_id(1)]);
    assert_eq!((world.result(held), world.committed.len()), (Some(Ok(())), 1));
}

impl World {
    /// These copies hold what the first snapshot holds.
    fn assert_filled(&self, copies: &[usize]) {
        let held = &self.committed[0].1;
        for copy in copies {
            for block in 0..SIZE / BLOCK {
                assert_eq!(
                    self.replicas[*copy].value(block),
                    value_in(held, block),
                    "block {block}"
                );
            }
        }
    }
}

fn source(world: &World, snapshot: SnapshotId) -> FillSource {
    let holder = |index: usize| FillHolder {
        replica: replica_id(index),
        incarnation: Incarnation::default(),
        address: (index > 0).then(|| ([127, 0, 0, 1], index as u16 + 1).into()),
    };
    let holders = (0..world.replicas.len()).map(holder).collect();
    FillSource { volume: VolumeId::default(), snapshot, size: SIZE, holders }
}

#[test]
fn a_volume_is_filled_from_whoever_has_the_snapshot() {
    let (mut world, slot) = World::active(2);
    for block in [0, 7, 70, 255, 256, 400, 559] {
        world.write(slot, block, 1, false);
    }
    world.run(ms(50));
    let snapshot = world.snapshot(slot);
    world.run(ms(50));
    let all = BlockOp::WriteZeroes { offset: 0, len: SIZE, fua: false };
    world.io(slot, all);
    world.io(slot, BlockOp::Write { offset: 4096 * 3, data: payload(0, 1), fua: false });
    world.run(ms(50));
    // The first holder has lost it.
    world.replicas[0].snapshots.clear();
    let source = source(&world, snapshot);
    world.tell(slot, Input::Fill { ticket: 5, source });
    world.run(ms(3000));
    assert_eq!(world.slots[slot].filled, [Ok(())]);
    world.assert_filled(&[0, 1]);
}

#[test]
fn only_what_is_allocated_is_read_for_filling() {
    let (mut world, slot) = World::active(2);
    for block in [3, 559] {
        world.write(slot, block, 1, false);
    }
    world.run(ms(50));
    let snapshot = world.snapshot(slot);
    world.run(ms(50));
    world.io(slot, BlockOp::WriteZeroes { offset: 0, len: SIZE, fua: false });
    world.run(ms(50));
    let source = source(&world, snapshot);
    world.tell(slot, Input::Fill { ticket: 5, source });
    world.run(ms(3000));
    assert_eq!(world.slots[slot].filled, [Ok(())]);
    world.assert_filled(&[0, 1]);
    let read: u64 = world.replicas.iter().map(|replica| replica.past_read).sum();
    assert_eq!(read, SIZE - REGION, "not the region in the middle");
}

/// A volume whose every block was written, its snapshot, and zeros over all.
fn emptied() -> (World, usize, SnapshotId) {
    let (mut world, slot) = World::active(2);
    for block in (0..SIZE / BLOCK).step_by(16) {
        world.write(slot, block, 16, false);
    }
    world.run(ms(100));
    let snapshot = world.snapshot(slot);
    world.run(ms(50));
    world.io(slot, BlockOp::WriteZeroes { offset: 0, len: SIZE, fua: false });
    world.run(ms(50));
    assert!(world.replicas.iter().all(|replica| replica.value(7) == 0));
    (world, slot, snapshot)
}

/// Whoever is told may hand the volume out at once.
#[test]
fn a_volume_is_full_when_it_is_said_to_be() {
    let (mut world, slot, snapshot) = emptied();
    world.disk = (2_000_000, 9_000_000);
    let source = source(&world, snapshot);
    world.tell(slot, Input::Fill { ticket: 5, source });
    while world.slots[slot].filled.is_empty() {
        world.run(ms(1));
    }
    assert_eq!(world.slots[slot].filled, [Ok(())]);
    world.assert_filled(&[0, 1]);
}

#[test]
fn what_arrives_damaged_is_not_filled_in() {
    let (mut world, slot, snapshot) = emptied();
    world.replicas[0].garbled = 2;
    let source = source(&world, snapshot);
    world.tell(slot, Input::Fill { ticket: 5, source });
    world.run(ms(5000));
    assert_eq!(
        (world.slots[slot].filled.as_slice(), world.replicas[0].garbled),
        ([Ok(())].as_slice(), 0)
    );
    world.assert_filled(&[0, 1]);
}

#[test]
fn filling_goes_on_from_another_holder() {
    // (whether the first holder's link breaks or it says nothing any more, milliseconds that it may cost)
    for (breaks, time) in [(true, 2500), (false, 9000)] {
        let (mut world, slot, snapshot) = emptied();
        let source = source(&world, snapshot);
        world.tell(slot, Input::Fill { ticket: 5, source });
        world.run(ms(3));
        if breaks {
            world.cut(0, ms(1));
        } else {
            world.silence(0, ms(60_000));
        }
        world.run(ms(time));
        assert_eq!(world.slots[slot].filled, [Ok(())]);
        world.assert_filled(&[1]);
    }
}

/// Its writes may end while the next one is at it.
#[test]
fn a_filling_that_was_given_up_says_nothing_of_the_next_one() {
    let (mut world, slot, snapshot) = emptied();
    let writes = |world: &World| {
        let write = |event: &Event| {
            let (Event::Request { request, .. } | Event::Disk { request, .. }) = event else {
                return false;
            };
            matches!(request, Request::Write { .. })
        };
        world.queue.values().any(write)
    };
    let moment = core::time::Duration::from_micros(20);
    let mut source = source(&world, snapshot);
    source.holders.truncate(1);
    world.replicas[1].stuck_until = world.now.after(ms(5900));
    world.tell(slot, Input::Fill { ticket: 5, source: source.clone() });
    while !writes(&world) {
        world.run(moment);
    }
    let held = std::mem::take(&mut world.replicas[0].snapshots);
    world.run(ms(5700));
    assert!(matches!(world.slots[slot].filled[..], [Err(_)]) && writes(&world));
    world.replicas[0].snapshots = held;
    world.disk = (2_000_000, 90_000_000);
    world.tell(slot, Input::Fill { ticket: 6, source });
    while world.slots[slot].filled.len() < 2 {
        world.run(moment);
    }
    assert_eq!((&world.slots[slot].filled[1], writes(&world)), (&Ok(()), false));
    world.assert_filled(&[0, 1]);
}

/// Holders are told how much is wanted: what lies behind it stays out.
#[test]
fn a_volume_is_filled_as_far_as_the_snapshot_goes() {
    let (mut world, slot, snapshot) = emptied();
    let source = FillSource { size: REGION, ..source(&world, snapshot) };
    world.tell(slot, Input::Fill { ticket: 5, source });
    world.run(ms(1000));
    assert_eq!(world.slots[slot].filled, [Ok(())]);
    let per_region = REGION / BLOCK;
    let filled = |block: u64| world.replicas[1].value(block) != 0;
    assert!((0..per_region).all(filled) && !(per_region..SIZE / BLOCK).any(filled));
}

#[test]
fn a_volume_is_not_filled_with_more_than_it_holds_nor_twice_at_once() {
    let (mut world, slot, snapshot) = emptied();
    let source = source(&world, snapshot);
    let larger = FillSource { size: SIZE + BLOCK, ..source.clone() };
    world.tell(slot, Input::Fill { ticket: 5, source: larger });
    assert!(matches!(world.slots[slot].filled[..], [Err(_)]));
    let nobody = FillSource { holders: Vec::new(), ..source.clone() };
    world.tell(slot, Input::Fill { ticket: 6, source: nobody });
    assert_eq!(world.slots[slot].filled.len(), 2);
    world.tell(slot, Input::Fill { ticket: 7, source: source.clone() });
    world.tell(slot, Input::Fill { ticket: 8, source });
    assert!(matches!(world.slots[slot].filled[2..], [Err(_)]), "8 is refused");
    world.run(ms(1000));
    assert_eq!(world.slots[slot].filled[3..], [Ok(())]);
}

#[test]
fn filling_from_what_nobody_has_ends_with_an_error() {
    let (mut world, slot) = World::active(2);
    let source = source(&world, id(9));
    world.tell(slot, Input::Fill { ticket: 5, source });
    world.run(ms(20_000));
    assert!(matches!(world.slots[slot].filled[..], [Err(_)]));
}
