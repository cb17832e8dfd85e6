//! Attachments without a device, by which this node does something with a volume by itself: takes a
//! snapshot of a detached one, or copies into a new one what it begins with (R26). They go through the
//! same epochs, seals and leases as any; a user who comes meanwhile waits until they end.

use super::begin::{Purpose, activate, admit};
use super::{On, Operation, end};
use crate::control::Node;
use crate::control::status::data_status;
use crate::data::DataError;
use core::time::Duration;
use engine::{FillHolder, FillSource, SnapshotError};
use metadata::{Command, Lifecycle, State};
use policy::attachment::is_ours;
use policy::snapshot::{holders, source};
use std::sync::Arc;
use tokio::time::timeout;
use tonic::Status;
use types::{EngineInstance, Epoch, SnapshotId, VolumeId};
use uuid::Uuid;

/// How long a snapshot may take on all replicas. The engine holds writes for much less, and gives up
/// before.
const SNAPSHOT: Duration = Duration::from_secs(20);
/// How long one command may take through changes of the leader.
const COMMAND: Duration = Duration::from_secs(15);
/// How often attachments of a former daemon are looked for that could not be ended.
const LOOK: Duration = Duration::from_secs(2);

/// An engine that runs without a device; it must be [stopped](Internal::stop) and
/// [released](Internal::release).
pub(super) struct Internal<'n> {
    node: &'n Node,
    volume: VolumeId,
    epoch: Epoch,
    instance: EngineInstance,
    /// Nobody else changes the attachment meanwhile.
    operation: Operation,
}

impl<'n> Internal<'n> {
    pub(super) async fn begin(
        node: &'n Node,
        volume: VolumeId,
        operation: Operation,
    ) -> Result<Self, Status> {
        let instance = EngineInstance(Uuid::new_v4());
        let epoch = admit(node, volume, instance, &Purpose::Internal).await?;
        if let Err(status) = activate(node, volume, epoch, instance, &Purpose::Internal).await {
            end::give_up(node, volume, epoch, instance).await;
            return Err(status);
        }
        Ok(Self { node, volume, epoch, instance, operation })
    }

    /// Completes when somebody else wants the volume.
    pub(super) async fn wanted(&self) {
        self.operation.wanted().await;
    }

    /// Whether the record still grants the volume to this engine, and it has not failed.
    pub(super) fn works(&self) -> bool {
        let local = self.node.attachments.inner();
        local.get(&self.volume).is_some_and(|local| local.failed.is_none())
            && is_ours(&self.node.meta.state(), self.volume, self.epoch, self.instance)
    }

    /// Flushes, seals and closes; returns whether that was clean on every in-sync replica.
    pub(super) async fn stop(&self) -> bool {
        end::tear_down(self.node, self.volume).await.is_some_and(|(_, _, clean)| clean)
    }

    pub(super) async fn release(self, clean: bool) {
        let here = Some((self.epoch, self.instance, clean));
        // If nobody answers, `release_dead` does it, or a fence.
        if let Err(status) = end::release(self.node, self.volume, here).await {
            tracing::warn!(volume = %self.volume, epoch = %self.epoch, error = status.message(), "not released");
        }
    }
}

