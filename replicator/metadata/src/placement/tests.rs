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
            zone: None,
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
        pinned: false,
        source: None,
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
    assert_eq!(place(&state, &request(40, 3)).unwrap().len(), 3, "to the last byte");
    state.apply(90, 1, &Command::NodeLost { node: NodeId(3) }).outcome.unwrap();
    let few = PlacementError::TooFewNodes { wanted: 3, eligible: 2, class: None };
    assert_eq!(place(&state, &request(1, 3)), Err(few));
}

#[test]
fn capacity_counts_copies_on_different_nodes() {
    let state = cluster(&[(10, None), (10, None), (30, Some(PoolClass::High))]);
    let of = |repl, node: Option<u64>| {
        let capacity = capacity(&state, None, repl, node.map(NodeId), &Free::new());
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
    let high = capacity(&state, Some(PoolClass::High), 1, None, &Free::new());
    assert_eq!(high.available, 300 * GIB);
    assert_eq!(capacity(&state, Some(PoolClass::Low), 1, None, &Free::new()), Capacity::default());
}

#[test]
fn what_may_be_placed_is_accepted_by_apply() {
    // The two must agree, or a proposer would try the same refused placement for ever.
    let mut state = cluster(&[(1, None), (2, None), (1, None)]);
    while let Ok(nodes) = place(&state, &request(3, 1)) {
        fill(&mut state, nodes[0].0, 3);
    }
    assert!(capacity(&state, None, 1, None, &Free::new()).maximum_volume < 3 * GIB);
}

#[test]
fn copies_go_to_different_zones_as_far_as_there_are_any() {
    let mut state = cluster(&[(40, None), (30, None), (20, None), (10, None), (5, None)]);
    for (node, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "b")] {
        state.nodes.get_mut(&NodeId(node)).unwrap().zone = Some(zone.to_owned());
    }
    let of = |request: &Request| ids(place(&state, request).unwrap());
    assert_eq!(of(&request(1, 2)), [1, 3], "2 has more room than 3, but stands beside 1");
    assert_eq!(of(&request(1, 3)), [1, 3, 5], "a node without a zone stands alone");
    assert_eq!(of(&request(60, 3)), [1, 3, 2], "5 has no room: better the same zone than none");
    let prefer = Request { preferred: vec![NodeId(2)], ..request(1, 2) };
    assert_eq!(of(&prefer), [2, 3]);
    let beside = Request { apart_from: vec![NodeId(1)], exclude: vec![NodeId(1)], ..request(1, 1) };
    assert_eq!(of(&beside), [3]);
}

#[test]
fn a_pinned_first_copy_is_where_it_has_to_be_or_nowhere() {
    let state = cluster(&[(10, None), (10, None), (20, None)]);
    let pinned =
        |node, gib| Request { preferred: vec![NodeId(node)], pinned: true, ..request(gib, 2) };
    assert_eq!(ids(place(&state, &pinned(1, 1)).unwrap()), [1, 3]);
    let size = GIB;
    assert_eq!(place(&state, &pinned(9, 1)), Err(PlacementError::NotThere { size }));
    let wanted = Request { preferred: vec![], ..pinned(1, 1) };
    assert_eq!(place(&state, &wanted), Err(PlacementError::NotThere { size }));
}

#[test]
fn a_pool_that_really_fills_up_gets_less() {
    let state = cluster(&[(10, None), (20, None)]);
    let free: Free = [(NodeId(2), GIB / 2)].into();
    let wanted = Request { free: free.clone(), ..request(1, 1) };
    assert_eq!(ids(place(&state, &wanted).unwrap()), [1]);
    let both = Request { free: free.clone(), ..request(6, 2) };
    let full = PlacementError::NoRoom { wanted: 2, size: 6 * GIB, largest: 5 * GIB };
    assert_eq!(place(&state, &both), Err(full));
    assert_eq!(capacity(&state, None, 2, None, &free).maximum_volume, 5 * GIB);
}
