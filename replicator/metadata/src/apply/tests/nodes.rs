//! Nodes: registration, loss, removal; events; determinism.

use super::story::info;
use super::{Story, check};
use crate::state::EVENTS_KEPT;
use crate::{Command, FailoverStep, NodeInfo, NodeStatus, Refused, Source, State, decode, encode};
use types::{NodeId, PoolId, SnapshotId, VolumeId};
use uuid::Uuid;

#[test]
fn lost_and_up() {
    check(
        Story::new,
        &[
            ("lost 1", "Ok"),
            ("lost 1; lost 1", "Ok"),
            ("lost 4", "NoNode"),
            // Never more than a minority of the voters.
            ("lost 1; lost 2", "TooManyLost"),
            ("lost 1; up 1; lost 2", "Ok"),
            ("lost 1; register 1; lost 2", "Ok"),
            ("up 1", "Ok"),
            ("up 4", "NoNode"),
            ("register 4; lost 1; lost 4", "Ok"),
        ],
    );
}

#[test]
fn remove() {
    check(
        Story::new,
        &[
            ("remove 1", "NodeInUse"),
            ("remove 9", "NoNode"),
            ("register 4; remove 4", "Ok"),
            ("register 4; remove 4; remove 4", "Ok"),
            ("register 4; remove 4; register 4", "Retired"),
            ("register 4; begin 4; remove 4", "NodeInUse"),
            ("register 4; add d; remove 4", "NodeInUse"),
        ],
    );
}

#[test]
fn register() {
    let mut story = Story::new();
    let refused =
        |story: &mut Story, info: NodeInfo| story.apply(&Command::RegisterNode(info)).unwrap_err();
    let pool = |id: u128| Some(crate::PoolInfo { id: PoolId(Uuid::from_u128(id)), bytes: 1 << 30 });
    // Another pool under replicas, the same pool elsewhere, a name taken, no id (R11).
    let changed = refused(&mut story, NodeInfo { pool: pool(99), ..info(1) });
    assert!(matches!(changed, Refused::PoolChanged { .. }), "{changed}");
    let gone = refused(&mut story, NodeInfo { pool: None, ..info(1) });
    assert!(matches!(gone, Refused::PoolChanged { .. }), "{gone}");
    let twice = refused(&mut story, NodeInfo { pool: pool(1), ..info(4) });
    assert!(matches!(twice, Refused::Conflict { .. }), "{twice}");
    let name = refused(&mut story, NodeInfo { name: "node1".into(), ..info(4) });
    assert!(matches!(name, Refused::Conflict { .. }), "{name}");
    let zero = refused(&mut story, info(0));
    assert!(matches!(zero, Refused::Invalid { .. }), "{zero}");
    // A node without replicas may change its pool; the same again is nothing new.
    story.apply(&Command::RegisterNode(NodeInfo { pool: pool(99), ..info(3) })).unwrap();
    story.events.clear();
    story.must("register 2");
    assert!(story.events.is_empty());
    story.must("lost 3");
    story.must("register 3");
    assert_eq!(story.events, ["node_lost", "node_up"]);
}

#[test]
fn a_node_can_be_known_before_it_registers() {
    let mut story = Story::new();
    let add = |name: &str| Command::AddNode {
        node: NodeId(4),
        name: name.into(),
        control_address: "10.0.0.4:7420".into(),
    };
    story.apply(&add("node4")).unwrap();
    story.apply(&add("node4")).unwrap();
    assert!(matches!(story.apply(&add("other")), Err(Refused::Conflict { .. })));
    assert_eq!(story.state.nodes[&NodeId(4)].status, NodeStatus::Unknown);
    assert!(matches!(story.step("begin 4"), Err(Refused::NotRegistered { .. })));
    assert!(matches!(story.step("up 4"), Err(Refused::NotRegistered { .. })));
    story.must("register 4");
    assert_eq!(story.state.nodes[&NodeId(4)].status, NodeStatus::Up);
}

