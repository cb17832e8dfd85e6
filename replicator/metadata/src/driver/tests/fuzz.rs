//! The decoders of metadata, fed with damaged bytes; see the `fuzz` crate. A command that decodes is
//! applied, a state or log that decodes is taken for what it says.

use super::super::message::{decode_conf_change, decode_entry, decode_message, encode_message};
use crate::*;
use ::fuzz::{Target, no_repair, run};
use raft::prelude::{ConfChange, Entry, Message, MessageType, Snapshot};
use raft_prost::Message as _;
use std::cell::RefCell;
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, SnapshotId,
    VolumeId,
};
use uuid::Uuid;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(5));

fn replica(node: u64) -> NewReplica {
    NewReplica {
        replica: ReplicaId(Uuid::from_u128(node.into())),
        incarnation: Incarnation(Uuid::from_u128(9)),
        node: NodeId(node),
    }
}

/// The life of a volume on two of three nodes, each command once.
fn commands() -> Vec<Command> {
    let (volume, instance) = (VOLUME, EngineInstance(Uuid::from_u128(8)));
    let (epoch, expected_epoch, isr_version) = (Epoch(1), Epoch(0), IsrVersion(0));
    let (one, two) = (replica(1).replica, replica(2).replica);
    let snapshot = SnapshotId(Uuid::from_u128(5));
    let node = |node: u64| {
        Command::RegisterNode(NodeInfo {
            node: NodeId(node),
            name: format!("node{node}"),
            control_address: format!("10.0.0.{node}:7420"),
            data_address: format!("10.0.0.{node}:7421"),
            pool: Some(PoolInfo { id: PoolId(Uuid::from_u128(node.into())), bytes: 10 << 30 }),
            class: Some(PoolClass::High),
            zone: None,
            boot: BootId(Uuid::from_u128(7)),
            process: instance,
        })
    };
    let (name, control_address) = ("node4".to_owned(), "10.0.0.4:7420".to_owned());
    vec![
        node(1),
        node(2),
        node(3),
        Command::AddNode { node: NodeId(4), name, control_address },
        Command::CreateVolume {
            volume,
            name: "pvc".into(),
            size: 1 << 30,
            repl: 2,
            class: None,
            fs_type: Some(FsType::Ext4),
            pinned: false,
            source: None,
            replicas: vec![replica(1), replica(2)],
        },
        Command::ReplicaReady { replica: one },
        Command::ReplicaReady { replica: two },
        Command::BeginAttach { volume, node: NodeId(1), instance, expected_epoch, internal: false },
        Command::Activate { volume, epoch, instance, isr: vec![one, two], isr_version },
        Command::ShrinkIsr { volume, epoch, isr_version: IsrVersion(1), remove: vec![two] },
        Command::GrowIsr { volume, epoch, isr_version: IsrVersion(2), add: two },
        Command::ExpandBegin { volume, size: 2 << 30 },
        Command::ReplicaResized { replica: one, size: 2 << 30 },
        Command::NodeLost { node: NodeId(1) },
        Command::NodeUp { node: NodeId(1), boot: BootId(Uuid::from_u128(7)), process: instance },
        Command::Fence { volume, expected_epoch: epoch },
        Command::FenceSealed { volume, epoch: Epoch(2), replica: two },
        Command::AddReplica { volume, added: 0, replica: replica(3) },
        Command::ReplicaFailed { replica: replica(3).replica, reason: "errno 5".into() },
        Command::RemoveReplica { volume, replica: replica(3).replica, isr_version },
        Command::Detach { volume, epoch: Epoch(2), instance, clean: true },
        Command::ModifyVolume { volume, repl: Some(1), class: Some(None) },
        Command::LimitVolume { volume, iops: Some(Some(500)), bandwidth: Some(None) },
        Command::MoveReplica { volume, added: 1, from: two, to: replica(3) },
        Command::ReleaseReplica { volume, replica: two, isr_version: IsrVersion(3) },
        Command::CreateSnapshot {
            snapshot,
            name: "backup".into(),
            volume,
            created_unix_ms: 1,
            hidden: false,
        },
        Command::SnapshotTaken { snapshot, epoch: Epoch(3), isr_version, holders: vec![one] },
        Command::AbortSnapshot { snapshot },
        Command::Filled { volume, epoch: Epoch(3) },
        Command::DeleteSnapshot { snapshot },
        Command::SnapshotDropped { snapshot, replica: one },
        Command::DeleteVolume { volume },
        Command::ReplicaDeleted { replica: one },
        Command::RemoveNode { node: NodeId(3) },
    ]
}

