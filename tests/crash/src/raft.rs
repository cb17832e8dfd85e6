//! The Raft log at work: batches, conflicts, rewrites, deaths of the process; power is lost after
//! every operation on its files, also on those of its recovery.
//!
//! What is checked: the log opens, and holds exactly what was acknowledged, or that and the one
//! batch or rewrite that was on its way: so no acknowledged term, vote, commit index or entry is
//! lost or goes back, and what one recovery found the next one finds. What is not: filesystems that
//! show a file's old blocks, or another file's, where bytes did not reach the disk.

use kit::Rng;
use metadata::{HardState, LogBatch, LogContents, LogEntry, LogSnapshot, LogStore, Membership};
use replicator::meta::wal::{Identity, Wal};
use types::NodeId;

use crate::files::{FileLie, Files, MemoryDirectory, Moment};
use crate::run::Tally;

/// How much to do.
#[derive(Clone, Copy, Debug)]
pub struct RaftPlan {
    /// Batches and rewrites.
    pub operations: u64,
    /// Images of an append of too many sectors.
    pub samples: usize,
    /// Which promise the directory breaks.
    pub lie: FileLie,
}

impl RaftPlan {
    /// What `make test` and the command line use.
    pub const USUAL: Self = Self { operations: 60, samples: 12, lie: FileLie::Honest };
}

/// A recovery is cut again in one of this many images.
const RECUT: u64 = 12;

fn identity() -> Identity {
    Identity { cluster: kit::ids::CLUSTER, node: NodeId(1) }
}

fn founding() -> LogContents {
    let membership = Membership { voters: [NodeId(1)].into(), ..Membership::default() };
    LogContents {
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        snapshot: LogSnapshot { index: 1, term: 1, membership, state: vec![9; 50] },
        entries: Vec::new(),
    }
}

fn open(moment: Moment) -> Result<(MemoryDirectory, Wal<MemoryDirectory>, LogContents), String> {
    let directory = MemoryDirectory::new(moment);
    let (wal, found) = Wal::open_in(directory.clone(), identity(), || Ok(founding()))
        .map_err(|error| format!("it opens no more: {error}"))?;
    Ok((directory, wal, found))
}

fn last(contents: &LogContents) -> (u64, u64) {
    let snapshot = (contents.snapshot.index, contents.snapshot.term);
    contents.entries.last().map_or(snapshot, |entry| (entry.index, entry.term))
}

/// What the log holds after `batch`.
fn after(contents: &LogContents, batch: &LogBatch) -> LogContents {
    let mut next = contents.clone();
    next.hard_state = batch.hard_state.unwrap_or(next.hard_state);
    if let Some(first) = batch.entries.first() {
        next.entries.retain(|entry| entry.index < first.index);
        next.entries.extend(batch.entries.iter().cloned());
    }
    next
}

fn bytes(rng: &mut Rng) -> Vec<u8> {
    let length = [20, 90, 600, 2500][rng.index(4)];
    match rng.below(4) {
        // Whole sectors of zeros, as nobody should mistake for lost ones.
        0 => vec![0; length],
        1 => (0..length).map(|_| rng.next() as u8).collect(),
        _ => (0..length).map(|at| (at % 250 + 1) as u8).collect(),
    }
}

/// A batch that Raft could ask for: terms rise, entries follow, conflicts replace what is not
/// committed.
fn batch(contents: &LogContents, rng: &mut Rng) -> LogBatch {
    let mut hard_state = contents.hard_state;
    let (end, _) = last(contents);
    if rng.one_in(4) {
        hard_state.term += 1 + rng.below(3);
        hard_state.vote = 1 + rng.below(3);
    }
    let first = if rng.one_in(4) {
        hard_state.commit + 1 + rng.below(end - hard_state.commit + 1)
    } else {
        end + 1
    };
    let count = rng.below(4);
    let term = hard_state.term;
    let entries: Vec<LogEntry> =
        (first..first + count).map(|index| LogEntry { index, term, bytes: bytes(rng) }).collect();
    let end = entries.last().map_or(end, |entry| entry.index);
    hard_state.commit += rng.below(end - hard_state.commit + 1);
    LogBatch { hard_state: (!rng.one_in(5)).then_some(hard_state), entries }
}

