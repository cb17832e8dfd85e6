//! Nodes that join the cluster, and nodes that are gone for good and are removed from it.

use crate::clock::{MS, SEC};
use crate::control::control_address;
use crate::meta::MetaInput;
use crate::node::Death;
use crate::world::World;
use metadata::{Change, Command, State};

impl World {
    /// Nodes that are to join: known first, then a learner; the leader makes it a voter.
    pub(crate) fn join_nodes(&mut self, state: &State) {
        let now = self.now;
        if self.operator.changing > now {
            return;
        }
        let Some((n, _)) = self.operator.joiners.iter().copied().find(|(_, at)| *at <= now) else {
            return;
        };
        let node = self.nodes[n].id;
        if state.membership.contains(node) {
            self.operator.joiners.retain(|(joiner, _)| *joiner != n);
            return;
        }
        if !self.nodes[n].member {
            self.nodes[n].member = true;
            self.start_later(n, MS);
        }
        if !state.nodes.contains_key(&node) {
            let (name, control_address) = (format!("n{}", n + 1), control_address(n));
            return self.order(Command::AddNode { node, name, control_address });
        }
        self.change_members(Change::AddLearner(node));
    }

    /// A host is lost for good; once its copies are elsewhere, its vote is taken and its number retired.
    pub(crate) fn remove_nodes(&mut self, state: &State) {
        let now = self.now;
        let Some((n, _)) = self.operator.leaver.filter(|(_, at)| *at <= now) else { return };
        let node = self.nodes[n].id;
        if self.nodes[n].member {
            let enough = self.nodes.iter().filter(|other| other.member).count() > 3;
            if enough && !self.healing && self.may_destroy(n) {
                self.note(|| format!("node {} is gone for good", n + 1));
                self.kill(n, Death::Power);
                (self.nodes[n].member, self.nodes[n].pool_dead) = (false, true);
            }
            return;
        }
        if !state.nodes.contains_key(&node) {
            if state.retired.contains(&node) {
                self.operator.leaver = None;
                self.figures.removals += 1;
            }
            return;
        }
        let used = state.bound_to(node) > 0 || state.held_by(node).next().is_some();
        if !state.is_lost(node) || used || self.operator.changing > now {
            return;
        }
        if !state.membership.contains(node) {
            return self.order(Command::RemoveNode { node });
        }
        self.change_members(Change::Remove(node));
    }

    fn change_members(&mut self, change: Change) {
        let Some(leader) = self.leader() else { return };
        self.operator.changing = self.now + 5 * SEC;
        if let Some(ticket) = self.operator_ticket(leader) {
            self.meta_input(leader, MetaInput::Change(ticket, change));
        }
    }

    /// A change of membership came to its end; the next look shows how.
    pub(crate) fn operator_change_done(&mut self, _: bool) {
        self.operator.changing = 0;
    }
}
