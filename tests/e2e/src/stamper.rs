//! Writes stamped blocks to a device and remembers what the device must hold from then on.

use anyhow::{Context as _, Result, ensure};
use nix::libc::O_DIRECT;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use types::BufMut;

const BLOCK: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Writes between two flushes unless said otherwise.
const FLUSH_EVERY: u64 = 64;

/// The generations of a block: `flushed` ≤ `acknowledged` ≤ `sent`.
#[derive(Clone, Copy, Debug, Default)]
struct Generations {
    flushed: u64,
    acknowledged: u64,
    sent: u64,
}

/// For each block what it may hold.
#[derive(Clone, Debug, Default)]
pub struct Stamped {
    blocks: BTreeMap<u64, Generations>,
    /// Blocks with an acknowledged write that no flush covers.
    unflushed: BTreeSet<u64>,
    /// Longest time between two acknowledgements, in milliseconds.
    pub longest_stall_ms: u64,
    /// What ended the writing, if not [`Stamper::stop`].
    pub error: Option<String>,
}

impl Stamped {
    /// How many blocks have been written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// How many blocks have an acknowledged write that no flush covers.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// Reads every block back, past every cache: all that was acknowledged is there.
    ///
    /// # Errors
    /// Naming the first block that holds something that it must not.
    pub fn check(&self, device: &Path) -> Result<()> {
        self.check_from(device, "acknowledged", BLOCK, |block| block.acknowledged).map(drop)
    }

    /// As [`Stamped::check`] after a loss of power that no copy survived in memory: all that was
    /// flushed is there, and what was not may be torn between sectors of a disk. Returns how many blocks have lost an acknowledged write.
    ///
    /// # Errors
    /// Naming the first block that holds something that it must not.
    pub fn check_flushed(&self, device: &Path) -> Result<usize> {
        self.check_from(device, "flushed", SECTOR, |block| block.flushed)
    }

    fn check_from(
        &self,
        device: &Path,
        word: &str,
        untorn: usize,
        least: impl Fn(&Generations) -> u64,
    ) -> Result<usize> {
        let mut lost = 0;
        let file = open(device)?;
        let mut buffer = BufMut::with_len(BLOCK);
        for (block, generations) in &self.blocks {
            let (least, sent) = (least(generations), generations.sent);
            file.read_exact_at(buffer.as_mut_slice(), block * BLOCK as u64)
                .with_context(|| format!("reading block {block}"))?;
            let mut oldest = u64::MAX;
            for piece in buffer.as_slice().chunks_exact(untorn) {
                let (found, generation) = stamp_of(piece);
                let zeros = generation == 0 && types::is_zeros(piece);
                ensure!(
                    zeros || piece == &stamp(*block, generation).as_slice()[..untorn],
                    "block {block} holds a torn or foreign stamp ({found}, {generation})"
                );
                ensure!(
                    (least..=sent).contains(&generation),
                    "block {block} holds generation {generation}; {word} {least}, sent {sent}"
                );
                oldest = oldest.min(generation);
            }
            lost += usize::from(oldest < generations.acknowledged);
        }
        Ok(lost)
    }
}

impl Stamped {
    /// A flush was acknowledged, and no write was in flight.
    fn flushed(&mut self) {
        for block in std::mem::take(&mut self.unflushed) {
            if let Some(generations) = self.blocks.get_mut(&block) {
                generations.flushed = generations.acknowledged;
            }
        }
    }
}

fn stamp_of(bytes: &[u8]) -> (u64, u64) {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    (word(0), word(8))
}

/// All of the block is the stamp, so that a torn one is seen.
fn stamp(block: u64, generation: u64) -> BufMut {
    let mut buffer = BufMut::with_len(BLOCK);
    for chunk in buffer.as_mut_slice().chunks_exact_mut(16) {
        chunk[..8].copy_from_slice(&block.to_le_bytes());
        chunk[8..].copy_from_slice(&generation.to_le_bytes());
    }
    buffer
}

