//! Elections, partitions, proposals and reads.

use super::cluster::info;
use super::*;
use crate::Command;
use crate::driver::{Input, ProposeError, Role};
use types::NodeId;

fn register(node: u64) -> Command {
    Command::RegisterNode(info(node))
}

#[test]
fn three_nodes_elect_one_leader_and_agree() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    assert_eq!(leader, 1, "the shortest timeout wins");
    for node in 1..=3 {
        cluster.must(leader, register(node));
    }
    cluster.tick(3);
    assert_eq!(cluster.state(1).nodes.len(), 3);
    assert_eq!(cluster.state(1), cluster.state(2));
    assert_eq!(cluster.state(1), cluster.state(3));
}

#[test]
fn a_single_voter_serves_alone() {
    let mut cluster = Cluster::new(1, 0);
    let leader = cluster.elect();
    cluster.must(leader, register(1));
    let ticket = cluster.ticket();
    cluster.input(leader, Input::ReadIndex { ticket });
    assert_eq!(cluster.read(ticket), Some(Ok(cluster.state(1).applied)));
}

#[test]
fn a_follower_names_the_leader() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    let ticket = cluster.propose(2, register(2));
    let error = ProposeError::NotLeader { leader: Some(NodeId(leader)) };
    assert_eq!(cluster.proposed(ticket), Some(Err(error)));
    let read = cluster.ticket();
    cluster.input(3, Input::ReadIndex { ticket: read });
    assert_eq!(cluster.read(read), Some(Err(error)));
}

#[test]
fn a_status_says_who_one_is_and_who_leads() {
    let mut cluster = Cluster::new(3, 0);
    let told = |cluster: &Cluster, node: u64| {
        let status = cluster.driver(node).status();
        (status.role, status.leader)
    };
    assert_eq!(told(&cluster, 2), (Role::Follower, None), "before the first election");
    let leader = cluster.elect();
    assert_eq!(told(&cluster, leader), (Role::Leader, Some(NodeId(leader))));
    assert_eq!(told(&cluster, 2), (Role::Follower, Some(NodeId(leader))));
    cluster.cut.insert(2);
    cluster.tick(40);
    assert_eq!(told(&cluster, 2), (Role::Candidate, None), "cut off from everybody");
    assert_eq!(told(&cluster, 3), (Role::Follower, Some(NodeId(leader))));
    let words =
        [Role::Leader, Role::Follower, Role::Candidate, Role::Learner].map(|r| r.to_string());
    assert_eq!(words, ["leader", "follower", "candidate", "learner"]);
}

#[test]
fn who_stands_first_can_be_said_later() {
    let mut cluster = Cluster::new(3, 0);
    cluster.members.get_mut(&1).unwrap().driver.as_mut().unwrap().set_election_ticks(18);
    assert_eq!(cluster.elect(), 2, "node 1 had 10 ticks, node 2 has 12");
}

#[test]
fn a_leader_cut_off_steps_down_and_its_proposal_is_of_unknown_outcome() {
    let mut cluster = Cluster::new(3, 0);
    let old = cluster.elect();
    cluster.must(old, register(1));
    cluster.cut.insert(old);
    let lost = cluster.propose(old, register(2));
    let read = cluster.ticket();
    cluster.input(old, Input::ReadIndex { ticket: read });
    cluster.settle();
    assert_eq!(cluster.proposed(lost), None);
    assert_eq!(cluster.read(read), None, "no read without a majority");

    let new = cluster.elect();
    assert_ne!(new, old);
    cluster.tick(20);
    assert_eq!(cluster.proposed(lost), Some(Err(ProposeError::Dropped)));
    assert_eq!(cluster.read(read), Some(Err(ProposeError::NotLeader { leader: None })));
    assert_ne!(cluster.driver(old).status().role, Role::Leader, "check_quorum");

    cluster.must(new, register(3));
    cluster.cut.clear();
    let term = cluster.driver(new).status().term;
    cluster.tick(30);
    assert_eq!(cluster.leader(), Some(new), "pre_vote: who comes back disturbs nobody");
    assert_eq!(cluster.driver(new).status().term, term);
    let nodes: Vec<u64> = cluster.state(old).nodes.keys().map(|node| node.0).collect();
    assert_eq!(nodes, [1, 3], "the entry that was never committed is gone");
    assert_eq!(cluster.state(old), cluster.state(new));
}

#[test]
fn a_minority_agrees_on_nothing() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    cluster.kill(2);
    cluster.kill(3);
    let ticket = cluster.propose(leader, register(1));
    cluster.tick(50);
    assert_eq!(cluster.proposed(ticket), Some(Err(ProposeError::Dropped)));
    assert!(cluster.state(leader).nodes.is_empty());
    assert_eq!(cluster.leader(), None);
}

#[test]
fn a_read_index_covers_everything_committed_before() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    let written = cluster.must(leader, register(1));
    let tickets: Vec<u64> = (0..3).map(|_| cluster.ticket()).collect();
    for ticket in &tickets {
        cluster.input(leader, Input::ReadIndex { ticket: *ticket });
    }
    cluster.settle();
    for ticket in tickets {
        assert!(cluster.read(ticket).unwrap().unwrap() >= written);
    }
}

#[test]
fn a_new_leader_answers_reads_only_after_an_entry_of_its_term() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    let written = cluster.must(leader, register(1));
    cluster.kill(leader);
    // Let node 2 win, but keep its first entry from being acknowledged.
    cluster.input(2, Input::Campaign);
    cluster.settle();
    for _ in 0..20 {
        cluster.tick(1);
        if cluster.leader().is_some() {
            break;
        }
    }
    let new = cluster.leader().unwrap();
    let ticket = cluster.ticket();
    cluster.input(new, Input::ReadIndex { ticket });
    cluster.tick(5);
    assert!(cluster.read(ticket).unwrap().unwrap() > written);
}

/// Raft's election safety: a voter that forgot its vote could give it twice in a term.
#[test]
fn a_vote_is_durable_before_it_is_given() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    let term = cluster.driver(leader).status().term + 1;
    let ask = |cluster: &mut Cluster, from: u64| {
        let mut message = raft::prelude::Message {
            from,
            to: 3,
            term,
            index: 1000,
            log_term: term - 1,
            // As when leadership is handed over: a voter that hears a leader listens all the same.
            context: b"CampaignTransfer".to_vec(),
            ..Default::default()
        };
        message.set_msg_type(raft::prelude::MessageType::MsgRequestVote);
        let bytes = crate::driver::message::encode_message(&message);
        cluster.input(3, Input::Message(bytes));
        let durable = cluster.members[&3].log.contents.borrow().hard_state;
        (durable.term, durable.vote)
    };
    assert_eq!(ask(&mut cluster, 2), (term, 2));
    cluster.kill(3);
    cluster.start(3).unwrap();
    assert_eq!(ask(&mut cluster, 1), (term, 2), "once in a term, whatever happens");
}

#[test]
fn garbage_and_misdirected_messages_change_nothing() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    let before = cluster.driver(leader).status();
    for bytes in
        [vec![], vec![0xff; 40], vec![8, 200], vec![0; 9], b"GET / HTTP/1.1\r\n\r\n".to_vec()]
    {
        cluster.input(leader, Input::Message(bytes));
    }
    cluster.settle();
    assert_eq!(cluster.driver(leader).status(), before);
}

#[test]
fn leadership_can_be_handed_over() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    cluster.input(leader, Input::TransferLeadership(NodeId(3)));
    cluster.settle();
    cluster.tick(3);
    assert_eq!(cluster.leader(), Some(3));
    cluster.must(3, register(1));
}
