//! The copies that a volume is to have: changed, moved, released.

use super::story::{info, replica};
use super::{Story, check};
use crate::{Command, NodeInfo, ReplicaState};

/// Attached on node 1 with copies a and b.
fn attached() -> Story {
    let mut story = Story::new();
    for step in ["begin 1", "activate ab"] {
        story.must(step);
    }
    story
}

#[test]
fn a_volume_can_be_changed_while_it_lives() {
    check(
        Story::new,
        &[
            ("modify repl=3", "Ok"),
            ("modify repl=3; modify repl=3", "Ok"),
            ("modify", "Ok"),
            ("modify repl=0", "Invalid repl"),
            ("modify repl=4", "Invalid repl"),
            ("modify class=high", "Ok"),
            ("delete; modify repl=1", "Deleting"),
            ("delete; deleted a; deleted b; modify repl=1", "NoVolume"),
        ],
    );
    check(
        Story::nodes,
        &[("create data; modify repl=1", "Creating"), ("modify repl=1", "NoVolume")],
    );
    let mut story = Story::new();
    story.must("modify repl=3 class=high");
    assert_eq!((story.volume().repl, story.volume().degraded()), (3, true));
    story.must("modify class=");
    assert_eq!((story.volume().repl, story.volume().class), (3, None));
    assert_eq!(story.events, ["volume_modified", "volume_modified"]);
}

#[test]
fn a_replica_is_released_only_if_the_volume_can_do_without_it() {
    check(
        attached,
        &[
            ("release a", "NotEligible"),
            ("modify repl=1; release a", "Ok"),
            ("modify repl=1; release a; release a", "Ok"),
            ("modify repl=1; release a; release b", "NotEligible"),
            ("modify repl=1; release c", "Ok"),
            ("modify repl=1; release a v7", "IsrChanged"),
            // The other one is not within reach, or has failed.
            ("modify repl=1; lost 2; release a", "NotEligible"),
            // The one that would stay lost its memory after it joined; nobody may rely on that (R9).
            ("modify repl=1; reboot 2; release a", "NotEligible"),
            ("modify repl=1; reboot 2; release b", "Ok"),
            ("reboot 2; shrink b; grow b; modify repl=1; release a", "Ok"),
            ("modify repl=1; failed b; release a", "NotEligible"),
            ("modify repl=1; lost 2; release b", "Ok"),
            ("modify repl=1; shrink b; release b", "NotEligible"),
            // Not while it is not clear who holds it.
            ("modify repl=1; begin 1; release a", "WrongState"),
            ("modify repl=1; lost 1; fence; release a", "WrongState"),
            ("modify repl=1; detach clean; release a", "Ok"),
            ("detach clean; delete; release a", "Ok"),
        ],
    );
    let mut story = attached();
    story.must("modify repl=1");
    let before = story.volume().isr_version;
    story.must("release a");
    let volume = story.volume();
    assert_eq!(volume.isr, [replica('b')].into());
    assert_eq!(volume.isr_version.0, before.0 + 1);
    assert_eq!(volume.replicas[&replica('a')].state, ReplicaState::Deleting);
    // What the engine says next is refused, or done already; either tells it what the ISR is.
    story.must(&format!("shrink a v{}", before.0));
    let refused = story.step(&format!("shrink b v{}", before.0));
    assert!(format!("{refused:?}").contains("IsrChanged"), "{refused:?}");
    story.must("deleted a");
    assert_eq!(story.volume().replicas.len(), 1);
}

#[test]
fn a_move_grows_before_it_shrinks() {
    check(
        attached,
        &[
            ("move a c", "Ok"),
            ("move a c; move a c", "Ok"),
            ("move c d", "NoNode"),
            ("shrink b; move b c", "NotEligible"),
            ("register 4; move a c; move a d", "NotEligible"),
            // The one that leaves counts for the ISR, but not as one of those that are wanted.
            ("move a c; release a", "NotEligible"),
            ("move a c; ready c; release a", "NotEligible"),
            ("move a c; ready c; grow c", "Isr v3"),
            ("move a c; ready c; grow c; release b", "NotEligible"),
            ("move a c; ready c; grow c; release a", "Ok"),
            // It may come back while it is needed, and no longer than that.
            ("move a c; shrink a; grow a", "Isr v4"),
            ("move a c; ready c; shrink a; grow c; grow a", "NotGrown v5"),
        ],
    );
    let mut story = attached();
    for step in ["move a c", "ready c", "grow c"] {
        story.must(step);
        assert!(!story.volume().degraded(), "{step}");
    }
    assert_eq!(story.volume().isr.len(), 3);
}

#[test]
fn zones_are_labels() {
    let mut story = Story::nodes();
    let with = |zone: &str| Command::RegisterNode(NodeInfo { zone: Some(zone.into()), ..info(1) });
    story.apply(&with("rack-7")).unwrap();
    assert_eq!(story.state.nodes[&info(1).node].zone.as_deref(), Some("rack-7"));
    for zone in ["", "a\nb", &"x".repeat(64)] {
        story.apply(&with(zone)).unwrap_err();
    }
}
