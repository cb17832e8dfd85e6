//! Full pools, broken disks, damaged data.

use store::{Admin, Event, Output};
use types::Era;
use wire::{Reply, Request, Role, WireError};

use crate::node::{DiskOp, MIB, Node, filled, replica, write};

/// A pool of 230 slots of 64 KiB, two volumes of 16 MiB.
fn full() -> (Node, store::SessionId, store::SessionId) {
    let mut node = Node::new(16 * MIB);
    node.create(1, 16 * MIB);
    node.create(2, 16 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    let (two, _) = node.attach(2, 1, Role::Engine);
    assert_eq!(node.write(two, 0, filled(4096, 2), 1), Reply::Done);
    for at in 0..16 {
        node.write(one, at * MIB, filled(MIB, 1), 1);
    }
    (node, one, two)
}

#[test]
fn a_full_pool_refuses_first_writes_and_nothing_else() {
    let (mut node, one, two) = full();
    let full = Reply::Failed(WireError::NoSpace);
    assert_eq!(node.events, [Event::PoolFull], "said once");
    assert_eq!(node.write(two, MIB, filled(MIB, 3), 1), full);
    assert_eq!(node.read(two, MIB, 1 << 20), filled(MIB, 0), "nothing was changed");
    assert_eq!(node.write(two, 0, filled(8192, 4), 1), Reply::Done, "an overwrite");
    assert_eq!(node.write(one, 0, filled(MIB, 5), 1), Reply::Done, "an overwrite");
    assert_eq!(node.ask(two, Request::Flush), Reply::Done);
    let discard = Request::Discard { offset: 0, len: 16 * MIB, era: Era(1) };
    assert_eq!(node.ask(one, discard), Reply::Done);
    assert_eq!(node.write(two, MIB, filled(MIB, 3), 1), Reply::Done);
    assert_eq!(node.read(one, 0, 1 << 20), filled(MIB, 0));
    assert_eq!(node.events.len(), 1, "not again for each write");
    for at in 0..16 {
        node.write(one, at * MIB, filled(MIB, 1), 1);
    }
    assert_eq!(node.events, [Event::PoolFull, Event::PoolFull], "it had room meanwhile");
}

/// The pool of [`full`] without a single free slot.
fn brimming() -> (Node, store::SessionId, store::SessionId) {
    let (mut node, one, two) = full();
    let mut at = 15 * MIB;
    while node.write(two, at, filled(4096, 2), 1) == Reply::Done {
        at -= 64 << 10;
    }
    assert_eq!(node.store.stats().free, 0);
    (node, one, two)
}

/// R23: what makes a first write safe without a sync of its own.
#[test]
fn a_slot_is_reused_only_after_its_record_and_its_zeros_are_durable() {
    let (mut node, one, two) = brimming();
    node.settle();
    let discard = Request::Discard { offset: 0, len: 64 << 10, era: Era(1) };
    let discarded = node.send(one, discard);
    let written = node.send(two, write(MIB, filled(4096, 3), 1));
    // The record of the discard, with the tag of the write in the same log.
    let mut steps = Vec::new();
    let kind = |op: &DiskOp| match op {
        DiskOp::Zero { .. } => "zero",
        DiskOp::Sync { .. } => "sync",
        DiskOp::Write { data, .. } if data.as_slice() == filled(4096, 3).as_slice() => "data",
        DiskOp::Write { .. } => "record",
        DiskOp::Read { .. } => "read",
    };
    while !node.in_flight.is_empty() {
        let now: Vec<&str> = node.in_flight.iter().map(|io| kind(&io.op)).collect();
        steps.push(now.join("+"));
        node.complete(0);
    }
    let order = ["record", "sync", "zero", "sync", "data"];
    let mut steps = steps.iter();
    for expected in order {
        let found = steps.any(|step| step.split('+').any(|kind| kind == expected));
        assert!(found, "no {expected} in its place");
    }
    assert_eq!(node.take(one, discarded), Some(Reply::Done));
    assert_eq!(node.take(two, written), Some(Reply::Done));
}

#[test]
fn a_slot_is_not_reused_while_an_earlier_owner_reads_it() {
    let (mut node, one, two) = brimming();
    node.settle();
    let read = node.send(one, Request::Read { offset: 0, len: 4096 });
    let slow = node.in_flight.remove(0);
    assert_eq!(
        node.ask(one, Request::Discard { offset: 0, len: 64 << 10, era: Era(1) }),
        Reply::Done
    );
    let written = node.send(two, write(MIB, filled(4096, 3), 1));
    node.settle();
    assert_eq!(node.take(two, written), None, "it would be read by another volume");
    node.in_flight.push(slow);
    node.settle();
    assert!(matches!(node.take(one, read), Some(Reply::Data { .. })));
    assert_eq!(node.take(two, written), Some(Reply::Done));
}

#[test]
fn a_deleted_replica_gives_its_space_back_zeroed() {
    let (mut node, _, two) = full();
    node.admin(Admin::DeleteReplica { replica: replica(1) }).unwrap();
    for at in 1..12 {
        assert_eq!(node.write(two, at * MIB, filled(4096, 9), 1), Reply::Done);
        assert_eq!(node.read(two, at * MIB + 4096, 60 << 10), filled(60 << 10, 0));
    }
}

#[test]
fn a_write_error_fails_that_replica_for_good() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    node.create(2, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    let (two, _) = node.attach(2, 1, Role::Engine);
    assert_eq!(node.write(one, 0, filled(4096, 1), 1), Reply::Done);
    assert_eq!(node.write(two, 0, filled(4096, 2), 1), Reply::Done);
    let seq = node.send(one, write(0, filled(4096, 3), 1));
    node.fault = Some(|_| Some(5));
    node.complete(0);
    node.fault = None;
    assert_eq!(node.take(one, seq), Some(Reply::Failed(WireError::Disk { errno: 5 })));
    assert!(matches!(node.events[..], [Event::ReplicaFailed { .. }]), "{:?}", node.events);
    for request in [Request::Flush, Request::Ping, Request::Read { offset: 0, len: 4096 }] {
        let reply = node.ask(one, request);
        assert!(matches!(reply, Reply::Failed(WireError::ReplicaFailed { .. })), "{reply:?}");
    }
    assert_eq!(node.read(two, 0, 4096), filled(4096, 2), "the other one goes on");
    node.settle();
    let mut node = node.crash(&mut crate::disk::Rng::new(1), 2);
    let refused = node.session(Node::hello(1, 2, Role::Engine));
    assert!(matches!(refused, Err(WireError::ReplicaFailed { .. })), "{refused:?}");
    node.attach(2, 2, Role::Engine);
}

#[test]
fn a_sync_error_fails_the_pool_and_is_not_tried_again() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    node.create(2, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    let (two, _) = node.attach(2, 1, Role::Engine);
    assert_eq!(node.write(one, 0, filled(4096, 1), 1), Reply::Done);
    node.fault = Some(|op| matches!(op, DiskOp::Sync { .. }).then_some(5));
    let disk = Reply::Failed(WireError::Disk { errno: 5 });
    assert_eq!(node.ask(one, Request::Flush), disk);
    node.fault = None;
    assert!(node.store.stats().failed);
    for session in [one, two] {
        let reply = node.ask(session, Request::Flush);
        assert!(matches!(reply, Reply::Failed(WireError::ReplicaFailed { .. })), "{reply:?}");
        assert!(!node.last.iter().any(|out| matches!(out, Output::Sync { .. })));
    }
    let refused = node.admin(Admin::DeleteReplica { replica: replica(1) });
    assert!(matches!(refused, Err(store::StoreError::PoolFailed { errno: 5 })));
    let mut node = node.restart(1);
    let refused = node.session(Node::hello(2, 2, Role::Engine));
    assert!(matches!(refused, Err(WireError::ReplicaFailed { .. })), "forgotten by a restart");
}

/// R3: what was submitted may still land, so nothing may be promised.
#[test]
fn a_failed_pool_acknowledges_no_seal() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(one, 0, filled(4096, 1), 1), Reply::Done);
    node.settle();
    node.send(one, write(0, filled(4096, 2), 1));
    let stuck = node.in_flight.remove(0);
    node.pass(3000);
    let two = node.session(Node::hello(1, 2, Role::Sealer)).unwrap();
    let seal = node.send(two, Request::Seal);
    node.settle();
    assert_eq!(node.take(two, seal), None);
    // Another replica's work breaks the pool.
    node.fault = Some(|_| Some(5));
    let (volume, incarnation) = (crate::node::volume(2), crate::node::incarnation(2));
    let admin = Admin::CreateReplica { volume, replica: replica(2), incarnation, size: MIB };
    node.step(store::Input::Admin { op: 1, admin });
    node.settle();
    assert!(node.store.stats().failed);
    let reply = node.take(two, seal);
    assert!(!matches!(reply, Some(Reply::Sealed(_))), "{reply:?}");
    drop(stuck);
}

