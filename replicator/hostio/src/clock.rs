//! The clock that leases are counted on, the one that people read, and the boot that unflushed writes live and die with.

use nix::time::{ClockId, clock_gettime};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use types::{BootId, Instant};

/// Nanoseconds of CLOCK_BOOTTIME: it counts through suspend, as leases must (R8).
///
/// # Panics
/// If the kernel has no CLOCK_BOOTTIME (before Linux 2.6.39): a wrong time would break leases.
#[must_use]
pub fn boottime() -> Instant {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        // Both parts are positive since boot.
        Ok(time) => {
            Instant(time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs())
        }
        Err(errno) => panic!("CLOCK_BOOTTIME cannot be read: {errno}"),
    }
}

/// Time since 1970 by the wall clock: for people, and for nothing that has to be right. 0 before.
#[must_use]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// [`unix_time`] in milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX)
}

/// This boot of the host, from /proc/sys/kernel/random/boot_id (R9).
pub fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn boottime_moves_and_the_boot_id_does_not() {
        let before = boottime();
        assert!(before.0 > 0);
        assert!(boottime() >= before);
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
