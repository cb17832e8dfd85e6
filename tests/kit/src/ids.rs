//! Ids made from small numbers, and the greeting of a session that uses them.

use types::{
    BootId, ClusterId, EngineInstance, Epoch, Incarnation, NodeId, PoolId, Process, ReplicaId,
    VolumeId,
};
use wire::{Hello, Role};

/// The cluster of all rigs.
pub const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
/// The pool of all rigs.
pub const POOL: PoolId = PoolId::from_bytes([2; 16]);

/// Volume `n`.
#[must_use]
pub const fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 16])
}

/// The replica of volume `n`.
#[must_use]
pub const fn replica(n: u8) -> ReplicaId {
    ReplicaId::from_bytes([n ^ 0x80; 16])
}

/// The incarnation of that replica.
#[must_use]
pub const fn incarnation(n: u8) -> Incarnation {
    Incarnation::from_bytes([n ^ 0x40; 16])
}

/// Engine `n`.
#[must_use]
pub const fn instance(n: u8) -> EngineInstance {
    EngineInstance::from_bytes([n; 16])
}

/// Boot `n` of the host.
#[must_use]
pub const fn boot(n: u8) -> BootId {
    BootId::from_bytes([n; 16])
}

/// Run `n` of the daemon of node 1, on boot 1.
#[must_use]
pub const fn process(n: u8) -> Process {
    Process { node: NodeId(1), boot: boot(1), run: instance(n) }
}

/// What an engine of `epoch` says first to the replica of volume `n`.
#[must_use]
pub const fn hello(n: u8, epoch: u64, role: Role) -> Hello {
    Hello {
        cluster: CLUSTER,
        volume: volume(n),
        replica: replica(n),
        incarnation: incarnation(n),
        sealed: Epoch(0),
        epoch: Epoch(epoch),
        instance: instance(epoch as u8),
        process: process(1),
        role,
    }
}
