//! Time: the true one, which only the simulator knows, and each host's own.

use types::Instant;

/// True time in nanoseconds since the run began.
pub type Time = u64;

/// A microsecond.
pub const US: Time = 1_000;
/// A millisecond.
pub const MS: Time = 1_000_000;
/// A second.
pub const SEC: Time = 1_000_000_000;

/// CLOCK_BOOTTIME of a host: begins anywhere, runs a little too fast or too slow, never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// True time at which the clock was last set…
    base: Time,
    /// …and what it showed then.
    shown: u64,
    /// Parts per million.
    drift: i64,
}

impl Clock {
    /// A clock that shows `shown` nanoseconds at true time `now`.
    #[must_use]
    pub fn new(now: Time, shown: u64, drift: i64) -> Self {
        Self { base: now, shown, drift }
    }

    fn rate(&self) -> u128 {
        (1_000_000 + self.drift).unsigned_abs().into()
    }

    /// What it shows at true time `now`.
    #[must_use]
    pub fn at(&self, now: Time) -> Instant {
        let passed = u128::from(now.saturating_sub(self.base)) * self.rate() / 1_000_000;
        Instant(self.shown + passed as u64)
    }

    /// The first true time at which it shows at least `instant`.
    #[must_use]
    pub fn when(&self, instant: Instant) -> Time {
        let left = u128::from(instant.0.saturating_sub(self.shown)) * 1_000_000;
        self.base + left.div_ceil(self.rate()) as u64
    }

    /// From `now` on it runs at another rate.
    pub fn set_drift(&mut self, now: Time, drift: i64) {
        *self = Self { base: now, shown: self.at(now).0, drift };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_inverse_of_at() {
        for drift in [-20_000, 0, 500, 20_000] {
            let clock = Clock::new(5 * SEC, 77 * SEC, drift);
            for instant in [Instant(77 * SEC), Instant(77 * SEC + 1), Instant(1_000 * SEC + 12_345)]
            {
                let when = clock.when(instant);
                assert!(clock.at(when) >= instant, "{drift} {instant:?}");
                assert!(when == 5 * SEC || clock.at(when - 1) < instant, "{drift} {instant:?}");
            }
        }
    }
}