/// Takes a snapshot that Raft has as being taken, of a volume that is attached here or detached, and has
/// Raft record it. To be called once for each id: an id is one attempt.
pub(in crate::control) async fn take_snapshot(
    node: &Arc<Node>,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<(), Status> {
    let node = Arc::clone(node);
    let work = tokio::spawn(async move {
        let serves = node.attachments.inner().get(&volume).is_some_and(|l| l.device.is_some());
        if serves {
            return take(&node, volume, snapshot).await;
        }
        let operation = internally(&node, volume)?;
        let internal = Internal::begin(&node, volume, operation).await?;
        let taken = take(&node, volume, snapshot).await;
        let clean = internal.stop().await;
        internal.release(clean).await;
        taken
    });
    work.await.unwrap_or_else(|_| Err(Status::internal("the snapshot ended unexpectedly")))
}

/// With the engine that is active here.
async fn take(node: &Node, volume: VolumeId, snapshot: SnapshotId) -> Result<(), Status> {
    let taken = timeout(SNAPSHOT, node.data.snapshot(volume, snapshot))
        .await
        .map_err(|_| Status::aborted("the snapshot took too long"))?
        .map_err(|error| match error {
            DataError::Snapshot(SnapshotError::Full(_)) => {
                Status::resource_exhausted(error.to_string())
            }
            error => Status::aborted(error.to_string()),
        })?;
    let (epoch, isr_version, holders) = (taken.epoch, taken.isr_version, taken.holders);
    let message = format!(
        "writes were held for {:.1} ms for snapshot {snapshot} on {} replicas",
        taken.pause.as_secs_f64() * 1e3,
        holders.len()
    );
    let record = Command::SnapshotTaken { snapshot, epoch, isr_version, holders };
    node.proposer.propose(record, COMMAND).await?;
    node.events.local("snapshot_pause", Some(volume), Some(epoch), &message);
    Ok(())
}

pub(super) fn internally(node: &Node, volume: VolumeId) -> Result<Operation, Status> {
    node.attachments.begin_as(volume, On::Internal).map_err(|_| super::in_flight(volume))
}

/// Copies into a new volume what it begins with, and has Raft record it. The work goes on if the caller
/// goes away.
pub(in crate::control) async fn fill(node: &Arc<Node>, volume: VolumeId) -> Result<(), Status> {
    let operation = internally(node, volume)?;
    let node = Arc::clone(node);
    let work = tokio::spawn(async move {
        let filled = fill_once(&node, volume, operation).await;
        if let Err(status) = &filled {
            tracing::warn!(node = %node.config.node, %volume, error = status.message(), "not filled");
        }
        filled
    });
    work.await.unwrap_or_else(|_| Err(Status::internal("the filling ended unexpectedly")))
}

async fn fill_once(node: &Arc<Node>, volume: VolumeId, operation: Operation) -> Result<(), Status> {
    // The leader's state may be newer than this one: it asks again.
    fill_source(node, &node.meta.state(), volume)?;
    let begun = hostio::clock::boottime();
    let internal = Internal::begin(node, volume, operation).await?;
    let epoch = internal.epoch;
    let copied = async {
        let source = fill_source(node, &node.meta.state(), volume)?;
        let (from, size) = (source.snapshot, source.size);
        node.data.fill(volume, source).await.map_err(|error| data_status("filling", &error))?;
        Ok::<_, Status>((from, size))
    };
    let copied = copied.await;
    let clean = internal.stop().await;
    let filled = async {
        let (from, size) = copied?;
        // Only what is flushed on every in-sync replica may be relied upon.
        if !clean {
            return Err(Status::unavailable("what was copied could not be flushed everywhere"));
        }
        node.proposer.propose(Command::Filled { volume, epoch }, COMMAND).await?;
        let took = hostio::clock::boottime().since(begun).as_secs_f64();
        let message = format!("{size} bytes of snapshot {from} copied in {took:.3} s");
        node.events.local("fill_done", Some(volume), Some(epoch), &message);
        Ok(())
    };
    let filled = filled.await;
    internal.release(clean).await;
    filled
}

/// What `volume` is to be filled from, as this node reaches it.
fn fill_source(node: &Node, state: &State, volume: VolumeId) -> Result<FillSource, Status> {
    let record = state.volumes.get(&volume).filter(|v| v.lifecycle == Lifecycle::Filling);
    let record = record
        .ok_or_else(|| Status::aborted(format!("volume {volume} is not one to be filled")))?;
    let from = source(state, record)
        .ok_or_else(|| Status::aborted(format!("the source of volume {volume} is not there")))?;
    let holder = |replica: &metadata::Replica| {
        let address = if replica.node == node.config.node {
            None
        } else {
            Some(state.nodes.get(&replica.node)?.data_address.parse().ok()?)
        };
        let (replica, incarnation) = (replica.replica, replica.incarnation);
        Some(FillHolder { replica, incarnation, address })
    };
    let mut found: Vec<FillHolder> = holders(state, from).filter_map(holder).collect();
    // The nearest first.
    found.sort_by_key(|holder| holder.address.is_some());
    if found.is_empty() {
        let snapshot = from.snapshot;
        return Err(Status::unavailable(format!("no node with snapshot {snapshot} is up")));
    }
    Ok(FillSource { volume: from.volume, snapshot: from.snapshot, size: from.size, holders: found })
}

/// Ends internal attachments of this node that it does not have: those of a former daemon, and those whose
/// end could not be recorded. Nobody else would, and users wait for it. For ever.
pub(in crate::control) async fn release_dead(node: Arc<Node>) {
    let mut applied = node.meta.watch();
    loop {
        applied.borrow_and_update();
        let here = node.config.node;
        let dead: Vec<VolumeId> = {
            let state = node.meta.state();
            let internal = state.held_by(here).filter(|record| record.internal);
            internal
                .filter(|record| !is_local(&node, &state, record.volume))
                .map(|v| v.volume)
                .collect()
        };
        for volume in &dead {
            // What is under way here is not dead, and whoever attaches it anew needs no help.
            let Ok(_operation) = internally(&node, *volume) else { continue };
            let state = node.meta.state();
            let internal = state.volumes.get(volume).is_some_and(|record| record.internal);
            if internal && !is_local(&node, &state, *volume) {
                tracing::info!(node = %here, %volume, "ending an internal attachment of a former daemon");
                if let Err(status) = end::release(&node, *volume, None).await {
                    tracing::warn!(node = %here, %volume, error = status.message(), "not released");
                }
            }
        }
        let changed = async {
            if dead.is_empty() {
                applied.changed().await.is_ok()
            } else {
                tokio::time::sleep(LOOK).await;
                applied.has_changed().is_ok()
            }
        };
        if !changed.await {
            return;
        }
    }
}

/// Whether the engine that the record names is the one that runs here.
fn is_local(node: &Node, state: &State, volume: VolumeId) -> bool {
    let locals = node.attachments.inner();
    locals.get(&volume).is_some_and(|local| is_ours(state, volume, local.epoch, local.instance))
}
