//! Reads, writes, discards, flushes, hashes and tags of one engine.

use store::{Output, SessionId};
use types::{Epoch, Era, Tag, content_hash};
use wire::{Reply, Request, Role, WireError};

use crate::node::{DiskOp, MIB, Node, filled, write};

fn node() -> (Node, SessionId) {
    let mut node = Node::new(64 * MIB);
    node.create(1, 8 * MIB);
    let (session, info) = node.attach(1, 1, Role::Engine);
    assert!(info.clean && info.unbroken && info.size == 8 * MIB);
    (node, session)
}

fn regions(node: &mut Node, session: SessionId, above: Tag) -> Vec<u32> {
    match node.ask(session, Request::Tags { above, first: 0 }) {
        Reply::Regions { regions, next: None } => regions,
        other => panic!("{other:?}"),
    }
}

fn tag(epoch: u64, era: u32) -> Tag {
    Tag { epoch: Epoch(epoch), era: Era(era) }
}

#[test]
fn what_was_written_is_read_and_survives_a_restart() {
    let (mut node, session) = node();
    assert_eq!(node.read(session, 0, 1 << 20), filled(MIB, 0));
    assert_eq!(node.write(session, 60 << 10, filled(16 << 10, 7), 1), Reply::Done);
    assert_eq!(node.write(session, 3 * MIB + 4096, filled(MIB, 8), 1), Reply::Done);
    let check = |node: &mut Node, session| {
        assert_eq!(node.read(session, 60 << 10, 16 << 10), filled(16 << 10, 7));
        assert_eq!(node.read(session, 3 * MIB + 4096, 1 << 20), filled(MIB, 8));
        assert_eq!(node.read(session, 0, 60 << 10), filled(60 << 10, 0));
        assert_eq!(node.read(session, 4 * MIB + 4096, 4096), filled(4096, 0));
    };
    check(&mut node, session);
    assert_eq!(node.ask(session, Request::Flush), Reply::Done);
    let mut node = node.restart(1);
    let (session, info) = node.attach(1, 2, Role::Engine);
    assert!(info.unbroken && !info.clean);
    check(&mut node, session);
    assert_eq!(regions(&mut node, session, tag(0, 0)), [0, 3, 4]);
}

#[test]
fn an_overwrite_is_one_disk_write() {
    let (mut node, session) = node();
    assert_eq!(node.write(session, 0, filled(8192, 1), 1), Reply::Done);
    node.send(session, write(4096, filled(4096, 2), 1));
    assert!(matches!(node.last[..], [Output::Write { durable: false, .. }]), "{:?}", node.last);
    node.settle();
    assert!(matches!(node.last[..], [Output::Reply { .. }]), "{:?}", node.last);
}

/// The first bytes of data writes in flight: those that are full of one of `bytes`.
fn data_in_flight(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let data = node.in_flight.iter().filter_map(|io| match &io.op {
        DiskOp::Write { data, .. } => Some(data.as_slice()),
        _ => None,
    });
    data.filter(|data| data.iter().all(|byte| *byte == data[0]) && bytes.contains(&data[0]))
        .map(|data| data[0])
        .collect()
}

/// R17, R9: the first data of an era must not be on its way before its tag is durable.
#[test]
fn the_tag_is_durable_before_the_data() {
    let (mut node, session) = node();
    for era in 1..4 {
        // No volatile records: the block of the tag is durable by itself.
        let flushed = node.ask(session, Request::Flush);
        assert_eq!(flushed, Reply::Done);
        node.send(session, write(0, filled(4096, 2), era));
        assert!(matches!(node.last[..], [Output::Write { durable: true, .. }]), "{:?}", node.last);
        // A later write to the same region waits behind it.
        node.send(session, write(4096, filled(4096, 3), era));
        assert!(node.last.is_empty(), "{:?}", node.last);
        node.complete(0);
        assert_eq!(data_in_flight(&node, &[2, 3]), [2, 3], "in order");
        node.settle();
        node.send(session, write(8192, filled(4096, 4), era));
        assert!(matches!(node.last[..], [Output::Write { durable: false, .. }]), "era {era}");
        node.settle();
    }
}