#[test]
fn a_log_error_fails_the_pool() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    node.fault = Some(|op| matches!(op, DiskOp::Write { durable: true, .. }).then_some(5));
    let disk = Reply::Failed(WireError::Disk { errno: 5 });
    assert_eq!(node.write(one, 0, filled(4096, 1), 1), disk);
    assert!(node.store.stats().failed);
}

#[test]
fn a_read_error_fails_the_read_only() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(one, 0, filled(8192, 1), 1), Reply::Done);
    node.fault = Some(|op| matches!(op, DiskOp::Read { .. }).then_some(5));
    let disk = Reply::Failed(WireError::Disk { errno: 5 });
    assert_eq!(node.ask(one, Request::Read { offset: 4096, len: 4096 }), disk);
    assert_eq!(node.ask(one, Request::Hash { offset: 0, len: 4 * MIB }), disk);
    node.fault = None;
    assert_eq!(node.read(one, 4096, 4096), filled(4096, 1));
    let event = Event::ReadError { replica: replica(1), offset: 4096, errno: 5 };
    assert_eq!(node.events[0], event);
}

/// Finds the only block that is full of `byte` and flips a bit of it.
fn rot(node: &mut Node, byte: u8) {
    let size = 16 * MIB as usize;
    let bytes = node.disk.bytes(0, size);
    let at = (0..size).step_by(4096).find(|at| bytes[*at..*at + 4096].iter().all(|b| *b == byte));
    bytes[at.unwrap() + 1000] ^= 1;
}