/// The state after each of the commands.
fn states() -> Vec<State> {
    let mut state = State::default();
    let mut states = vec![state.clone()];
    for (command, index) in commands().iter().zip(1..) {
        state.apply(index, 1, command);
        states.push(state.clone());
    }
    states
}

fn encoded<T: serde::Serialize>(values: &[T]) -> Vec<Vec<u8>> {
    values.iter().map(|value| encode(value).unwrap()).collect()
}

#[test]
fn commands_applied() {
    let states = states();
    let at = RefCell::new(0);
    run(&Target {
        name: "metadata commands",
        corpus: encoded(&commands()),
        words: &[VOLUME.as_bytes()],
        longest: 2000,
        repair: &|bytes| {
            if let Some(version) = bytes.first_mut() {
                *version = encode(&()).unwrap()[0];
            }
        },
        decode: &|bytes| {
            let Ok(command) = decode::<Command>(bytes) else { return false };
            let mut at = at.borrow_mut();
            *at = (*at + 1) % states.len();
            let mut state = states[*at].clone();
            let index = state.applied + 1;
            state.apply(index, 1, &command);
            assert_eq!(state.applied, index);
            true
        },
    });
}

#[test]
fn snapshots_and_log_records() {
    let batch = LogBatch {
        hard_state: Some(HardState { term: 3, vote: 1, commit: 7 }),
        entries: vec![LogEntry { index: 8, term: 3, bytes: vec![1; 40] }],
    };
    let states = states();
    let mut corpus = encoded(&[states[5].clone(), states[12].clone(), states[20].clone()]);
    corpus.extend(encoded(&[batch]));
    run(&Target {
        name: "metadata snapshots and log records",
        corpus,
        words: &[VOLUME.as_bytes()],
        longest: 4000,
        repair: &|bytes| {
            if let Some(version) = bytes.first_mut() {
                *version = encode(&()).unwrap()[0];
            }
        },
        decode: &|bytes| {
            let state = decode::<State>(bytes);
            let batch = decode::<LogBatch>(bytes);
            // What decodes is what would be encoded, or two members could differ.
            if let Ok(state) = &state {
                assert!(decode::<State>(&encode(state).unwrap()).unwrap() == *state);
            }
            state.is_ok() || batch.is_ok()
        },
    });
}

#[test]
fn raft_messages() {
    let entry = |index| Entry { index, term: 2, data: vec![7; 30], ..Entry::default() };
    let message = |kind: MessageType| {
        let mut message = Message { from: 1, to: 2, term: 2, index: 4, ..Message::default() };
        message.set_msg_type(kind);
        message
    };
    let mut append = message(MessageType::MsgAppend);
    append.entries = vec![entry(5), entry(6)];
    let mut install = message(MessageType::MsgSnapshot);
    let mut snapshot = Snapshot { data: vec![3; 60], ..Snapshot::default() };
    snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
    install.snapshot = Some(snapshot);
    let vote = message(MessageType::MsgRequestVote);
    run(&Target {
        name: "Raft messages",
        corpus: [append, install, vote, message(MessageType::MsgHeartbeat)]
            .iter()
            .map(encode_message)
            .collect(),
        words: &[],
        longest: 2000,
        repair: &no_repair,
        decode: &|bytes| {
            decode_message(bytes).is_some_and(|message| {
                assert!(message.from != 0);
                let again = decode_message(&encode_message(&message));
                assert!(again.is_some_and(|again| again == message));
                true
            })
        },
    });
}

#[test]
fn raft_entries() {
    let change =
        ConfChange { node_id: 4, context: b"10.0.0.4:7420".to_vec(), ..Default::default() };
    let entry = Entry { index: 5, term: 2, data: change.encode_to_vec(), ..Entry::default() };
    run(&Target {
        name: "Raft entries",
        corpus: vec![entry.encode_to_vec()],
        words: &[],
        longest: 500,
        repair: &no_repair,
        decode: &|bytes| {
            let stored = LogEntry { index: 5, term: 2, bytes: bytes.to_vec() };
            decode_entry(&stored).is_some_and(|entry| decode_conf_change(&entry.data).is_some())
        },
    });
}
