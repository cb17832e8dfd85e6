//! Random faults under random I/O, many seeds.

use super::world::World;
use core::time::Duration;
use types::{BLOCK, BlockOp};

const HOT: [u64; 12] = [0, 1, 3, 14, 15, 16, 254, 255, 256, 300, 512, 559];

/// What may go wrong.
#[derive(Clone, Copy)]
struct Faults {
    power: bool,
    zombies: bool,
    rot: bool,
}

fn random_io(world: &mut World, slot: usize) {
    let block = HOT[world.rng.below(12) as usize];
    let count = world.rng.between(1, 4).min(560 - block);
    let (offset, len) = (block * BLOCK, count * BLOCK);
    match world.rng.below(100) {
        0..40 => {
            let fua = world.rng.chance(10);
            world.write(slot, block, count, fua);
        }
        40..80 => {
            world.read(slot, block);
        }
        80..90 => {
            world.io(slot, BlockOp::Flush);
        }
        90..95 => {
            world.io(slot, BlockOp::Discard { offset, len });
        }
        _ => {
            let fua = world.rng.chance(20);
            world.io(slot, BlockOp::WriteZeroes { offset, len, fua });
        }
    }
}

fn random_fault(world: &mut World, faults: Faults) {
    use super::world::RaftMode;
    let replica = world.rng.below(world.replicas.len() as u64) as usize;
    match world.rng.below(13) {
        0 | 1 => world.cut(replica, Duration::from_millis(1500)),
        2 => world.silence(replica, Duration::from_millis(500)),
        3 => {
            let time = world.rng.between(100, 7000);
            world.silence(replica, Duration::from_millis(time));
        }
        4 | 5 => {
            let power = faults.power && world.rng.chance(50);
            world.kill(replica, power);
            if world.rng.chance(50) {
                world.revive(replica);
            }
        }
        6 | 7 => (0..world.replicas.len()).for_each(|r| world.revive(r)),
        8 => world.raft.mode = RaftMode::Lost,
        9 => world.raft.mode = RaftMode::Unknown,
        10 => world.raft.mode = RaftMode::Normal,
        11 => {
            let time = world.rng.between(100, 8000);
            world.replicas[replica].stuck_until = world.now.after(Duration::from_millis(time));
        }
        _ => {
            let full = world.rng.chance(50);
            world.replicas[replica].full = full;
        }
    }
}

/// No I/O may be under way for longer than R4 allows.
fn check_progress(world: &World) {
    for (id, pending) in &world.pending {
        let slot = &world.slots[pending.slot];
        let age = world.now.since(pending.since);
        let bound = types::IO_TIMEOUT + Duration::from_millis(600);
        assert!(!slot.alive || age < bound, "{id:?} is stuck: {pending:?}");
    }
}

/// Returns how many blocks were repaired.
fn simulate(seed: u64, faults: Faults) -> u64 {
    let count = 2 + (seed % 2) as usize;
    let all: Vec<usize> = (0..count).collect();
    let mut world = World::new(seed, count, &all);
    let mut slot = world.attach(0, &[]);
    let mut attached = world.now;
    for _ in 0..world.rng.between(20, 60) {
        for _ in 0..world.rng.below(12) {
            random_io(&mut world, slot);
            if slot > 0 && world.slots[slot - 1].alive && world.rng.chance(40) {
                random_io(&mut world, slot - 1);
            }
            let pause = world.rng.below(3_000_000);
            world.run(Duration::from_nanos(pause));
        }
        if faults.rot {
            rot(&mut world);
        }
        if world.rng.chance(15) {
            world.snapshot(slot);
        }
        if world.rng.chance(35) {
            random_fault(&mut world, faults);
        }
        let pause = if world.rng.chance(5) { 35_000 } else { world.rng.below(900) };
        for _ in 0..=pause / 500 {
            world.run(Duration::from_millis(pause.min(500)));
            check_progress(&world);
        }
        let failed = world.slots[slot].failed.is_some();
        let hopeless = !world.slots[slot].engine.is_active()
            && world.now.since(attached) > Duration::from_secs(20);
        if failed || hopeless || world.rng.chance(3) {
            if !(faults.zombies && world.rng.chance(50)) {
                world.crash(slot);
            }
            let node = world.rng.below(count as u64) as usize;
            slot = world.attach(node, &[]);
            attached = world.now;
        }
    }
    heal(&mut world, slot);
    world.repaired.iter().sum()
}