#[test]
fn a_rotten_block_is_never_served() {
    for restarted in [false, true] {
        let mut node = Node::new(16 * MIB);
        node.create(1, 4 * MIB);
        let (mut one, _) = node.attach(1, 1, Role::Engine);
        assert_eq!(node.write(one, 64 << 10, filled(12288, 1), 1), Reply::Done);
        assert_eq!(node.write(one, (64 << 10) + 4096, filled(4096, 0x77), 1), Reply::Done);
        if restarted {
            assert_eq!(node.ask(one, Request::SealEra { era: Era(1) }), Reply::Done);
            node.disk.persist();
            node = node.restart(1);
            one = node.attach(1, 2, Role::Engine).0;
        }
        rot(&mut node, 0x77);
        let offset = (64 << 10) + 4096;
        let refused = Reply::Failed(WireError::Checksum { offset });
        assert_eq!(node.ask(one, Request::Read { offset: 0, len: 128 << 10 }), refused);
        assert_eq!(node.ask(one, Request::Read { offset, len: 4096 }), refused);
        assert_eq!(node.ask(one, Request::Hash { offset: 0, len: MIB }), refused);
        let event = Event::ChecksumMismatch { replica: replica(1), offset };
        assert_eq!(node.events[0], event);
        assert_eq!(node.read(one, 64 << 10, 4096), filled(4096, 1), "its neighbours are served");
        assert_eq!(node.write(one, offset, filled(4096, 3), 2), Reply::Done, "and it is repaired");
        assert_eq!(node.read(one, offset, 4096), filled(4096, 3));
    }
}

