#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Cluster, VOLUME, incarnation, pool, replica, snapshot};
use metadata::Command;
use types::{Epoch, Tag};

const HERE: NodeId = NodeId(1);

/// In the node's own pool.
fn plan(state: &State, here: NodeId, present: &[ReplicaInfo]) -> Vec<Task> {
    super::plan(state, here, pool(here.0), present)
}

fn present() -> ReplicaInfo {
    ReplicaInfo {
        volume: VOLUME,
        replica: replica(1),
        incarnation: incarnation(1),
        size: 1 << 30,
        allocated: 0,
        sealed: Epoch::default(),
        last_sealed: Tag::default(),
        clean: true,
        failed: None,
        snapshots: Vec::new(),
        retired: false,
    }
}

/// As one that has been attached once.
fn used() -> ReplicaInfo {
    ReplicaInfo { sealed: Epoch(1), ..present() }
}

fn failure(reason: &str) -> Vec<Task> {
    vec![Task::Fail { replica: replica(1), reason: reason.to_owned() }]
}

#[test]
fn a_new_replica_is_made_here_and_only_here() {
    let mut cluster = Cluster::new();
    cluster.create(&[1, 2]);
    let create = Task::Create {
        volume: VOLUME,
        replica: replica(1),
        incarnation: incarnation(1),
        size: 1 << 30,
    };
    assert_eq!(plan(&cluster.state, HERE, &[]), std::slice::from_ref(&create));
    assert_eq!(plan(&cluster.state, HERE, &[present()]), [create], "the report is still due");
    assert_eq!(plan(&cluster.state, NodeId(3), &[]), []);
}

#[test]
fn a_ready_replica_must_be_there_as_recorded() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let state = &cluster.state;
    assert_eq!(plan(state, HERE, &[present()]), []);
    assert_eq!(plan(state, HERE, &[]), failure("it is not in the pool"));
    let other = ReplicaInfo { incarnation: incarnation(9), ..present() };
    assert_eq!(plan(state, HERE, &[other]), failure("the pool holds another incarnation"));
    let broken = ReplicaInfo { failed: Some("EIO".to_owned()), ..present() };
    assert_eq!(plan(state, HERE, &[broken]), failure("EIO"));
}

/// R11: it has the ids, the incarnation and an earlier promise.
#[test]
fn an_older_image_of_a_replica_fails() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let tasks = |cluster: &Cluster, sealed| {
        plan(&cluster.state, HERE, &[ReplicaInfo { sealed: Epoch(sealed), ..present() }])
    };
    for (epoch, older) in [(1, 0), (2, 1)] {
        let granted = cluster.attach(1);
        assert_eq!(granted, Epoch(epoch));
        assert_eq!(tasks(&cluster, epoch), []);
        assert_eq!(tasks(&cluster, epoch + 1), [], "the next attachment is under way");
        let reason = "the pool holds an older image of it: it has sealed epoch";
        assert_eq!(tasks(&cluster, older), failure(&format!("{reason} {epoch}, that one {older}")));
        cluster.detach();
    }
}

/// R11: what is made in a pool that stands in for the right one would be taken for it later, and what is
/// missing there is not lost.
#[test]
fn nothing_is_done_in_another_pool() {
    let mut cluster = Cluster::new();
    assert_eq!(expected(&cluster.state, HERE), None, "any pool will do");
    cluster.create(&[1, 2]);
    assert_eq!(expected(&cluster.state, HERE), Some(pool(1)));
    assert_eq!(expected(&cluster.state, NodeId(3)), None);
    assert_eq!(super::plan(&cluster.state, HERE, pool(9), &[]), [], "it is to be made");
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    assert_eq!(super::plan(&cluster.state, HERE, pool(9), &[]), [], "it should be there");
    assert_eq!(super::plan(&cluster.state, HERE, pool(9), &[present()]), []);
}

#[test]
fn growth_is_asked_for_once() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let size = 2 << 30;
    cluster.done(Command::ExpandBegin { volume: VOLUME, size });
    let resize = Task::Resize { replica: replica(1), size };
    assert_eq!(plan(&cluster.state, HERE, &[present()]), [resize]);
    cluster.done(Command::ReplicaResized { replica: replica(1), size });
    assert_eq!(plan(&cluster.state, HERE, &[present()]), []);
}

#[test]
fn only_what_the_record_gives_up_is_deleted() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let data = ReplicaInfo { replica: replica(9), allocated: 4096, ..present() };
    let used = ReplicaInfo { replica: replica(9), sealed: Epoch(1), ..present() };
    assert_eq!(plan(&cluster.state, HERE, &[present(), data, used]), [], "left alone");
    let empty = ReplicaInfo { replica: replica(9), ..present() };
    let forget = Task::Forget { replica: replica(9) };
    assert_eq!(plan(&cluster.state, HERE, &[present(), empty]), [forget], "if the leader agrees");
    cluster.done(Command::DeleteVolume { volume: VOLUME });
    let delete = Task::Delete { replica: replica(1) };
    assert_eq!(plan(&cluster.state, HERE, &[present()]), std::slice::from_ref(&delete));
    assert_eq!(plan(&cluster.state, HERE, &[]), [delete], "the report is still due");
    cluster.done(Command::ReplicaDeleted { replica: replica(1) });
    assert_eq!(plan(&cluster.state, HERE, &[]), []);
}

