//! Applied states for tests, made by real commands only.
#![allow(clippy::unwrap_used)]

use metadata::{
    Command, Done, Membership, NewReplica, NodeInfo, Outcome, PoolClass, PoolInfo, State,
};
use types::{
    BootId, EngineInstance, Epoch, Incarnation, IsrVersion, NodeId, PoolId, ReplicaId, SnapshotId,
    VolumeId,
};
use uuid::Uuid;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0x10));
pub(crate) const ENGINE: EngineInstance = EngineInstance(Uuid::from_u128(0x20));

/// The replica of [`VOLUME`] on `node`.
pub(crate) fn replica(node: u64) -> ReplicaId {
    ReplicaId(Uuid::from_u128(0x100 + u128::from(node)))
}

/// Its incarnation.
pub(crate) fn incarnation(node: u64) -> Incarnation {
    Incarnation(Uuid::from_u128(0x200 + u128::from(node)))
}

/// A snapshot of [`VOLUME`].
pub(crate) fn snapshot(number: u64) -> SnapshotId {
    SnapshotId(Uuid::from_u128(0x600 + u128::from(number)))
}

/// The pool of `node`.
pub(crate) fn pool(node: u64) -> PoolId {
    PoolId(Uuid::from_u128(0x300 + u128::from(node)))
}

pub(crate) fn info(node: u64) -> NodeInfo {
    NodeInfo {
        node: NodeId(node),
        name: format!("n{node}"),
        control_address: format!("10.0.0.{node}:7420"),
        data_address: format!("10.0.0.{node}:7421"),
        pool: Some(PoolInfo { id: pool(node), bytes: 10 << 30 }),
        class: Some(PoolClass::Medium),
        zone: None,
        boot: BootId(Uuid::from_u128(0x400)),
        process: EngineInstance(Uuid::from_u128(0x500 + u128::from(node))),
    }
}

/// A cluster and its log so far.
pub(crate) struct Cluster {
    pub(crate) state: State,
    index: u64,
}

impl Cluster {
    /// Three voters, all up.
    pub(crate) fn new() -> Self {
        let mut cluster = Self { state: State::default(), index: 1 };
        let voters = (1..=3).map(NodeId).collect();
        let membership = Membership { voters, ..Membership::default() };
        cluster.state.apply_empty(1, 1, Some(membership));
        for node in 1..=3 {
            cluster.done(Command::RegisterNode(info(node)));
        }
        cluster
    }

    /// Another membership, as Raft commits it.
    pub(crate) fn member(&mut self, membership: Membership) {
        self.index += 1;
        self.state.apply_empty(self.index, 1, Some(membership));
    }

    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        self.state.apply(self.index, 1, &command).outcome
    }

    pub(crate) fn done(&mut self, command: Command) -> Done {
        self.apply(command).unwrap()
    }

    /// [`VOLUME`] with replicas on `nodes`, not made yet.
    pub(crate) fn create(&mut self, nodes: &[u64]) {
        let new = |node: &u64| NewReplica {
            replica: replica(*node),
            incarnation: incarnation(*node),
            node: NodeId(*node),
        };
        self.done(Command::CreateVolume {
            volume: VOLUME,
            name: "v".to_owned(),
            size: 1 << 30,
            repl: u32::try_from(nodes.len()).unwrap(),
            class: None,
            fs_type: None,
            pinned: false,
            source: None,
            replicas: nodes.iter().map(new).collect(),
        });
    }

    /// [`VOLUME`] with replicas on `nodes`, ready.
    pub(crate) fn volume(&mut self, nodes: &[u64]) {
        self.create(nodes);
        for node in nodes {
            self.done(Command::ReplicaReady { replica: replica(*node) });
        }
    }

    /// Attaches [`VOLUME`] to `node` with all its replicas; returns the epoch.
    pub(crate) fn attach(&mut self, node: u64) -> Epoch {
        let record = &self.state.volumes[&VOLUME];
        let (expected_epoch, isr_version) = (record.epoch, record.isr_version);
        let isr = record.isr.iter().copied().collect();
        let node = NodeId(node);
        self.done(Command::BeginAttach {
            volume: VOLUME,
            node,
            instance: ENGINE,
            expected_epoch,
            internal: false,
        });
        let epoch = expected_epoch.next();
        let activate =
            Command::Activate { volume: VOLUME, epoch, instance: ENGINE, isr, isr_version };
        self.done(activate);
        epoch
    }

    /// Begins to take a snapshot of [`VOLUME`].
    pub(crate) fn begin_snapshot(&mut self, number: u64, hidden: bool) {
        self.done(Command::CreateSnapshot {
            snapshot: snapshot(number),
            name: format!("s{number}"),
            volume: VOLUME,
            created_unix_ms: 0,
            hidden,
        });
    }

    /// Takes a snapshot of [`VOLUME`], which is attached.
    pub(crate) fn snapshot(&mut self, number: u64, hidden: bool) {
        self.begin_snapshot(number, hidden);
        let record = &self.state.volumes[&VOLUME];
        let taken = Command::SnapshotTaken {
            snapshot: snapshot(number),
            epoch: record.epoch,
            isr_version: record.isr_version,
            holders: record.isr.iter().copied().collect(),
        };
        self.done(taken);
    }

    /// Detaches [`VOLUME`] cleanly.
    pub(crate) fn detach(&mut self) {
        let epoch = self.state.volumes[&VOLUME].epoch;
        self.done(Command::Detach { volume: VOLUME, epoch, instance: ENGINE, clean: true });
    }

    pub(crate) fn isr_version(&self) -> IsrVersion {
        self.state.volumes[&VOLUME].isr_version
    }
}
