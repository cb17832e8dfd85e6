//! R26: attempts at snapshots, their holders, volumes that begin with one, sources that go first.

use super::story::{VOLUME, replica, snapshot};
use super::{Story, check};
use crate::{Lifecycle, ReplicaState, SnapshotState, Source, decode, encode};
use types::VolumeId;
use uuid::Uuid;

/// Attached on node 1 with copies a and b.
fn attached() -> Story {
    after(Story::new(), &["begin 1", "activate ab"])
}

/// And with snapshot x.
fn taken() -> Story {
    after(attached(), &["snap x", "taken x ab"])
}

/// Volume 5 with its replica c is to begin with snapshot x.
fn filling() -> Story {
    after(taken(), &["create other id=5 on=c repl=1 source=x", "ready c"])
}

fn after(mut story: Story, steps: &[&str]) -> Story {
    steps.iter().for_each(|step| story.must(step));
    story.events.clear();
    story
}

fn other() -> VolumeId {
    VolumeId(Uuid::from_u128(5))
}

#[test]
fn an_attempt_begins() {
    check(
        attached,
        &[
            ("snap x", "Begun"),
            // The proposer did not hear the first answer.
            ("snap x; snap x", "Begun"),
            ("snap x; taken x ab; snap x", "Existing"),
            // By name: one attempt at a time, one snapshot.
            ("snap x; snap y as=x", "Taking"),
            ("snap x; abort x; snap y as=x", "Begun"),
            ("snap x; taken x ab; snap y as=x", "Existing"),
            ("snap x; taken x ab; unsnap x; snap y as=x", "Begun"),
            ("snap x; snap x as=y", "IdReused"),
            ("snap x; taken x ab; unsnap x; snap x", "IdReused"),
            ("create other id=5 on=c repl=1; ready c; snap x; snap y as=x #5", "Conflict volume"),
            ("snap x; snap y", "Begun"),
            ("snap x as=<empty>", "Invalid name"),
            // What is hidden has no name.
            ("snap x as=<empty> hidden", "Begun"),
            ("snap x hidden; snap y as=x hidden", "Begun"),
            ("snap x hidden; taken x ab; snap y as=x", "Begun"),
            ("snap x #5", "NoVolume"),
        ],
    );
    check(Story::new, &[("snap x", "Begun"), ("delete; snap x", "Deleting")]);
    check(Story::nodes, &[("create data; snap x", "Creating")]);
}

#[test]
fn a_snapshot_is_ready_when_all_of_the_isr_has_it() {
    check(
        attached,
        &[
            ("taken x ab", "NoSnapshot"),
            ("snap x; taken x ab", "Ok"),
            ("snap x; taken x a", "NotHeld"),
            ("snap x; taken x -", "NotHeld"),
            ("snap x; taken x abz", "NoReplica"),
            ("snap x; shrink b; taken x a", "Ok"),
            // Of another epoch, another ISR, an engine that does not run.
            ("snap x; taken x ab @0", "Superseded"),
            ("snap x; taken x ab v1", "IsrChanged"),
            ("snap x; begin 1; taken x ab", "WrongState"),
            ("snap x; detach clean; taken x ab", "WrongState"),
            ("snap x; lost 1; fence; taken x ab", "WrongState"),
            // Whoever joined meanwhile does not have it.
            ("snap x; shrink b; grow b; taken x a", "NotHeld"),
            ("snap x; shrink b; grow b; taken x ab v3", "IsrChanged"),
            ("snap x; expand 2048; resized a 2048; resized b 2048; taken x ab", "SnapshotState"),
            // The answer was lost; the attempt was aborted; it was deleted since.
            ("snap x; taken x ab; taken x ab", "Ok"),
            ("snap x; taken x ab; shrink b; taken x ab v2", "Ok"),
            ("snap x; abort x; taken x ab", "NoSnapshot"),
            ("snap x; taken x ab; unsnap x; taken x ab", "SnapshotState"),
            // A question that changes nothing: there is no epoch 0 to take one in.
            ("snap x; taken x - @0", "Superseded"),
        ],
    );
    let story = taken();
    let record = &story.state.snapshots[&snapshot("x")];
    assert_eq!(record.holders, [replica('a'), replica('b')].into());
    assert_eq!((record.size, record.state), (1 << 30, SnapshotState::Ready));
}

