//! Snapshots of a replica (R26): what they cost, what they keep, and what becomes of their space.

use store::{Admin, SessionId};
use types::{Buf, SnapshotId};
use wire::{HeldSnapshot, Reply, Request, Role, WireError};

use crate::node::{DiskOp, InFlight, MIB, Node, filled, replica, write};

const SLOT: u64 = 64 << 10;
const SIZE: u64 = 8 * MIB;

fn node() -> (Node, SessionId) {
    let mut node = Node::new(64 * MIB);
    node.create(1, SIZE);
    let (session, _) = node.attach(1, 1, Role::Engine);
    (node, session)
}

fn id(n: u8) -> SnapshotId {
    SnapshotId::from_bytes([n; 16])
}

fn take(node: &mut Node, session: SessionId, n: u8) {
    let request = Request::Snapshot { snapshot: id(n), size: SIZE };
    assert_eq!(node.ask(session, request), Reply::Done);
}

fn read_snapshot(node: &mut Node, session: SessionId, n: u8, offset: u64, len: u64) -> Buf {
    match node.ask(session, Request::ReadSnapshot { snapshot: id(n), offset, len: len as u32 }) {
        Reply::Data { data, .. } => data,
        other => panic!("{other:?}"),
    }
}

fn allocated(node: &Node) -> u64 {
    node.store.replicas()[0].allocated / SLOT
}

fn drop_snapshot(node: &mut Node, n: u8) {
    node.admin(Admin::DropSnapshot { replica: replica(1), snapshot: id(n) }).unwrap();
}

#[test]
fn writes_after_a_snapshot_do_not_change_it() {
    let (mut node, session) = node();
    node.write(session, 0, filled(2 * SLOT, 1), 1);
    take(&mut node, session, 1);
    assert_eq!(allocated(&node), 2, "a snapshot takes no space by itself");
    node.write(session, 4096, filled(4096, 2), 1);
    assert_eq!(allocated(&node), 3, "one piece was copied");
    // A part of a piece that was not there, a discard of a whole one, zeros over a part of one.
    node.write(session, 3 * SLOT, filled(4096, 3), 1);
    let discard = Request::Discard { offset: SLOT, len: SLOT, era: types::Era(1) };
    assert_eq!(node.ask(session, discard), Reply::Done);
    let zeroes = Request::WriteZeroes { offset: 8192, len: 4096, era: types::Era(1) };
    assert_eq!(node.ask(session, zeroes), Reply::Done);
    let check = |node: &mut Node, session, reader| {
        assert_eq!(node.read(session, 0, 4096), filled(4096, 1));
        assert_eq!(node.read(session, 4096, 4096), filled(4096, 2));
        assert_eq!(node.read(session, 8192, 4096), filled(4096, 0));
        assert_eq!(node.read(session, SLOT, 4096), filled(4096, 0));
        assert_eq!(read_snapshot(node, reader, 1, 0, 2 * SLOT), filled(2 * SLOT, 1));
        assert_eq!(read_snapshot(node, reader, 1, 2 * SLOT, 2 * SLOT), filled(2 * SLOT, 0));
    };
    let reader = node.session(Node::hello(1, 0, Role::Reader)).unwrap();
    check(&mut node, session, reader);
    assert_eq!(node.ask(session, Request::Flush), Reply::Done);
    let mut node = node.crash(&mut kit::Rng::new(1), 2);
    let (session, _) = node.attach(1, 2, Role::Engine);
    let reader = node.session(Node::hello(1, 0, Role::Reader)).unwrap();
    check(&mut node, session, reader);
}

#[test]
fn regions_of_a_snapshot_are_those_that_it_has_allocated() {
    let (mut node, session) = node();
    node.write(session, 5 * MIB + 3 * SLOT, filled(4096, 1), 1);
    take(&mut node, session, 1);
    node.write(session, 0, filled(4096, 1), 1);
    let discard = Request::Discard { offset: 5 * MIB, len: MIB, era: types::Era(1) };
    assert_eq!(node.ask(session, discard), Reply::Done);
    take(&mut node, session, 2);
    let reader = node.session(Node::hello(1, 0, Role::Reader)).unwrap();
    for (snapshot, first, regions) in
        [(1, 0, vec![5]), (1, 5, vec![5]), (1, 6, vec![]), (1, 900, vec![]), (2, 0, vec![0])]
    {
        let request = Request::Allocated { snapshot: id(snapshot), first };
        assert_eq!(node.ask(reader, request), Reply::Regions { regions, next: None });
    }
    let missing = node.ask(reader, Request::Allocated { snapshot: id(3), first: 0 });
    assert_eq!(missing, Reply::Failed(WireError::NoSnapshot));
}

