//! The cluster's record, the same on every node at the same applied index.

use crate::command::{NodeInfo, PoolInfo};
use crate::event::Event;
use core::fmt;
use core::ops::RangeInclusive;
use core::str::FromStr;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, ReplicaId, SnapshotId, VolumeId,
};

/// Events kept in the state; older ones are forgotten.
pub(crate) const EVENTS_KEPT: usize = 512;

/// A word that is not one of the accepted ones.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {value:?} is not accepted; {accepted}")]
pub struct ParseWordError {
    /// The field.
    pub field: &'static str,
    /// What was given, at most 64 characters of it.
    pub value: String,
    /// What would be accepted.
    pub accepted: &'static str,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $field:literal, $accepted:literal, $($variant:ident = $text:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs)]
        pub enum $name { $($variant),+ }

        impl $name {
            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// From the control API, where the empty text means none.
            ///
            /// # Errors
            /// For any other word.
            pub fn parse_optional(text: &str) -> Result<Option<Self>, ParseWordError> {
                if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ParseWordError;
            fn from_str(text: &str) -> Result<Self, ParseWordError> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(ParseWordError {
                        field: $field,
                        value: text.chars().take(64).collect(),
                        accepted: $accepted,
                    }),
                }
            }
        }
    };
}

words!(
    /// Class of a pool (`priority_io`).
    PoolClass, "priority_io", "one of \"high\", \"medium\", \"low\"",
    High = "high", Medium = "medium", Low = "low");
words!(
    /// Filesystem that a volume is to carry.
    FsType, "fstype", "one of \"ext4\", \"xfs\"",
    Ext4 = "ext4", Xfs = "xfs");

/// Whether a node is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    /// Added, but it never registered.
    Unknown,
    /// Registered and not declared lost.
    Up,
    /// The leader declared it lost.
    Lost,
}

impl NodeStatus {
    /// The word of the control API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Lost => "lost",
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub node: NodeId,
    /// Its name, unique.
    pub name: String,
    /// `ip:port` of its control API.
    pub control_address: String,
    /// `ip:port` where it serves replicas; empty until it registered.
    pub data_address: String,
    /// Its pool.
    pub pool: Option<PoolInfo>,
    /// Class of its pool.
    pub class: Option<PoolClass>,
    /// Its zone.
    pub zone: Option<String>,
    /// Boot of its host.
    pub boot: BootId,
    /// Run of its daemon.
    pub process: EngineInstance,
    /// Whether it is heard.
    pub status: NodeStatus,
}

impl Node {
    /// What it last said of itself.
    #[must_use]
    pub fn info(&self) -> NodeInfo {
        NodeInfo {
            node: self.node,
            name: self.name.clone(),
            control_address: self.control_address.clone(),
            data_address: self.data_address.clone(),
            pool: self.pool,
            class: self.class,
            zone: self.zone.clone(),
            boot: self.boot,
            process: self.process,
        }
    }
}

/// Life of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// Its node is to make it.
    Creating,
    /// It exists.
    Ready,
    /// Failed for good (R11, R13); its node may delete it.
    Failed,
    /// Its node is to delete it.
    Deleting,
}

impl ReplicaState {
    /// The word of the control API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// One copy of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its id.
    pub replica: ReplicaId,
    /// Its life (R11).
    pub incarnation: Incarnation,
    /// Where.
    pub node: NodeId,
    /// Its state.
    pub state: ReplicaState,
    /// Bytes it can hold (thin).
    pub size: u64,
    /// It is to be released once as many others are in sync as are wanted.
    pub leaving: bool,
    /// The boot of its host, as far as was known, when it was last taken into the in-sync set.
    pub boot: BootId,
    /// The highest epoch that it is known to have sealed: the one under which it was last taken into the
    /// in-sync set, or of a fence that it ended. A copy that has sealed less is an older image of it (R11).
    pub sealed: Epoch,
}

