#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Cluster, VOLUME, incarnation, replica};
use metadata::Command;
use types::{Epoch, Tag};

const HERE: NodeId = NodeId(1);

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
    }
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