/// What a first write after a snapshot costs: a read, a durable write, and then itself.
#[test]
fn a_shared_piece_is_copied_durably_before_the_record_and_once() {
    let (mut node, session) = node();
    node.write(session, 0, filled(SLOT, 1), 1);
    take(&mut node, session, 1);
    let first = node.send(session, write(0, filled(4096, 2), 1));
    let second = node.send(session, write(8192, filled(4096, 3), 1));
    assert!(matches!(node.in_flight[..], [ref io] if matches!(io.op, DiskOp::Read { .. })));
    node.complete(0);
    let copies = |io: &crate::node::InFlight| matches!(&io.op, DiskOp::Write { data, durable: true, .. } if data.len() as u64 == SLOT);
    assert_eq!(node.in_flight.iter().filter(|io| copies(io)).count(), 1);
    assert_eq!(node.in_flight.len(), 1, "no record and no data before the copy is durable");
    node.settle();
    for seq in [first, second] {
        assert_eq!(node.take(session, seq), Some(Reply::Done));
    }
    let third = node.send(session, write(4096, filled(4096, 4), 1));
    let reads = node.in_flight.iter().any(|io| matches!(io.op, DiskOp::Read { .. }));
    assert!(!reads, "then it is an overwrite like any other");
    node.settle();
    assert_eq!(node.take(session, third), Some(Reply::Done));
    assert_eq!(read_snapshot(&mut node, session, 1, 0, SLOT), filled(SLOT, 1));
}

#[test]
fn dropping_in_any_order_gives_the_space_back() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3], [2, 3, 1]] {
        let (mut node, session) = node();
        for n in 1..=3 {
            node.write(session, 0, filled(2 * SLOT, n), 1);
            take(&mut node, session, n);
        }
        node.write(session, 0, filled(SLOT, 9), 1);
        assert_eq!(allocated(&node), 7);
        for n in order {
            drop_snapshot(&mut node, n);
            drop_snapshot(&mut node, n);
            let gone = Request::ReadSnapshot { snapshot: id(n), offset: 0, len: 4096 };
            assert_eq!(node.ask(session, gone), Reply::Failed(WireError::NoSnapshot));
        }
        assert_eq!(allocated(&node), 2, "{order:?}");
        assert_eq!(node.read(session, 0, SLOT as u32), filled(SLOT, 9));
        assert_eq!(node.read(session, SLOT, SLOT as u32), filled(SLOT, 3));
        node.settle();
        let stats = node.store.stats();
        assert_eq!(stats.free + 2 * SLOT, stats.capacity);
    }
}

#[test]
fn a_retired_replica_keeps_its_snapshots_only() {
    let (mut node, session) = node();
    node.write(session, 0, filled(SLOT, 1), 1);
    take(&mut node, session, 1);
    node.write(session, 0, filled(2 * SLOT, 2), 1);
    for _ in 0..2 {
        node.admin(Admin::RetireReplica { replica: replica(1) }).unwrap();
    }
    assert!(node.closed.contains(&session));
    assert_eq!(allocated(&node), 1);
    let mut node = node.restart(1);
    let info = &node.store.replicas()[0];
    assert!(info.retired && info.snapshots == [id(1)]);
    assert!(matches!(
        node.session(Node::hello(1, 9, Role::Engine)),
        Err(WireError::ReplicaFailed { .. })
    ));
    let reader = node.session(Node::hello(1, 0, Role::Reader)).unwrap();
    assert_eq!(read_snapshot(&mut node, reader, 1, 0, SLOT), filled(SLOT, 1));
    node.admin(Admin::DeleteReplica { replica: replica(1) }).unwrap();
    node.settle();
    assert_eq!(node.store.stats().free, node.store.stats().capacity);
}

#[test]
fn a_reader_only_reads_snapshots_and_no_seal_ends_it() {
    let (mut node, session) = node();
    node.write(session, 0, filled(4096, 1), 1);
    take(&mut node, session, 1);
    let reader = node.session(Node::hello(1, 0, Role::Reader)).unwrap();
    for refused in [Request::Seal, Request::Flush, Request::Read { offset: 0, len: 4096 }] {
        let reply = node.ask(reader, refused);
        assert!(matches!(reply, Reply::Failed(WireError::Invalid { .. })), "{reply:?}");
    }
    let (_, _) = node.attach(1, 2, Role::Engine);
    let held = Reply::Snapshots(vec![HeldSnapshot { snapshot: id(1), size: SIZE }]);
    assert_eq!(node.ask(reader, Request::Snapshots), held);
    assert_eq!(read_snapshot(&mut node, reader, 1, 0, 4096), filled(4096, 1));
}

