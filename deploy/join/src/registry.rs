//! The registry of a cluster: who founded it, and which number each node has.
//!
//! A value without I/O. The rules that Raft's safety needs of it: founding is decided once and never
//! changes; a number is never given to another node; a node that lost its registry entry but not
//! its disk comes back as what it was or not at all.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;
use uuid::Uuid;

/// How many voters a cluster may be founded with: an even number tolerates no more losses than the
/// odd one below it.
pub const FOUNDERS: [usize; 3] = [1, 3, 5];

/// Why a node cannot join.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JoinError {
    /// The number of founders is not possible.
    #[error("founders = {0} is not accepted; accepted: 1, 3 or 5")]
    Founders(usize),
    /// The node's disk belongs to another cluster.
    #[error(
        "this node's data belong to cluster {disk}, the registry is of cluster {registry}: restore the registry, or wipe the node's data directory and pool"
    )]
    OtherCluster {
        /// In the node's data directory.
        disk: Uuid,
        /// In the registry.
        registry: Uuid,
    },
    /// The node's number is another node's.
    #[error("number {number} of this node belongs to {holder:?} in the registry")]
    NumberTaken {
        /// The number.
        number: u64,
        /// Who has it.
        holder: String,
    },
    /// The registry has the node under another number.
    #[error("this node's data say that it is number {disk}, the registry says {registry}")]
    OtherNumber {
        /// In the node's data directory.
        disk: u64,
        /// In the registry.
        registry: u64,
    },
    /// The registry knows the node's pool, but the node's data directory is empty.
    #[error(
        "node {name:?} was number {number} and its data directory is gone: a voter without its log must not vote again. Remove it (`holdfast node remove {number}`), then it joins under a new number"
    )]
    LogLost {
        /// The node.
        name: String,
        /// Its number.
        number: u64,
    },
}

/// How far the preparation of a node's pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// Nothing was written to a device.
    #[default]
    Absent,
    /// The device may be blank or be a pool of this cluster.
    Preparing,
    /// It is a pool: a blank device is a lost or swapped one from now on (R11).
    Ready,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in Raft.
    pub number: u64,
    /// Its IP address.
    pub address: String,
    /// Its pool.
    #[serde(default)]
    pub pool: Pool,
}

/// What the cluster's object holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// The cluster.
    pub cluster: Uuid,
    /// How many nodes found it.
    pub wanted: usize,
    /// The numbers of those that did; empty until enough are there.
    #[serde(default)]
    pub founders: Vec<u64>,
    /// The highest number ever given.
    pub last: u64,
    /// Founders that the cluster has removed.
    #[serde(default)]
    pub retired: Vec<u64>,
    /// All nodes by name.
    #[serde(default)]
    pub nodes: BTreeMap<String, Entry>,
}

/// What a node's data directory remembers, so that the registry can be lost (the namespace deleted,
/// Holdfast installed anew) and the data be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: Uuid,
    /// This node's number.
    pub number: u64,
    /// The founders, by name and number.
    pub founders: BTreeMap<String, u64>,
    /// Its pool.
    pub pool: Pool,
}

impl Registry {
    /// A registry without nodes, of a new cluster or of the one that `identity` remembers.
    ///
    /// # Errors
    /// [`JoinError::Founders`].
    pub fn new(fresh: Uuid, wanted: usize, identity: Option<&Identity>) -> Result<Self, JoinError> {
        if !FOUNDERS.contains(&wanted) {
            return Err(JoinError::Founders(wanted));
        }
        let founders: Vec<u64> =
            identity.map(|known| known.founders.values().copied().collect()).unwrap_or_default();
        let nodes = identity.map(|known| known.founders.clone()).unwrap_or_default();
        let entry = |number| Entry { number, address: String::new(), pool: Pool::Ready };
        Ok(Self {
            cluster: identity.map_or(fresh, |known| known.cluster),
            wanted: if founders.is_empty() { wanted } else { founders.len() },
            last: founders.iter().copied().max().unwrap_or_default(),
            retired: Vec::new(),
            founders,
            nodes: nodes.into_iter().map(|(name, number)| (name, entry(number))).collect(),
        })
    }