/// A few blocks rot on one replica each.
fn rot(world: &mut World) {
    for _ in 0..world.rng.below(4) {
        let replica = world.rng.below(world.replicas.len() as u64) as usize;
        let block = HOT[world.rng.below(12) as usize];
        if world.replicas.iter().all(|replica| !replica.rotten.contains(&block)) {
            world.replicas[replica].rot(block);
        }
    }
}

fn heal(world: &mut World, mut slot: usize) {
    world.raft.mode = super::world::RaftMode::Normal;
    for index in 0..world.replicas.len() {
        world.revive(index);
        world.replicas[index].full = false;
        world.replicas[index].stuck_until = world.now;
        world.replicas[index].silent_until = world.now;
    }
    world.run(Duration::from_secs(14));
    if !world.slots[slot].engine.is_active() {
        world.crash(slot);
        slot = world.attach(0, &[]);
        world.run(Duration::from_secs(8));
    }
    // What rotted on the last copy that was in sync is lost to it until it is written again.
    for block in HOT {
        if world.replicas.iter().any(|replica| replica.rotten.contains(&block)) {
            world.write(slot, block, 1, false);
        }
    }
    world.run(Duration::from_secs(20));
    check_progress(world);
    let count = world.replicas.len();
    assert!(world.slots[slot].engine.is_active(), "{:?}", world.slots[slot].failed);
    assert_eq!(world.raft.isr.len(), count, "{:?}", world.slots[slot].engine.status());
    for block in world.history.written() {
        world.read(slot, block);
    }
    world.tell(slot, crate::Input::Compare { ticket: 1 });
    world.run(Duration::from_secs(1));
    assert!(!world.pending.values().any(|p| p.slot == slot));
    let result = world.slots[slot].compared.last().copied().flatten().unwrap();
    assert_eq!((result.different, result.replicas as usize), (0, count));
    (0..count).for_each(|index| world.check_committed(index));
    for block in world.history.written() {
        for replica in &world.replicas {
            assert_eq!(replica.value(block), world.replicas[0].value(block), "block {block}");
        }
    }
    world.tell(slot, crate::Input::Stop);
    world.run(Duration::from_secs(1));
    assert_eq!(world.slots[slot].stopped, Some(true));
}

/// Runs `seeds`, or the one in HOLDFAST_SEED, and names the seed that failed.
fn run(seeds: core::ops::Range<u64>, faults: Faults) -> u64 {
    let seeds = match std::env::var("HOLDFAST_SEED").ok().and_then(|s| s.parse::<u64>().ok()) {
        Some(seed) => seed..seed + 1,
        None => match std::env::var("HOLDFAST_SEEDS").ok().and_then(|s| s.parse::<u64>().ok()) {
            Some(count) => seeds.start..seeds.start + count,
            None => seeds,
        },
    };
    let one = |seed| {
        let outcome = std::panic::catch_unwind(|| simulate(seed, faults));
        outcome.unwrap_or_else(|_| panic!("HOLDFAST_SEED={seed}"))
    };
    seeds.map(one).sum()
}

#[test]
fn links_processes_and_raft_fail() {
    run(0..400, Faults { power: false, zombies: false, rot: false });
}

#[test]
fn older_engines_live_on() {
    run(10_000..10_400, Faults { power: false, zombies: true, rot: false });
}

#[test]
fn hosts_lose_power() {
    run(20_000..20_400, Faults { power: true, zombies: true, rot: false });
}

#[test]
fn blocks_rot() {
    let repaired = run(30_000..30_400, Faults { power: true, zombies: true, rot: true });
    assert!(repaired > 0);
}
