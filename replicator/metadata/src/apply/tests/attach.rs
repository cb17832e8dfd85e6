//! R1, R2, R4, R5, R7, R14, R20.

use super::story::replica;
use super::{Story, check};
use crate::Attachment;
use types::{Epoch, NodeId};

#[test]
fn begin_attach() {
    check(
        Story::new,
        &[
            ("begin 1", "Epoch 1 clean"),
            // Repeated: the same epoch. Another engine of the same node: the next one (R14).
            ("begin 1; begin 1 @0", "Epoch 1 clean"),
            ("begin 1; begin 1 i9 @0", "Superseded"),
            ("begin 1; begin 1 i9", "Epoch 2 clean"),
            ("begin 1; activate ab; begin 1 i9", "Epoch 2 dirty"),
            ("begin 1; activate ab; begin 1", "Epoch 2 dirty"),
            // A node without replicas may attach too.
            ("begin 3", "Epoch 1 clean"),
            ("begin 4", "NoNode"),
            ("begin 1 @7", "Superseded"),
            ("lost 1; begin 1", "NodeIsLost"),
            // Held by a live node, by a lost one, fenced, sealed.
            ("begin 1; begin 2", "HeldBy"),
            ("begin 1; activate ab; begin 2", "HeldBy"),
            ("begin 1; activate ab; begin 2 @0", "HeldBy"),
            ("begin 1; activate ab; lost 1; begin 2", "NeedsFence"),
            ("begin 1; activate ab; lost 1; fence; begin 2", "NeedsSeal"),
            ("begin 1; activate ab; lost 1; fence; up 1; begin 1", "NeedsSeal"),
            ("begin 1; activate ab; lost 1; fence; sealed b; begin 2", "Epoch 3 dirty"),
            ("begin 1; activate ab; lost 1; fence; sealed b; up 1; begin 1", "Epoch 3 dirty"),
            ("begin 1; activate ab; lost 1; fence; sealed b; begin 2 @1", "Superseded"),
            ("begin 1; activate ab; detach clean; begin 2", "Epoch 2 clean"),
            ("begin 1; activate ab; detach dirty; begin 2", "Epoch 2 dirty"),
            // An attachment that never ran changes nothing about it.
            ("begin 1; detach dirty; begin 2", "Epoch 2 clean"),
            ("begin 1; activate ab; detach dirty; begin 2; detach clean; begin 2", "Epoch 3 dirty"),
            ("delete; begin 1", "Deleting"),
        ],
    );
    check(Story::nodes, &[("begin 1", "NoVolume"), ("create data; begin 1", "Creating")]);
}

#[test]
fn activate() {
    check(
        Story::new,
        &[
            ("begin 1; activate ab", "Isr v2"),
            ("begin 1; activate a", "Isr v2"),
            ("begin 1; activate -", "EmptyIsr"),
            // Repeated with the answer lost.
            ("begin 1; activate ab; activate ab v1", "Isr v2"),
            ("begin 1; activate ab; activate a v1", "WrongState"),
            ("begin 1; activate ab; activate ab", "WrongState"),
            // Of another engine, epoch or version.
            ("begin 1; activate ab i9", "Superseded"),
            ("begin 1; activate ab @0", "Superseded"),
            ("begin 1; begin 1 i9; activate ab i1 @1", "Superseded"),
            ("begin 1; activate ab v9", "IsrChanged"),
            ("activate ab", "Superseded"),
            // Never outside the committed ISR (R2).
            ("add c; ready c; begin 1; activate abc", "NotEligible"),
            ("begin 1; activate a; begin 1 i9; activate ab", "NotEligible"),
            ("begin 1; failed b; activate ab", "NotEligible"),
            ("begin 1; failed b; activate a", "Isr v2"),
            // After a fence the old engine is nobody.
            ("begin 1; lost 1; fence; activate ab @1 i1", "Superseded"),
            ("begin 1; lost 1; fence; activate ab i1", "Superseded"),
        ],
    );
}

#[test]
fn detach() {
    check(
        Story::new,
        &[
            ("begin 1; detach clean", "Ok"),
            ("begin 1; activate ab; detach clean", "Ok"),
            ("begin 1; activate ab; detach clean; detach clean i1", "Ok"),
            ("begin 1; activate ab; detach clean i9", "Superseded"),
            ("begin 1; activate ab; begin 1 i9; detach clean @1 i1", "Superseded"),
            ("begin 1; activate ab; lost 1; fence; detach clean @1 i1", "Superseded"),
            ("begin 1; activate ab; lost 1; fence; detach clean i1", "Superseded"),
            ("detach clean", "Ok"),
        ],
    );
}