    /// Enters the node or its new address; founds the cluster if that completes the number.
    ///
    /// # Errors
    /// [`JoinError`]: the node's disk and the registry contradict each other.
    pub fn enter(
        &mut self,
        name: &str,
        address: &str,
        identity: Option<&Identity>,
    ) -> Result<(), JoinError> {
        if let Some(known) = identity {
            if known.cluster != self.cluster {
                return Err(JoinError::OtherCluster {
                    disk: known.cluster,
                    registry: self.cluster,
                });
            }
            let taken = |entry: &&String| self.nodes[*entry].number == known.number;
            if let Some(holder) = self.nodes.keys().find(taken).filter(|holder| *holder != name) {
                let holder = holder.clone();
                return Err(JoinError::NumberTaken { number: known.number, holder });
            }
        }
        // What a node remembers of another may be from before that one was removed and came back.
        if let (Some(entry), Some(known)) = (self.nodes.get(name), identity)
            && entry.address.is_empty()
            && entry.number < known.number
        {
            self.retire(name);
        }
        match (self.nodes.get_mut(name), identity) {
            (Some(entry), Some(known)) if entry.number != known.number => {
                return Err(JoinError::OtherNumber { disk: known.number, registry: entry.number });
            }
            // It may have died between its entry and its first file: no vote was cast then.
            (Some(entry), None) if entry.pool == Pool::Ready => {
                return Err(JoinError::LogLost { name: name.into(), number: entry.number });
            }
            (Some(entry), _) => entry.address = address.into(),
            (None, known) => {
                let number = known.map_or(self.last + 1, |known| known.number);
                let pool = known.map_or(Pool::Absent, |known| known.pool);
                self.last = self.last.max(number);
                self.nodes.insert(name.into(), Entry { number, address: address.into(), pool });
            }
        }
        if self.founders.is_empty() && self.nodes.len() >= self.wanted {
            let mut numbers: Vec<u64> = self.nodes.values().map(|entry| entry.number).collect();
            numbers.sort_unstable();
            numbers.truncate(self.wanted);
            self.founders = numbers;
        }
        Ok(())
    }

    /// The cluster has removed the node of that name for good: if it comes back, it is a new one.
    pub fn retire(&mut self, name: &str) {
        if let Some(entry) = self.nodes.remove(name)
            && self.founders.contains(&entry.number)
        {
            self.retired.push(entry.number);
        }
    }

    /// The founders with an address, by number; all of them once each has entered.
    #[must_use]
    pub fn founding(&self) -> BTreeMap<u64, &str> {
        self.nodes
            .values()
            .filter(|entry| self.founders.contains(&entry.number) && !entry.address.is_empty())
            .map(|entry| (entry.number, entry.address.as_str()))
            .collect()
    }

