//! From Kubernetes' topology to nodes of the cluster.

use csi_common::TOPOLOGY_NODE;
use proto::control::Node;
use proto::csi::{Topology, TopologyRequirement};

/// The names in `topologies`, in order and without repeats. Other keys are not ours and mean nothing.
fn names(topologies: &[Topology]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for topology in topologies {
        if let Some(name) = topology.segments.get(TOPOLOGY_NODE)
            && !names.contains(&name.as_str())
        {
            names.push(name);
        }
    }
    names
}

/// Names of the nodes where the first copy is best, best first. A volume can be used from every node, so
/// what is required is at most a preference too.
pub fn preferred(requirement: Option<&TopologyRequirement>) -> Vec<&str> {
    let Some(requirement) = requirement else { return Vec::new() };
    let mut wanted = names(&requirement.preferred);
    for name in names(&requirement.requisite) {
        if !wanted.contains(&name) {
            wanted.push(name);
        }
    }
    wanted
}

/// The node that a topology names: `None` if it names none.
pub fn segment(topology: Option<&Topology>) -> Option<&str> {
    topology?.segments.get(TOPOLOGY_NODE).map(String::as_str)
}

/// The ids of `wanted`; unknown names are left out, since a preference must not make a volume fail.
pub fn ids(wanted: &[&str], nodes: &[Node]) -> Vec<u64> {
    let known = |name: &&str| {
        let id = nodes.iter().find(|node| node.name == *name).map(|node| node.node);
        if id.is_none() {
            tracing::warn!(node = name, "preferred node is not in the cluster");
        }
        id
    };
    wanted.iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(key: &str, name: &str) -> Topology {
        Topology { segments: [(key.to_owned(), name.to_owned())].into() }
    }

    #[test]
    fn preferred_comes_first_and_the_unknown_is_left_out() {
        let requirement = TopologyRequirement {
            requisite: vec![on(TOPOLOGY_NODE, "n1"), on(TOPOLOGY_NODE, "n3"), on("zone", "a")],
            preferred: vec![
                on(TOPOLOGY_NODE, "n3"),
                on(TOPOLOGY_NODE, "gone"),
                on(TOPOLOGY_NODE, "n3"),
            ],
        };
        let names = preferred(Some(&requirement));
        assert_eq!(names, ["n3", "gone", "n1"]);
        let node = |node, name: &str| Node { node, name: name.into(), ..Node::default() };
        assert_eq!(ids(&names, &[node(1, "n1"), node(2, "n2"), node(3, "n3")]), [3, 1]);
        assert!(preferred(None).is_empty());
    }
}
