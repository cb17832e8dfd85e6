//! The interval lock of R16 and R21: overlapping writes, and resync against writes, go one by one.

use crate::region::is_job;
use std::collections::{BTreeMap, VecDeque};
use types::plant::{Bug, planted};

/// Who holds or wants a range; unique while it does.
pub(crate) type Holder = u64;

/// Ranges in bytes. Held ranges are disjoint by construction; waiters are served in order of
/// arrival as far as they overlap, so nobody starves.
#[derive(Default)]
pub(crate) struct IntervalLock {
    /// start -> (end, holder)
    held: BTreeMap<u64, (u64, Holder)>,
    waiting: VecDeque<(u64, u64, Holder)>,
}

impl IntervalLock {
    fn is_held(&self, start: u64, end: u64) -> bool {
        self.held.range(..end).next_back().is_some_and(|(_, (held_end, _))| *held_end > start)
    }

    /// Takes `start..end` for `holder`, or queues it and returns false.
    pub(crate) fn lock(&mut self, start: u64, end: u64, holder: Holder) -> bool {
        if planted(Bug::NoIntervalLock) || planted(Bug::CopyWithoutLock) && is_job(holder) {
            return true;
        }
        let behind = self.waiting.iter().any(|(s, e, _)| *s < end && start < *e);
        if behind || self.is_held(start, end) {
            self.waiting.push_back((start, end, holder));
            return false;
        }
        self.held.insert(start, (end, holder));
        true
    }

    /// Gives back the range that starts at `start` and appends to `ready` the holders that got
    /// theirs by it.
    pub(crate) fn unlock(&mut self, start: u64, holder: Holder, ready: &mut Vec<Holder>) {
        if self.held.get(&start).is_some_and(|(_, by)| *by == holder) {
            self.held.remove(&start);
        }
        if !self.waiting.is_empty() {
            self.serve(ready);
        }
    }

    /// Withdraws a waiter; others may get their turn by that.
    pub(crate) fn withdraw(&mut self, holder: Holder, ready: &mut Vec<Holder>) {
        self.waiting.retain(|(_, _, by)| *by != holder);
        self.serve(ready);
    }

    fn serve(&mut self, ready: &mut Vec<Holder>) {
        let mut still = VecDeque::new();
        while let Some((start, end, holder)) = self.waiting.pop_front() {
            let behind = still.iter().any(|(s, e, _): &(u64, u64, Holder)| *s < end && start < *e);
            if behind || self.is_held(start, end) {
                still.push_back((start, end, holder));
            } else {
                self.held.insert(start, (end, holder));
                ready.push(holder);
            }
        }
        self.waiting = still;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_wait_in_order_and_others_pass() {
        let mut lock = IntervalLock::default();
        assert!(lock.lock(0, 8, 1));
        assert!(lock.lock(8, 16, 2), "touching ranges do not overlap");
        assert!(!lock.lock(4, 12, 3));
        assert!(!lock.lock(4, 8, 4), "behind 3");
        assert!(lock.lock(16, 20, 5));
        let mut ready = vec![];
        lock.unlock(0, 1, &mut ready);
        assert_eq!(ready, [], "3 still waits for 2, and 4 for 3");
        lock.unlock(8, 2, &mut ready);
        assert_eq!(ready, [3]);
        lock.unlock(4, 3, &mut ready);
        assert_eq!(ready, [3, 4]);
    }

    #[test]
    fn a_waiter_passes_those_that_it_only_touches() {
        let mut lock = IntervalLock::default();
        assert!(lock.lock(0, 8, 1));
        assert!(lock.lock(20, 28, 2));
        assert!(!lock.lock(4, 24, 3));
        assert!(lock.lock(30, 34, 5));
        assert!(!lock.lock(24, 30, 4));
        let mut ready = vec![];
        lock.unlock(20, 2, &mut ready);
        assert_eq!(ready, [4], "3 still waits for 1");

        let mut lock = IntervalLock::default();
        assert!(lock.lock(0, 8, 1));
        assert!(lock.lock(20, 28, 2));
        assert!(!lock.lock(20, 40, 3));
        assert!(!lock.lock(4, 20, 4));
        assert!(lock.lock(40, 44, 5), "behind nobody");
        ready.clear();
        lock.unlock(0, 1, &mut ready);
        assert_eq!(ready, [4], "3 still waits for 2");
    }

    #[test]
    fn a_withdrawn_waiter_lets_the_next_one_through() {
        let mut lock = IntervalLock::default();
        assert!(lock.lock(0, 8, 1));
        assert!(!lock.lock(4, 12, 2));
        assert!(!lock.lock(8, 12, 3), "behind 2");
        let mut ready = vec![];
        lock.withdraw(2, &mut ready);
        assert_eq!(ready, [3]);
    }
}