/// Life of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// Its replicas do not all exist yet.
    Creating,
    /// They do, and its source is being copied into them: it can be attached internally only.
    Filling,
    /// It can be attached.
    Live,
    /// Deleted, but for its snapshots: its replicas stay for them, without a head.
    Retired,
    /// Its replicas are being deleted.
    Deleting,
}

/// Who holds a volume.
///
/// ```text
///            BeginAttach           Activate
///  Detached ------------> Attaching -------> Attached
///   ^   ^                  |     |            |    |
///   |   +------ Detach ----+-----|----Detach--+    |
///   |                            +--Fence----------+   (holder lost; epoch + 1)
///   |                                v
///   |  BeginAttach (epoch + 1)    Fenced{sealed: no} --FenceSealed--> Fenced{sealed: yes}
///   +-- to Attaching <------------------------------------------------------+
/// ```
/// BeginAttach by the same node leads from Attaching and Attached to Attaching at the next epoch
/// (R14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attachment {
    /// Nobody.
    Detached,
    /// An epoch was granted; no I/O yet.
    Attaching {
        /// Where.
        node: NodeId,
        /// The engine.
        instance: EngineInstance,
    },
    /// I/O may run.
    Attached {
        /// Where.
        node: NodeId,
        /// The engine.
        instance: EngineInstance,
    },
    /// Taken away from a lost node (R7).
    Fenced {
        /// Who held it.
        holder: NodeId,
        /// The ISR member that sealed at the fence's epoch; only then may others be told.
        sealed: Option<ReplicaId>,
    },
}

impl Attachment {
    /// The node that holds the volume.
    #[must_use]
    pub const fn holder(&self) -> Option<NodeId> {
        match self {
            Self::Attaching { node, .. } | Self::Attached { node, .. } => Some(*node),
            Self::Detached | Self::Fenced { .. } => None,
        }
    }

    /// The engine that holds the volume.
    #[must_use]
    pub const fn instance(&self) -> Option<EngineInstance> {
        match self {
            Self::Attaching { instance, .. } | Self::Attached { instance, .. } => Some(*instance),
            Self::Detached | Self::Fenced { .. } => None,
        }
    }

    /// One word for messages.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Attaching { .. } => "attaching",
            Self::Attached { .. } => "attached",
            Self::Fenced { sealed: None, .. } => "fenced, not sealed",
            Self::Fenced { sealed: Some(_), .. } => "fenced",
        }
    }
}

/// How much I/O a volume may do; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Reads, writes, discards and writes of zeros in a second, together; within [`IOPS_LIMITS`].
    pub iops: Option<u64>,
    /// Bytes read and written in a second, together; within [`BANDWIDTH_LIMITS`].
    pub bandwidth: Option<u64>,
}

/// What [`Limits::iops`] may be. Below, what a filesystem keeps in flight would take seconds.
pub const IOPS_LIMITS: RangeInclusive<u64> = 100..=1_000_000;
/// What [`Limits::bandwidth`] may be: 1 MiB to 64 GiB.
pub const BANDWIDTH_LIMITS: RangeInclusive<u64> = 1 << 20..=64 << 30;

/// One volume (R1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub volume: VolumeId,
    /// Its name, unique among volumes that are not being deleted.
    pub name: String,
    /// Committed size in bytes.
    pub size: u64,
    /// Size at creation, so that a repeated creation is recognised after growth.
    pub created_size: u64,
    /// Size wanted while it grows (R25).
    pub expanding: Option<u64>,
    /// Copies wanted.
    pub repl: u32,
    /// Pool class wanted.
    pub class: Option<PoolClass>,
    /// Filesystem wanted.
    pub fs_type: Option<FsType>,
    /// It is to be used on nodes that hold a copy only.
    pub pinned: bool,
    /// What it began with; `None`: zeros.
    pub source: Option<Source>,
    /// Its life.
    pub lifecycle: Lifecycle,
    /// The highest epoch granted.
    pub epoch: Epoch,
    /// Who every acknowledged write has reached.
    pub isr: BTreeSet<ReplicaId>,
    /// Counts the changes of `isr`.
    pub isr_version: IsrVersion,
    /// All replicas.
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// Counts those that were added since the volume was created.
    pub added: u64,
    /// Who holds it.
    pub attachment: Attachment,
    /// The holder has no device: it takes a snapshot, or fills the volume.
    pub internal: bool,
    /// No engine has run since the last clean end: all ISR members are identical (R20).
    pub clean: bool,
    /// What its engine lets pass.
    pub limits: Limits,
}

