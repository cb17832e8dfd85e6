//! Reads, writes, discards, hashes and tags of one engine.

use types::{Epoch, Era, Tag};
use wire::{Reply, Request, Role, WireError};

use crate::node::{MIB, Node, filled, write};

#[test]
fn what_was_written_is_read_and_survives_a_restart() {
    let mut node = Node::new(64 * MIB);
    node.create(1, 8 * MIB);
    let (session, info) = node.attach(1, 1, Role::Member);
    assert!(info.clean && info.unbroken && info.size == 8 * MIB);
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
    let (session, info) = node.attach(1, 2, Role::Member);
    assert!(info.unbroken && !info.clean);
    check(&mut node, session);
    let above = Tag { epoch: Epoch(0), era: Era(0) };
    let reply = node.ask(session, Request::Tags { above, first: 0 });
    assert_eq!(reply, Reply::Regions { regions: vec![0, 3, 4], next: None });
}

#[test]
fn an_overwrite_is_one_disk_write() {
    let mut node = Node::new(64 * MIB);
    node.create(1, 8 * MIB);
    let (session, _) = node.attach(1, 1, Role::Member);
    assert_eq!(node.write(session, 0, filled(8192, 1), 1), Reply::Done);
    node.settle();
    node.send(session, write(4096, filled(4096, 2), 1));
    assert_eq!(node.last.len(), 1, "{:?}", node.last);
    node.settle();
    assert_eq!(node.last.len(), 1);
}

#[test]
fn a_payload_that_changed_on_its_way_is_refused() {
    let mut node = Node::new(64 * MIB);
    node.create(1, 8 * MIB);
    let (session, _) = node.attach(1, 1, Role::Member);
    let data = filled(4096, 1);
    let request = Request::Write { offset: 8192, data, crc: 1, era: Era(1) };
    let refused = Reply::Failed(WireError::Checksum { offset: 8192 });
    assert_eq!(node.ask(session, request), refused);
    assert_eq!(node.read(session, 8192, 4096), filled(4096, 0));
}
