//! Snapshots, lagging followers, restarts, and disks that fail.

use super::cluster::info;
use super::*;
use crate::driver::{DriverError, Input, ProposeError};
use crate::{Command, HardState, State};
use types::{BootId, NodeId};
use uuid::Uuid;

/// A command that always succeeds and changes something.
fn nudge(count: u128) -> Command {
    Command::RegisterNode(crate::NodeInfo { boot: BootId(Uuid::from_u128(count)), ..info(1) })
}

fn run(cluster: &mut Cluster, leader: u64, commands: std::ops::Range<u128>) {
    for count in commands {
        cluster.must(leader, nudge(count));
    }
}

#[test]
fn the_log_is_truncated_and_a_lagging_follower_gets_a_snapshot() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    cluster.cut.insert(3);
    run(&mut cluster, leader, 0..200);
    let contents = cluster.members[&leader].log.contents.borrow().clone();
    assert!(contents.snapshot.index >= 150, "{}", contents.snapshot.index);
    assert!(contents.entries.len() <= 62, "{} entries are left", contents.entries.len());

    cluster.cut.clear();
    let rewrites = *cluster.members[&3].log.rewrites.borrow();
    cluster.tick(30);
    assert_eq!(*cluster.members[&3].log.rewrites.borrow(), rewrites + 1, "by one snapshot");
    assert_eq!(cluster.state(3), cluster.state(leader));
    let leader = cluster.leader().unwrap();
    run(&mut cluster, leader, 200..210);
    cluster.tick(3);
    assert_eq!(cluster.state(3), cluster.state(leader));
}

#[test]
fn a_snapshot_that_cannot_be_read_is_dropped() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    run(&mut cluster, leader, 0..3);
    cluster.tick(3);
    let follower = if leader == 3 { 2 } else { 3 };
    let term = cluster.driver(leader).status().term;
    let mut snapshot = raft::prelude::Snapshot { data: vec![0xff; 40], ..Default::default() };
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (1000, term);
    metadata.conf_state = Some((vec![1, 2, 3], vec![]).into());
    let mut message = raft::prelude::Message {
        from: leader,
        to: follower,
        term,
        snapshot: Some(snapshot),
        ..Default::default()
    };
    message.set_msg_type(raft::prelude::MessageType::MsgSnapshot);
    let before = cluster.state(follower).clone();
    let bytes = crate::driver::message::encode_message(&message);
    cluster.input(follower, Input::Message(bytes));
    assert_eq!(cluster.state(follower), &before);
    run(&mut cluster, leader, 3..6);
    cluster.tick(3);
    assert_eq!(cluster.state(follower), cluster.state(leader), "and it goes on");
}

#[test]
fn everybody_killed_at_once_loses_nothing_acknowledged() {
    for with_applied in [false, true] {
        let mut cluster = Cluster::new(3, 0);
        let leader = cluster.elect();
        run(&mut cluster, leader, 0..130);
        let before = cluster.state(leader).clone();
        for node in 1..=3 {
            cluster.kill(node);
            if !with_applied {
                *cluster.members[&node].applied.durable.borrow_mut() = None;
            }
        }
        for node in 1..=3 {
            cluster.start(node).unwrap();
        }
        let leader = cluster.elect();
        let after = cluster.state(leader);
        assert!(after.applied > before.applied);
        assert_eq!(after.nodes, before.nodes);
        assert_eq!(after.events, before.events);
        assert_eq!(after.membership, before.membership);
    }
}

#[test]
fn an_answer_is_for_the_run_that_asked() {
    let mut cluster = Cluster::new(1, 0);
    cluster.elect();
    let ticket = cluster.propose(1, nudge(1));
    assert!(cluster.proposed(ticket).is_some());
    cluster.kill(1);
    *cluster.members[&1].applied.durable.borrow_mut() = None;
    let answers = cluster.answers.len();
    cluster.start(1).unwrap();
    cluster.elect();
    assert!(
        !cluster.answers[answers..]
            .iter()
            .any(|(_, o)| matches!(o, crate::Output::Proposed { .. }))
    );
}

#[test]
fn a_failed_write_of_the_log_is_fatal_and_silent() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    *cluster.members[&leader].log.fail.borrow_mut() = true;
    let ticket = cluster.ticket();
    let failed = cluster.try_input(leader, Input::Propose { ticket, command: nudge(1) });
    assert!(matches!(failed, Err(DriverError::Log(_))));
    assert_eq!(cluster.proposed(ticket), None);
}