/// Where the two copies of the only page of checksums that was written are.
fn pages(node: &mut Node) -> [u64; 2] {
    let size = 16 * MIB as usize;
    let bytes = node.disk.bytes(0, size);
    let pages = (0..size).step_by(4096).filter(|at| bytes[*at..].starts_with(b"HFC2"));
    pages.map(|at| at as u64).collect::<Vec<_>>().try_into().unwrap()
}

/// Any copy of a page of checksums may be lost, damaged, or land on a block that it covers. If both are
/// lost, what only they knew is not served.
#[test]
fn no_page_of_checksums_is_lost_with_one_block() {
    const OFFSET: u64 = 64 << 10;
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        Old,
        Astray,
        Damaged,
    }
    let cases = [Fault::Old, Fault::Astray, Fault::Damaged].map(|fault| [(fault, 0), (fault, 1)]);
    let both = [vec![(Fault::Old, 0), (Fault::Old, 1)], vec![]];
    for faults in cases.into_iter().flatten().map(|fault| vec![fault]).chain(both) {
        let mut node = Node::new(16 * MIB);
        node.create(1, 4 * MIB);
        let (session, _) = node.attach(1, 1, Role::Engine);
        assert_eq!(node.write(session, 0, filled(8192, 1), 1), Reply::Done);
        assert_eq!(node.ask(session, Request::SealEra { era: Era(1) }), Reply::Done);
        let older = pages(&mut node).map(|at| node.disk.bytes(at, 4096).to_vec());
        assert_eq!(older[0], older[1], "both are written");
        assert_eq!(node.write(session, OFFSET, filled(8192, 1), 2), Reply::Done);
        assert_eq!(node.ask(session, Request::SealEra { era: Era(2) }), Reply::Done);
        let data = node.store.locate(replica(1), None, OFFSET).unwrap().unwrap().offset;
        for (fault, copy) in &faults {
            let at = pages(&mut node)[*copy];
            let page = node.disk.bytes(at, 4096).to_vec();
            match fault {
                Fault::Damaged => node.disk.bytes(at + 100, 1)[0] ^= 1,
                _ => node.disk.bytes(at, 4096).copy_from_slice(&older[*copy]),
            }
            if *fault == Fault::Astray {
                node.disk.bytes(data, 4096).copy_from_slice(&page);
            }
        }
        node.disk.persist();
        let mut node = node.restart(1);
        let (session, _) = node.attach(1, 2, Role::Engine);
        assert_eq!(node.read(session, 0, 8192), filled(8192, 1), "{faults:?}");
        let astray = faults.iter().any(|(fault, _)| *fault == Fault::Astray);
        for (offset, lost) in
            [(OFFSET, astray || faults.len() == 2), (OFFSET + 4096, faults.len() == 2)]
        {
            let found = node.ask(session, Request::Read { offset, len: 4096 });
            let refused = Reply::Failed(WireError::Checksum { offset });
            assert_eq!(found == refused, lost, "{faults:?} {offset}: {found:?}");
            assert_eq!(node.write(session, offset, filled(4096, 3), 1), Reply::Done);
            assert_eq!(node.read(session, offset, 4096), filled(4096, 3), "it is repaired");
        }
    }
}