#[test]
fn fence_and_seal() {
    check(
        Story::new,
        &[
            ("fence", "WrongState"),
            ("begin 1; fence", "NotLost"),
            ("begin 1; activate ab; lost 2; fence", "NotLost"),
            ("begin 1; lost 1; fence", "Epoch 2 clean"),
            ("begin 1; activate ab; lost 1; fence", "Epoch 2 dirty"),
            ("begin 1; activate ab; lost 1; fence; fence @1", "Epoch 2 dirty"),
            ("begin 1; activate ab; lost 1; fence; fence", "WrongState"),
            ("begin 1; activate ab; lost 1; fence @0", "Superseded"),
            ("begin 1; activate ab; lost 1; up 1; fence", "NotLost"),
            ("begin 1; activate ab; sealed b", "WrongState"),
            ("begin 1; activate ab; lost 1; fence; sealed b", "Ok"),
            ("begin 1; activate ab; lost 1; fence; sealed b; sealed b", "Ok"),
            ("begin 1; activate ab; lost 1; fence; sealed b @1", "Superseded"),
            ("begin 1; activate a; lost 1; fence; sealed b", "NotEligible"),
            ("begin 1; activate ab; lost 1; fence; sealed z", "NotEligible"),
            ("begin 1; activate ab; lost 1; fence; failed b; sealed b", "NotEligible"),
        ],
    );
}

#[test]
fn shrink_and_grow() {
    check(
        Story::new,
        &[
            ("begin 1; activate ab; shrink b", "Isr v3"),
            ("begin 1; activate ab; shrink b; shrink b v2", "Isr v3"),
            ("begin 1; activate ab; shrink ab", "EmptyIsr"),
            ("begin 1; activate ab; shrink -", "Isr v2"),
            ("begin 1; activate ab; shrink b v1", "IsrChanged"),
            ("begin 1; activate ab; shrink z", "NotEligible"),
            ("begin 1; activate ab; shrink b @0", "Superseded"),
            ("begin 1; shrink b", "WrongState"),
            ("begin 1; activate ab; shrink b; shrink a", "EmptyIsr"),
            ("begin 1; activate ab; lost 1; fence; shrink b @1", "Superseded"),
            ("begin 1; activate ab; lost 1; fence; shrink b", "WrongState"),
            ("begin 1; activate ab; begin 1 i9; shrink b @1", "Superseded"),
            ("begin 1; activate a; grow b", "Isr v3"),
            ("begin 1; activate a; grow b; grow b v2", "Isr v3"),
            ("begin 1; activate a; grow b; grow b", "NotEligible"),
            ("begin 1; activate a; grow b v1", "IsrChanged"),
            ("begin 1; activate a; grow b @0", "Superseded"),
            ("begin 1; grow b", "WrongState"),
            ("begin 1; activate a; grow z", "NoReplica"),
            ("begin 1; activate a; failed b; grow b", "NotGrown v3"),
            ("begin 1; activate a; add c; grow c", "NotGrown v3"),
            ("begin 1; activate a; add c; ready c; grow c", "Isr v3"),
            ("begin 1; activate ab; add c; ready c; grow c", "NotGrown v3"),
            ("begin 1; activate a; add c; ready c; grow b; grow c", "NotGrown v4"),
            // Too small until it has been extended (R25).
            ("begin 1; activate a; expand 2048; resized a 2048; grow b", "NotGrown v3"),
            ("begin 1; activate a; expand 2048; resized a 2048; resized b 2048; grow b", "Isr v3"),
            ("begin 1; activate ab; shrink b; lost 1; fence; grow b @1", "Superseded"),
            // The engine goes on without it: the same command, repeated and late, finds another version.
            ("begin 1; activate a; add c; grow c v2; ready c; grow c v2", "IsrChanged"),
            ("begin 1; activate a; add c; grow c v2; ready c; grow c", "Isr v4"),
        ],
    );
}

/// R11: what a replica must have sealed, by which an older image of it is known.
#[test]
fn what_was_relied_on_is_remembered() {
    let sealed = |story: &Story| {
        let of = |name| story.volume().replicas[&replica(name)].sealed.0;
        (of('a'), of('b'))
    };
    let mut story = Story::new();
    for (step, expected) in [
        ("begin 1", (0, 0)),
        ("activate ab", (1, 1)),
        ("shrink b", (1, 1)),
        ("detach dirty", (1, 1)),
        ("begin 1", (1, 1)),
        ("activate a", (2, 1)),
        ("grow b", (2, 2)),
        ("lost 1", (2, 2)),
        ("fence", (2, 2)),
        ("sealed b", (2, 3)),
    ] {
        story.must(step);
        assert_eq!(sealed(&story), expected, "after {step}");
    }
}

#[test]
fn the_failover_as_a_whole() {
    let mut story = Story::new();
    for step in ["begin 1", "activate ab", "lost 1"] {
        story.must(step);
    }
    let isr = story.volume().isr.clone();
    assert_eq!(isr.len(), 2, "losing a node changes no ISR");
    story.must("fence");
    assert_eq!(story.volume().attachment, Attachment::Fenced { holder: NodeId(1), sealed: None });
    assert_eq!(story.volume().epoch, Epoch(2));
    story.must("sealed b");
    story.must("begin 2");
    assert_eq!(story.volume().isr, isr);
    story.must("activate b");
    assert!(story.volume().degraded());
    assert_eq!(story.volume().epoch, Epoch(3));
    story.must("up 1");
    story.must("grow a");
    assert!(!story.volume().degraded());
    assert!(story.volume().isr.contains(&replica('a')));
    assert_eq!(
        story.events,
        [
            "attaching",
            "attached",
            "node_lost",
            "fenced",
            "sealed",
            "attaching",
            "attached",
            "isr_shrunk",
            "node_up",
            "isr_grown"
        ]
    );
}