/// When earlier log blocks are volatile, a durable block says nothing: a sync has to follow.
#[test]
fn a_tag_behind_volatile_records_waits_for_a_sync() {
    let (mut node, session) = node();
    assert_eq!(node.write(session, 0, filled(4096, 1), 1), Reply::Done);
    node.send(session, write(4 * MIB, filled(4096, 2), 1));
    assert!(matches!(node.last[..], [Output::Write { durable: false, .. }]), "{:?}", node.last);
    node.complete(0);
    assert!(matches!(node.last[..], [Output::Sync { .. }]), "{:?}", node.last);
    assert_eq!(data_in_flight(&node, &[2]), [0; 0]);
    node.complete(0);
    assert_eq!(data_in_flight(&node, &[2]), [2]);
}

#[test]
fn a_sequential_stream_is_tagged_ahead() {
    let (mut node, session) = node();
    let mut waits = 0;
    for at in (0..6 * MIB).step_by(128 << 10) {
        node.send(session, write(at, filled(128 << 10, 1), 1));
        let data = |out: &Output| matches!(out, Output::Write { data, .. } if data.len() > 4096);
        waits += u64::from(!node.last.iter().any(data));
        node.settle();
    }
    assert_eq!(waits, 1, "only the first write waits for a tag");
}

#[test]
fn a_flush_is_answered_by_a_sync_that_began_after_it() {
    let (mut node, session) = node();
    node.create(2, MIB);
    let (other, _) = node.attach(2, 1, Role::Engine);
    assert_eq!(node.ask(session, Request::Flush), Reply::Done, "nothing was written");
    node.settle();
    let syncs = node.store.stats().syncs;
    assert_eq!(node.ask(session, Request::Flush), Reply::Done);
    assert_eq!(node.store.stats().syncs, syncs, "and nothing is synced for it");
    assert_eq!(node.write(session, 0, filled(4096, 1), 1), Reply::Done);
    assert_eq!(node.write(other, 0, filled(4096, 1), 1), Reply::Done);
    assert_eq!(node.write(session, 0, filled(4096, 2), 1), Reply::Done);
    assert_eq!(node.write(other, 0, filled(4096, 2), 1), Reply::Done);
    assert!(node.in_flight.is_empty());
    let first = node.send(session, Request::Flush);
    assert!(matches!(node.last[..], [Output::Sync { .. }]));
    // These come while the first sync runs: they share the next one.
    let second = node.send(session, Request::Flush);
    let third = node.send(other, Request::Flush);
    node.complete(0);
    assert_eq!(node.take(session, first), Some(Reply::Done));
    assert_eq!((node.take(session, second), node.take(other, third)), (None, None));
    assert_eq!(node.in_flight.len(), 1);
    node.complete(0);
    assert_eq!(node.take(session, second), Some(Reply::Done));
    assert_eq!(node.take(other, third), Some(Reply::Done));
    assert!(node.in_flight.is_empty());
    node.send(session, Request::Flush);
    assert!(matches!(node.last[..], [Output::Reply { .. }]), "nothing new to sync");
}

#[test]
fn a_first_write_is_acknowledged_after_data_and_record_in_any_order() {
    for order in [[0, 0], [1, 0]] {
        let (mut node, session) = node();
        assert_eq!(node.write(session, 0, filled(4096, 1), 1), Reply::Done);
        let seq = node.send(session, write(128 << 10, filled(4096, 2), 1));
        assert_eq!(node.in_flight.len(), 2, "both at once: {:?}", node.last);
        node.complete(order[0]);
        assert_eq!(node.take(session, seq), None);
        // An overwrite of a slot whose record is not written yet has to wait for it as well.
        let again = node.send(session, write((128 << 10) + 4096, filled(4096, 3), 1));
        node.complete(order[1]);
        assert_eq!(node.take(session, seq), Some(Reply::Done));
        node.settle();
        assert_eq!(node.take(session, again), Some(Reply::Done));
    }
}

#[test]
fn discards_read_as_zeros_give_space_back_and_are_tagged() {
    for zeroes in [false, true] {
        let (mut node, session) = node();
        assert_eq!(node.write(session, 0, filled(MIB, 1), 1), Reply::Done);
        assert_eq!(node.write(session, MIB, filled(MIB, 1), 1), Reply::Done);
        assert_eq!(node.ask(session, Request::SealEra { era: Era(1) }), Reply::Done);
        let allocated = |node: &Node| node.store.replicas()[0].allocated;
        assert_eq!(allocated(&node), 2 * MIB);
        let (offset, len, era) = (MIB - 4096, 7 * MIB + 4096 - (60 << 10), Era(2));
        let request = if zeroes {
            Request::WriteZeroes { offset, len, era }
        } else {
            Request::Discard { offset, len, era }
        };
        assert_eq!(node.ask(session, request), Reply::Done);
        assert_eq!(node.read(session, 0, (MIB - 4096) as u32), filled(MIB - 4096, 1));
        assert_eq!(node.read(session, offset, 1 << 20), filled(MIB, 0));
        assert_eq!(allocated(&node), MIB);
        // Only what changed: nothing was allocated behind the second MiB.
        assert_eq!(regions(&mut node, session, tag(1, 1)), [0, 1]);
        let nothing = Request::Discard { offset: 4 * MIB, len: 4 * MIB, era };
        node.send(session, nothing);
        assert!(matches!(node.last[..], [Output::Reply { .. }]), "{:?}", node.last);
        node.settle();
        let stats = node.store.stats();
        assert_eq!(stats.free + MIB, stats.capacity);
    }
}

