//! Nodes: known, up, lost, removed.

use super::{Change, Changed, OK};
use crate::command::NodeInfo;
use crate::event::EventKind;
use crate::outcome::{Outcome, Refused};
use crate::state::{Node, NodeStatus, Replica, State};
use types::{BootId, EngineInstance, NodeId, VolumeId};

fn check_name(state: &State, node: NodeId, name: &str) -> Result<(), Refused> {
    if node.0 == 0 {
        return Err(Refused::Invalid {
            field: "node".into(),
            value: "0".into(),
            accepted: "ids start at 1".into(),
        });
    }
    if state.retired.contains(&node) {
        return Err(Refused::Retired { node });
    }
    if name.is_empty() || name.len() > 253 || name.chars().any(char::is_control) {
        return Err(Refused::Invalid {
            field: "name".into(),
            value: name.chars().take(64).collect(),
            accepted: "1 to 253 printable bytes".into(),
        });
    }
    match state.nodes.values().find(|n| n.name == name && n.node != node) {
        Some(other) => Err(Refused::Conflict {
            name: name.into(),
            field: "node".into(),
            existing: other.node.to_string(),
            wanted: node.to_string(),
        }),
        None => Ok(()),
    }
}

impl Change {
    pub(super) fn register_node(&mut self, state: &mut State, info: &NodeInfo) -> Outcome {
        let node = info.node;
        check_name(state, node, &info.name)?;
        if let Some(zone) = &info.zone
            && (zone.is_empty() || zone.len() > 63 || zone.chars().any(char::is_control))
        {
            return Err(Refused::Invalid {
                field: "zone".into(),
                value: zone.chars().take(64).collect(),
                accepted: "1 to 63 printable bytes".into(),
            });
        }
        let found = info.pool.map(|pool| pool.id);
        if let Some(known) = state.nodes.get(&node)
            && state.replicas_on(node).next().is_some()
        {
            let recorded = known.pool.map(|pool| pool.id);
            if recorded != found {
                let text =
                    |id: Option<types::PoolId>| id.map_or("none".into(), |id| id.to_string());
                return Err(Refused::PoolChanged {
                    node,
                    recorded: text(recorded),
                    found: text(found),
                });
            }
        }
        if let Some(id) = found
            && let Some(other) = state
                .nodes
                .values()
                .find(|n| n.node != node && n.pool.is_some_and(|pool| pool.id == id))
        {
            return Err(Refused::Conflict {
                name: id.to_string(),
                field: "node".into(),
                existing: other.node.to_string(),
                wanted: node.to_string(),
            });
        }
        let new = Node {
            node,
            name: info.name.clone(),
            control_address: info.control_address.clone(),
            data_address: info.data_address.clone(),
            pool: info.pool,
            class: info.class,
            zone: info.zone.clone(),
            boot: info.boot,
            process: info.process,
            status: NodeStatus::Up,
        };
        let before = state.nodes.get(&node);
        if before == Some(&new) {
            return OK;
        }
        let before = before.map(|n| n.status);
        state.nodes.insert(node, new);
        self.changed.insert(Changed::Node(node));
        match before {
            Some(NodeStatus::Lost) => {
                self.event(state, EventKind::NodeUp, None, Some(node), "heard again".into());
            }
            None | Some(NodeStatus::Unknown) => {
                let message = format!("node {:?} registered", info.name);
                self.event(state, EventKind::NodeRegistered, None, Some(node), message);
            }
            Some(NodeStatus::Up) => {}
        }
        OK
    }

    pub(super) fn add_node(
        &mut self,
        state: &mut State,
        node: NodeId,
        name: &str,
        control_address: &str,
    ) -> Outcome {
        check_name(state, node, name)?;
        if let Some(known) = state.nodes.get(&node) {
            if known.name != name {
                return Err(Refused::Conflict {
                    name: node.to_string(),
                    field: "name".into(),
                    existing: known.name.clone(),
                    wanted: name.into(),
                });
            }
            return OK;
        }
        state.nodes.insert(
            node,
            Node {
                node,
                name: name.into(),
                control_address: control_address.into(),
                data_address: String::new(),
                pool: None,
                class: None,
                zone: None,
                boot: BootId::default(),
                process: EngineInstance::default(),
                status: NodeStatus::Unknown,
            },
        );
        self.changed.insert(Changed::Node(node));
        OK
    }

    pub(super) fn remove_node(&mut self, state: &mut State, node: NodeId) -> Outcome {
        if state.retired.contains(&node) {
            return OK;
        }
        if !state.nodes.contains_key(&node) {
            return Err(Refused::NoNode { node });
        }
        let replicas = state.bound_to(node);
        let held = state.held_by(node).count();
        let reason = if state.membership.contains(node) {
            "is still a Raft member".into()
        } else if replicas > 0 {
            format!("still has {replicas} replicas")
        } else if held > 0 {
            format!("still holds {held} volumes")
        } else {
            self.forget_deleting(state, node);
            state.nodes.remove(&node);
            state.retired.insert(node);
            self.changed.insert(Changed::Node(node));
            let message = "removed; its id is retired".into();
            self.event(state, EventKind::NodeRemoved, None, Some(node), message);
            return OK;
        };
        Err(Refused::NodeInUse { node, reason })
    }

    /// What a node that never comes back was to delete.
    fn forget_deleting(&mut self, state: &mut State, node: NodeId) {
        let volumes: Vec<VolumeId> = state.volumes.keys().copied().collect();
        for volume in volumes {
            let Some(record) = state.volumes.get_mut(&volume) else { continue };
            let there = |r: &&Replica| r.node == node;
            let gone: Vec<_> = record.replicas.values().filter(there).map(|r| r.replica).collect();
            if gone.is_empty() {
                continue;
            }
            self.changed.insert(Changed::Volume(volume));
            record.replicas.retain(|_, replica| replica.node != node);
            self.forget_holders(state, volume, &gone);
            self.forget_empty(state, volume);
        }
    }

    pub(super) fn node_lost(&mut self, state: &mut State, node: NodeId) -> Outcome {
        let known = state.nodes.get(&node).ok_or(Refused::NoNode { node })?;
        if known.status == NodeStatus::Lost {
            return OK;
        }
        let voters = &state.membership.voters;
        if voters.contains(&node) {
            let lost = voters.iter().filter(|voter| state.is_lost(**voter)).count();
            if lost + 1 > voters.len().saturating_sub(1) / 2 {
                return Err(Refused::TooManyLost {
                    node,
                    lost: u32::try_from(lost).unwrap_or(u32::MAX),
                    voters: u32::try_from(voters.len()).unwrap_or(u32::MAX),
                });
            }
        }
        self.node(state, node)?.status = NodeStatus::Lost;
        self.event(state, EventKind::NodeLost, None, Some(node), "no longer heard".into());
        OK
    }

    pub(super) fn node_up(
        &mut self,
        state: &mut State,
        node: NodeId,
        boot: BootId,
        process: EngineInstance,
    ) -> Outcome {
        let known = self.node(state, node)?;
        if known.status == NodeStatus::Unknown {
            // Only its registration says where it is and what it has.
            return Err(Refused::NotRegistered { node });
        }
        let was_lost = known.status == NodeStatus::Lost;
        known.status = NodeStatus::Up;
        known.boot = boot;
        known.process = process;
        if was_lost {
            self.event(state, EventKind::NodeUp, None, Some(node), "heard again".into());
        }
        OK
    }
}