impl Volume {
    /// Fewer in-sync replicas than wanted (promise 4).
    #[must_use]
    pub fn degraded(&self) -> bool {
        self.lifecycle == Lifecycle::Live && self.isr.len() < self.repl as usize
    }

    /// Deleted as far as callers are concerned.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Retired | Lifecycle::Deleting)
    }

    /// Bytes that each of its replicas may come to need.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.expanding.unwrap_or(self.size).max(self.size)
    }
}

/// What a volume begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// Another volume as it was, by a hidden snapshot.
    Clone {
        /// The volume.
        volume: VolumeId,
        /// Its hidden snapshot.
        snapshot: SnapshotId,
    },
}

impl Source {
    /// The snapshot that is copied.
    #[must_use]
    pub const fn snapshot(&self) -> SnapshotId {
        match self {
            Self::Snapshot(snapshot) | Self::Clone { snapshot, .. } => *snapshot,
        }
    }

    /// Whether a caller asked for the same: the snapshot behind a clone is made anew for each try.
    #[must_use]
    pub fn same_wish(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Clone { volume, .. }, Self::Clone { volume: other, .. }) => volume == other,
            _ => self == other,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(snapshot) => write!(f, "snapshot {snapshot}"),
            Self::Clone { volume, .. } => write!(f, "volume {volume}"),
        }
    }
}

/// Life of a snapshot.
///
/// ```text
///  CreateSnapshot --> Creating --SnapshotTaken--> Ready --DeleteSnapshot--> Deleting --> gone
///                        |                          |        (last SnapshotDropped) ^
///                        +--AbortSnapshot--> gone   +---- (last holder given up) ---+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotState {
    /// It is being taken, and has no holders yet.
    Creating,
    /// Every member of its volume's ISR has it.
    Ready,
    /// Its holders are dropping it.
    Deleting,
}

impl SnapshotState {
    /// A word for messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "being taken",
            Self::Ready => "ready",
            Self::Deleting => "being deleted",
        }
    }
}

/// A volume as it was at one point (R26): one attempt at it, under an id that is never used again. On a
/// replica it is a generation of the slot map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Its name, unique among snapshots that are neither hidden nor being deleted.
    pub name: String,
    /// Of which volume; its record is there as long as this one.
    pub volume: VolumeId,
    /// Bytes of the volume at that point.
    pub size: u64,
    /// Filesystem of the volume.
    pub fs_type: Option<FsType>,
    /// When the attempt began, by the proposer's clock.
    pub created_unix_ms: u64,
    /// Its life.
    pub state: SnapshotState,
    /// Replicas of the volume that have it. Never empty unless it is being taken.
    pub holders: BTreeSet<ReplicaId>,
    /// It serves a clone only.
    pub hidden: bool,
}

impl Snapshot {
    /// Whether callers see it: not hidden, not being deleted.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        !self.hidden && self.state != SnapshotState::Deleting
    }
}

/// Who votes and who only listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Raft voters.
    pub voters: BTreeSet<NodeId>,
    /// Raft learners.
    pub learners: BTreeSet<NodeId>,
}

