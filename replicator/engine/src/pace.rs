//! How much resync may run at once: steered by the foreground's tail latency (R21).

use core::time::Duration;
use types::Instant;

/// Regions in work at once, at most.
const MAX_WINDOW: u32 = 8;
/// Latencies are judged once in this time, by their maximum.
const PERIOD: Duration = Duration::from_millis(100);
/// Foreground latency that resync may add in any case.
const ALLOWANCE: Duration = Duration::from_millis(2);

/// Additive increase, multiplicative decrease of the resync window.
#[derive(Debug)]
pub(crate) struct Pace {
    window: u32,
    /// Mean of the periods' worst latencies while nothing was resynced.
    quiet: Duration,
    worst: Duration,
    since: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: 2, quiet: Duration::ZERO, worst: Duration::ZERO, since: Instant(0) }
    }
}

impl Pace {
    /// One foreground write or flush took `latency`.
    pub(crate) fn sample(&mut self, latency: Duration) {
        self.worst = self.worst.max(latency);
    }

    /// Regions that may be in work now.
    pub(crate) fn window(&mut self, now: Instant, resyncing: bool) -> u32 {
        if now.since(self.since) >= PERIOD {
            let worst = core::mem::take(&mut self.worst);
            self.since = now;
            if !resyncing {
                if worst.is_zero() {
                    return self.window;
                }
                self.quiet = (self.quiet * 7 + worst) / 8;
            } else if worst > self.quiet * 2 + ALLOWANCE {
                self.window = (self.window / 2).max(1);
            } else {
                self.window = (self.window + 1).min(MAX_WINDOW);
            }
        }
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_foreground_narrows_the_window_and_a_fast_one_widens_it() {
        let mut pace = Pace::default();
        let mut now = Instant(0);
        let mut run = |pace: &mut Pace, latency, resyncing| {
            let mut window = 0;
            for _ in 0..20 {
                now = now.after(PERIOD);
                pace.sample(Duration::from_millis(latency));
                window = pace.window(now, resyncing);
            }
            window
        };
        run(&mut pace, 1, false);
        assert_eq!(run(&mut pace, 2, true), MAX_WINDOW);
        pace.sample(Duration::from_millis(30));
        assert_eq!(pace.window(Instant(3600 * 1_000_000_000), true), MAX_WINDOW / 2, "by halves");
        pace.since = Instant(0);
        assert_eq!(run(&mut pace, 30, true), 1);
        assert_eq!(run(&mut pace, 2, true), MAX_WINDOW);
        // Twice what is usual and the allowance are not too much.
        run(&mut pace, 16, false);
        pace.quiet = Duration::from_millis(16);
        assert_eq!((run(&mut pace, 34, true), run(&mut pace, 35, true)), (MAX_WINDOW, 1));
    }
}