#[test]
fn who_joins_the_isr_has_every_snapshot() {
    let holders = |story: &Story| story.state.snapshots[&snapshot("x")].holders.clone();
    let mut story = taken();
    story.must("shrink b");
    assert!(holders(&story).contains(&replica('b')), "it may come back");
    story.must("add c");
    story.must("ready c");
    story.must("grow c");
    assert!(holders(&story).contains(&replica('c')));
    // The one that was replaced is given up.
    let version = story.volume().isr_version.0;
    story.must(&format!("remove-replica b v{version}"));
    assert_eq!(holders(&story), [replica('a'), replica('c')].into());
    story.must("modify repl=1");
    story.must("release a");
    assert_eq!(holders(&story), [replica('c')].into());
}

#[test]
fn deletion() {
    check(
        taken,
        &[
            ("unsnap x", "Ok"),
            ("unsnap x; unsnap x", "Ok"),
            ("unsnap y", "Ok"),
            ("snap y; unsnap y; taken y ab", "NoSnapshot"),
            ("abort x", "SnapshotState"),
            ("abort y", "Ok"),
            ("unsnap x; abort x", "SnapshotState"),
            ("dropped x a", "SnapshotState"),
            ("snap y; dropped y a", "SnapshotState"),
            ("dropped y a", "Ok"),
            ("unsnap x; dropped x a", "Ok"),
            ("unsnap x; dropped x a; dropped x b; dropped x b", "Ok"),
        ],
    );
    let mut story = taken();
    for step in ["unsnap x", "dropped x b", "dropped x b"] {
        story.must(step);
    }
    assert_eq!(story.state.snapshots[&snapshot("x")].holders, [replica('a')].into());
    story.must("dropped x a");
    assert!(story.state.snapshots.is_empty());
    assert_eq!(story.events, ["snapshot_deleted"]);
    // Nothing of an attempt that was aborted is left.
    let story = after(attached(), &["snap x", "abort x"]);
    assert!(story.state.snapshots.is_empty());
}

#[test]
fn a_volume_that_begins_with_a_snapshot() {
    check(
        taken,
        &[
            ("create other id=5 on=c repl=1 source=x", "Created"),
            ("create other id=5 on=c repl=1 source=x bytes=2147483648", "Created"),
            ("create other id=5 on=c repl=1 source=x bytes=1048576", "SmallerThanSource"),
            ("create other id=5 on=c repl=1 source=y", "NoSnapshot"),
            ("snap y; create other id=5 on=c repl=1 source=y", "Taking"),
            ("unsnap x; create other id=5 on=c repl=1 source=x", "NoSnapshot"),
            // Idempotent by name and source, also when the source is gone.
            (
                "create other id=5 on=c repl=1 source=x; create other id=6 on=c repl=1 source=x",
                "Existing",
            ),
            (
                "create other id=5 on=c repl=1 source=x; create other id=6 on=c repl=1",
                "Conflict source",
            ),
            (
                "create other id=5 on=c repl=1 source=x; create other id=6 on=c repl=1 clone=x",
                "Conflict source",
            ),
            (
                "create other id=5 on=c repl=1 clone=x; create other id=6 on=c repl=1 clone=y",
                "Existing",
            ),
            ("create data source=x", "Conflict source"),
        ],
    );
    check(
        filling,
        &[
            ("begin 3 #5", "Filling"),
            ("begin 3 internal #5", "Epoch 1 clean"),
            ("expand 2048 #5", "Filling"),
            ("snap y #5", "Filling"),
            ("unsnap x", "SourceInUse"),
            ("filled #5", "WrongState"),
            ("begin 3 internal #5; filled #5", "WrongState"),
            ("begin 3 internal #5; activate c #5; filled #5", "Ok"),
            ("begin 3 internal #5; activate c #5; filled @0 #5", "Superseded"),
            ("begin 3 internal #5; activate c #5; filled #5; filled @0 #5", "Ok"),
            ("begin 3 internal #5; activate c #5; filled #5; unsnap x", "Ok"),
            ("begin 3 internal #5; activate c #5; detach clean #5; begin 2 #5", "Filling"),
            // Still held: whoever wants it waits.
            ("begin 3 internal #5; activate c #5; filled #5; begin 2 #5", "HeldInternally"),
            (
                "begin 3 internal #5; activate c #5; filled #5; detach clean #5; begin 2 #5",
                "Epoch 2 clean",
            ),
            // Its node is lost: fenced and sealed like any, then filled by another.
            ("begin 2 internal #5; lost 2; fence #5; begin 1 internal #5", "NeedsSeal"),
            (
                "begin 2 internal #5; lost 2; fence #5; sealed c #5; begin 1 internal #5",
                "Epoch 3 clean",
            ),
            // Nobody uses it: it may be deleted at any time, and its source then.
            ("delete #5", "Deleting 1"),
            ("begin 3 internal #5; activate c #5; delete #5", "Deleting 1"),
            ("begin 3 internal #5; activate c #5; delete #5; filled @1 #5", "Deleting"),
            ("begin 3 internal #5; activate c #5; delete #5; unsnap x", "Ok"),
            ("begin 3 internal #5; activate c #5; delete #5; grow c @1 #5", "Superseded"),
        ],
    );
    let story = filling();
    assert_eq!(story.state.volumes[&other()].lifecycle, Lifecycle::Filling);
    assert_eq!(story.state.volumes[&other()].source, Some(Source::Snapshot(snapshot("x"))));
}