/// After a restart nothing is known of a region that was written since the last sealed era, until it is read.
#[test]
fn what_a_restart_forgot_is_learnt_from_the_first_read() {
    for read in [true, false] {
        let mut node = Node::new(16 * MIB);
        node.create(1, 4 * MIB);
        let (session, _) = node.attach(1, 1, Role::Engine);
        assert_eq!(node.write(session, 0, filled(4096, 0x77), 1), Reply::Done);
        node.disk.persist();
        let mut node = node.restart(1);
        let (session, _) = node.attach(1, 2, Role::Engine);
        if read {
            assert_eq!(node.read(session, 0, 8192).slice(0..4096), filled(4096, 0x77));
            assert_eq!(node.ask(session, Request::SealEra { era: Era(1) }), Reply::Done);
            node.disk.persist();
            node = node.restart(1);
        }
        let (session, _) = node.attach(1, 3, Role::Engine);
        rot(&mut node, 0x77);
        let found = node.ask(session, Request::Read { offset: 0, len: 4096 });
        let refused = Reply::Failed(WireError::Checksum { offset: 0 });
        assert_eq!(found == refused, read, "{found:?}");
    }
}

#[test]
fn what_is_read_while_it_is_written_is_not_learnt() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    let (session, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(session, 0, filled(4096, 1), 1), Reply::Done);
    let writing = node.send(session, write(0, filled(4096, 2), 1));
    let reading = node.send(session, Request::Read { offset: 0, len: 4096 });
    let read = node.in_flight.iter().position(|io| matches!(io.op, DiskOp::Read { .. })).unwrap();
    node.complete(read);
    assert!(matches!(node.take(session, reading), Some(Reply::Data { .. })));
    let again = node.send(session, Request::Read { offset: 0, len: 4096 });
    node.disk.write(
        node.store.locate(replica(1), None, 0).unwrap().unwrap().offset,
        4096,
        Some(&filled(4096, 2)),
        false,
    );
    let read = node.in_flight.iter().position(|io| matches!(io.op, DiskOp::Read { .. })).unwrap();
    node.complete(read);
    assert!(
        matches!(node.take(session, again), Some(Reply::Data { .. })),
        "the write is on its way"
    );
    node.settle();
    assert_eq!(node.take(session, writing), Some(Reply::Done));
    assert_eq!(node.read(session, 0, 4096), filled(4096, 2));
}

#[test]
fn a_read_that_a_write_falls_into_is_not_called_rotten() {
    let mut node = Node::new(16 * MIB);
    node.create(1, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    assert_eq!(node.write(one, 0, filled(4096, 1), 1), Reply::Done);
    node.settle();
    // The read sees the old data, and ends after the write.
    let read = node.send(one, Request::Read { offset: 0, len: 4096 });
    let written = node.send(one, write(0, filled(4096, 2), 1));
    let old = node.disk.read(0, 4096);
    drop(old);
    let data = filled(4096, 1);
    let id = node.in_flight.remove(0).id;
    node.complete(0);
    assert_eq!(node.take(one, written), Some(Reply::Done));
    node.step(store::Input::Io { id, result: store::IoResult::Read(Ok(data.clone())) });
    let crc = types::crc32c(data.as_slice());
    assert_eq!(node.take(one, read), Some(Reply::Data { data, crc }));
}

#[test]
fn without_zero_range_zeros_are_written() {
    let mut node = Node::new(16 * MIB);
    node.fault = Some(|op| matches!(op, DiskOp::Zero { .. }).then_some(95));
    // Junk where the slots are.
    node.disk.bytes(8 * MIB, 4 * MIB as usize).fill(0xee);
    node.create(1, 14 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    for at in 0..12 {
        assert_eq!(node.write(one, at * MIB, filled(4096, 1), 1), Reply::Done);
        assert_eq!(node.read(one, at * MIB + 4096, 60 << 10), filled(60 << 10, 0));
    }
}

#[test]
fn slots_that_cannot_be_zeroed_are_retired() {
    let mut node = Node::new(16 * MIB);
    node.fault = Some(|op| matches!(op, DiskOp::Zero { .. }).then_some(5));
    node.create(1, 4 * MIB);
    let (one, _) = node.attach(1, 1, Role::Engine);
    node.settle();
    let stats = node.store.stats();
    assert!(stats.retired_slots > 0 && !stats.failed);
    assert_eq!(node.write(one, 0, filled(4096, 1), 1), Reply::Failed(WireError::NoSpace));
}
