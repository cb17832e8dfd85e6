//! What the data thread reports: changes of an ISR go to Raft, the rest becomes events.

use super::status::CommandError;
use super::{Node, attach};
use crate::data::DataEvent;
use core::time::Duration;
use engine::IsrAnswer;
use metadata::{Command, Done, Refused};
use policy::attachment::decided;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;
use types::{Epoch, VolumeId};

/// How long one change may take; the engine proposes again after Unavailable, until its own
/// timeout (R4).
const CHANGE: Duration = Duration::from_secs(4);
/// How long the report of a failed replica may take before the reconciler takes it over.
const REPORT: Duration = Duration::from_secs(10);

/// Handles reports until the data thread ends. Nothing here waits: a volume whose change takes
/// long must not delay another's.
pub(super) async fn follow(node: Arc<Node>, mut events: UnboundedReceiver<DataEvent>) {
    while let Some(event) = events.recv().await {
        let node = Arc::clone(&node);
        match event {
            DataEvent::ShrinkIsr { volume, epoch, isr_version, remove, ticket } => {
                tracing::info!(node = %node.config.node, %volume, %epoch, ?remove, "shrinking the ISR");
                let change = Command::ShrinkIsr { volume, epoch, isr_version, remove };
                tokio::spawn(async move {
                    let answer = propose(&node, volume, epoch, change).await;
                    node.data.isr_changed(volume, ticket, answer);
                });
            }
            DataEvent::GrowIsr { volume, epoch, isr_version, add, ticket } => {
                tracing::info!(node = %node.config.node, %volume, %epoch, %add, "growing the ISR");
                let change = Command::GrowIsr { volume, epoch, isr_version, add };
                tokio::spawn(async move {
                    let answer = propose(&node, volume, epoch, change).await;
                    node.data.isr_changed(volume, ticket, answer);
                });
            }
            DataEvent::EngineFailed { volume, epoch, reason } => {
                if node.attachments.fail(volume, epoch, &reason) {
                    node.events.local("engine_failed", Some(volume), Some(epoch), &reason);
                }
            }
            DataEvent::ReplicaFailed { replica, reason } => {
                tracing::warn!(node = %node.config.node, %replica, reason, "a replica failed");
                tokio::spawn(async move {
                    let failed = Command::ReplicaFailed { replica, reason };
                    if let Err(error) = node.proposer.propose(failed, REPORT).await {
                        tracing::warn!(node = %node.config.node, %replica, %error, "the failure was not recorded");
                    }
                });
            }
            DataEvent::Repaired { volume, replica, repaired, unrepairable } => {
                let epoch = node.meta.state().volumes.get(&volume).map(|record| record.epoch);
                let kind = if unrepairable > 0 { "blocks_lost" } else { "blocks_repaired" };
                let message = format!(
                    "replica {replica}: {repaired} blocks of 4 KiB were unreadable or corrupt and \
                     were rewritten from another copy, {unrepairable} have no good copy"
                );
                node.events.local(kind, Some(volume), epoch, &message);
            }
            DataEvent::ReplicasDiffer { volume, blocks } => {
                let epoch = node.meta.state().volumes.get(&volume).map(|record| record.epoch);
                let message = format!(
                    "in-sync replicas differ in {blocks} blocks of 64 KiB, each without a checksum \
                     that tells which is right"
                );
                node.events.local("replicas_differ", Some(volume), epoch, &message);
            }
            DataEvent::LinkDead { volume } => {
                tracing::warn!(node = %node.config.node, %volume, "the kernel's nbd lost a connection");
                tokio::spawn(attach::relink(node, volume));
            }
            DataEvent::PoolFull => {
                let message = "the pool is full: writes that need new space get ENOSPC";
                node.events.local("pool_full", None, None, message);
            }
            DataEvent::ResyncDone { volume, replica, total, copied } => {
                let epoch = node.meta.state().volumes.get(&volume).map(|record| record.epoch);
                let message = format!(
                    "replica {replica}: {copied} bytes copied of {total} that could differ"
                );
                node.events.local("resync_done", Some(volume), epoch, &message);
            }
        }
    }
}

async fn propose(node: &Node, volume: VolumeId, epoch: Epoch, change: Command) -> IsrAnswer {
    match node.proposer.propose(change, CHANGE).await {
        Ok(done) => {
            if let Done::NotGrown { why, .. } = done {
                tracing::info!(node = %node.config.node, %volume, %epoch, %why, "the ISR stays as it is");
            }
            decided(&node.meta.state(), volume, epoch)
        }
        Err(CommandError::Refused(Refused::Superseded { .. } | Refused::NoVolume { .. })) => {
            IsrAnswer::Superseded
        }
        Err(CommandError::Refused(refused)) => {
            tracing::info!(node = %node.config.node, %volume, %epoch, %refused, "the ISR stays as it is");
            decided(&node.meta.state(), volume, epoch)
        }
        Err(error @ CommandError::Unknown { .. }) => {
            tracing::warn!(node = %node.config.node, %volume, %epoch, %error, "the ISR was not changed yet");
            IsrAnswer::Unavailable
        }
    }
}
