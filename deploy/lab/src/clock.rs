//! CLOCK_BOOTTIME, the clock of every time stamp in the lab: all nodes of one machine share it.

use nix::time::{ClockId, clock_gettime};
use types::Instant;

/// Now on CLOCK_BOOTTIME.
#[must_use]
pub fn now() -> Instant {
    Instant(nanoseconds(ClockId::CLOCK_BOOTTIME))
}

/// CLOCK_BOOTTIME minus CLOCK_REALTIME in nanoseconds: turns the wall-clock stamps of other programs
/// (pgbench's log) into ours.
#[must_use]
pub fn boottime_minus_realtime() -> i128 {
    i128::from(nanoseconds(ClockId::CLOCK_BOOTTIME))
        - i128::from(nanoseconds(ClockId::CLOCK_REALTIME))
}

fn nanoseconds(clock: ClockId) -> u64 {
    // Both clocks exist on every Linux that this crate builds for and are never negative.
    let time = clock_gettime(clock).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}

/// Seconds from `earlier` to `later`, negative if it is the other way round.
#[must_use]
pub fn seconds_between(earlier: Instant, later: Instant) -> f64 {
    if later >= earlier {
        later.since(earlier).as_secs_f64()
    } else {
        -earlier.since(later).as_secs_f64()
    }
}
