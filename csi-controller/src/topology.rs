//! From Kubernetes' topology to nodes of the cluster.

use csi_common::{TOPOLOGY_NODE, TOPOLOGY_ZONE};
use proto::control::Node;
use proto::csi::{Topology, TopologyRequirement};

/// What a topology names of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A node by its name.
    Node(String),
    /// All nodes of a zone.
    Zone(String),
}

/// The place that a topology names: the node if it does, else the zone. `None` if it names neither; other
/// keys are not ours and mean nothing.
pub fn place(topology: Option<&Topology>) -> Option<Place> {
    let segments = &topology?.segments;
    let node = segments.get(TOPOLOGY_NODE).cloned().map(Place::Node);
    node.or_else(|| segments.get(TOPOLOGY_ZONE).cloned().map(Place::Zone))
}

/// Where a volume is wanted, best first.
pub fn places(requirement: Option<&TopologyRequirement>) -> Vec<Place> {
    let Some(requirement) = requirement else { return Vec::new() };
    let mut wanted: Vec<Place> = Vec::new();
    for topology in requirement.preferred.iter().chain(&requirement.requisite) {
        wanted.extend(place(Some(topology)).filter(|place| !wanted.contains(place)));
    }
    wanted
}

/// The ids of the nodes at `places`, in that order; unknown names are left out.
pub fn nodes(places: &[Place], nodes: &[Node]) -> Vec<u64> {
    let mut ids: Vec<u64> = Vec::new();
    for place in places {
        let there = nodes.iter().filter(|node| match place {
            Place::Node(name) => node.name == *name,
            Place::Zone(zone) => node.zone == *zone,
        });
        let before = ids.len();
        ids.extend(there.map(|node| node.node));
        if ids.len() == before {
            tracing::warn!(?place, "is not in the cluster");
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    ids
}

/// The topology of one node.
pub fn node(name: &str) -> Topology {
    Topology { segments: [(TOPOLOGY_NODE.to_owned(), name.to_owned())].into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(pairs: &[(&str, &str)]) -> Topology {
        let segments = pairs.iter().map(|(key, name)| ((*key).to_owned(), (*name).to_owned()));
        Topology { segments: segments.collect() }
    }

    #[test]
    fn preferred_comes_first_and_the_unknown_is_left_out() {
        let n = |name| on(&[(TOPOLOGY_NODE, name)]);
        let requirement = TopologyRequirement {
            requisite: vec![n("n1"), n("n3"), on(&[("zone", "a")]), on(&[(TOPOLOGY_ZONE, "b")])],
            preferred: vec![on(&[(TOPOLOGY_NODE, "n3"), (TOPOLOGY_ZONE, "a")]), n("gone"), n("n3")],
        };
        let wanted = places(Some(&requirement));
        let place = |name: &str| Place::Node(name.into());
        assert_eq!(wanted, [place("n3"), place("gone"), place("n1"), Place::Zone("b".into())]);
        let node = |node, name: &str, zone: &str| Node {
            node,
            name: name.into(),
            zone: zone.into(),
            ..Node::default()
        };
        let cluster =
            [node(1, "n1", ""), node(2, "n2", "b"), node(3, "n3", "b"), node(4, "n4", "")];
        assert_eq!(nodes(&wanted, &cluster), [3, 1, 2]);
        assert!(places(None).is_empty());
    }
}
