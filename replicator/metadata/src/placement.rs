//! Where replicas go: pure functions of the applied state.
//!
//! Volumes are thin, so a pool may promise more than it has: up to [`OVERCOMMIT`] times its bytes.
//! A pool that really fills up answers ENOSPC to the writer; the factor only bounds the surprise.

use crate::command::PoolInfo;
use crate::state::{Lifecycle, Node, NodeStatus, PoolClass, ReplicaState, State};
use core::cmp::Reverse;
use std::collections::BTreeMap;
use thiserror::Error;
use types::NodeId;

/// Bytes that a pool may promise for each byte that it has.
pub const OVERCOMMIT: u64 = 10;

/// Why no set of nodes was found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// Fewer nodes are up, with a pool of the wanted class, than copies are wanted.
    #[error("{wanted} copies are wanted, but only {eligible} nodes are up with a pool of class {}", class.map_or("any", PoolClass::as_str))]
    TooFewNodes {
        /// Copies.
        wanted: u32,
        /// Nodes that could hold one.
        eligible: u32,
        /// Pool class wanted.
        class: Option<PoolClass>,
    },
    /// The nodes that the first copy has to go to have no room, are not up, or are not there.
    #[error("none of the nodes that the first copy is pinned to can take {size} bytes")]
    NotThere {
        /// Bytes of the volume.
        size: u64,
    },
    /// Enough nodes, but not enough of them have room.
    #[error("{size} bytes are wanted on {wanted} nodes; the largest volume that fits is {largest}")]
    NoRoom {
        /// Copies.
        wanted: u32,
        /// Bytes of the volume.
        size: u64,
        /// Bytes that would fit.
        largest: u64,
    },
}

/// What is to be placed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Bytes of the volume.
    pub size: u64,
    /// Copies.
    pub repl: u32,
    /// Pool class; `None` for any.
    pub class: Option<PoolClass>,
    /// The first replica goes to the first of these that has room.
    pub preferred: Vec<NodeId>,
    /// The first replica goes to one of `preferred` or nowhere.
    pub pinned: bool,
    /// Never here (they have a replica of the volume already).
    pub exclude: Vec<NodeId>,
    /// Hold other replicas of the volume: in other zones than these stand in, if there are any.
    pub apart_from: Vec<NodeId>,
    /// What is really free.
    pub free: Free,
}

/// Free bytes of pools, of the nodes that said so lately.
pub type Free = BTreeMap<NodeId, u64>;

/// Bytes that all volumes together may come to need on `node`.
#[must_use]
pub fn promised(state: &State, node: NodeId) -> u64 {
    state
        .replicas_on(node)
        .filter(|(v, r)| {
            v.lifecycle != Lifecycle::Deleting
                && matches!(r.state, ReplicaState::Creating | ReplicaState::Ready)
        })
        .fold(0, |sum, (v, _)| sum.saturating_add(v.reserved()))
}

/// Bytes that may still be promised on `node`, 0 without a pool.
#[must_use]
pub fn room(state: &State, node: &Node) -> u64 {
    let limit = node.pool.map_or(0, |PoolInfo { bytes, .. }| bytes.saturating_mul(OVERCOMMIT));
    limit.saturating_sub(promised(state, node.node))
}

/// Why `node` cannot take a new replica of that class, room aside.
pub(crate) fn ineligible(node: &Node, class: Option<PoolClass>) -> Option<&'static str> {
    match node.status {
        NodeStatus::Unknown => Some("it never registered"),
        NodeStatus::Lost => Some("it is lost"),
        NodeStatus::Up if node.pool.is_none() => Some("it has no pool"),
        NodeStatus::Up if class.is_some() && class != node.class => {
            Some("its pool is of another class")
        }
        NodeStatus::Up => None,
    }
}

/// Nodes with what may be placed on them, most first: what may still be promised, and never more than
/// [`OVERCOMMIT`] times what is really free.
fn rooms(
    state: &State,
    class: Option<PoolClass>,
    exclude: &[NodeId],
    free: &Free,
) -> Vec<(u64, NodeId)> {
    let room = |node: &Node| {
        let free = free.get(&node.node).map_or(u64::MAX, |free| free.saturating_mul(OVERCOMMIT));
        room(state, node).min(free)
    };
    let mut rooms: Vec<(u64, NodeId)> = state
        .nodes
        .values()
        .filter(|n| !exclude.contains(&n.node) && ineligible(n, class).is_none())
        .map(|n| (room(n), n.node))
        .collect();
    rooms.sort_by_key(|(room, node)| (Reverse(*room), *node));
    rooms
}