#[test]
fn hashes_are_of_what_a_read_would_answer() {
    let mut node = Node::new(64 * MIB);
    let size = 3 * MIB + 12288;
    node.create(1, size);
    let (session, _) = node.attach(1, 1, Role::Engine);
    node.write(session, (64 << 10) - 4096, filled(8192, 1), 1);
    node.write(session, size - 8192, filled(8192, 2), 1);
    let Reply::Hashes(hashes) = node.ask(session, Request::Hash { offset: 0, len: size }) else {
        panic!("no hashes")
    };
    assert_eq!(hashes.len(), 49);
    for (block, hash) in hashes.iter().enumerate() {
        let offset = block as u64 * (64 << 10);
        let data = node.read(session, offset, (size - offset).min(64 << 10) as u32);
        assert_eq!(content_hash(kit::ids::instance(1), data.as_slice()), *hash, "block {block}");
    }
    // Nothing is read for what is not allocated.
    node.send(session, Request::Hash { offset: MIB, len: MIB });
    assert!(matches!(node.last[..], [Output::Reply { .. }]));
    // Reads of one request are bounded.
    node.write(session, 2 * MIB, filled(MIB, 3), 1);
    node.write(session, MIB, filled(MIB, 3), 1);
    node.send(session, Request::Hash { offset: MIB, len: 2 * MIB });
    assert_eq!(node.in_flight.len(), 16);
}

#[test]
fn malformed_requests_are_refused() {
    let (mut node, session) = node();
    let read = |offset, len| Request::Read { offset, len };
    let discard = |offset, len| Request::Discard { offset, len, era: Era(1) };
    let hash = |offset, len| Request::Hash { offset, len };
    let table = [
        read(0, 0),
        read(1, 4096),
        read(0, 4095),
        read(8 * MIB, 4096),
        read(8 * MIB - 4096, 8192),
        read(u64::MAX - 4095, 4096),
        read(0, 2 << 20),
        write(512, filled(4096, 1), 1),
        write(0, filled(512, 1), 1),
        write(8 * MIB, filled(4096, 1), 1),
        write(0, filled(2 * MIB, 1), 1),
        discard(0, 0),
        discard(0, 8 * MIB + 4096),
        discard(4096, u64::MAX - 4095),
        hash(4096, 64 << 10),
        hash(0, 4096),
        hash(0, 0),
        hash(u64::MAX - 65535, 65536),
    ];
    for request in table {
        let name = format!("{request:?}");
        let reply = node.ask(session, request);
        assert!(matches!(reply, Reply::Failed(WireError::Invalid { .. })), "{name}: {reply:?}");
    }
    assert_eq!(regions(&mut node, session, tag(0, 0)), [0; 0]);
}

#[test]
fn a_payload_that_changed_on_its_way_is_refused() {
    let (mut node, session) = node();
    let request = Request::Write { offset: 8192, data: filled(4096, 1), crc: 1, era: Era(1) };
    let refused = Reply::Failed(WireError::Checksum { offset: 8192 });
    assert_eq!(node.ask(session, request), refused);
    assert_eq!(node.read(session, 8192, 4096), filled(4096, 0));
}

#[test]
fn requests_of_a_session_are_bounded() {
    let (mut node, session) = node();
    node.write(session, 0, filled(4096, 1), 1);
    for _ in 0..4096 {
        node.send(session, write(0, filled(4096, 1), 1));
    }
    let seq = node.send(session, write(0, filled(4096, 1), 1));
    let reply = node.take(session, seq);
    assert!(matches!(reply, Some(Reply::Failed(WireError::Invalid { .. }))), "{reply:?}");
    node.settle();
}
