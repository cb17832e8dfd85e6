//! Who has to have an era on its disk before anybody is told that it is sealed (R18).

use super::attach::ms;
use super::world::{RaftMode, World};
use types::Era;

/// While Raft counts a member, it may be the source of the next attach (R20, R22): what it has lost
/// would never be compared with a copy that has sealed it (R19). Found by the simulation.
#[test]
fn no_era_is_sealed_without_a_member_that_raft_counts() {
    for stuck in [false, true] {
        let (mut world, slot) = World::active(2);
        world.write(slot, 0, 1, false);
        world.run(ms(29_000));
        world.raft.mode = RaftMode::Lost;
        if stuck {
            // It is lost when the era is drained, with the sync before it.
            world.replicas[1].stuck_until = world.now.after(ms(2500));
            world.run(ms(1200));
        }
        world.kill(1, true);
        world.run(ms(4000));
        assert!(world.replicas[0].eras.is_empty(), "stuck: {stuck}: {:?}", world.replicas[0].eras);
        world.raft.mode = RaftMode::Normal;
        world.run(ms(1500));
        assert_eq!((world.isr(), world.replicas[0].eras.len()), (vec![0], 1), "stuck: {stuck}");
    }
}

#[test]
fn no_era_is_sealed_while_a_grow_is_undecided() {
    let (mut world, slot) = World::joining(RaftMode::Unknown, 800);
    world.write(slot, 2, 1, false);
    world.run(ms(32_000));
    assert_eq!(world.isr(), [0, 1], "it is in the ISR, and the engine does not know");
    assert!(world.replicas.iter().all(|replica| replica.eras.is_empty()));
    world.raft.mode = RaftMode::Normal;
    world.run(ms(1000));
    assert!(world.replicas.iter().all(|replica| replica.eras == [Era(1)]));
}

/// Who comes back in time is synced with the others.
#[test]
fn an_era_is_sealed_with_a_member_that_was_cut_off_for_a_moment() {
    let (mut world, slot) = World::active(2);
    world.write(slot, 0, 1, false);
    world.run(ms(29_000));
    world.raft.mode = RaftMode::Lost;
    world.kill(1, false);
    world.run(ms(2500));
    world.revive(1);
    world.run(ms(1500));
    assert!(world.replicas.iter().all(|replica| replica.eras.len() == 1), "R18");
}