#[test]
fn an_internal_attachment_takes_nothing_from_a_user_and_lets_the_next_one_wait() {
    check(
        Story::new,
        &[
            ("begin 1 internal", "Epoch 1 clean"),
            ("begin 1 internal; begin 1 internal @0", "Epoch 1 clean"),
            ("begin 1 internal; begin 2", "HeldInternally"),
            ("begin 1 internal; begin 2 internal", "HeldInternally"),
            ("begin 1 internal; delete", "HeldInternally"),
            ("begin 1 internal; lost 1; begin 2", "NeedsFence"),
            // A former daemon of the same node held it.
            ("begin 1 internal; activate ab; begin 1 i9", "Epoch 2 dirty"),
            ("begin 1 internal; activate ab; begin 1 internal i9", "Epoch 2 dirty"),
            ("begin 1 internal; activate ab; detach clean; begin 2", "Epoch 2 clean"),
            ("begin 1; begin 1 internal i9", "HeldBy"),
            ("begin 1; activate ab; begin 1 internal i9", "HeldBy"),
            ("begin 1; activate ab; begin 2 internal", "HeldBy"),
            // A fence is for those who move pods to see.
            ("begin 1; lost 1; fence; sealed b; begin 2 internal", "WrongState"),
            ("delete; begin 1 internal", "Deleting"),
        ],
    );
}

#[test]
fn a_source_may_be_deleted_before_its_snapshots() {
    check(
        taken,
        &[
            ("detach clean; delete", "Deleting 0"),
            ("detach clean; delete; delete", "Deleting 0"),
            ("detach clean; snap y; delete", "Taking"),
            ("detach clean; delete; begin 1", "NoVolume"),
            ("detach clean; delete; begin 1 internal", "NoVolume"),
            ("detach clean; delete; snap y", "NoVolume"),
            ("detach clean; delete; expand 2048", "NoVolume"),
            // Its name is free, its snapshot is there to be used, by name too.
            ("detach clean; delete; create data id=5 on=c repl=1", "Created"),
            ("detach clean; delete; create other id=5 on=c repl=1 source=x", "Created"),
            ("detach clean; delete; snap y as=x", "Existing"),
            // With its last snapshot it goes.
            ("detach clean; delete; unsnap x; delete", "Deleting 2"),
            ("detach clean; unsnap x; delete", "Deleting 2"),
        ],
    );
    let mut story = after(taken(), &["snap y", "taken y ab", "detach clean", "delete"]);
    assert_eq!(story.volume().lifecycle, Lifecycle::Retired);
    assert!(story.volume().isr.is_empty());
    story.must("unsnap x");
    assert_eq!(story.volume().lifecycle, Lifecycle::Retired);
    story.must("unsnap y");
    assert_eq!(story.volume().lifecycle, Lifecycle::Deleting);
    story.must("deleted a");
    story.must("deleted b");
    assert!(story.state.volumes.is_empty() && story.state.snapshots.is_empty());

    // What never became part of the volume does not stay for its snapshots.
    let story = after(taken(), &["add c", "ready c", "detach clean", "delete"]);
    assert_eq!(story.volume().replicas[&replica('c')].state, ReplicaState::Deleting);
    assert_eq!(story.volume().replicas[&replica('a')].state, ReplicaState::Ready);
}

