//! The commands of the replicated state machine. Each is a compare-and-set: it names what it
//! believes and is refused with a typed reason when the record says otherwise (R1).

use crate::failover::FailoverStep;
use crate::state::{FsType, PoolClass, Source};
use serde::{Deserialize, Serialize};
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, SnapshotId,
    VolumeId,
};

/// A pool as metadata knows it. Free space is not recorded: it changes with every write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Identity in the pool's superblock (R11).
    pub id: PoolId,
    /// Usable bytes.
    pub bytes: u64,
}

/// What a node says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node.
    pub node: NodeId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// `ip:port` of its control API.
    pub control_address: String,
    /// `ip:port` where it serves replicas.
    pub data_address: String,
    /// Its pool; `None` for a node that only attaches.
    pub pool: Option<PoolInfo>,
    /// Class of the pool, `None` if it has none.
    pub class: Option<PoolClass>,
    /// Where it stands: what fails together. `None`: nothing is known.
    pub zone: Option<String>,
    /// Boot of the host (R9).
    pub boot: BootId,
    /// One run of the daemon: a new one has no engines (R14).
    pub process: EngineInstance,
}

/// A replica that a proposer wants to exist; ids are made by the proposer and never reused (R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewReplica {
    /// Its id.
    pub replica: ReplicaId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Where, as [`crate::placement::place`] chose.
    pub node: NodeId,
}

