//! Creation, idempotency, growth, failure and deletion of volumes.

use super::story::{VOLUME, replica};
use super::{Story, check};
use crate::{Lifecycle, ReplicaState};

#[test]
fn create() {
    check(
        Story::nodes,
        &[
            ("create data", "Created"),
            ("create data; create data", "Existing"),
            ("create data; create data id=5 on=bc", "Existing"),
            ("create data; create data bytes=2147483648", "Conflict size"),
            ("create data; create data repl=1 on=a", "Conflict repl"),
            ("create data; create data class=high", "Conflict priority_io"),
            ("create data; create data fs=xfs", "Conflict fstype"),
            ("create data; create data fs=", "Conflict fstype"),
            ("create data; create other", "IdReused"),
            ("create data; create other id=5", "IdReused"),
            ("create data on=ab; create other id=5 on=c repl=1", "Created"),
            ("create <empty>", "Invalid name"),
            ("create <long>", "Invalid name"),
            ("create data repl=0 on=-", "Invalid repl"),
            ("create data repl=4 on=abc", "Invalid repl"),
            ("create data repl=3 on=abc", "Created"),
            ("create data bytes=0", "Invalid size"),
            ("create data bytes=1048577", "Invalid size"),
            ("create data bytes=17592187092992", "Invalid size"),
            ("create data on=a", "Invalid replicas"),
            ("create data on=aa", "BadPlacement"),
            ("create data on=ad", "NoNode"),
            ("create data class=high", "BadPlacement"),
            ("lost 2; create data", "BadPlacement"),
            // 10 pools' worth may be promised.
            ("create data bytes=107374182400", "Created"),
            ("create data bytes=107375230976", "NoRoom"),
            // 16 TiB are a size that may be asked for.
            ("create data bytes=17592186044416", "NoRoom"),
        ],
    );
}

#[test]
fn a_grown_volume_is_still_the_one_that_was_created() {
    check(
        Story::new,
        &[
            ("expand 2048; resized a 2048; resized b 2048; create data", "Existing"),
            (
                "expand 2048; resized a 2048; resized b 2048; create data bytes=2147483648",
                "Existing",
            ),
            (
                "expand 2048; resized a 2048; resized b 2048; create data bytes=3221225472",
                "Conflict size",
            ),
        ],
    );
}

#[test]
fn replicas() {
    check(
        Story::new,
        &[
            ("ready a", "Ok"),
            ("ready z", "NoReplica"),
            ("failed a", "Ok"),
            ("failed a; failed a", "Ok"),
            ("failed a; ready a", "NotEligible"),
            ("failed z", "NoReplica"),
            ("add a", "Ok"),
            ("add c", "Ok"),
            ("add c; add c", "Ok"),
            ("add d", "NoNode"),
            ("lost 3; add c", "BadPlacement"),
            ("remove-replica a", "NotEligible"),
            ("remove-replica z", "Ok"),
            ("add c; remove-replica c; deleted c", "Ok"),
            // A repeat that comes late makes nothing again (R11).
            ("add c +0; add c +0", "Ok"),
            ("add c +0; remove-replica c; deleted c; add c +0", "ReplicasChanged"),
            (
                "begin 1; activate ab; move a c +0; remove-replica c; deleted c; move a c +0",
                "ReplicasChanged",
            ),
            ("failed a; remove-replica a", "Ok"),
            ("failed a; remove-replica a v1", "IsrChanged"),
            ("failed a; remove-replica a; remove-replica a v1", "Ok"),
            ("failed a; remove-replica a; ready a", "NotEligible"),
            ("deleted a", "NotEligible"),
            ("deleted z", "Ok"),
            ("failed a; deleted a", "Ok"),
        ],
    );
    check(
        Story::nodes,
        &[("create data; ready a; begin 1", "Creating"), ("create data; add c", "Creating")],
    );
}

#[test]
fn a_failed_replica_leaves_the_isr_only_while_no_engine_runs_and_never_as_the_last() {
    let mut story = Story::new();
    story.must("failed a");
    assert_eq!(story.volume().isr.len(), 1);
    assert!(story.volume().degraded());
    story.must("failed b");
    assert!(story.volume().isr.contains(&replica('b')));

    let mut story = Story::new();
    story.must("begin 1");
    story.must("activate ab");
    story.must("failed b");
    assert_eq!(story.volume().isr.len(), 2, "the engine shrinks (R4)");
    assert_eq!(story.volume().replicas[&replica('b')].state, ReplicaState::Failed);
}

