//! Makes this node's pool hold what the applied state says, and reports what it does not.
//!
//! Only explicit records lead to a deletion: a replica that the state does not mention may belong
//! to a state that this node has not applied yet, and is left alone.

#[cfg(test)]
mod tests;

use super::Node;
use super::status::CommandError;
use super::steps::{Ended, Steps};
use crate::data::DataError;
use core::time::Duration;
use metadata::{Command, Lifecycle, ReplicaState, State};
use std::sync::Arc;
use store::ReplicaInfo;
use types::{Incarnation, NodeId, ReplicaId, VolumeId};

/// How long a report may take before it is tried again.
const REPORT: Duration = Duration::from_secs(5);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Task {
    Create { volume: VolumeId, replica: ReplicaId, incarnation: Incarnation, size: u64 },
    Resize { replica: ReplicaId, size: u64 },
    Delete { replica: ReplicaId },
    Fail { replica: ReplicaId, reason: String },
}

impl Task {
    const fn replica(&self) -> ReplicaId {
        match self {
            Self::Create { replica, .. }
            | Self::Resize { replica, .. }
            | Self::Delete { replica }
            | Self::Fail { replica, .. } => *replica,
        }
    }
}

/// What node `here`, whose pool holds `present`, has to do.
fn plan(state: &State, here: NodeId, present: &[ReplicaInfo]) -> Vec<Task> {
    let task = |(volume, record): (&metadata::Volume, &metadata::Replica)| {
        let replica = record.replica;
        if volume.lifecycle == Lifecycle::Deleting || record.state == ReplicaState::Deleting {
            return Some(Task::Delete { replica });
        }
        let size = volume.reserved();
        let fail = |reason: &str| Some(Task::Fail { replica, reason: reason.to_owned() });
        let found = present.iter().find(|found| found.replica == replica);
        match (record.state, found) {
            (ReplicaState::Creating, _) => Some(Task::Create {
                volume: volume.volume,
                replica,
                incarnation: record.incarnation,
                size: record.size,
            }),
            (ReplicaState::Ready, None) => fail("it is not in the pool"),
            (ReplicaState::Ready, Some(found)) if found.incarnation != record.incarnation => {
                fail("the pool holds another incarnation")
            }
            (ReplicaState::Ready, Some(ReplicaInfo { failed: Some(reason), .. })) => fail(reason),
            (ReplicaState::Ready, Some(_)) => {
                (record.size < size).then_some(Task::Resize { replica, size })
            }
            // It may be all that is left of the data: kept until the volume or it is removed.
            (ReplicaState::Failed | ReplicaState::Deleting, _) => None,
        }
    };
    state.replicas_on(here).filter_map(task).collect()
}

/// Keeps the pool in step with the applied state, for ever.
pub(super) async fn run(node: Arc<Node>) {
    let mut applied = node.meta.watch();
    let mut steps = Steps::new();
    loop {
        applied.borrow_and_update();
        // The list is older than the state: what it lacks may be under way, and then its step is
        // still running and is not begun twice.
        let Ok(present) = node.data.replicas().await else { return };
        for task in plan(&node.meta.state(), node.config.node, &present) {
            let node = Arc::clone(&node);
            steps.begin(task.replica(), move || async move { carry_out(&node, task).await });
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = steps.progress() => {}
        }
    }
}

async fn carry_out(node: &Node, task: Task) -> Ended {
    let done = match &task {
        Task::Create { volume, replica, incarnation, size } => {
            node.data.create_replica(*volume, *replica, *incarnation, *size).await
        }
        Task::Resize { replica, size } => node.data.resize_replica(*replica, *size).await,
        Task::Delete { replica } => node.data.delete_replica(*replica).await,
        Task::Fail { .. } => Ok(()),
    };
    let replica = task.replica();
    let report = match (done, task) {
        (Ok(()), Task::Create { .. }) => Command::ReplicaReady { replica },
        (Ok(()), Task::Resize { size, .. }) => Command::ReplicaResized { replica, size },
        (Ok(()), Task::Delete { .. }) => Command::ReplicaDeleted { replica },
        (Ok(()), Task::Fail { reason, .. }) => Command::ReplicaFailed { replica, reason },
        // The store decides once and for all; the volume's creation must not wait for ever.
        (Err(DataError::Store(error)), Task::Create { .. }) => {
            Command::ReplicaFailed { replica, reason: error.to_string() }
        }
        (Err(error), task) => {
            tracing::warn!(node = %node.config.node, %replica, ?task, %error, "the pool did not do it");
            return Ended::Refused;
        }
    };
    tracing::info!(node = %node.config.node, ?report, "replica");
    match node.proposer.propose(report, REPORT).await {
        Ok(_) => Ended::Done,
        Err(CommandError::Refused(refused)) => {
            tracing::info!(node = %node.config.node, %replica, %refused, "the report was not needed");
            Ended::Refused
        }
        Err(CommandError::Unknown { reason }) => {
            tracing::warn!(node = %node.config.node, %replica, reason, "the report will be repeated");
            Ended::Again
        }
    }
}
