//! Changes of membership: learner first, then voter, at most five, and away again.

use super::*;
use crate::Command;
use crate::driver::{Change, ChangeError, MAX_VOTERS, ProposeError, Role};
use types::NodeId;

fn add(cluster: &mut Cluster, leader: u64, node: u64) {
    let command = Command::AddNode {
        node: NodeId(node),
        name: format!("node{node}"),
        control_address: format!("10.0.0.{node}:7420"),
    };
    cluster.must(leader, command);
}

#[test]
fn a_node_joins_as_learner_becomes_a_voter_and_is_removed() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.elect();
    let new = NodeId(4);
    assert_eq!(cluster.change(leader, Change::AddLearner(new)), Err(ChangeError::UnknownNode(new)));
    assert_eq!(
        cluster.change(leader, Change::PromoteVoter(new)),
        Err(ChangeError::NotLearner(new))
    );
    add(&mut cluster, leader, 4);
    cluster.change(leader, Change::AddLearner(new)).unwrap();
    cluster.tick(10);
    assert_eq!(cluster.driver(4).status().role, Role::Learner);
    assert_eq!(cluster.state(4), cluster.state(leader), "it got the snapshot, then the log");
    cluster.change(leader, Change::AddLearner(new)).unwrap();

    cluster.change(leader, Change::PromoteVoter(new)).unwrap();
    cluster.tick(5);
    assert_eq!(cluster.state(4).membership.voters.len(), 4);
    assert!(cluster.state(4).membership.learners.is_empty());

    // Four voters need three.
    cluster.kill(2);
    add(&mut cluster, leader, 9);
    cluster.kill(3);
    let command = Command::RemoveNode { node: NodeId(9) };
    let ticket = cluster.propose(leader, command);
    cluster.settle();
    assert_eq!(cluster.proposed(ticket), None);
    cluster.start(3).unwrap();
    cluster.tick(5);
    assert!(cluster.proposed(ticket).unwrap().unwrap().1.is_ok());

    let leader = cluster.leader().unwrap();
    cluster.change(leader, Change::Remove(new)).unwrap();
    cluster.tick(30);
    assert_eq!(cluster.state(leader).membership.voters.len(), 3);
    assert_eq!(cluster.leader(), Some(leader), "the removed node disturbs nobody");
    cluster.change(leader, Change::Remove(new)).unwrap();
}

#[test]
fn a_voter_becomes_a_learner_while_it_is_away_and_follows_when_it_is_back() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.elect();
    let other = (1..=3).find(|node| *node != leader).unwrap();
    add(&mut cluster, leader, 4);
    cluster.change(leader, Change::AddLearner(NodeId(4))).unwrap();
    cluster.tick(10);
    cluster.change(leader, Change::PromoteVoter(NodeId(4))).unwrap();
    cluster.kill(other);
    cluster.change(leader, Change::Demote(NodeId(other))).unwrap();
    cluster.change(leader, Change::Demote(NodeId(other))).unwrap();
    let members = &cluster.state(leader).membership;
    assert_eq!((members.voters.len(), members.learners.contains(&NodeId(other))), (3, true));
    assert_eq!(
        cluster.change(leader, Change::Demote(NodeId(9))),
        Err(ChangeError::UnknownNode(NodeId(9)))
    );

    // Three voters need two: one more may go, and the one that is back does not take over.
    let third = (1..=3).find(|node| ![leader, other].contains(node)).unwrap();
    cluster.kill(third);
    cluster.start(other).unwrap();
    cluster.tick(40);
    assert_eq!(cluster.leader(), Some(leader));
    cluster.must(leader, Command::RegisterNode(cluster::info(4)));
    cluster.tick(10);
    assert_eq!(cluster.driver(other).status().role, Role::Learner);
    assert_eq!(cluster.state(other), cluster.state(leader));
    assert_eq!(
        cluster.change(leader, Change::Demote(NodeId(leader))),
        Err(ChangeError::IsLeader(NodeId(leader)))
    );
}

#[test]
fn a_learner_that_lags_is_not_promoted() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.elect();
    add(&mut cluster, leader, 4);
    cluster.cut.insert(4);
    cluster.change(leader, Change::AddLearner(NodeId(4))).unwrap();
    for _ in 0..20 {
        cluster.must(leader, Command::RegisterNode(cluster::info(1)));
    }
    let refused = cluster.change(leader, Change::PromoteVoter(NodeId(4)));
    assert!(matches!(refused, Err(ChangeError::NotCaughtUp { node: NodeId(4), behind: 20.. })));
    cluster.cut.clear();
    // A snapshot that was lost counts as such after a time, and goes out again.
    cluster.tick(80);
    cluster.change(leader, Change::PromoteVoter(NodeId(4))).unwrap();
}

#[test]
fn there_are_at_most_five_voters() {
    let mut cluster = Cluster::new(5, 1);
    let leader = cluster.elect();
    add(&mut cluster, leader, 6);
    cluster.change(leader, Change::AddLearner(NodeId(6))).unwrap();
    cluster.tick(10);
    assert_eq!(
        cluster.change(leader, Change::PromoteVoter(NodeId(6))),
        Err(ChangeError::TooManyVoters)
    );
    assert_eq!(cluster.state(leader).membership.voters.len(), MAX_VOTERS);
}

#[test]
fn removal_keeps_a_majority_and_the_leader() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    for node in 1..=3 {
        cluster.must(leader, Command::RegisterNode(cluster::info(node)));
    }
    assert_eq!(
        cluster.change(leader, Change::Remove(NodeId(leader))),
        Err(ChangeError::IsLeader(NodeId(leader)))
    );
    cluster.must(leader, Command::NodeLost { node: NodeId(3) });
    assert_eq!(
        cluster.change(leader, Change::Remove(NodeId(2))),
        Err(ChangeError::NoQuorum(NodeId(2)))
    );
    assert_eq!(
        cluster.change(leader, Change::Demote(NodeId(2))),
        Err(ChangeError::NoQuorum(NodeId(2)))
    );
    cluster.change(leader, Change::Remove(NodeId(3))).unwrap();
    let error = ProposeError::NotLeader { leader: Some(NodeId(leader)) };
    assert_eq!(cluster.change(2, Change::Remove(NodeId(3))), Err(ChangeError::Propose(error)));
}

#[test]
fn one_change_at_a_time() {
    let mut cluster = Cluster::new(3, 2);
    let leader = cluster.elect();
    add(&mut cluster, leader, 4);
    add(&mut cluster, leader, 5);
    cluster.cut.insert(2);
    cluster.cut.insert(3);
    let ticket = cluster.ticket();
    cluster.input(
        leader,
        crate::Input::ChangeMembership { ticket, change: Change::AddLearner(NodeId(4)) },
    );
    assert_eq!(cluster.change(leader, Change::AddLearner(NodeId(5))), Err(ChangeError::InProgress));
}