#[test]
fn nothing_is_sent_before_it_is_durable() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    let driver = cluster.members.get_mut(&leader).unwrap().driver.as_mut().unwrap();
    let mut out = Vec::new();
    let persists = *driver.log_store().persists.borrow();
    for (ticket, count) in (900..).zip(0..20) {
        driver.step(Input::Propose { ticket, command: nudge(count) }, &mut out).unwrap();
    }
    assert_eq!(out, [], "stepping sends nothing");
    driver.flush(&mut out).unwrap();
    assert!(!out.is_empty());
    assert_eq!(*driver.log_store().persists.borrow(), persists + 1, "20 entries, one sync");
}

/// What the disk may hold after all sorts of mishap, and what is made of it.
#[test]
fn the_applied_state_is_believed_only_if_it_fits_the_log() {
    let mut cluster = Cluster::new(1, 0);
    let leader = cluster.elect();
    run(&mut cluster, leader, 0..120);
    let good: State = cluster.state(1).clone();
    cluster.kill(1);
    let restart = |cluster: &mut Cluster, applied: Option<State>| {
        *cluster.members[&1].applied.durable.borrow_mut() = applied;
        cluster.start(1).map(|()| {
            let at = cluster.state(1).applied;
            cluster.elect();
            let nodes_right = cluster.state(1).nodes == good.nodes;
            cluster.kill(1);
            (at, nodes_right)
        })
    };
    let snapshot = cluster.members[&1].log.contents.borrow().snapshot.index;

    let fitting = restart(&mut cluster, Some(good.clone())).unwrap();
    assert_eq!(fitting, (good.applied, true));
    let absent = restart(&mut cluster, None).unwrap();
    assert_eq!(absent, (snapshot, true));
    let stale = State { applied: snapshot - 1, ..State::default() };
    assert_eq!(restart(&mut cluster, Some(stale)).unwrap(), (snapshot, true));
    let other_term = State { applied: snapshot + 1, applied_term: 77, ..State::default() };
    assert_eq!(restart(&mut cluster, Some(other_term)).unwrap(), (snapshot, true));
    let ahead = State { applied: good.applied + 1000, ..good.clone() };
    let refused = restart(&mut cluster, Some(ahead));
    assert!(matches!(refused, Err(DriverError::LogLost { .. })), "{refused:?}");
}

#[test]
fn a_log_that_contradicts_itself_is_refused() {
    let mut cluster = Cluster::new(1, 0);
    let leader = cluster.elect();
    run(&mut cluster, leader, 0..20);
    cluster.kill(1);
    let good = cluster.members[&1].log.contents.borrow().clone();
    let mut broken = Vec::new();
    let mut gap = good.clone();
    gap.entries.remove(5);
    broken.push(gap);
    let mut unreadable = good.clone();
    unreadable.entries[3].bytes = vec![0xff; 9];
    broken.push(unreadable);
    let mut commit = good.clone();
    commit.hard_state.commit += 1000;
    broken.push(commit);
    let mut term = good.clone();
    term.hard_state = HardState { term: 0, ..term.hard_state };
    broken.push(term);
    let mut snapshot = good.clone();
    snapshot.snapshot.membership.voters.insert(NodeId(5));
    broken.push(snapshot);
    let mut snapshot = good.clone();
    snapshot.snapshot.state.truncate(4);
    broken.push(snapshot);
    for contents in broken {
        *cluster.members[&1].log.contents.borrow_mut() = contents;
        let refused = cluster.start(1);
        assert!(
            matches!(refused, Err(DriverError::BrokenLog(_) | DriverError::Unreadable { .. })),
            "{refused:?}"
        );
    }
    *cluster.members[&1].log.contents.borrow_mut() = good;
    cluster.start(1).unwrap();
}

#[test]
fn a_leader_too_busy_says_so() {
    let mut cluster = Cluster::new(3, 0);
    let leader = cluster.elect();
    cluster.cut.extend([2, 3]);
    let reason = "x".repeat(1 << 20);
    let mut busy = false;
    for _ in 0..12 {
        let command =
            Command::ReplicaFailed { replica: Default::default(), reason: reason.clone() };
        let ticket = cluster.propose(leader, command);
        busy |= cluster.proposed(ticket) == Some(Err(ProposeError::Busy));
    }
    assert!(busy);
}
