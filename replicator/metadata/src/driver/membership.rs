//! Changes of the Raft membership: one node at a time, learner first.

use super::{CAUGHT_UP, Change, ChangeError, Driver, MAX_VOTERS, Pending, ProposeError};
use crate::storage::{AppliedStore, LogStore};
use raft::prelude::{ConfChange, ConfChangeType};
use types::NodeId;

impl<L: LogStore, A: AppliedStore> Driver<L, A> {
    /// Proposes a change; `None` if its end is still open.
    pub(super) fn change_membership(
        &mut self,
        ticket: u64,
        change: Change,
    ) -> Result<Option<u64>, ChangeError> {
        if !self.leads() {
            return Err(self.not_leader().into());
        }
        if self.raw.raft.lead_transferee.is_some() {
            return Err(ProposeError::NotLeader { leader: None }.into());
        }
        if self.raw.raft.has_pending_conf() {
            return Err(ChangeError::InProgress);
        }
        let Some((kind, node)) = self.check(change)? else {
            return Ok(Some(self.state.applied));
        };
        let mut conf_change = ConfChange { node_id: node.0, ..ConfChange::default() };
        conf_change.set_change_type(kind);
        let number = self.next_number();
        let context = self.context(number);
        let proposed = self.raw.propose_conf_change(context, conf_change);
        proposed.map_err(|_| ProposeError::Busy)?;
        let term = self.raw.raft.term;
        self.pending.insert(number, Pending { ticket, term, change: true });
        Ok(None)
    }

    /// What Raft has to do; `None` if it is so already.
    fn check(&self, change: Change) -> Result<Option<(ConfChangeType, NodeId)>, ChangeError> {
        let members = &self.state.membership;
        match change {
            Change::AddLearner(node) => {
                if members.learners.contains(&node) {
                    return Ok(None);
                }
                if members.voters.contains(&node) {
                    return Err(ChangeError::IsVoter(node));
                }
                if !self.state.nodes.contains_key(&node) {
                    return Err(ChangeError::UnknownNode(node));
                }
                Ok(Some((ConfChangeType::AddLearnerNode, node)))
            }
            Change::PromoteVoter(node) => {
                if members.voters.contains(&node) {
                    return Ok(None);
                }
                if !members.learners.contains(&node) {
                    return Err(ChangeError::NotLearner(node));
                }
                if members.voters.len() >= MAX_VOTERS {
                    return Err(ChangeError::TooManyVoters);
                }
                let last = self.raw.raft.raft_log.last_index();
                let matched = self.raw.raft.prs().get(node.0).map_or(0, |p| p.matched);
                let behind = last.saturating_sub(matched);
                if behind > CAUGHT_UP {
                    return Err(ChangeError::NotCaughtUp { node, behind });
                }
                Ok(Some((ConfChangeType::AddNode, node)))
            }
            Change::Demote(node) => {
                if members.learners.contains(&node) {
                    return Ok(None);
                }
                if !members.voters.contains(&node) {
                    return Err(ChangeError::UnknownNode(node));
                }
                self.check_without(node)?;
                Ok(Some((ConfChangeType::AddLearnerNode, node)))
            }
            Change::Remove(node) => {
                if !members.contains(node) {
                    return Ok(None);
                }
                self.check_without(node)?;
                Ok(Some((ConfChangeType::RemoveNode, node)))
            }
        }
    }

    /// The leader goes on, and the other voters still have a majority among them that is not lost.
    fn check_without(&self, node: NodeId) -> Result<(), ChangeError> {
        if node == self.config.node {
            return Err(ChangeError::IsLeader(node));
        }
        let voters = &self.state.membership.voters;
        if !voters.contains(&node) {
            return Ok(());
        }
        let rest: Vec<NodeId> = voters.iter().copied().filter(|voter| *voter != node).collect();
        let live = rest.iter().filter(|voter| !self.state.is_lost(**voter)).count();
        if live <= rest.len() / 2 {
            return Err(ChangeError::NoQuorum(node));
        }
        Ok(())
    }
}