#[test]
fn a_snapshot_is_refused_while_writes_are_under_way() {
    let (mut node, session) = node();
    node.write(session, 0, filled(4096, 1), 1);
    node.send(session, write(0, filled(4096, 2), 1));
    let request = Request::Snapshot { snapshot: id(1), size: SIZE };
    let reply = node.ask(session, request.clone());
    assert!(matches!(reply, Reply::Failed(WireError::Invalid { .. })), "{reply:?}");
    assert_eq!(node.ask(session, request.clone()), Reply::Done);
    assert_eq!(node.ask(session, request), Reply::Done, "once more is the same one");
    assert_eq!(node.ask(session, Request::Snapshots), {
        Reply::Snapshots(vec![HeldSnapshot { snapshot: id(1), size: SIZE }])
    });
    let too_large = Request::Snapshot { snapshot: id(2), size: SIZE + 4096 };
    assert!(matches!(node.ask(session, too_large), Reply::Failed(WireError::Invalid { .. })));
}

/// Its engine had given the snapshot up and let its writes go. Found by the simulation.
#[test]
fn a_write_that_came_and_ended_while_a_snapshot_was_made_spoils_it() {
    for new in [0, SLOT] {
        let (mut node, session) = node();
        node.write(session, 0, filled(4096, 1), 1);
        let taking = node.send(session, Request::Snapshot { snapshot: id(1), size: SIZE });
        let complete = |node: &mut Node| {
            let quick = |f: &InFlight| !matches!(f.op, DiskOp::Sync { .. });
            while let Some(at) = node.in_flight.iter().position(quick) {
                node.complete(at);
            }
        };
        complete(&mut node);
        assert!(!node.in_flight.is_empty(), "the sync of the snapshot is under way");
        let written = node.send(session, write(new, filled(4096, 2), 1));
        complete(&mut node);
        assert_eq!(node.take(session, written), Some(Reply::Done));
        node.settle();
        let reply = node.take(session, taking).unwrap();
        assert!(matches!(reply, Reply::Failed(WireError::Invalid { .. })), "{reply:?}");
        assert_eq!(node.ask(session, Request::Snapshots), Reply::Snapshots(Vec::new()));

        let mut node = Node::open(node.disk, 1, node.now).unwrap();
        let (session, _) = node.attach(1, 2, Role::Engine);
        assert_eq!(node.read(session, new, 4096), filled(4096, 2));
    }
}

/// Bit rot in a piece is copied with it, and noticed on both sides.
#[test]
fn a_copy_does_not_hide_what_is_damaged() {
    let (mut node, session) = node();
    node.write(session, 0, filled(SLOT, 1), 1);
    take(&mut node, session, 1);
    let place = node.store.locate(replica(1), None, 8192).unwrap().unwrap();
    node.disk.bytes(place.offset, 1)[0] ^= 1;
    node.disk.persist();
    assert_eq!(node.write(session, 0, filled(4096, 2), 1), Reply::Done);
    let damaged = Reply::Failed(WireError::Checksum { offset: 8192 });
    assert_eq!(node.ask(session, Request::Read { offset: 8192, len: 4096 }), damaged);
    let of_snapshot = Request::ReadSnapshot { snapshot: id(1), offset: 8192, len: 4096 };
    assert_eq!(node.ask(session, of_snapshot.clone()), damaged);
    // Also after a loss of power: what a snapshot uses was settled with it.
    let mut node = node.crash(&mut kit::Rng::new(3), 2);
    let reader = node.session(Node::hello(1, 0, Role::Reader)).unwrap();
    assert_eq!(node.ask(reader, of_snapshot), damaged);
}

/// A copy whose write went away with its session ends after an era of the next engine was sealed: nothing would
/// settle its checksums any more.
#[test]
fn a_copy_that_ends_after_its_era_is_not_used() {
    let (mut node, session) = node();
    node.write(session, 0, filled(SLOT, 1), 1);
    take(&mut node, session, 1);
    node.send(session, write(0, filled(4096, 2), 1));
    let held = node.in_flight.remove(0);
    assert!(matches!(held.op, DiskOp::Read { .. }), "the copy is being read");
    let (next, _) = node.attach(1, 2, Role::Engine);
    assert_eq!(node.ask(next, Request::SealEra { era: types::Era(1) }), Reply::Done);
    node.in_flight.push(held);
    node.settle();
    assert_eq!(allocated(&node), 1);
    let mut node = node.crash(&mut kit::Rng::new(1), 2);
    let (session, _) = node.attach(1, 3, Role::Engine);
    assert_eq!(node.read(session, 0, SLOT as u32), filled(SLOT, 1));
}