/// The log without what a snapshot holds now.
fn shortened(contents: &LogContents, rng: &mut Rng) -> LogContents {
    let mut next = contents.clone();
    let applied = next.hard_state.commit;
    if let Some(entry) = next.entries.iter().find(|entry| entry.index == applied) {
        next.snapshot.term = entry.term;
        next.snapshot.index = applied;
        next.snapshot.state = bytes(rng);
    }
    let kept = next.snapshot.index.saturating_sub(rng.below(3));
    next.entries.retain(|entry| entry.index > kept);
    next
}

struct Cuts {
    seed: u64,
    rng: Rng,
    plan: RaftPlan,
    tally: Tally,
}

impl Cuts {
    fn found(
        files: &Files,
        fine: &[&LogContents],
    ) -> Result<(MemoryDirectory, LogContents), String> {
        let (directory, wal, found) = open(Moment::of(files, FileLie::Honest))?;
        drop(wal);
        if !fine.contains(&&found) {
            let (hard, end) = (found.hard_state, last(&found));
            let expected: Vec<_> = fine.iter().map(|c| (c.hard_state, last(c))).collect();
            return Err(format!("found {hard:?} up to {end:?}, not one of {expected:?}"));
        }
        Ok((directory, found))
    }

    /// Loses power at each of `moments`; what is left is one of `fine`. Returns one that was left.
    fn at(&mut self, moments: &[Moment], fine: &[&LogContents], depth: u32) -> Option<Files> {
        let mut left = None;
        for moment in moments {
            self.tally.prefixes += u64::from(depth == 0);
            for files in moment.images(&mut self.rng, self.plan.samples) {
                self.tally.images += 1;
                self.tally.recoveries += u64::from(depth > 0);
                match Self::found(&files, fine) {
                    Err(what) => {
                        let (seed, prefix) = (self.seed, self.tally.prefixes);
                        let sizes: Vec<_> =
                            files.iter().map(|(name, bytes)| (name, bytes.len())).collect();
                        let what = format!(
                            "Raft log, seed {seed}, prefix {prefix}, depth {depth}, files {sizes:?}: {what}"
                        );
                        self.tally.losses.push(what);
                        return None;
                    }
                    Ok((directory, found)) if depth < 2 && self.rng.one_in(RECUT) => {
                        let moments = directory.take_moments();
                        self.at(&moments, fine, depth + 1);
                        // What was found is there for good.
                        self.at(&[directory.now()], &[&found], 2);
                    }
                    Ok(_) => {}
                }
                if !self.tally.losses.is_empty() {
                    return None;
                }
                if self.rng.one_in(20) {
                    left = Some(files);
                }
            }
        }
        left
    }
}

/// Runs a seed.
///
/// # Panics
/// An honest write fails, which it cannot in memory.
#[must_use]
pub fn run(seed: u64, plan: RaftPlan) -> Tally {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut cuts = Cuts { seed, rng: rng.fork(), plan, tally: Tally::default() };
    let mut model = founding();
    let (mut directory, mut wal) = match open(Moment::of(&Files::new(), plan.lie)) {
        Ok((directory, wal, found)) if found == model => (directory, wal),
        other => panic!("{other:?}"),
    };
    // Nothing is promised before it is founded, but it must be possible.
    cuts.at(&directory.take_moments(), &[&model], 0);
    for _ in 0..plan.operations {
        let (next, done) = if rng.one_in(8) {
            let next = shortened(&model, &mut rng);
            let done = wal.rewrite(&next);
            (next, done)
        } else {
            let batch = batch(&model, &mut rng);
            let done = wal.persist(&batch);
            (after(&model, &batch), done)
        };
        if let Err(error) = done {
            panic!("{error}");
        }
        let left = cuts.at(&directory.take_moments(), &[&model, &next], 0);
        // Now that it is acknowledged.
        cuts.at(&[directory.now()], &[&next], 0);
        if !cuts.tally.losses.is_empty() {
            return cuts.tally;
        }
        model = next;
        // Another life: on what a cut left, or after the death of the process.
        let moment = match left.filter(|_| rng.one_in(3)) {
            Some(files) => Moment::of(&files, plan.lie),
            None if rng.one_in(10) => directory.now(),
            None => continue,
        };
        cuts.tally.kills += 1;
        match open(moment) {
            Ok((again, reopened, found)) => {
                (directory, wal, model) = (again, reopened, found);
                let _ = directory.take_moments();
            }
            Err(what) => {
                cuts.tally.losses.push(format!("Raft log, seed {seed}: {what}"));
                return cuts.tally;
            }
        }
    }
    cuts.tally
}
