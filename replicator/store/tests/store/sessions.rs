//! Who may talk to a replica: Hello, seals, leases, roles, clean closes (R3, R9, R11, R20).

use store::{Admin, Input, Output, SessionId};
use types::{ClusterId, Epoch, Era, NodeId, Process, Tag};
use wire::{Hello, Reply, Request, Role, SealInfo, WireError};

use crate::node::{
    MIB, Node, boot, filled, incarnation, instance, process, replica, volume, write,
};

fn node() -> Node {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    node
}

fn sealed(reply: Option<Reply>) -> Option<SealInfo> {
    match reply {
        Some(Reply::Sealed(info)) => Some(info),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_hello_is_refused_by_name() {
    let mut node = node();
    node.attach(1, 5, Role::Engine);
    let hello = |change: fn(&mut Hello)| {
        let mut hello = Node::hello(1, 5, Role::Engine);
        change(&mut hello);
        hello
    };
    let kind = |error: &WireError| match error {
        WireError::Fenced { sealed: Epoch(5) } => "fenced",
        WireError::ReplicaFailed { .. } => "failed",
        WireError::Refused { .. } => "refused",
        _ => "other",
    };
    type Row = (fn(&mut Hello), Option<&'static str>);
    let table: [Row; 11] = [
        (|_| (), None),
        (|hello| hello.sealed = Epoch(5), None),
        (|hello| (hello.epoch, hello.sealed) = (Epoch(7), Epoch(6)), Some("failed")),
        (|hello| hello.epoch = Epoch(6), None),
        (|hello| hello.role = Role::Sealer, None),
        (|hello| hello.epoch = Epoch(4), Some("fenced")),
        (|hello| hello.instance = instance(77), Some("fenced")),
        (|hello| hello.incarnation = incarnation(77), Some("failed")),
        (|hello| hello.replica = replica(77), Some("failed")),
        (|hello| hello.volume = volume(77), Some("failed")),
        (|hello| hello.cluster = ClusterId::from_bytes([9; 16]), Some("refused")),
    ];
    for (row, (change, expected)) in table.into_iter().enumerate() {
        let error = node.session(hello(change)).err();
        assert_eq!(error.as_ref().map(kind), expected, "row {row}: {error:?}");
    }
}

#[test]
fn before_its_seal_a_session_may_only_seal() {
    let mut node = node();
    let session = node.session(Node::hello(1, 1, Role::Engine)).unwrap();
    for request in [
        Request::Ping,
        Request::Flush,
        write(0, filled(4096, 1), 1),
        Request::Read { offset: 0, len: 4096 },
        Request::SealEra { era: Era(1) },
    ] {
        let reply = node.ask(session, request);
        assert!(matches!(reply, Reply::Failed(WireError::Invalid { .. })), "{reply:?}");
    }
}

#[test]
fn roles_limit_what_a_session_may_do() {
    let invalid = |reply| matches!(reply, Reply::Failed(WireError::Invalid { .. }));
    let mut node = node();
    let (sealer, _) = node.attach(1, 1, Role::Sealer);
    assert!(invalid(node.ask(sealer, Request::Read { offset: 0, len: 4096 })));
    assert!(invalid(node.ask(sealer, write(0, filled(4096, 1), 1))));
    assert_eq!(node.ask(sealer, Request::Close { clean: true }), Reply::Done);
    assert_eq!(node.closed.last(), Some(&sealer));
    let (engine, _) = node.attach(1, 2, Role::Engine);
    assert_eq!(node.write(engine, 0, filled(4096, 1), 1), Reply::Done);
    let (sealer, info) = node.attach(1, 3, Role::Sealer);
    assert!(!info.clean);
    assert_eq!(node.ask(sealer, Request::Close { clean: true }), Reply::Done);
    let (_, info) = node.attach(1, 4, Role::Engine);
    assert!(!info.clean, "a sealer's close vouches for nothing");
}

/// The promise must be on the disk before the reply, and the reply must wait for it.
#[test]
fn a_seal_is_durable_before_it_is_acknowledged() {
    let mut node = node();
    let session = node.session(Node::hello(1, 7, Role::Sealer)).unwrap();
    let seq = node.send(session, Request::Seal);
    assert!(matches!(node.last[..], [Output::Write { durable: true, .. }]), "{:?}", node.last);
    assert_eq!(node.take(session, seq), None);
    node.settle();
    assert_eq!(sealed(node.take(session, seq)).unwrap().epoch, Epoch(7));
    let mut node = node.crash(&mut crate::disk::Rng::new(3), 2);
    let fenced = WireError::Fenced { sealed: Epoch(7) };
    assert_eq!(node.session(Node::hello(1, 6, Role::Engine)), Err(fenced));
}

#[test]
fn a_seal_closes_older_sessions_and_waits_for_their_io_and_lease() {
    let mut node = node();
    let (old, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(old, 0, filled(4096, 1), 1), Reply::Done);
    // Submitted by the old session, not complete; and one that waits for its tag.
    node.send(old, write(0, filled(4096, 2), 1));
    let stuck = node.in_flight.remove(0);
    let queued = node.send(old, write(2 * MIB, filled(4096, 3), 1));
    let new = node.session(Node::hello(1, 2, Role::Engine)).unwrap();
    let seq = node.send(new, Request::Seal);
    assert_eq!(node.closed.last(), Some(&old));
    node.settle();
    node.pass(3001);
    assert_eq!(node.take(new, seq), None, "the old session's write may still land");
    node.in_flight.push(stuck);
    node.settle();
    assert!(sealed(node.take(new, seq)).is_some());
    assert_eq!(node.take(old, queued), None);
    assert_eq!(node.read(new, 2 * MIB, 4096), filled(4096, 0), "a dropped request was done");
    assert_eq!(node.read(new, 0, 4096), filled(4096, 2));
    // Requests of closed sessions are ignored.
    let seq = node.send(old, Request::Ping);
    assert_eq!(node.take(old, seq), None);
}

#[test]
fn a_lease_is_waited_for_to_the_millisecond_or_given_back() {
    // (what the old session does, whether the seal has to wait)
    let table: [(&str, bool); 4] =
        [("nothing", true), ("close", false), ("disconnect", true), ("wait", false)];
    for (what, waits) in table {
        let mut node = node();
        let (old, _) = node.attach(1, 1, Role::Engine);
        assert_eq!(node.ask(old, Request::Ping), Reply::Done);
        match what {
            "close" => drop(node.ask(old, Request::Close { clean: false })),
            "disconnect" => node.step(Input::Disconnected { session: old }),
            "wait" => node.pass(3000),
            _ => {}
        }
        let until = node.now.after(types::LEASE);
        let new = node.session(Node::hello(1, 2, Role::Engine)).unwrap();
        let seq = node.send(new, Request::Seal);
        node.settle();
        assert_eq!(sealed(node.take(new, seq)).is_none(), waits, "{what}");
        if waits {
            assert_eq!(node.timers.last(), Some(&until));
            node.pass(2999);
            assert_eq!(node.take(new, seq), None);
            node.pass(1);
            assert!(sealed(node.take(new, seq)).is_some());
        }
    }
}

#[test]
fn a_restarted_process_waits_for_leases_that_it_does_not_know() {
    let mut node = node();
    node.attach(1, 1, Role::Engine);
    let mut node = node.restart(1);
    let new = node.session(Node::hello(1, 2, Role::Engine)).unwrap();
    let seq = node.send(new, Request::Seal);
    node.settle();
    assert_eq!(node.take(new, seq), None);
    node.pass(3000);
    assert!(sealed(node.take(new, seq)).is_some());
}

/// Has the log begin anew behind a checkpoint.
fn fill_the_log(node: &mut Node) {
    node.create(9, 4 * MIB);
    let (session, _) = node.attach(9, 1, Role::Engine);
    let before = node.store.stats().checkpoints;
    for era in 1.. {
        let reply = node.ask(session, Request::SealEra { era: Era(era) });
        assert_eq!(reply, Reply::Done);
        if node.store.stats().checkpoints > before {
            return;
        }
    }
}

/// A restart of the replica's daemon must not hold up the engine that it served, nor its own
/// node's next engine; whoever else comes waits for the lease that may still run (R3).
#[test]
fn after_a_restart_only_a_lease_that_may_run_is_waited_for() {
    let other = |n: u8| Process { node: NodeId(2), boot: boot(3), run: instance(n) };
    let engine = |epoch, process| Hello { process, ..Node::hello(1, epoch, Role::Engine) };
    // (who sealed before the restart, who after it, whether that seal waits)
    let table = [
        (engine(1, process(1)), engine(1, process(1)), false),
        (engine(1, process(1)), engine(2, process(1)), true),
        (engine(1, process(1)), engine(2, process(2)), false),
        (engine(1, process(1)), engine(2, other(2)), true),
        (engine(1, other(1)), engine(2, process(2)), true),
        (engine(1, other(1)), engine(2, other(2)), false),
        (engine(1, other(1)), engine(2, Process { boot: boot(4), ..other(2) }), true),
        (Node::hello(1, 1, Role::Sealer), engine(2, process(2)), true),
    ];
    for (row, (before, after, waits)) in table.into_iter().enumerate() {
        for checkpoint in [false, true] {
            let mut node = node();
            let session = node.session(before.clone()).unwrap();
            assert!(matches!(node.ask(session, Request::Seal), Reply::Sealed(_)));
            if checkpoint {
                fill_the_log(&mut node);
            }
            let mut node = node.restart(1);
            let session = node.session(after.clone()).unwrap();
            let seq = node.send(session, Request::Seal);
            node.settle();
            assert_eq!(node.take(session, seq).is_none(), waits, "row {row}");
            node.pass(3000);
        }
    }
}

/// The promise of a seal is durable before the lease of the engine before it is over: a successor
/// of the one that promised must wait for that lease all the same.
#[test]
fn a_promise_is_not_a_lease() {
    let mut node = node();
    let old = Process { node: NodeId(2), ..process(1) };
    let old = node.session(Hello { process: old, ..Node::hello(1, 1, Role::Engine) }).unwrap();
    assert!(matches!(node.ask(old, Request::Seal), Reply::Sealed(_)));
    let promised = node.session(Node::hello(1, 2, Role::Engine)).unwrap();
    let seq = node.send(promised, Request::Seal);
    node.settle();
    assert_eq!(node.take(promised, seq), None);
    let mut node = node.restart(1);
    let hello = Hello { process: process(2), ..Node::hello(1, 3, Role::Engine) };
    let next = node.session(hello).unwrap();
    let seq = node.send(next, Request::Seal);
    node.settle();
    assert_eq!(node.take(next, seq), None, "node 2 may still read under its lease");
    node.pass(3000);
    assert!(sealed(node.take(next, seq)).is_some());
}

#[test]
fn the_same_engine_reconnects_without_waiting_for_its_own_lease() {
    let mut node = node();
    let (old, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.ask(old, Request::Ping), Reply::Done);
    let new = node.session(Node::hello(1, 1, Role::Engine)).unwrap();
    let seq = node.send(new, Request::Seal);
    node.settle();
    assert!(sealed(node.take(new, seq)).is_some());
    assert_eq!(node.closed.last(), Some(&old));
    let again = node.ask(new, Request::Seal);
    assert!(matches!(again, Reply::Sealed(_)), "a seal is idempotent: {again:?}");
}

#[test]
fn a_later_seal_supersedes_one_that_waits() {
    let mut node = node();
    node.attach(1, 1, Role::Engine);
    let two = node.session(Node::hello(1, 2, Role::Engine)).unwrap();
    let also_two = node.session(Hello { instance: instance(9), ..Node::hello(1, 2, Role::Engine) });
    let also_two = also_two.unwrap();
    let seq_two = node.send(two, Request::Seal);
    let seq_also = node.send(also_two, Request::Seal);
    let three = node.session(Node::hello(1, 3, Role::Engine)).unwrap();
    let seq_three = node.send(three, Request::Seal);
    node.settle();
    node.pass(3000);
    assert_eq!(node.take(two, seq_two), None);
    let fenced = Reply::Failed(WireError::Fenced { sealed: Epoch(2) });
    assert!(
        node.take(also_two, seq_also) == Some(fenced) || node.closed.contains(&also_two),
        "two engines share an epoch"
    );
    assert!(node.closed.contains(&two));
    assert_eq!(sealed(node.take(three, seq_three)).unwrap().epoch, Epoch(3));
}

/// R9 and R20: what the next engine is told, after every way to end.
#[test]
fn clean_and_unbroken_tell_the_truth() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum End {
        Nothing,
        Restart,
        Crash,
    }
    // (written, closed clean), end, (clean, unbroken)
    let table = [
        ((false, false), End::Nothing, (true, true)),
        ((false, false), End::Crash, (true, true)),
        ((true, false), End::Nothing, (false, true)),
        ((true, false), End::Restart, (false, true)),
        ((true, false), End::Crash, (false, false)),
        ((true, true), End::Nothing, (true, true)),
        ((true, true), End::Restart, (true, true)),
        ((true, true), End::Crash, (true, true)),
    ];
    for ((written, closed), end, expected) in table {
        let mut node = node();
        let (session, _) = node.attach(1, 1, Role::Engine);
        if written {
            assert_eq!(node.write(session, 0, filled(4096, 5), 1), Reply::Done);
        }
        if closed {
            assert_eq!(node.ask(session, Request::Close { clean: true }), Reply::Done);
        }
        let mut node = match end {
            End::Nothing => node,
            End::Restart => node.restart(1),
            End::Crash => node.crash(&mut crate::disk::Rng::new(4), 2),
        };
        let (session, info) = node.attach(1, 2, Role::Engine);
        let row = ((written, closed), end);
        assert_eq!((info.clean, info.unbroken), expected, "{row:?}");
        if closed {
            assert_eq!(node.read(session, 0, 4096), filled(4096, 5));
        }
    }
}

#[test]
fn broken_stays_broken_until_somebody_writes_or_closes() {
    let mut node = node();
    let (session, _) = node.attach(1, 1, Role::Engine);
    node.write(session, 0, filled(4096, 5), 1);
    let mut node = node.crash(&mut crate::disk::Rng::new(5), 2);
    let (_, info) = node.attach(1, 2, Role::Engine);
    assert!(!info.unbroken);
    let (session, info) = node.attach(1, 3, Role::Engine);
    assert!(!info.unbroken && !info.clean);
    assert_eq!(node.ask(session, Request::Close { clean: true }), Reply::Done);
    let (_, info) = node.attach(1, 4, Role::Engine);
    assert!(info.unbroken && info.clean);
}

/// A replica that lost its memory and lacked nothing joins the in-sync set with a flush and no write: from
/// there on it is as good as any other, or the next attach would choose one that lost more.
#[test]
fn broken_is_mended_by_the_flush_before_it_joins() {
    let mut node = node();
    let (session, _) = node.attach(1, 1, Role::Engine);
    node.write(session, 0, filled(4096, 5), 1);
    let mut node = node.crash(&mut crate::disk::Rng::new(5), 2);
    let (session, info) = node.attach(1, 2, Role::Engine);
    assert!(!info.unbroken);
    assert_eq!(node.ask(session, Request::Flush), Reply::Done);
    let (_, info) = node.attach(1, 3, Role::Engine);
    assert!(info.unbroken && !info.clean);
    let mut node = node.crash(&mut crate::disk::Rng::new(6), 3);
    let (_, info) = node.attach(1, 4, Role::Engine);
    assert!(!info.unbroken && !info.clean);
}

#[test]
fn a_clean_close_with_requests_in_flight_is_refused() {
    let mut node = node();
    let (session, _) = node.attach(1, 1, Role::Engine);
    node.write(session, 0, filled(4096, 5), 1);
    node.send(session, write(0, filled(4096, 6), 1));
    let seq = node.send(session, Request::Close { clean: true });
    let reply = node.take(session, seq);
    assert!(matches!(reply, Some(Reply::Failed(WireError::Invalid { .. }))), "{reply:?}");
}

#[test]
fn eras_are_remembered_and_closed_for_writing() {
    let mut node = node();
    let (session, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(session, 0, filled(4096, 5), 1), Reply::Done);
    assert_eq!(node.ask(session, Request::SealEra { era: Era(1) }), Reply::Done);
    assert_eq!(node.ask(session, Request::SealEra { era: Era(1) }), Reply::Done);
    let late = node.write(session, 0, filled(4096, 6), 1);
    assert!(matches!(late, Reply::Failed(WireError::Invalid { .. })));
    assert_eq!(node.write(session, MIB, filled(4096, 6), 2), Reply::Done);
    let mut node = node.crash(&mut crate::disk::Rng::new(6), 2);
    let (session, info) = node.attach(1, 2, Role::Engine);
    assert_eq!(info.last_sealed, Tag { epoch: Epoch(1), era: Era(1) });
    assert_eq!(node.read(session, 0, 4096), filled(4096, 5), "R18: a sealed era is durable");
    let reply = node.ask(session, Request::Tags { above: info.last_sealed, first: 0 });
    assert_eq!(reply, Reply::Regions { regions: vec![1], next: None });
}

/// R17: the answer to a mark outlives the loss of power, and it is not more than a tag.
#[test]
fn a_mark_is_durable_and_writes_nothing() {
    let mut node = node();
    let (session, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(session, 0, filled(4096, 5), 1), Reply::Done);
    assert_eq!(node.ask(session, Request::Flush), Reply::Done);
    let mark = |offset, len, era| Request::Mark { offset, len, era: Era(era) };
    assert_eq!(node.ask(session, Request::SealEra { era: Era(1) }), Reply::Done);
    for refused in [mark(0, MIB, 1), mark(0, 0, 2), mark(0, 1 << 40, 2), mark(1, MIB, 2)] {
        let reply = node.ask(session, refused.clone());
        assert!(
            matches!(reply, Reply::Failed(WireError::Invalid { .. })),
            "{refused:?}: {reply:?}"
        );
    }
    assert_eq!(node.ask(session, mark(MIB, 2 * MIB, 2)), Reply::Done);
    assert_eq!(node.ask(session, mark(3 * MIB, 4096, 3)), Reply::Done);
    let allocated = node.store.replicas()[0].allocated;
    let mut node = node.crash(&mut crate::disk::Rng::new(6), 2);
    let (session, info) = node.attach(1, 2, Role::Engine);
    let reply = node.ask(session, Request::Tags { above: info.last_sealed, first: 0 });
    assert_eq!(reply, Reply::Regions { regions: vec![1, 2, 3], next: None });
    let above = Tag { epoch: Epoch(1), era: Era(2) };
    let reply = node.ask(session, Request::Tags { above, first: 0 });
    assert_eq!(reply, Reply::Regions { regions: vec![3], next: None });
    assert_eq!(
        (node.read(session, 0, 4096), node.read(session, MIB, 4096)),
        (filled(4096, 5), filled(4096, 0))
    );
    assert_eq!(node.store.replicas()[0].allocated, allocated);
}

#[test]
fn deleting_a_replica_closes_its_sessions() {
    let mut node = node();
    let (session, _) = node.attach(1, 1, Role::Engine);
    node.send(session, write(0, filled(4096, 6), 1));
    node.admin(Admin::DeleteReplica { replica: replica(1) }).unwrap();
    assert_eq!(node.closed.last(), Some(&session));
    assert!(node.store.replicas().is_empty());
    node.admin(Admin::DeleteReplica { replica: replica(1) }).unwrap();
    let ghost = SessionId(1);
    node.step(Input::Request { session: ghost, seq: 1, request: Request::Ping });
    assert!(node.last.is_empty());
}