impl Membership {
    /// Whether the node is a voter or a learner.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// Everything the cluster agrees on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Raft index of the last applied entry.
    pub applied: u64,
    /// Its term.
    pub applied_term: u64,
    /// Raft members as of `applied`.
    pub membership: Membership,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Ids of removed nodes, never accepted again.
    pub retired: BTreeSet<NodeId>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Snapshots of volumes. Every member of a volume's ISR is a holder of all its ready ones.
    pub snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// The last events by sequence.
    pub events: BTreeMap<u64, Event>,
    /// Sequence of the last event.
    pub last_event: u64,
}

impl State {
    /// Whether an in-sync replica surely has what was acknowledged and not flushed: its host has not booted
    /// since it joined (R9), or there is nothing of that kind.
    #[must_use]
    pub fn remembers(&self, volume: &Volume, replica: &Replica) -> bool {
        volume.clean || self.nodes.get(&replica.node).is_some_and(|n| n.boot == replica.boot)
    }

    /// The volume of that name that is not deleted.
    #[must_use]
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|v| v.name == name && !v.is_deleted())
    }

    /// The snapshot of that name that callers see.
    #[must_use]
    pub fn snapshot_by_name(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.values().find(|s| s.name == name && s.is_visible())
    }

    /// Snapshots of `volume`, of any state.
    pub fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values().filter(move |s| s.volume == volume)
    }

    /// A ready snapshot of `volume` that no other sound replica on a node that is up has than `replica`.
    #[must_use]
    pub fn only_holder(&self, volume: &Volume, replica: ReplicaId) -> Option<SnapshotId> {
        let within_reach = |id: &ReplicaId| {
            let sound = |r: &&Replica| r.replica != replica && r.state == ReplicaState::Ready;
            let node = volume.replicas.get(id).filter(sound).and_then(|r| self.nodes.get(&r.node));
            node.is_some_and(|node| node.status == NodeStatus::Up)
        };
        self.snapshots_of(volume.volume)
            .filter(|s| s.state == SnapshotState::Ready && s.holders.contains(&replica))
            .find(|s| !s.holders.iter().any(within_reach))
            .map(|s| s.snapshot)
    }

    /// The volume that is still to be filled from `snapshot`.
    #[must_use]
    pub fn filled_from(&self, snapshot: SnapshotId) -> Option<&Volume> {
        self.volumes.values().find(|v| {
            matches!(v.lifecycle, Lifecycle::Creating | Lifecycle::Filling)
                && v.source.is_some_and(|source| source.snapshot() == snapshot)
        })
    }

    /// The volume that `replica` belongs to, and the replica.
    #[must_use]
    pub fn replica(&self, replica: ReplicaId) -> Option<(&Volume, &Replica)> {
        self.volumes.values().find_map(|v| v.replicas.get(&replica).map(|r| (v, r)))
    }

    /// All replicas on `node`, with their volumes.
    pub fn replicas_on(&self, node: NodeId) -> impl Iterator<Item = (&Volume, &Replica)> {
        self.volumes
            .values()
            .flat_map(|v| v.replicas.values().map(move |r| (v, r)))
            .filter(move |(_, r)| r.node == node)
    }

    /// How many replicas keep `node` from being removed: all, but for a lost node those that it was
    /// only to delete. They are not in any ISR, and nothing waits for them.
    #[must_use]
    pub fn bound_to(&self, node: NodeId) -> usize {
        let lost = self.is_lost(node);
        let bound =
            |(_, replica): &(&Volume, &Replica)| !(lost && replica.state == ReplicaState::Deleting);
        self.replicas_on(node).filter(bound).count()
    }

    /// Volumes that `node` holds.
    pub fn held_by(&self, node: NodeId) -> impl Iterator<Item = &Volume> {
        self.volumes.values().filter(move |v| v.attachment.holder() == Some(node))
    }

    /// Whether the node is declared lost.
    #[must_use]
    pub fn is_lost(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|n| n.status == NodeStatus::Lost)
    }

    /// Events after `sequence`, oldest first.
    pub fn events_after(&self, sequence: u64) -> impl Iterator<Item = &Event> {
        self.events.range(sequence.saturating_add(1)..).map(|(_, event)| event)
    }
}
