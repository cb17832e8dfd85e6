//! When a node counts as lost: timers of the leader, without a clock.
//!
//! This decides only *when to ask Raft* (R6, R7); safety never rests on it (R8).

use core::time::Duration;
use std::collections::BTreeMap;
use types::{Instant, NodeId};

/// Interval of heartbeats from every node to the leader.
pub const HEARTBEAT: Duration = Duration::from_millis(300);
/// A node not heard for this long is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(3);
/// A leader that did not look for this long (stopped, suspended, starved) cannot tell who was
/// silent from who was not listened to: it starts all timers afresh, as a new leader does.
pub const STALL: Duration = Duration::from_secs(1);

/// Timers of one leadership.
#[derive(Debug)]
pub struct Monitor {
    heard: BTreeMap<NodeId, Instant>,
    /// Nodes without a time of their own count as heard then.
    since: Instant,
    looked: Instant,
}

impl Monitor {
    /// A new leadership: everybody counts as heard now (R6).
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { heard: BTreeMap::new(), since: now, looked: now }
    }

    /// A heartbeat of `node` arrived.
    pub fn heard(&mut self, node: NodeId, now: Instant) {
        self.heard.insert(node, now);
    }

    /// `node` said that it restarts: until `until` its silence means nothing. Whatever it says
    /// afterwards ends that.
    pub fn excuse(&mut self, node: NodeId, until: Instant) {
        self.heard.insert(node, until);
    }

    /// How long `node` has been silent.
    #[must_use]
    pub fn silence(&self, node: NodeId, now: Instant) -> Duration {
        now.since(self.heard.get(&node).copied().unwrap_or(self.since).max(self.since))
    }

    /// As [`Self::silence`], of a node that spoke in this leadership; `None` of another.
    #[must_use]
    pub fn silence_since_word(&self, node: NodeId, now: Instant) -> Option<Duration> {
        self.heard.get(&node).map(|heard| now.since(*heard))
    }

    /// Which of `nodes` have been silent for [`LOST_AFTER`]. To be called several times a second.
    pub fn silent(&mut self, nodes: impl IntoIterator<Item = NodeId>, now: Instant) -> Vec<NodeId> {
        if now.since(self.looked) > STALL {
            self.since = now;
        }
        self.looked = now;
        nodes.into_iter().filter(|node| self.silence(*node, now) >= LOST_AFTER).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time in milliseconds since boot, for tables.
    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    /// Looks every 100 ms up to `until` (ms), feeding heartbeats of (node, every 300 ms, from, to).
    fn run(until: u64, beats: &[(u64, u64, u64)], pause: Option<(u64, u64)>) -> Vec<(u64, u64)> {
        let mut monitor = Monitor::new(at(0));
        let mut lost = Vec::new();
        for now in (0..=until).step_by(100) {
            if pause.is_some_and(|(from, to)| now > from && now < to) {
                continue;
            }
            for (node, from, to) in beats {
                if now % 300 == 0 && now >= *from && now < *to {
                    monitor.heard(NodeId(*node), at(now));
                }
            }
            for node in monitor.silent(NODES, at(now)) {
                if lost.iter().all(|(known, _)| *known != node.0) {
                    lost.push((node.0, now));
                }
            }
        }
        lost
    }

    #[test]
    fn who_is_lost_and_when() {
        let always = (1, 0, u64::MAX);
        type Row<'a> = (&'a str, u64, &'a [(u64, u64, u64)], Option<(u64, u64)>, &'a [(u64, u64)]);
        let rows: &[Row<'_>] = &[
            ("all speak", 10_000, &[always, (2, 0, u64::MAX), (3, 0, u64::MAX)], None, &[]),
            (
                "one is cut at 2 s",
                10_000,
                &[always, (2, 0, 2_000), (3, 0, u64::MAX)],
                None,
                &[(2, 4_800)],
            ),
            ("one never speaks", 3_500, &[always, (2, 0, u64::MAX)], None, &[(3, 3_000)]),
            (
                "a short silence",
                10_000,
                &[always, (2, 0, 2_000), (2, 4_600, u64::MAX), (3, 0, u64::MAX)],
                None,
                &[],
            ),
            (
                "the leader slept: it gives everybody another 3 s",
                9_900,
                &[always, (2, 0, 2_000), (3, 0, u64::MAX)],
                Some((2_000, 7_000)),
                &[],
            ),
            (
                "the leader slept, then the silent one is lost",
                12_000,
                &[always, (2, 0, 2_000), (3, 0, u64::MAX)],
                Some((2_000, 7_000)),
                &[(2, 10_000)],
            ),
        ];
        for (name, until, beats, pause, wanted) in rows {
            assert_eq!(&run(*until, beats, *pause), wanted, "{name}");
        }
    }

    #[test]
    fn an_announced_restart_is_not_a_loss_unless_it_takes_too_long() {
        let node = NodeId(2);
        let mut monitor = Monitor::new(at(0));
        monitor.heard(node, at(1_000));
        monitor.excuse(node, at(16_000));
        let lost = |monitor: &Monitor, now| monitor.silence(node, at(now)) >= LOST_AFTER;
        assert!(!lost(&monitor, 15_000) && !lost(&monitor, 18_900));
        assert!(lost(&monitor, 19_000), "it did not come back");
        // Back, and lost without a word: the excuse is used up.
        monitor.heard(node, at(5_000));
        assert!(lost(&monitor, 8_000));
    }

    #[test]
    fn a_new_leadership_starts_afresh() {
        let mut monitor = Monitor::new(at(50_000));
        assert_eq!(monitor.silent(NODES, at(50_900)), []);
        assert_eq!(monitor.silence(NodeId(1), at(50_900)), Duration::from_millis(900));
        assert_eq!(monitor.silence_since_word(NodeId(1), at(50_900)), None, "it said nothing yet");
        monitor.heard(NodeId(1), at(51_000));
        let word = monitor.silence_since_word(NodeId(1), at(54_000));
        assert_eq!(word, Some(Duration::from_secs(3)));
    }
}
