//! Who votes in Raft: learners that are up, and no longer nodes that are gone for good.
//!
//! A voter that does not come back still counts for the majority. It becomes a learner where that lets
//! the cluster bear the loss of more of those that are left; back again, it is a learner like any other.

use metadata::{Change, MAX_VOTERS, NodeStatus, State};
use types::NodeId;

/// The next change of membership, if any; `gone` are the nodes that have been lost for long. One change
/// at a time, each of which may be repeated.
#[must_use]
pub fn plan(state: &State, gone: &[NodeId]) -> Option<Change> {
    let members = &state.membership;
    let up = |node: &NodeId| state.nodes.get(node).is_some_and(|n| n.status == NodeStatus::Up);
    let learner = members.learners.iter().copied().find(up);
    let voters = members.voters.len();
    // Grow before shrink.
    if let Some(learner) = learner.filter(|_| voters < MAX_VOTERS) {
        return Some(Change::PromoteVoter(learner));
    }
    let useless: Vec<NodeId> =
        members.voters.iter().copied().filter(|voter| gone.contains(voter)).collect();
    // A majority of one voter less is smaller only if their number is even: of an odd one two must go. The
    // smallest clusters that tolerate a loss are left as they are.
    let fewer = if voters.is_multiple_of(2) { 1 } else { 2 };
    let helps = useless.len() >= fewer && voters - fewer >= 3;
    let first = useless.first().filter(|_| helps || learner.is_some());
    first.copied().map(Change::Demote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, info};
    use metadata::{Command, Membership};

    #[test]
    fn votes_go_where_they_count() {
        use Change::{Demote, PromoteVoter};
        let ids = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<Vec<_>>();
        // Voters, learners that are up, learners that are not, voters that are gone, and what follows.
        type Row = (&'static [u64], &'static [u64], &'static [u64], &'static [u64], Option<Change>);
        let rows: [Row; 13] = [
            (&[1, 2, 3], &[], &[], &[], None),
            (&[1, 2, 3], &[4], &[], &[], Some(PromoteVoter(NodeId(4)))),
            (&[1, 2, 3], &[], &[4], &[], None),
            // Two voters of two bear no more than two of three.
            (&[1, 2, 3], &[], &[], &[3], None),
            (&[1, 2], &[], &[], &[2], None),
            // Grow first, then the four bear one loss only without the one that is gone.
            (&[1, 2, 3], &[4], &[], &[3], Some(PromoteVoter(NodeId(4)))),
            (&[1, 2, 3, 4], &[], &[], &[3], Some(Demote(NodeId(3)))),
            (&[1, 2, 4], &[], &[3], &[3], None),
            // Three of five and three of four are the same; of two that are gone both may go.
            (&[1, 2, 3, 4, 5], &[], &[], &[2], None),
            (&[1, 2, 3, 4, 5], &[], &[], &[2, 4], Some(Demote(NodeId(2)))),
            (&[1, 3, 4, 5], &[], &[2], &[2, 4], Some(Demote(NodeId(4)))),
            // There are never more than five.
            (&[1, 2, 3, 4, 5], &[6], &[], &[], None),
            (&[1, 2, 3, 4, 5], &[6], &[], &[5], Some(Demote(NodeId(5)))),
        ];
        for (voters, learners, away, gone, wanted) in rows {
            let mut cluster = Cluster::new();
            for node in voters.iter().chain(learners) {
                cluster.done(Command::RegisterNode(info(*node)));
            }
            let membership = Membership {
                voters: ids(voters).into_iter().collect(),
                learners: ids(learners).into_iter().chain(ids(away)).collect(),
            };
            for node in away.iter().filter(|node| **node <= 3) {
                cluster.done(Command::NodeLost { node: NodeId(*node) });
            }
            cluster.member(membership);
            assert_eq!(
                plan(&cluster.state, &ids(gone)),
                wanted,
                "{voters:?} {learners:?} {gone:?}"
            );
        }
    }
}