#[test]
fn a_replica_of_a_retired_volume_is_given_up_only_if_another_has_its_snapshots() {
    let retired = || after(taken(), &["detach clean", "delete"]);
    check(
        retired,
        &[
            ("remove-replica a", "Ok"),
            ("remove-replica a; remove-replica b", "LastHolder"),
            ("lost 2; remove-replica a", "LastHolder"),
            ("lost 2; remove-replica b", "Ok"),
            ("failed b; remove-replica a", "LastHolder"),
            ("failed b; remove-replica b", "Ok"),
        ],
    );
    // A node that is gone for good may be forgotten then.
    let mut story = after(retired(), &["lost 2", "remove-replica b"]);
    story.state.membership.voters.remove(&types::NodeId(2));
    story.must("remove 2");
    assert_eq!(story.state.snapshots[&snapshot("x")].holders, [replica('a')].into());
    // What cannot be helped is said.
    let mut story = after(retired(), &["remove-replica b", "deleted b", "failed a"]);
    story.must("deleted a");
    assert_eq!(story.events, ["snapshot_lost"]);
    assert!(!story.state.volumes.contains_key(&VOLUME));
}

/// Commands in any order, from any side, many of them late: the invariants (see `Story::apply`) hold.
#[test]
fn nothing_that_is_proposed_breaks_the_invariants() {
    const STEPS: &str = "snap x; snap y; snap z hidden; taken x ab; taken x a; taken x b; taken y abc; \
        taken y ab; taken z ab; taken z a; abort x; abort z; unsnap x; unsnap y; unsnap z; dropped x a; \
        dropped x b; dropped x c; dropped y a; dropped y b; dropped z a; dropped z b; begin 1; begin 2; \
        begin 1 internal; begin 2 internal; activate ab; activate a; activate b; activate abc; \
        detach clean; detach dirty; shrink a; shrink b; shrink c; grow a; grow b; grow c; add c; ready c; \
        failed a; failed b; failed c; remove-replica a; remove-replica b; remove-replica c; release a; \
        release b; release c; deleted a; deleted b; deleted c; modify repl=1; modify repl=3; lost 1; \
        lost 2; lost 3; up 1; up 2; up 3; fence; sealed a; sealed b; expand 2048; resized a 2048; \
        resized b 2048; begin 3 internal #5; filled #5; activate d #5; detach clean #5; fence #5; delete #5; \
        delete; deleted d";
    // Where single steps hardly ever lead; any of them may be refused here.
    const PATHS: &[&str] = &[
        "create data; ready a; ready b",
        "begin 1; activate ab; snap x; taken x ab",
        "begin 2; activate ab; snap z hidden; taken z ab",
        "up 1; up 2; detach clean; delete",
        "create other id=5 on=d repl=1 source=x; ready d",
        "create other id=5 on=d repl=1 clone=z; ready d",
        "begin 3 internal #5; activate d #5; filled #5; detach clean #5",
    ];
    let steps: Vec<&str> = STEPS.split("; ").collect();
    let (mut retired, mut filled, mut lost) = (0, 0, 0);
    for seed in 1..=100_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // xorshift64 (Marsaglia, 2003).
        let mut below = |limit: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 16) as usize % limit
        };
        let mut story = after(Story::new(), &["register 4"]);
        for _ in 0..200 {
            let path = match below(8) {
                0 => PATHS[below(PATHS.len())],
                _ => steps[below(steps.len())],
            };
            path.split("; ").for_each(|step| drop(story.step(step)));
        }
        let count = |kind: &str| story.events.iter().filter(|event| **event == kind).count();
        retired += count("volume_retired");
        filled += count("volume_filled");
        lost += count("snapshot_lost");
        let bytes = encode(&story.state).unwrap();
        assert_eq!(decode::<crate::State>(&bytes).unwrap(), story.state);
    }
    let reached = [retired, filled, lost];
    assert!(reached.iter().all(|times| *times > 0), "it goes nowhere: {reached:?}");
}
