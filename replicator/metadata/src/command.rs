//! The commands of the replicated state machine. Each is a compare-and-set: it names what it
//! believes and is refused with a typed reason when the record says otherwise (R1).

use crate::state::{FsType, PoolClass};
use serde::{Deserialize, Serialize};
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, VolumeId,
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

    /// Creates a volume. Idempotent by name: the same name with the same size, repl, class and
    /// filesystem gives the existing volume.
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
        /// Where its replicas go, `repl` of them on different nodes.
        replicas: Vec<NewReplica>,
    },
    /// A node made a replica. When all exist the volume can be attached.
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
        /// The replica.
        replica: NewReplica,
    },
    /// Gives up a replica that is not in the ISR; its node then deletes it (R27). The ISR must be the
    /// one that the proposer saw: one that shrank since may need the replica again.
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
    /// Replaces an in-sync replica by one elsewhere: `to` is made and resynced, and only then may `from`
    /// be released.
    MoveReplica {
        /// The volume.
        volume: VolumeId,
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
    /// Deletes a volume; absent is a success. Refused while a live node holds it.
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
    /// Adds a replica that is in sync (R5), if the volume has fewer of them than it wants.
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
}
