#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Cluster, VOLUME, info, replica};
use types::BootId;

/// Milliseconds since boot.
fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

#[test]
fn a_replica_is_given_up_only_when_those_that_stay_have_spoken_since() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    cluster.attach(1);
    let mut roll = Roll::new(at(0));
    let speak = |roll: &mut Roll, node, ms| roll.introduce(info(node), 1 << 30, at(ms));
    let reboot = |roll: &mut Roll, ms| {
        let info = NodeInfo { boot: BootId::from_bytes([9; 16]), ..info(1) };
        roll.introduce(info, 1 << 30, at(ms))
    };
    speak(&mut roll, 1, 900);
    speak(&mut roll, 2, 900);
    assert_eq!(roll.replacements(&cluster.state, at(1_000)), []);
    cluster.done(Command::ModifyVolume { volume: VOLUME, repl: Some(1), class: None });
    let isr_version = cluster.isr_version();
    let release = replace::Action::Release { volume: VOLUME, replica: replica(2), isr_version };
    let rows = [
        (1_100, None, false),
        (1_200, None, false),
        // Of the one that is to go nothing is asked.
        (1_300, Some(2), false),
        (1_400, Some(1), true),
        (1_500, None, true),
        // It has lost its memory, and Raft does not know yet.
        (1_600, Some(0), false),
        (1_700, Some(1), true),
    ];
    for (ms, speaks, given_up) in rows {
        match speaks {
            Some(0) => drop(reboot(&mut roll, ms - 50)),
            Some(node) => drop(speak(&mut roll, node, ms - 50)),
            None => {}
        }
        let wanted: &[replace::Action] = if given_up { &[release] } else { &[] };
        assert_eq!(roll.replacements(&cluster.state, at(ms)), wanted, "at {ms} ms");
    }
}
