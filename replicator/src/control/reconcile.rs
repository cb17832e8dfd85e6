//! Makes this node's pool hold what the applied state says, and reports what it does not; see
//! [`policy::pool`].

use super::Node;
use super::status::CommandError;
use super::steps::{Ended, Steps};
use crate::data::DataError;
use core::time::Duration;
use policy::pool::{self, Report, Task, orphans, plan};
use std::collections::BTreeSet;
use std::sync::Arc;
use types::PoolId;

/// How long a report may take before it is tried again.
const REPORT: Duration = Duration::from_secs(5);

/// What comes into the pool after its attempt was given up is seen at the latest then.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the pool in step with the applied state, for ever.
pub(super) async fn run(node: Arc<Node>) {
    let mut applied = node.meta.watch();
    let mut steps = Steps::new();
    let mut told = BTreeSet::new();
    loop {
        applied.borrow_and_update();
        // The list is newer than the state: what a replica is known to have, or to have sealed, it shows.
        let state = node.meta.state();
        let Ok(present) = node.data.replicas().await else { return };
        for orphan in orphans(&state, &present) {
            if orphan.allocated > 0 && told.insert(orphan.replica) {
                let (volume, replica, bytes) = (orphan.volume, orphan.replica, orphan.allocated);
                tracing::warn!(node = %node.config.node, %volume, %replica, bytes, "the pool holds a replica that the metadata do not know; it is left alone");
            }
        }
        for task in plan(&state, node.config.node, node.pool.id, &present) {
            let node = Arc::clone(&node);
            steps.begin(task.replica(), move || async move { carry_out(&node, task).await });
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = steps.progress() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Returns the pool that holds this node's replicas once the state says that it is another one than
/// ours (R11): the state that the daemon started with was behind.
pub(super) async fn swapped(node: &Node) -> PoolId {
    let mut applied = node.meta.watch();
    loop {
        applied.borrow_and_update();
        let other = pool::swapped(&node.meta.state(), node.config.node, node.pool.id);
        if let Some(other) = other {
            return other;
        }
        if applied.changed().await.is_err() {
            // Raft is gone: whoever waits for that ends the daemon.
            return core::future::pending().await;
        }
    }
}

async fn carry_out(node: &Node, task: Task) -> Ended {
    if let Some(question) = task.question() {
        match node.proposer.propose(question, REPORT).await {
            Err(CommandError::Refused(refused)) if task.is_confirmed_by(&refused) => {}
            Ok(_) | Err(CommandError::Refused(_)) => return Ended::Done,
            Err(CommandError::Unknown { .. }) => return Ended::Again,
        }
    }
    let done = match task.admin() {
        Some(admin) => match node.data.admin(admin).await {
            Ok(()) => Ok(()),
            Err(DataError::Store(error)) => Err(error),
            Err(_) => return Ended::Refused,
        },
        None => Ok(()),
    };
    let replica = task.replica();
    let report = match task.report(&done) {
        Report::Propose(report) => report,
        Report::Nothing => {
            tracing::info!(node = %node.config.node, ?task, "replica");
            return Ended::Done;
        }
        Report::NotDone => {
            tracing::warn!(node = %node.config.node, %replica, ?task, ?done, "the pool did not do it");
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