#[test]
fn expand() {
    check(
        Story::new,
        &[
            ("expand 1024", "Size 1024/1024"),
            ("expand 512", "Size 1024/1024"),
            ("expand 2048", "Size 1024/2048"),
            ("expand 2048; expand 2048", "Size 1024/2048"),
            ("expand 2048; expand 1536", "Size 1024/2048"),
            ("expand 2048; expand 4096", "Size 1024/4096"),
            ("expand 2048; resized a 2048", "Size 1024/2048"),
            ("expand 2048; resized a 2048; resized b 2048", "Size 2048/2048"),
            ("expand 2048; resized a 2048; resized b 1536", "Size 1024/2048"),
            ("resized z 2048", "NoReplica"),
            // Only the ISR counts; who joins later must have the size (R25).
            ("begin 1; activate a; expand 2048; resized a 2048", "Size 2048/2048"),
            ("expand 0", "Invalid size"),
            ("expand 16777217", "Invalid size"),
            ("expand 102401", "NoRoom"),
            ("expand 102400", "Size 1024/102400"),
            ("delete; expand 2048", "Deleting"),
        ],
    );
    check(Story::nodes, &[("expand 2048", "NoVolume"), ("create data; expand 2048", "Creating")]);
}

#[test]
fn growth_commits_when_the_last_small_member_leaves_the_isr() {
    for leave in [
        "begin 1; activate ab; expand 2048; resized a 2048; shrink b",
        "expand 2048; resized a 2048; failed b",
        "expand 2048; resized a 2048; begin 1; activate a",
    ] {
        let mut story = Story::new();
        leave.split(';').for_each(|step| story.must(step.trim()));
        assert_eq!(story.volume().size, 2 << 30, "{leave}");
        assert_eq!(story.volume().expanding, None);
        assert!(story.events.contains(&"volume_expanded"));
    }
}

#[test]
fn delete() {
    check(
        Story::new,
        &[
            ("delete", "Deleting 2"),
            ("delete; delete", "Deleting 2"),
            ("delete; deleted a; delete", "Deleting 1"),
            ("delete; deleted a; deleted b; delete", "Deleting 0"),
            ("begin 1; delete", "HeldBy"),
            ("begin 1; activate ab; delete", "HeldBy"),
            ("begin 1; activate ab; lost 1; delete", "Deleting 2"),
            ("begin 1; activate ab; lost 1; delete; shrink b @1", "Superseded"),
            ("begin 1; activate ab; lost 1; fence; delete", "Deleting 2"),
            ("begin 1; activate ab; detach clean; delete", "Deleting 2"),
            // The name is free at once, the id never again while it is known.
            ("delete; create data id=5 on=c repl=1", "Created"),
            ("delete; create data", "IdReused"),
        ],
    );
    check(Story::nodes, &[("delete", "Deleting 0")]);
    let mut story = Story::new();
    story.must("delete");
    assert_eq!(story.volume().lifecycle, Lifecycle::Deleting);
    story.must("deleted b");
    story.must("deleted a");
    assert!(!story.state.volumes.contains_key(&VOLUME));
}

#[test]
fn limits_of_io() {
    check(
        Story::new,
        &[
            ("limit iops=100 bytes=1048576", "Ok"),
            ("limit iops=99", "Invalid iops_limit"),
            ("limit iops=1000001", "Invalid iops_limit"),
            ("limit bytes=1048575", "Invalid bandwidth_limit"),
            ("limit bytes=68719476737", "Invalid bandwidth_limit"),
            ("limit iops=500 bytes=1", "Invalid bandwidth_limit"),
            ("delete; limit iops=500", "Ok"),
        ],
    );
    let mut story = Story::new();
    let limits = |story: &Story| {
        let limits = story.volume().limits;
        (limits.iops, limits.bandwidth)
    };
    assert_eq!(limits(&story), (None, None));
    for (step, then) in [
        ("limit iops=500", (Some(500), None)),
        ("limit bytes=1048576", (Some(500), Some(1_048_576))),
        ("limit iops=5", (Some(500), Some(1_048_576))),
        ("limit iops=none", (None, Some(1_048_576))),
        ("limit bytes=none", (None, None)),
    ] {
        let _ = story.step(step);
        assert_eq!(limits(&story), then, "{step}");
    }
}