#[test]
fn old_events_are_forgotten_and_sequences_go_on() {
    let mut story = Story::new();
    for _ in 0..EVENTS_KEPT {
        story.must("lost 1");
        story.must("up 1");
    }
    assert_eq!(story.state.events.len(), EVENTS_KEPT);
    let last = story.state.last_event;
    assert_eq!(story.state.events_after(last - 5).count(), 5);
    assert_eq!(story.state.events_after(last).count(), 0);
    assert_eq!(story.state.events_after(0).count(), EVENTS_KEPT);
    assert_eq!(story.state.events_after(u64::MAX).count(), 0);
}

#[test]
fn a_failovers_steps_are_noted_once_and_change_nothing_else() {
    let mut story = Story::new();
    "begin 1; activate ab; lost 1; fence; sealed b"
        .split(';')
        .for_each(|step| story.must(step.trim()));
    let (volume, record) = story.state.volumes.first_key_value().unwrap();
    let (volume, record) = (*volume, record.clone());
    story.events.clear();
    let note = |step, unix_ms| Command::NoteFailover {
        volume,
        epoch: record.epoch,
        node: NodeId(1),
        step,
        unix_ms,
    };
    for command in [
        note(FailoverStep::Lost, 5_000),
        note(FailoverStep::Lost, 6_000),
        note(FailoverStep::Moved, 7_000),
    ] {
        story.apply(&command).unwrap();
    }
    assert_eq!(story.events, ["failover_lost", "failover_moved"], "the first to tell counts");
    let times: Vec<_> = story.state.events.values().rev().take(2).map(|e| &e.message).collect();
    assert_eq!(times, ["7000", "5000"]);
    assert_eq!(story.state.volumes[&volume], record);
    let unknown = Command::NoteFailover {
        volume: types::VolumeId::from_bytes([9; 16]),
        epoch: record.epoch,
        node: NodeId(1),
        step: FailoverStep::Heard,
        unix_ms: 1,
    };
    assert!(matches!(story.apply(&unknown), Err(Refused::NoVolume { .. })));
}

#[test]
fn the_state_survives_its_encoding() {
    let mut story = Story::new();
    "begin 1; activate ab; lost 1; fence; sealed b; expand 2048"
        .split(';')
        .for_each(|step| story.must(step.trim()));
    let bytes = encode(&story.state).unwrap();
    assert_eq!(decode::<State>(&bytes).unwrap(), story.state);
    for cut in 0..bytes.len() {
        assert!(decode::<State>(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(decode::<State>(&longer).is_err());
    let mut newer = bytes;
    newer[0] = u8::MAX;
    assert!(decode::<State>(&newer).is_err());
}

#[test]
fn what_a_lost_node_was_to_delete_is_forgotten_with_it() {
    let lost_for_good = |steps: &[&str]| {
        let mut story = Story::new();
        steps.iter().for_each(|step| story.must(step));
        story.state.membership.voters.remove(&NodeId(2));
        story.step("remove 2")
    };
    let replaced = ["failed b", "remove-replica b"];
    assert!(matches!(lost_for_good(&replaced), Err(Refused::NodeInUse { .. })), "it is up");
    assert!(matches!(lost_for_good(&["lost 2"]), Err(Refused::NodeInUse { .. })), "in the ISR");
    lost_for_good(&["failed b", "remove-replica b", "lost 2"]).unwrap();

    let mut story = Story::new();
    for step in ["failed b", "remove-replica b", "lost 2", "delete", "deleted a"] {
        story.must(step);
    }
    assert_eq!(story.volume().replicas.len(), 1, "the record waits for the node");
    story.state.membership.voters.remove(&NodeId(2));
    story.must("remove 2");
    assert!(story.state.volumes.is_empty() && story.state.retired.contains(&NodeId(2)));
}

/// Tools compare these words.
#[test]
fn what_is_shown_is_told_apart() {
    let words = [NodeStatus::Unknown, NodeStatus::Up, NodeStatus::Lost].map(NodeStatus::as_str);
    assert_eq!(words, ["unknown", "up", "lost"]);
    let (volume, snapshot) = (VolumeId::default(), SnapshotId::default());
    assert_eq!(Source::Snapshot(snapshot).to_string(), format!("snapshot {snapshot}"));
    assert_eq!(Source::Clone { volume, snapshot }.to_string(), format!("volume {volume}"));
}
