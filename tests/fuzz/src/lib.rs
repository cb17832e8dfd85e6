//! Feeds decoders with damaged inputs: valid ones, cut, spliced and altered, half of them with their
//! checksums and lengths made right again, so that they reach what lies behind the checksum.
//!
//! It demands of each input: no panic, an end, and no more memory than [`MEMORY`]. Every input
//! follows from a seed and its number alone: a failure prints both, and the input, as short as it
//! could be made, as hex. `FUZZ_SEED` replays or goes on elsewhere, `FUZZ_INPUTS` says how many.
//!
//! Decoders that their crate keeps to itself are fuzzed by a `fuzz` module among its own tests.
#![forbid(unsafe_code)]

mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kit::Rng;
use peak_alloc::PeakAlloc;

pub use mutate::mutate;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that the whole process may use beyond what it began with: several decoders run at a time,
/// and none needs more than a few megabytes.
pub const MEMORY: usize = 256 << 20;

/// Inputs for each decoder in `make test`.
pub const INPUTS: u64 = 1_000_000;

/// An input that takes this long never ends.
const FOREVER: Duration = Duration::from_secs(60);

/// What a decoder makes of its inputs.
pub struct Target<'a> {
    /// For people.
    pub name: &'a str,
    /// Valid inputs.
    pub corpus: Vec<Vec<u8>>,
    /// Pieces that are worth having, like magic numbers and keys.
    pub words: &'a [&'a [u8]],
    /// Longest input, in bytes.
    pub longest: usize,
    /// Makes checksums and lengths right again.
    pub repair: &'a dyn Fn(&mut Vec<u8>),
    /// Decodes; whether the input was accepted.
    pub decode: &'a dyn Fn(&[u8]) -> bool,
}

/// Nothing to make right.
pub fn no_repair(_: &mut Vec<u8>) {}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Input `number` of `seed`.
fn input(target: &Target<'_>, seed: u64, number: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed.wrapping_mul(0x1000_0000_01b3) ^ number);
    rng.next();
    let mut bytes = target.corpus[rng.index(target.corpus.len())].clone();
    mutate(&mut bytes, &target.corpus, target.words, &mut rng);
    bytes.truncate(target.longest);
    if rng.one_in(2) {
        (target.repair)(&mut bytes);
    }
    bytes
}

/// Why an input is bad.
fn verdict(target: &Target<'_>, bytes: &[u8], base: usize) -> Result<bool, String> {
    let accepted = catch_unwind(AssertUnwindSafe(|| (target.decode)(bytes)))
        .map_err(|_| "it panics".to_owned())?;
    let used = ALLOCATOR.peak_usage().saturating_sub(base);
    if used > MEMORY {
        ALLOCATOR.reset_peak_usage();
        return Err(format!("it takes {used} bytes"));
    }
    Ok(accepted)
}

/// The input without what its failure does not need.
fn shrink(target: &Target<'_>, mut bytes: Vec<u8>, base: usize) -> Vec<u8> {
    let mut piece = bytes.len().next_power_of_two();
    while piece > 0 {
        let mut at = 0;
        while at < bytes.len() {
            let mut less = bytes.clone();
            less.drain(at..(at + piece).min(bytes.len()));
            if verdict(target, &less, base).is_err() {
                bytes = less;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    bytes
}

/// Feeds a decoder [`INPUTS`] inputs.
///
/// # Panics
/// An input is bad; or the corpus is, since a valid input must be accepted; or hardly any altered
/// one was accepted or refused, so that the decoder was not reached.
pub fn run(target: &Target<'_>) {
    let (seed, inputs) = (number("FUZZ_SEED", 1), number("FUZZ_INPUTS", INPUTS));
    for (number, valid) in target.corpus.iter().enumerate() {
        assert!((target.decode)(valid), "{}: input {number} of the corpus is refused", target.name);
    }
    ALLOCATOR.reset_peak_usage();
    let base = ALLOCATOR.current_usage();
    let (at, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let accepted = std::thread::scope(|scope| {
        scope.spawn(|| watch(target.name, seed, &at, &over));
        let _over = SetOnDrop(&over);
        let mut accepted = 0;
        for number in 0..inputs {
            at.store(number, Ordering::Relaxed);
            let bytes = input(target, seed, number);
            match verdict(target, &bytes, base) {
                Ok(fine) => accepted += u64::from(fine),
                Err(what) => {
                    let least = hex(&shrink(target, bytes.clone(), base));
                    let name = target.name;
                    panic!(
                        "{name}, FUZZ_SEED={seed}, input {number}: {what}: {}; at the least {least}",
                        hex(&bytes)
                    );
                }
            }
        }
        accepted
    });
    println!("{}: {inputs} inputs, {accepted} accepted", target.name);
    assert!(accepted > inputs / 1000, "{}: hardly anything is accepted", target.name);
    assert!(accepted < inputs, "{}: nothing is refused", target.name);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Ends the process when an input never ends: nothing else would.
fn watch(name: &str, seed: u64, at: &AtomicU64, over: &AtomicBool) {
    const LOOK: Duration = Duration::from_millis(50);
    let (mut last, mut same) = (u64::MAX, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        let now = at.load(Ordering::Relaxed);
        same = if now == last { same + LOOK } else { Duration::ZERO };
        last = now;
        if same > FOREVER {
            eprintln!("{name}, FUZZ_SEED={seed}, input {now}: it does not end");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target<'a>(decode: &'a dyn Fn(&[u8]) -> bool) -> Target<'a> {
        Target {
            name: "test",
            corpus: vec![b"good input".to_vec()],
            words: &[],
            longest: 64,
            repair: &no_repair,
            decode,
        }
    }

    fn caught(decode: &dyn Fn(&[u8]) -> bool) -> String {
        let panic = catch_unwind(AssertUnwindSafe(|| run(&target(decode))));
        *panic.expect_err("it should be found out").downcast().expect("a text")
    }

    /// One after the other: memory is counted for the whole process.
    #[test]
    fn what_is_bad_is_found_out() {
        let said = caught(&|bytes| {
            assert!(!bytes.contains(&0xf7), "deep inside");
            bytes.len() > 4
        });
        assert!(said.contains("it panics") && said.ends_with("at the least f7"), "{said}");
        let said = caught(&|bytes| {
            let greedy = bytes.first() == Some(&0xff);
            drop(vec![1u8; if greedy { MEMORY + (1 << 20) } else { 1 }]);
            bytes.len() > 4
        });
        assert!(said.contains("it takes"), "{said}");
        let first = std::cell::Cell::new(true);
        assert!(caught(&|_| first.replace(false)).contains("hardly anything"));
    }
}
