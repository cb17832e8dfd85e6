//! The scrub: a comparison of the whole volume in small pieces, spread evenly over a stated time, so
//! that rot is found while there is still another copy. It never ends: a pass follows the other.
//!
//! It waits while a resync runs, and for a moment without foreground requests; a piece that has
//! waited for long goes ahead. A new attachment begins at another place, by its epoch: volumes that
//! are never attached for a whole pass are covered all the same, in the long run.

use crate::api::{CompareResult, Output, ScrubStatus};
use crate::core::Engine;
use crate::flight::Purpose;
use crate::member::{Member, Standing};
use core::time::Duration;
use types::{Instant, REGION};

/// Tickets of comparisons with this bit are the scrub's own.
const BACKGROUND: u64 = 1 << 63;
/// A piece is at least this far from the one before: larger volumes have larger pieces.
const STEP: Duration = Duration::from_millis(500);
/// Regions in one piece at most.
const MAX_PIECE: u64 = 64;
/// A piece that foreground requests have held up for this long goes ahead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the scrub is.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// Time of one pass; none: no scrub.
    period: Option<Duration>,
    /// The next region, and how many are left of this pass.
    next: u64,
    left: u64,
    due: Instant,
    tickets: u64,
    /// Regions of the piece under way.
    piece: u64,
    status: ScrubStatus,
}

pub(crate) const fn is_background(ticket: u64) -> bool {
    ticket & BACKGROUND != 0
}

impl Engine {
    /// Scrubs the volume once in `period` while it is attached.
    #[must_use]
    pub fn scrubbing(mut self, period: Duration) -> Self {
        self.scrub.period = Some(period);
        self
    }

    pub(crate) fn scrub_status(&self) -> ScrubStatus {
        self.scrub.status
    }

    fn regions(&self) -> u64 {
        self.config.size.div_ceil(REGION).max(1)
    }

    /// Regions in a piece, and the time for it.
    fn piece(&self, period: Duration) -> (u64, Duration) {
        let pieces = (period.as_nanos() / STEP.as_nanos()).max(1);
        let piece = u128::from(self.regions()).div_ceil(pieces).min(u128::from(MAX_PIECE)) as u64;
        let nanos = period.as_nanos() * u128::from(piece) / u128::from(self.regions());
        (piece, Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// The attachment is active.
    pub(crate) fn start_scrub(&mut self) {
        let Some(period) = self.scrub.period else { return };
        let regions = self.regions();
        // Fibonacci hashing: successive epochs are far from each other.
        self.scrub.next = self.config.epoch.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) % regions;
        self.scrub.left = regions;
        self.scrub.due = self.now.after(self.piece(period).1);
    }

    pub(crate) fn tick_scrub(&mut self, out: &mut Vec<Output>) {
        let Some(period) = self.scrub.period else { return };
        if self.now < self.scrub.due || self.comparison.is_some() {
            return;
        }
        let syncing =
            |m: &Member| matches!(m.standing, Standing::Syncing(_) | Standing::Joining(_));
        let in_sync = self.mask_of(Member::in_sync);
        let up = self.mask_of(|m| m.in_sync() && m.is_up() && !m.unfit && !m.broken);
        let foreground = |purpose| matches!(purpose, Purpose::Foreground(_));
        let busy = self.flights.iter().any(|(_, flight)| foreground(flight.purpose));
        let held_up = busy && self.now.since(self.scrub.due) < PATIENCE;
        if held_up || in_sync != up || up.is_empty() || self.members.iter().any(syncing) {
            return;
        }
        let regions = self.regions();
        if self.scrub.next >= regions {
            self.scrub.next = 0;
        }
        let first = self.scrub.next;
        let piece = self.piece(period).0.min(regions - first).min(self.scrub.left.max(1));
        self.scrub.piece = piece;
        self.scrub.tickets += 1;
        let ticket = BACKGROUND | self.scrub.tickets;
        let end = ((first + piece) * REGION).min(self.config.size);
        self.compare_range(ticket, first * REGION, end, out);
    }

    /// A comparison has ended, by itself or by hand.
    pub(crate) fn scrubbed(&mut self, ticket: u64, result: Option<CompareResult>) {
        let whole = if is_background(ticket) {
            let Some(period) = self.scrub.period else { return };
            let time = self.piece(period).1;
            // One that was cut short is done again.
            self.scrub.due = self.now.after(time);
            if result.is_none() {
                return;
            }
            self.scrub.next += self.scrub.piece;
            self.scrub.left = self.scrub.left.saturating_sub(self.scrub.piece);
            self.scrub.left == 0
        } else {
            result.is_some()
        };
        let Some(result) = result else { return };
        let status = &mut self.scrub.status;
        status.checked += result.bytes;
        status.different += result.different;
        if whole {
            status.finished = Some(self.now);
            if is_background(ticket) {
                self.scrub.left = self.regions();
            }
        }
    }
}
