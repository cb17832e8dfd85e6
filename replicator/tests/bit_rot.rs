//! Damage to the disks behind the stores' backs, through everything but Raft: what is damaged on one
//! copy is served from the other and repaired, what is damaged on both is an error, and nothing wrong
//! is ever served.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::bed::{Bed, SIZE};
use common::nbd::Client;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = SIZE / BLOCK;
/// Blocks damaged in each round, each on one of the two copies.
const VICTIMS: u64 = 2048;
const ROUNDS: u64 = 5;
/// Blocks in 64 KiB, the unit of a repair.
const UNIT: u64 = 16;

/// xorshift64*: the same damage in every run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What block `block` holds since round `round`; no two are alike.
fn content(block: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng((block << 20) + round + 1);
    (0..BLOCK / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

async fn write_all(disk: &Client, round: u64) {
    for first in (0..BLOCKS).step_by(256) {
        let bytes = (first..first + 256).flat_map(|block| content(block, round)).collect();
        disk.put(first * BLOCK, bytes).await.unwrap();
    }
    disk.flush().await.unwrap();
}

/// Reads the whole volume; every byte must be what was written.
async fn check_all(disk: &Client, round: u64) {
    for first in (0..BLOCKS).step_by(64) {
        let bytes = disk.read(first * BLOCK, 64 * BLOCK as usize).await.unwrap();
        for (found, block) in bytes.chunks(BLOCK as usize).zip(first..) {
            assert!(found == content(block, round), "round {round}: block {block} is wrong");
        }
    }
}

/// A pool's file, and where in it the blocks of the volume are.
struct Pool {
    file: File,
    places: Vec<u64>,
}

impl Pool {
    /// Looks for what was written in round 0.
    fn find(path: &std::path::Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let wanted: BTreeMap<Vec<u8>, u64> =
            (0..BLOCKS).map(|block| (content(block, 0), block)).collect();
        let mut places = vec![0; BLOCKS as usize];
        let mut found = 0;
        for place in (0..file.metadata().unwrap().len()).step_by(BLOCK as usize) {
            let mut bytes = vec![0; BLOCK as usize];
            file.read_exact_at(&mut bytes, place).unwrap();
            if let Some(block) = wanted.get(&bytes) {
                places[*block as usize] = place;
                found += 1;
            }
        }
        assert_eq!(found, BLOCKS, "every block is in the pool once");
        Self { file, places }
    }

    fn get(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut bytes, self.places[block as usize]).unwrap();
        bytes
    }

    fn put(&self, block: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.places[block as usize]).unwrap();
    }

    /// Damages `block`, which holds the content of `round`.
    fn damage(&self, block: u64, round: u64, rng: &mut Rng) {
        let mut bytes = self.get(block);
        match rng.below(4) {
            // A bit rotted.
            0 => bytes[rng.below(BLOCK) as usize] ^= 1 << rng.below(8),
            // A sector was lost.
            1 => bytes[512 * rng.below(8) as usize..][..512].fill(0),
            // A write of another block went here.
            2 => bytes = content((block + 1 + rng.below(BLOCKS - 1)) % BLOCKS, round),
            // The last write went elsewhere, or nowhere.
            _ => bytes = content(block, round - 1),
        }
        self.put(block, &bytes);
    }

    fn check_all(&self, round: u64) {
        for block in 0..BLOCKS {
            assert!(self.get(block) == content(block, round), "round {round}: block {block}");
        }
    }
}

/// Damages [`VICTIMS`] blocks, each on one copy.
fn damage_some(pools: &[Pool; 2], round: u64, rng: &mut Rng) {
    let mut blocks: Vec<u64> = (0..BLOCKS).collect();
    for at in 0..VICTIMS as usize {
        let other = at + rng.below(BLOCKS - at as u64) as usize;
        blocks.swap(at, other);
        pools[rng.below(2) as usize].damage(blocks[at], round, rng);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_damaged_blocks() {
    let mut bed = Bed::new(2).await;
    let mut epoch = 1;
    let mut disk = bed.attach(0, epoch).await;
    write_all(&disk, 0).await;
    let pools = [0, 1].map(|node| Pool::find(&bed.nodes[node].pool));
    let mut rng = Rng(1);
    let (mut damaged, mut repaired) = (0, 0);
    for round in 1..=ROUNDS {
        write_all(&disk, round).await;
        if round % 2 == 0 {
            // A clean end and new processes: the checksums come from the disk.
            drop(disk);
            bed.handle(0).detach_frontends(bed.volume).await.unwrap();
            repaired += bed.handle(0).engine_status(bed.volume).await.unwrap().repaired;
            assert!(bed.handle(0).stop_engine(bed.volume).await.unwrap(), "a clean stop");
            (0..2).for_each(|node| bed.halt(node));
            damage_some(&pools, round, &mut rng);
            (0..2).for_each(|node| bed.run(node));
            epoch += 1;
            disk = bed.attach(0, epoch).await;
        } else {
            damage_some(&pools, round, &mut rng);
        }
        damaged += VICTIMS;
        check_all(&disk, round).await;
        let result = bed.handle(0).compare(bed.volume).await.unwrap();
        assert_eq!((result.replicas, result.different, result.unrepairable), (2, 0, 0));
        check_all(&disk, round).await;
        pools.iter().for_each(|pool| pool.check_all(round));
    }
    repaired += bed.handle(0).engine_status(bed.volume).await.unwrap().repaired;
    assert_eq!(repaired, damaged, "each once, and nothing else");
    assert_eq!(bed.isr.len(), 2, "it costs no copy its place");

    // Damaged on both: an error, and nothing else is touched.
    let lost: Vec<u64> = (0..BLOCKS).step_by(UNIT as usize * 8).collect();
    for block in &lost {
        pools.iter().for_each(|pool| pool.damage(*block, ROUNDS, &mut rng));
    }
    for block in &lost {
        let read = disk.read(block * BLOCK, BLOCK as usize).await;
        assert!(read.is_err(), "block {block} was served");
        let neighbour = disk.read((block + 1) * BLOCK, BLOCK as usize).await.unwrap();
        assert!(neighbour == content(block + 1, ROUNDS));
    }
    let result = bed.handle(0).compare(bed.volume).await.unwrap();
    assert_eq!((result.repaired, result.unrepairable), (0, 2 * lost.len() as u64));
    write_all(&disk, ROUNDS + 1).await;
    check_all(&disk, ROUNDS + 1).await;
    println!(
        "{damaged} blocks damaged on one copy: 0 served, {repaired} repaired; {} on both: 0 served",
        lost.len()
    );
}
