#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Cluster, ENGINE, VOLUME, incarnation, replica, snapshot};
use metadata::{NewReplica, Source};
use types::Epoch;
use uuid::Uuid;

const OTHER: VolumeId = VolumeId(Uuid::from_u128(0x11));

fn none() -> BTreeSet<SnapshotId> {
    BTreeSet::new()
}

/// [`VOLUME`] attached on node 1 with replicas there and on node 2, and a ready snapshot.
fn taken(hidden: bool) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    cluster.attach(1);
    cluster.snapshot(1, hidden);
    cluster
}

/// [`OTHER`] on `node` is to begin with `source`.
fn create(cluster: &mut Cluster, node: u64, source: Source) {
    let new = replica(0x50);
    cluster.done(Command::CreateVolume {
        volume: OTHER,
        name: "other".to_owned(),
        size: 1 << 30,
        repl: 1,
        class: None,
        fs_type: None,
        pinned: false,
        source: Some(source),
        replicas: vec![NewReplica {
            replica: new,
            incarnation: incarnation(0x50),
            node: NodeId(node),
        }],
    });
    cluster.done(Command::ReplicaReady { replica: new });
}

#[test]
fn an_attempt_of_another_leader_is_ended() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    cluster.begin_snapshot(1, false);
    let abort = Action::Abort { snapshot: snapshot(1) };
    assert_eq!(plan(&cluster.state, &none()), [abort]);
    assert_eq!(plan(&cluster.state, &[snapshot(1)].into()), [], "this leader takes it");
    let mut cluster = taken(false);
    assert_eq!(plan(&cluster.state, &none()), []);
    // It was ready before the command came: whoever asked for it may know.
    cluster.apply(abort.command().unwrap()).unwrap_err();
}

#[test]
fn a_new_volume_is_filled_where_its_source_is_if_it_can_be() {
    let mut cluster = taken(false);
    create(&mut cluster, 3, Source::Snapshot(snapshot(1)));
    let fill = Action::Fill { volume: OTHER, node: NodeId(3) };
    assert_eq!(plan(&cluster.state, &none()), [fill]);
    // While somebody does it nobody else does.
    let begin = Command::BeginAttach {
        volume: OTHER,
        node: NodeId(3),
        instance: ENGINE,
        expected_epoch: Epoch(0),
        internal: true,
    };
    cluster.done(begin);
    assert_eq!(plan(&cluster.state, &none()), []);
    let (epoch, instance) = (Epoch(1), ENGINE);
    cluster.done(Command::Detach { volume: OTHER, epoch, instance, clean: false });
    assert_eq!(plan(&cluster.state, &none()), [fill]);
    // Not while its only replica, or every holder of the source, is out of reach.
    cluster.done(Command::NodeLost { node: NodeId(3) });
    assert_eq!(plan(&cluster.state, &none()), []);

    let mut cluster = taken(false);
    create(&mut cluster, 2, Source::Snapshot(snapshot(1)));
    cluster.done(Command::NodeLost { node: NodeId(1) });
    assert_eq!(plan(&cluster.state, &none()), [Action::Fill { volume: OTHER, node: NodeId(2) }]);
    cluster.done(Command::ReplicaFailed { replica: replica(2), reason: "EIO".to_owned() });
    assert_eq!(plan(&cluster.state, &none()), [], "nobody has the source");
}

#[test]
fn the_snapshot_of_a_clone_lives_as_long_as_the_copying() {
    let mut cluster = taken(true);
    let drop = Action::Drop { snapshot: snapshot(1) };
    assert_eq!(plan(&cluster.state, &none()), [drop], "its clone was never made");
    assert_eq!(plan(&cluster.state, &[snapshot(1)].into()), [], "this leader makes it");
    create(&mut cluster, 3, Source::Clone { volume: VOLUME, snapshot: snapshot(1) });
    let fill = Action::Fill { volume: OTHER, node: NodeId(3) };
    assert_eq!(plan(&cluster.state, &none()), [fill]);
    cluster.done(Command::DeleteVolume { volume: OTHER });
    assert_eq!(plan(&cluster.state, &none()), [drop]);
    cluster.done(drop.command().unwrap());
    assert_eq!(plan(&cluster.state, &none()), []);
}

#[test]
fn who_takes_a_snapshot() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    let node = |cluster: &Cluster| taker(&cluster.state, &cluster.state.volumes[&VOLUME]);
    assert_eq!(node(&cluster), Some(NodeId(1)), "detached: one with a replica");
    cluster.done(Command::NodeLost { node: NodeId(1) });
    assert_eq!(node(&cluster), Some(NodeId(2)));
    cluster.done(Command::RegisterNode(crate::testing::info(1)));
    cluster.attach(3);
    assert_eq!(node(&cluster), Some(NodeId(3)), "attached: there");
    cluster.done(Command::NodeLost { node: NodeId(3) });
    assert_eq!(node(&cluster), None);
    let expected_epoch = Epoch(1);
    cluster.done(Command::Fence { volume: VOLUME, expected_epoch });
    assert_eq!(node(&cluster), None, "the next user comes first");
}