/// Chooses `repl` different nodes: the first preferred one with room first, then those with the most
/// room in zones that hold no replica yet, then those with the most room. A node without a zone counts
/// as one that stands alone.
///
/// # Errors
/// [`PlacementError`], saying what there is too little of.
pub fn place(state: &State, request: &Request) -> Result<Vec<NodeId>, PlacementError> {
    let wanted = request.repl;
    let rooms = rooms(state, request.class, &request.exclude, &request.free);
    if rooms.len() < wanted as usize {
        let eligible = u32::try_from(rooms.len()).unwrap_or(u32::MAX);
        return Err(PlacementError::TooFewNodes { wanted, eligible, class: request.class });
    }
    let largest = wanted.checked_sub(1).map_or(0, |at| rooms[at as usize].0);
    if largest < request.size {
        return Err(PlacementError::NoRoom { wanted, size: request.size, largest });
    }
    let mut fitting: Vec<NodeId> =
        rooms.iter().filter(|(room, _)| *room >= request.size).map(|(_, node)| *node).collect();
    let first = request.preferred.iter().copied().find(|node| fitting.contains(node));
    if request.pinned && first.is_none() {
        return Err(PlacementError::NotThere { size: request.size });
    }
    let zone = |node: &NodeId| state.nodes.get(node).and_then(|node| node.zone.as_deref());
    let mut taken: Vec<&str> = request.apart_from.iter().filter_map(zone).collect();
    let mut chosen = Vec::new();
    let mut next = first;
    while chosen.len() < wanted as usize {
        let apart = || fitting.iter().find(|n| zone(n).is_none_or(|zone| !taken.contains(&zone)));
        let Some(node) = next.take().or_else(|| apart().or(fitting.first()).copied()) else {
            break;
        };
        fitting.retain(|other| *other != node);
        taken.extend(zone(&node));
        chosen.push(node);
    }
    Ok(chosen)
}

/// What new volumes could have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of all new volumes together.
    pub available: u64,
    /// Bytes of the largest one.
    pub maximum_volume: u64,
}

/// Capacity for volumes of `repl` copies; with `node`, for those with a copy there.
#[must_use]
pub fn capacity(
    state: &State,
    class: Option<PoolClass>,
    repl: u32,
    node: Option<NodeId>,
    free: &Free,
) -> Capacity {
    let Some(others) = repl.checked_sub(1) else { return Capacity::default() };
    let mut rooms = rooms(state, class, &[], free);
    if let Some(node) = node {
        // Every volume has a copy there: its room bounds both figures.
        let Some(at) = rooms.iter().position(|(_, n)| *n == node) else {
            return Capacity::default();
        };
        let (here, _) = rooms.remove(at);
        let rest = match others.checked_sub(1) {
            None => Capacity { available: here, maximum_volume: here },
            Some(last) => Capacity {
                available: spread(&rooms, others),
                maximum_volume: rooms.get(last as usize).map_or(0, |(room, _)| *room),
            },
        };
        return Capacity {
            available: here.min(rest.available),
            maximum_volume: here.min(rest.maximum_volume),
        };
    }
    Capacity {
        available: spread(&rooms, repl),
        maximum_volume: rooms.get(others as usize).map_or(0, |(room, _)| *room),
    }
}

/// The largest total T of volumes with `repl` copies on different nodes: no node can serve more
/// than T of the `repl * T` bytes.
fn spread(rooms: &[(u64, NodeId)], repl: u32) -> u64 {
    let fits = |total: u64| {
        let sum: u128 = rooms.iter().map(|(room, _)| u128::from(*room.min(&total))).sum();
        sum >= u128::from(repl) * u128::from(total)
    };
    let (mut low, mut high) = (0, rooms.iter().fold(0u64, |sum, (r, _)| sum.saturating_add(*r)));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests;