    /// Whether the founders are decided and their addresses known.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        let left = self.founders.len().saturating_sub(self.retired.len());
        !self.founders.is_empty() && self.founding().len() == left
    }

    /// What the node of that name has to remember.
    #[must_use]
    pub fn identity(&self, name: &str) -> Option<Identity> {
        let entry = self.nodes.get(name)?;
        let founders = self.nodes.iter().filter(|(_, e)| self.founders.contains(&e.number));
        Some(Identity {
            cluster: self.cluster,
            number: entry.number,
            founders: founders.map(|(name, entry)| (name.clone(), entry.number)).collect(),
            pool: entry.pool,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CLUSTER: Uuid = Uuid::from_u128(7);

    fn founded(names: &[&str], wanted: usize) -> Registry {
        let mut registry = Registry::new(CLUSTER, wanted, None).unwrap();
        for (name, host) in names.iter().zip(1..) {
            registry.enter(name, &format!("10.0.0.{host}"), None).unwrap();
        }
        registry
    }

    #[test]
    fn founders_are_decided_once_and_numbers_are_never_given_twice() {
        let mut registry = founded(&["a", "b"], 3);
        assert!(!registry.is_founded(), "two of three");
        registry.enter("c", "10.0.0.3", None).unwrap();
        assert_eq!(registry.founders, [1, 2, 3]);
        registry.enter("d", "10.0.0.4", None).unwrap();
        assert_eq!(registry.founders, [1, 2, 3], "a later node does not found");
        registry.nodes.remove("d");
        registry.enter("e", "10.0.0.5", None).unwrap();
        assert_eq!(registry.nodes["e"].number, 5, "number 4 was d's");
        registry.enter("a", "10.0.9.1", None).unwrap();
        assert_eq!(registry.founding()[&1], "10.0.9.1", "an address may change");
    }

    #[test]
    fn one_node_founds_alone_and_even_numbers_are_refused() {
        assert_eq!(founded(&["a"], 1).founders, [1]);
        for wanted in [0, 2, 4, 6] {
            assert_eq!(Registry::new(CLUSTER, wanted, None), Err(JoinError::Founders(wanted)));
        }
    }

    #[test]
    fn a_lost_registry_is_made_again_from_what_the_nodes_remember() {
        let mut before = founded(&["a", "b", "c", "d"], 3);
        before.nodes.values_mut().for_each(|entry| entry.pool = Pool::Ready);
        let remembered = |name: &str| before.identity(name).unwrap();
        // The last node, not a founder, is the first to come back.
        let mut registry = Registry::new(Uuid::from_u128(8), 3, Some(&remembered("d"))).unwrap();
        assert_eq!(registry.cluster, CLUSTER);
        registry.enter("d", "10.0.1.4", Some(&remembered("d"))).unwrap();
        assert!(!registry.is_founded(), "the founders' addresses are not known yet");
        for name in ["c", "a", "b"] {
            registry.enter(name, "10.0.1.1", Some(&remembered(name))).unwrap();
        }
        assert!(registry.is_founded());
        assert_eq!(registry.founders, before.founders);
        let numbers = |r: &Registry| -> Vec<_> {
            r.nodes.iter().map(|(name, entry)| (name.clone(), entry.number)).collect()
        };
        assert_eq!(numbers(&registry), numbers(&before));
    }

    #[test]
    fn a_removed_node_comes_back_under_a_new_number() {
        let mut registry = founded(&["a", "b", "c"], 3);
        registry.nodes.values_mut().for_each(|entry| entry.pool = Pool::Ready);
        let old = registry.identity("a").unwrap();
        registry.retire("c");
        registry.enter("c", "10.0.0.3", None).unwrap();
        let again = registry.identity("c").unwrap();
        assert_eq!((again.number, again.pool), (4, Pool::Absent));
        assert!(registry.is_founded(), "nobody waits for the founder that is gone");
        assert_eq!(registry.founding().into_keys().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(registry.founders, [1, 2, 3], "founding is decided once");

        // The registry is lost, and made again from what a node remembers that has not started since.
        let mut registry = Registry::new(Uuid::from_u128(8), 3, Some(&old)).unwrap();
        registry.enter("a", "10.0.0.1", Some(&old)).unwrap();
        registry.enter("b", "10.0.0.2", Some(&Identity { number: 2, ..old.clone() })).unwrap();
        assert!(!registry.is_founded());
        registry.enter("c", "10.0.0.3", Some(&again)).unwrap();
        assert_eq!((registry.nodes["c"].number, registry.is_founded()), (4, true));
    }

    #[test]
    fn contradictions_are_refused_in_words() {
        let mut registry = founded(&["a", "b", "c"], 3);
        let known = registry.identity("a").unwrap();
        let foreign = Identity { cluster: Uuid::from_u128(9), ..known.clone() };
        let swapped = Identity { number: 2, ..known.clone() };
        let renumbered = Identity { number: 9, ..known.clone() };
        let rows: [(&str, &Identity, JoinError); 3] = [
            (
                "a",
                &foreign,
                JoinError::OtherCluster { disk: Uuid::from_u128(9), registry: CLUSTER },
            ),
            ("a", &swapped, JoinError::NumberTaken { number: 2, holder: "b".into() }),
            ("a", &renumbered, JoinError::OtherNumber { disk: 9, registry: 1 }),
        ];
        for (name, identity, wanted) in rows {
            assert_eq!(registry.enter(name, "10.0.0.1", Some(identity)), Err(wanted));
        }
        registry.enter("a", "10.0.0.1", None).unwrap();
        registry.nodes.get_mut("a").unwrap().pool = Pool::Ready;
        let lost = JoinError::LogLost { name: "a".into(), number: 1 };
        assert_eq!(registry.enter("a", "10.0.0.1", None), Err(lost));
    }
}