fn open(device: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(device)
        .with_context(|| format!("opening {}", device.display()))
}

/// A thread that writes until stopped, or until the device fails.
pub struct Stamper {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    state: Arc<Mutex<Stamped>>,
    thread: JoinHandle<()>,
}

impl Stamper {
    /// Writes to random ones of the first `blocks` blocks of `device`, with a flush now and then;
    /// `before` is what it must hold already.
    ///
    /// # Errors
    /// If the device cannot be opened.
    pub fn start(device: &Path, blocks: u64, before: Stamped) -> Result<Self> {
        Self::flushing_every(FLUSH_EVERY, device, blocks, before)
    }

    /// As [`Stamper::start`] with a flush after so many writes.
    ///
    /// # Errors
    /// If the device cannot be opened.
    pub fn flushing_every(
        writes_per_flush: u64,
        device: &Path,
        blocks: u64,
        before: Stamped,
    ) -> Result<Self> {
        let file = open(device)?;
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(AtomicU64::new(0));
        let before = Stamped { longest_stall_ms: 0, error: None, ..before };
        let state = Arc::new(Mutex::new(before));
        let thread = thread::spawn({
            let (stop, writes, state) =
                (Arc::clone(&stop), Arc::clone(&writes), Arc::clone(&state));
            move || {
                let ended = write(&file, blocks, writes_per_flush, &stop, &writes, &state);
                if let Err(error) = ended {
                    lock(&state).error = Some(error.to_string());
                }
            }
        });
        Ok(Self { stop, writes, state, thread })
    }

    /// How many writes were acknowledged so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Ends the writing and returns what the device must hold.
    ///
    /// # Errors
    /// If the thread panicked.
    pub fn stop(self) -> Result<Stamped> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        let stamped = lock(&self.state).clone();
        Ok(stamped)
    }
}

fn lock(state: &Mutex<Stamped>) -> std::sync::MutexGuard<'_, Stamped> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write(
    file: &File,
    blocks: u64,
    writes_per_flush: u64,
    stop: &AtomicBool,
    writes: &AtomicU64,
    state: &Mutex<Stamped>,
) -> std::io::Result<()> {
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut generation = lock(state).blocks.values().map(|block| block.sent).max().unwrap_or(0);
    let mut last = lab::clock::now();
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let block = random % blocks;
        generation += 1;
        lock(state).blocks.entry(block).or_default().sent = generation;
        file.write_all_at(stamp(block, generation).as_slice(), block * BLOCK as u64)?;
        {
            let mut state = lock(state);
            state.blocks.entry(block).or_default().acknowledged = generation;
            state.unflushed.insert(block);
        }
        if generation.is_multiple_of(writes_per_flush) {
            file.sync_data()?;
            lock(state).flushed();
        }
        let now = lab::clock::now();
        let stall = u64::try_from(now.since(last).as_millis()).unwrap_or(u64::MAX);
        last = now;
        let mut state = lock(state);
        state.longest_stall_ms = state.longest_stall_ms.max(stall);
        drop(state);
        writes.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_lost_write_and_a_torn_block_are_seen() {
        let path = std::env::temp_dir().join(format!("hf-stamper-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(64 * BLOCK as u64).unwrap();
        let stamper = Stamper::start(&path, 64, Stamped::default()).unwrap();
        while stamper.writes() < 500 {
            thread::yield_now();
        }
        let stamped = stamper.stop().unwrap();
        assert_eq!(stamped.error, None);
        stamped.check(&path).unwrap();
        let (block, generations) = stamped.blocks.iter().next().unwrap();
        let acknowledged = generations.acknowledged;
        for (content, words) in [
            (stamp(*block, acknowledged - 1), "acknowledged"),
            (stamp(block + 1, acknowledged), "foreign"),
            (BufMut::zeroed(BLOCK), "generation 0"),
        ] {
            file.write_all_at(content.as_slice(), block * BLOCK as u64).unwrap();
            let error = stamped.check(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
