//! What happened: a hash of everything, and the last lines of it in words when somebody wants them.

use crate::clock::{SEC, Time};
use std::collections::VecDeque;

/// Lines kept.
const LINES: usize = 4000;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Option<VecDeque<String>>,
}

impl Trace {
    /// With `words`, lines are kept.
    #[must_use]
    pub fn new(words: bool) -> Self {
        Self { hash: 0, events: 0, lines: words.then(VecDeque::new) }
    }

    /// Takes numbers into the hash.
    pub fn mix(&mut self, now: Time, what: u64, which: u64) {
        self.events += 1;
        let mut z = self.hash ^ now.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ what).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(29);
        z = (z ^ which).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.hash = z ^ (z >> 32);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Notes a line; its text is made only if lines are kept.
    pub fn line(&mut self, now: Time, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES {
                lines.pop_front();
            }
            let (seconds, micros) = (now / SEC, now % SEC / 1000);
            lines.push_back(format!("{seconds:4}.{micros:06}  {}", text()));
        }
    }

    /// The lines kept.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default().into()
    }
}
