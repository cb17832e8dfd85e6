//! The record of failovers, put together from the events that tell its steps (control.proto,
//! NoteFailoverRequest).

use crate::api::Event;
use std::collections::BTreeMap;

/// The steps, in the order in which they happen.
pub const STEPS: [&str; 7] = [
    "failover_heard",
    "failover_lost",
    "failover_fenced",
    "failover_sealed",
    "failover_moved",
    "failover_attached",
    "failover_written",
];

/// One volume's way from a lost node to another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failover {
    /// The volume.
    pub volume_id: String,
    /// The epoch of the fence.
    pub epoch: u64,
    /// By step: the node that it concerns, and when, in milliseconds since 1970 by the clock of whoever
    /// told it.
    steps: BTreeMap<String, (u64, u64)>,
}

impl Failover {
    /// When a step was, in milliseconds since 1970; `None` if nobody saw it, or not yet.
    #[must_use]
    pub fn at(&self, step: &str) -> Option<u64> {
        self.steps.get(step).map(|(_, at)| *at)
    }

    /// The time of the first step that is known.
    #[must_use]
    pub fn begun(&self) -> Option<u64> {
        STEPS.into_iter().find_map(|step| self.at(step))
    }

    /// Seconds from [`Self::begun`] to a step; clocks of different nodes may differ.
    #[must_use]
    pub fn seconds(&self, step: &str) -> Option<f64> {
        Some((self.at(step)? as f64 - self.begun()? as f64) / 1e3)
    }

    /// The node that was lost.
    #[must_use]
    pub fn from(&self) -> Option<u64> {
        self.node(&["failover_lost", "failover_fenced", "failover_moved", "failover_heard"])
    }

    /// The node whose copy sealed.
    #[must_use]
    pub fn sealed_by(&self) -> Option<u64> {
        self.node(&["failover_sealed"])
    }

    /// The node that has the volume since.
    #[must_use]
    pub fn to(&self) -> Option<u64> {
        self.node(&["failover_attached", "failover_written"])
    }

    fn node(&self, steps: &[&str]) -> Option<u64> {
        steps.iter().find_map(|step| self.steps.get(*step)).map(|(node, _)| *node)
    }
}

/// Takes in one event; the first to tell a step counts. Returns whether it was one of a failover.
pub fn learn(failovers: &mut Vec<Failover>, event: &Event) -> bool {
    let step = STEPS.into_iter().find(|step| event.kind == *step);
    let (Some(step), Ok(at)) = (step, event.message.parse()) else { return false };
    let same = |f: &Failover| f.volume_id == event.volume_id && f.epoch == event.epoch;
    let index = failovers.iter().position(same).unwrap_or_else(|| {
        let volume_id = event.volume_id.clone();
        failovers.push(Failover { volume_id, epoch: event.epoch, steps: BTreeMap::new() });
        failovers.len() - 1
    });
    failovers[index].steps.entry(step.to_owned()).or_insert((event.node, at));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fence_is_told_by_itself_and_what_nobody_saw_is_left_out() {
        let mut all = Vec::new();
        for (kind, volume, node, epoch, ms) in [
            ("attached", "a", 1, 2, 1),
            ("failover_heard", "a", 1, 3, 10_000),
            ("failover_lost", "a", 1, 3, 13_020),
            ("failover_lost", "a", 1, 3, 99_000),
            ("failover_lost", "b", 1, 8, 13_020),
            ("failover_sealed", "a", 2, 3, 13_100),
            ("failover_attached", "a", 3, 3, 14_000),
            ("failover_lost", "a", 3, 6, 90_000),
        ] {
            let (kind, volume_id, message) = (kind.into(), volume.into(), ms.to_string());
            let event = Event { kind, volume_id, node, epoch, message, ..Event::default() };
            learn(&mut all, &event);
        }
        let told: Vec<_> = all.iter().map(|f| (f.volume_id.as_str(), f.epoch)).collect();
        assert_eq!(told, [("a", 3), ("b", 8), ("a", 6)]);
        let first = &all[0];
        assert_eq!((first.from(), first.sealed_by(), first.to()), (Some(1), Some(2), Some(3)));
        assert_eq!(first.seconds("failover_lost"), Some(3.02), "the first to tell counts");
        assert_eq!(first.seconds("failover_written"), None);
        assert_eq!(all[1].begun(), Some(13_020));
        assert!(!learn(&mut all, &Event { kind: "failover_lost".into(), ..Event::default() }));
    }
}
