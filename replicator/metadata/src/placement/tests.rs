#![allow(clippy::unwrap_used)]

use super::*;
use crate::{Command, NewReplica, NodeInfo};
use types::{BootId, EngineInstance, Incarnation, PoolId, ReplicaId, VolumeId};
use uuid::Uuid;

const GIB: u64 = 1 << 30;

/// Nodes 1.. with pools of these GiB and classes; 0 GiB: no pool.
fn cluster(nodes: &[(u64, Option<PoolClass>)]) -> State {
    let mut state = State::default();
    for (node, (gib, class)) in (1..).zip(nodes) {
        let pool = PoolInfo { id: PoolId(Uuid::from_u128(u128::from(node))), bytes: gib * GIB };
        let info = NodeInfo {
            node: NodeId(node),
            name: format!("node{node}"),
            control_address: String::new(),
            data_address: String::new(),
            pool: (*gib > 0).then_some(pool),
            class: *class,
            boot: BootId::default(),
            process: EngineInstance::default(),
        };
        state.apply(node, 1, &Command::RegisterNode(info)).outcome.unwrap();
    }
    state
}

fn fill(state: &mut State, node: u64, gib: u64) {
    let id = u128::from(state.applied) << 64;
    let replica = NewReplica {
        replica: ReplicaId(Uuid::from_u128(id)),
        incarnation: Incarnation(Uuid::from_u128(id)),
        node: NodeId(node),
    };
    let command = Command::CreateVolume {
        volume: VolumeId(Uuid::from_u128(id)),
        name: format!("fill{id}"),
        size: gib * GIB,
        repl: 1,
        class: None,
        fs_type: None,
        replicas: vec![replica],
    };
    state.apply(state.applied + 1, 1, &command).outcome.unwrap();
}

fn request(gib: u64, repl: u32) -> Request {
    Request { size: gib * GIB, repl, ..Request::default() }
}

fn ids(nodes: Vec<NodeId>) -> Vec<u64> {
    nodes.into_iter().map(|node| node.0).collect()
}

#[test]
fn the_preferred_node_comes_first_then_those_with_most_room() {
    let mut state = cluster(&[(10, None), (10, None), (20, None), (0, None)]);
    assert_eq!(ids(place(&state, &request(1, 2)).unwrap()), [3, 1]);
    fill(&mut state, 1, 5);
    assert_eq!(ids(place(&state, &request(1, 2)).unwrap()), [3, 2]);
    let prefer = |nodes: &[u64]| Request {
        preferred: nodes.iter().copied().map(NodeId).collect(),
        ..request(1, 2)
    };
    assert_eq!(ids(place(&state, &prefer(&[1])).unwrap()), [1, 3]);
    assert_eq!(ids(place(&state, &prefer(&[4, 9, 2])).unwrap()), [2, 3], "if it can hold one");
    let excluded = Request { exclude: vec![NodeId(3)], ..request(1, 1) };
    assert_eq!(ids(place(&state, &excluded).unwrap()), [2]);
}

#[test]
fn refusals_say_what_there_is_too_little_of() {
    let high = Some(PoolClass::High);
    let mut state = cluster(&[(10, high), (10, None), (10, high)]);
    let wanted = Request { class: high, ..request(1, 3) };
    let few = PlacementError::TooFewNodes { wanted: 3, eligible: 2, class: high };
    assert_eq!(place(&state, &wanted), Err(few));
    fill(&mut state, 2, 60);
    let full = PlacementError::NoRoom { wanted: 3, size: 50 * GIB, largest: 40 * GIB };
    assert_eq!(place(&state, &request(50, 3)), Err(full));
    assert_eq!(ids(place(&state, &request(50, 2)).unwrap()), [1, 3]);
    state.apply(90, 1, &Command::NodeLost { node: NodeId(3) }).outcome.unwrap();
    let few = PlacementError::TooFewNodes { wanted: 3, eligible: 2, class: None };
    assert_eq!(place(&state, &request(1, 3)), Err(few));
}

#[test]
fn capacity_counts_copies_on_different_nodes() {
    let state = cluster(&[(10, None), (10, None), (30, Some(PoolClass::High))]);
    let of = |repl, node: Option<u64>| {
        let capacity = capacity(&state, None, repl, node.map(NodeId));
        (capacity.available / GIB, capacity.maximum_volume / GIB)
    };
    // Rooms are 100, 100 and 300 GiB.
    assert_eq!(of(1, None), (500, 300));
    assert_eq!(of(2, None), (200, 100), "the large one needs partners");
    assert_eq!(of(3, None), (100, 100));
    assert_eq!(of(4, None), (0, 0));
    assert_eq!(of(0, None), (0, 0));
    assert_eq!(of(1, Some(1)), (100, 100));
    assert_eq!(of(2, Some(3)), (200, 100));
    assert_eq!(of(2, Some(1)), (100, 100));
    assert_eq!(of(1, Some(9)), (0, 0));
    let high = capacity(&state, Some(PoolClass::High), 1, None);
    assert_eq!(high.available, 300 * GIB);
    assert_eq!(capacity(&state, Some(PoolClass::Low), 1, None), Capacity::default());
}

#[test]
fn what_may_be_placed_is_accepted_by_apply() {
    // The two must agree, or a proposer would try the same refused placement for ever.
    let mut state = cluster(&[(1, None), (2, None), (1, None)]);
    while let Ok(nodes) = place(&state, &request(3, 1)) {
        fill(&mut state, nodes[0].0, 3);
    }
    assert!(capacity(&state, None, 1, None).maximum_volume < 3 * GIB);
}