#[test]
fn a_replaced_replica_is_deleted_where_it_was() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let reason = "EIO".to_owned();
    cluster.done(Command::ReplicaFailed { replica: replica(1), reason });
    let isr_version = cluster.isr_version();
    cluster.done(Command::RemoveReplica { volume: VOLUME, replica: replica(1), isr_version });
    assert_eq!(plan(&cluster.state, HERE, &[present()]), [Task::Delete { replica: replica(1) }]);
    cluster.done(Command::ReplicaDeleted { replica: replica(1) });
    assert_eq!(plan(&cluster.state, HERE, &[]), []);
}

#[test]
fn a_failed_replica_is_kept() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let reason = "EIO".to_owned();
    cluster.done(Command::ReplicaFailed { replica: replica(1), reason });
    assert_eq!(plan(&cluster.state, HERE, &[present()]), []);
}

/// [`VOLUME`] on nodes 1 and 2 with snapshots 1 and 2, and what node 1 has of it.
fn with_snapshots() -> (Cluster, ReplicaInfo) {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    cluster.attach(1);
    cluster.snapshot(1, false);
    cluster.snapshot(2, false);
    (cluster, ReplicaInfo { snapshots: vec![snapshot(1), snapshot(2)], ..used() })
}

#[test]
fn a_deleted_snapshot_is_dropped_where_it_is() {
    let (mut cluster, found) = with_snapshots();
    let here = |cluster: &Cluster, found: &ReplicaInfo| {
        plan(&cluster.state, HERE, std::slice::from_ref(found))
    };
    assert_eq!(here(&cluster, &found), []);
    cluster.done(Command::DeleteSnapshot { snapshot: snapshot(1) });
    let drop = Task::DropSnapshot { replica: replica(1), snapshot: snapshot(1), recorded: true };
    assert_eq!(here(&cluster, &found), std::slice::from_ref(&drop));
    assert_eq!(here(&cluster, &used()), std::slice::from_ref(&drop), "the report is still due");
    assert_eq!(drop.question(), None);
    let Report::Propose(report) = drop.report(&Ok(())) else { panic!("it is to be reported") };
    cluster.done(report);
    assert_eq!(cluster.state.snapshots[&snapshot(1)].holders, [replica(2)].into());
}

#[test]
fn a_snapshot_without_a_record_is_dropped_once_raft_says_that_there_is_none() {
    let (mut cluster, found) = with_snapshots();
    let found = ReplicaInfo { snapshots: vec![snapshot(1), snapshot(9)], ..found };
    let tasks = |cluster: &Cluster| plan(&cluster.state, HERE, std::slice::from_ref(&found));
    let unknown =
        Task::DropSnapshot { replica: replica(1), snapshot: snapshot(9), recorded: false };
    assert_eq!(tasks(&cluster), std::slice::from_ref(&unknown));
    let answer = cluster.apply(unknown.question().unwrap()).unwrap_err();
    assert!(unknown.is_confirmed_by(&answer), "{answer}");
    assert_eq!(unknown.report(&Ok(())), Report::Nothing);
    // The state of this node was behind: it is being taken, or ready.
    cluster.begin_snapshot(9, false);
    let answer = cluster.apply(unknown.question().unwrap()).unwrap_err();
    assert!(!unknown.is_confirmed_by(&answer), "{answer}");
    assert_eq!(tasks(&cluster), []);
    let known = Task::DropSnapshot { replica: replica(1), snapshot: snapshot(1), recorded: false };
    let before = cluster.state.snapshots.clone();
    cluster.done(known.question().unwrap());
    assert_eq!(cluster.state.snapshots, before, "the question changes nothing");
}

#[test]
fn what_a_returning_replica_must_have_is_kept() {
    let (mut cluster, found) = with_snapshots();
    let (epoch, isr_version) = (Epoch(1), cluster.isr_version());
    let remove = vec![replica(1)];
    cluster.done(Command::ShrinkIsr { volume: VOLUME, epoch, isr_version, remove });
    cluster.snapshot(3, false);
    assert!(!cluster.state.snapshots[&snapshot(3)].holders.contains(&replica(1)));
    let found = ReplicaInfo { snapshots: vec![snapshot(3)], ..found };
    assert_eq!(plan(&cluster.state, HERE, &[found]), []);
}

#[test]
fn a_replica_of_a_deleted_volume_is_emptied_but_for_its_snapshots() {
    let (mut cluster, found) = with_snapshots();
    cluster.detach();
    cluster.done(Command::DeleteVolume { volume: VOLUME });
    let here = |cluster: &Cluster, found: &ReplicaInfo| {
        plan(&cluster.state, HERE, std::slice::from_ref(found))
    };
    assert_eq!(here(&cluster, &found), [Task::Retire { replica: replica(1) }]);
    let found = ReplicaInfo { retired: true, ..found };
    assert_eq!(here(&cluster, &found), []);
    cluster.done(Command::DeleteSnapshot { snapshot: snapshot(1) });
    let snapshot = snapshot(1);
    let drop = Task::DropSnapshot { replica: replica(1), snapshot, recorded: true };
    assert_eq!(here(&cluster, &found), [drop]);
    cluster.done(Command::DeleteSnapshot { snapshot: crate::testing::snapshot(2) });
    assert_eq!(here(&cluster, &found), [Task::Delete { replica: replica(1) }], "with all it has");
}
