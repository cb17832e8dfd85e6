#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Cluster, VOLUME, incarnation, replica};
use metadata::Command;

const HERE: NodeId = NodeId(2);

fn candidate(node: u64) -> Candidate {
    Candidate {
        replica: replica(node),
        incarnation: incarnation(node),
        sealed: Epoch(1),
        node: NodeId(node),
        address: (NodeId(node) != HERE).then(|| format!("10.0.0.{node}:7421").parse().unwrap()),
    }
}

#[test]
fn a_lost_holder_is_fenced_then_a_member_sealed_then_nothing() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    assert_eq!(plan(&cluster.state, HERE), []);
    let epoch = cluster.attach(1);
    assert_eq!(plan(&cluster.state, HERE), [], "the holder lives");

    cluster.done(Command::NodeLost { node: NodeId(1) });
    let fence = Action::Fence { volume: VOLUME, expected_epoch: epoch, holder: NodeId(1) };
    assert_eq!(plan(&cluster.state, HERE), std::slice::from_ref(&fence));
    assert_eq!(plan(&cluster.state, NodeId(3)), [fence], "every leader sees the same");

    cluster.done(Command::Fence { volume: VOLUME, expected_epoch: epoch });
    let seal = Action::Seal { volume: VOLUME, epoch: epoch.next(), candidates: vec![candidate(2)] };
    assert_eq!(plan(&cluster.state, HERE), [seal], "not the lost node's own replica");

    let sealed = Command::FenceSealed { volume: VOLUME, epoch: epoch.next(), replica: replica(2) };
    cluster.done(sealed);
    assert_eq!(plan(&cluster.state, HERE), []);
}

#[test]
fn a_lost_node_that_holds_nothing_needs_no_fence() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2]);
    cluster.attach(3);
    cluster.done(Command::NodeLost { node: NodeId(1) });
    assert_eq!(plan(&cluster.state, HERE), []);
}

#[test]
fn only_members_of_the_isr_may_seal() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1, 2, 3]);
    let epoch = cluster.attach(1);
    let isr_version = cluster.isr_version();
    let remove = vec![replica(3)];
    cluster.done(Command::ShrinkIsr { volume: VOLUME, epoch, isr_version, remove });
    cluster.done(Command::NodeLost { node: NodeId(1) });
    cluster.done(Command::Fence { volume: VOLUME, expected_epoch: epoch });
    let Action::Seal { candidates, .. } = &plan(&cluster.state, HERE)[0] else { panic!() };
    assert_eq!(candidates, &[candidate(2)]);
}

/// The only member is on the lost node: it may still answer, and its seal is as good.
#[test]
fn without_a_live_member_a_lost_one_is_tried() {
    let mut cluster = Cluster::new();
    cluster.volume(&[1]);
    let epoch = cluster.attach(1);
    cluster.done(Command::NodeLost { node: NodeId(1) });
    cluster.done(Command::Fence { volume: VOLUME, expected_epoch: epoch });
    let Action::Seal { candidates, .. } = &plan(&cluster.state, HERE)[0] else { panic!() };
    assert_eq!(candidates, &[candidate(1)]);
}

#[test]
fn the_fence_seals_in_one_name_whoever_leads() {
    let epoch = Epoch(7);
    assert_eq!(fence_instance(VOLUME, epoch), fence_instance(VOLUME, epoch));
    assert_ne!(fence_instance(VOLUME, epoch), fence_instance(VOLUME, epoch.next()));
}
