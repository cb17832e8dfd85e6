//! Raft's own encoding. The only place that touches the old prost of raft-rs: everywhere else its
//! messages and entries are opaque bytes.

use crate::state::Membership;
use crate::storage::LogEntry;
use raft::prelude::{ConfChange, ConfState, Entry, Message, MessageType};
use raft_prost::Message as _;
use types::NodeId;

pub(super) fn encode_message(message: &Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// A message of another member, if it is one that may come from outside.
pub(super) fn decode_message(bytes: &[u8]) -> Option<Message> {
    let message = Message::decode(bytes).ok()?;
    MessageType::from_i32(message.msg_type)?;
    // Proposals and reads are asked for through our own API, never forwarded by Raft.
    let forwarded = matches!(
        message.get_msg_type(),
        MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgUnreachable
            | MessageType::MsgSnapStatus
    );
    (message.from != 0 && !forwarded).then_some(message)
}

pub(super) fn encode_entry(entry: &Entry) -> LogEntry {
    LogEntry { index: entry.index, term: entry.term, bytes: entry.encode_to_vec() }
}

pub(super) fn decode_entry(entry: &LogEntry) -> Option<Entry> {
    let decoded = Entry::decode(entry.bytes.as_slice()).ok()?;
    (decoded.index == entry.index && decoded.term == entry.term).then_some(decoded)
}

pub(super) fn decode_conf_change(bytes: &[u8]) -> Option<ConfChange> {
    ConfChange::decode(bytes).ok()
}

pub(super) fn conf_state(membership: &Membership) -> ConfState {
    let ids = |set: &std::collections::BTreeSet<NodeId>| -> Vec<u64> {
        set.iter().map(|node| node.0).collect()
    };
    ConfState::from((ids(&membership.voters), ids(&membership.learners)))
}

pub(super) fn membership(conf: &ConfState) -> Membership {
    Membership {
        voters: conf.voters.iter().copied().map(NodeId).collect(),
        learners: conf.learners.iter().copied().map(NodeId).collect(),
    }
}