/// One entry of the Raft log. See each variant for what it needs and what it does; every one may be
/// repeated by a proposer that does not know how an earlier try ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A node is up and describes itself. Refused for a retired id, another node's name or pool, or
    /// another pool than the one that holds its replicas (R11).
    RegisterNode(NodeInfo),
    /// Makes a node known (so that others can reach it) before it joins Raft.
    AddNode {
        /// The new node's id, never used before.
        node: NodeId,
        /// Its name.
        name: String,
        /// `ip:port` of its control API.
        control_address: String,
    },
    /// Forgets a node; its id is retired for good. Refused while it has replicas, holds a volume or
    /// is a Raft member. What a lost node was to delete is forgotten with it.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// The leader heard nothing from a node for the stated time. It never changes an ISR. Refused if
    /// more than a minority of voters would be lost.
    NodeLost {
        /// The node.
        node: NodeId,
    },
    /// A lost node is heard again.
    NodeUp {
        /// The node.
        node: NodeId,
        /// Boot of its host.
        boot: BootId,
        /// Run of its daemon.
        process: EngineInstance,
    },

    /// Creates a volume. Idempotent by name: the same name with the same size, repl, class,
    /// filesystem and source gives the existing volume.
    CreateVolume {
        /// Id for a new volume.
        volume: VolumeId,
        /// Name, 1-128 printable bytes.
        name: String,
        /// Bytes, a multiple of 1 MiB.
        size: u64,
        /// Copies, 1-3.
        repl: u32,
        /// Pool class wanted; `None` for any.
        class: Option<PoolClass>,
        /// Filesystem, remembered for stage.
        fs_type: Option<FsType>,
        /// It is to be used on nodes that hold a copy only.
        pinned: bool,
        /// What it begins with; a ready snapshot not larger than it. `None`: zeros.
        source: Option<Source>,
        /// Where its replicas go, `repl` of them on different nodes.
        replicas: Vec<NewReplica>,
    },
    /// A node made a replica. When all exist the volume can be attached, or filled from its source.
    ReplicaReady {
        /// The replica.
        replica: ReplicaId,
    },
    /// A replica failed for good (R11, R13). While no engine runs it leaves the ISR if another
    /// member remains; otherwise the engine shrinks.
    ReplicaFailed {
        /// The replica.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
    },
    /// Adds a replica outside the ISR to an existing volume (R27).
    AddReplica {
        /// The volume.
        volume: VolumeId,
        /// Of [`crate::Volume::added`] that the proposer saw: a repeat that comes late must not make again
        /// what was removed meanwhile (R11).
        added: u64,
        /// The replica.
        replica: NewReplica,
    },
    /// Gives up a replica that is not in the ISR; its node then deletes it (R27). The ISR must be the
    /// one that the proposer saw: one that shrank since may need the replica again. Of a retired volume,
    /// one whose every snapshot another sound replica on a node that is up has too.
    RemoveReplica {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        replica: ReplicaId,
        /// The version that the proposer saw.
        isr_version: IsrVersion,
    },
    /// Changes how many copies a volume wants, or of which class; the leader then adds, moves and
    /// releases replicas. `None`: stays as it is.
    ModifyVolume {
        /// The volume.
        volume: VolumeId,
        /// Copies, 1-3.
        repl: Option<u32>,
        /// Pool class; `Some(None)`: any.
        class: Option<Option<PoolClass>>,
    },
    /// Changes how much I/O a volume may do. `None`: stays as it is; `Some(None)`: no limit.
    LimitVolume {
        /// The volume.
        volume: VolumeId,
        /// Of [`crate::Limits::iops`].
        iops: Option<Option<u64>>,
        /// Of [`crate::Limits::bandwidth`].
        bandwidth: Option<Option<u64>>,
    },
    /// Replaces an in-sync replica by one elsewhere: `to` is made and resynced, and only then may `from`
    /// be released.
    MoveReplica {
        /// The volume.
        volume: VolumeId,
        /// As for [`Command::AddReplica`].
        added: u64,
        /// Who leaves.
        from: ReplicaId,
        /// Who comes instead.
        to: NewReplica,
    },
    /// Takes a replica out of the ISR that the volume can do without, and has its node delete it: as many
    /// others as are wanted are in sync on nodes that are up. The engine need not be asked: it goes on
    /// writing to more replicas than count until it learns of it.
    ReleaseReplica {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        replica: ReplicaId,
        /// The version that the proposer saw.
        isr_version: IsrVersion,
    },
    /// Deletes a volume; absent is a success. Refused while a live node holds it (unless that only
    /// fills it), and while a snapshot of it is being taken. With ready snapshots it is retired: nobody
    /// sees or attaches it any more, its replicas keep the snapshots, and it goes with the last of them.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A node deleted a replica and its space is free. The last one ends the volume's record.
    ReplicaDeleted {
        /// The replica.
        replica: ReplicaId,
    },
    /// Intends to grow a volume (R25). Every replica extends; then the new size is committed.
    ExpandBegin {
        /// The volume.
        volume: VolumeId,
        /// Bytes, a multiple of 1 MiB. Not above the current size: a success that changes nothing.
        size: u64,
    },
    /// A replica can hold `size` bytes, durably. When all ISR members can, the size is committed.
    ReplicaResized {
        /// The replica.
        replica: ReplicaId,
        /// Bytes.
        size: u64,
    },

    /// Takes the next epoch for an attachment (R2). From here on every command of the old epoch is
    /// refused.
    BeginAttach {
        /// The volume.
        volume: VolumeId,
        /// Where the engine will run.
        node: NodeId,
        /// The engine.
        instance: EngineInstance,
        /// The epoch that the proposer saw; the granted one is the next.
        expected_epoch: Epoch,
        /// Without a device, to take a snapshot of a detached volume or to fill a new one; others
        /// that want the volume wait until it is over. Never takes a volume from a user.
        internal: bool,
    },
    /// The engine has sealed, chosen its source and reconciled: `isr` is in sync; I/O may start
    /// (R2). Never a replica outside the committed ISR.
    Activate {
        /// The volume.
        volume: VolumeId,
        /// The epoch granted by [`Command::BeginAttach`].
        epoch: Epoch,
        /// The engine.
        instance: EngineInstance,
        /// The new ISR, a non-empty subset of the committed one.
        isr: Vec<ReplicaId>,
        /// The version that the proposer saw.
        isr_version: IsrVersion,
    },
    /// Ends an attachment.
    Detach {
        /// The volume.
        volume: VolumeId,
        /// Its epoch.
        epoch: Epoch,
        /// Its engine.
        instance: EngineInstance,
        /// All writes were flushed and the era sealed on every ISR member (R20).
        clean: bool,
    },
    /// Takes a volume away from a lost node (R7): the epoch rises, nobody holds it.
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The epoch that the proposer saw.
        expected_epoch: Epoch,
    },
    /// An ISR member promised durably to refuse epochs below `epoch` (R3, R7).
    FenceSealed {
        /// The volume.
        volume: VolumeId,
        /// The fence's epoch.
        epoch: Epoch,
        /// Who sealed.
        replica: ReplicaId,
    },
    /// Drops members from the ISR before a write that they missed is acknowledged (R4).
    ShrinkIsr {
        /// The volume.
        volume: VolumeId,
        /// The attachment's epoch.
        epoch: Epoch,
        /// The version that the proposer saw.
        isr_version: IsrVersion,
        /// Who leaves; at least one member stays.
        remove: Vec<ReplicaId>,
    },
    /// Adds a replica that is in sync (R5) and has all ready snapshots of the volume, if the volume has
    /// fewer of them than it wants. It becomes a holder of those snapshots.
    GrowIsr {
        /// The volume.
        volume: VolumeId,
        /// The attachment's epoch.
        epoch: Epoch,
        /// The version that the proposer saw.
        isr_version: IsrVersion,
        /// Who joins.
        add: ReplicaId,
    },

    /// Begins one attempt at a snapshot of a live volume (R26). Idempotent by name: a ready snapshot of
    /// the same name and volume is returned; one that is being taken refuses another attempt.
    CreateSnapshot {
        /// Id of the attempt, never used before.
        snapshot: SnapshotId,
        /// Name, 1-128 printable bytes; not looked at if `hidden`.
        name: String,
        /// Of which volume.
        volume: VolumeId,
        /// The proposer's clock, for people.
        created_unix_ms: u64,
        /// For a clone only: nobody sees it, and it goes when the clone is filled.
        hidden: bool,
    },
    /// The attempt succeeded: all of `holders` have the snapshot durably. They must be all of the ISR,
    /// the volume attached at `epoch` and of the size that it had when the attempt began.
    SnapshotTaken {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Of the engine that took it.
        epoch: Epoch,
        /// The version of the ISR that it was taken from.
        isr_version: IsrVersion,
        /// Who has it.
        holders: Vec<ReplicaId>,
    },
    /// Ends an attempt that will not succeed; refused if it did. Absent is a success.
    AbortSnapshot {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Deletes a snapshot, or aborts its attempt; absent is a success. Refused while a volume is being
    /// filled from it.
    DeleteSnapshot {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// A node dropped a snapshot that is being deleted from a replica. The last one ends its record.
    SnapshotDropped {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The replica that has it no more.
        replica: ReplicaId,
    },
    /// A new volume holds all of its source, flushed on its ISR: it can be attached.
    Filled {
        /// The volume.
        volume: VolumeId,
        /// Of the internal attachment that filled it.
        epoch: Epoch,
    },
    /// Says when a step of a failover was, as the proposer saw it. For people: nothing depends on it.
    NoteFailover {
        /// The volume.
        volume: VolumeId,
        /// The fence's epoch.
        epoch: Epoch,
        /// The node that was lost, sealed, or got the volume.
        node: NodeId,
        /// Which step.
        step: FailoverStep,
        /// Milliseconds since 1970.
        unix_ms: u64,
    },
}
