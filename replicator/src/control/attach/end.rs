//! Detaching, of attachments that work and of dead ones.

use super::Local;
use crate::control::Node;
use crate::control::status::CommandError;
use core::time::Duration;
use metadata::{Attachment, Command, Refused};
use policy::attachment::is_ours;
use std::sync::Arc;
use tokio::time::timeout;
use tonic::Status;
use types::{EngineInstance, Epoch, VolumeId};

/// How long an engine may take to flush, seal and close; it gives up its I/O after 10 s (R4).
const STOP: Duration = Duration::from_secs(15);
/// How long a detach may take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(8);
/// How long the record may take to be changed.
const COMMAND: Duration = Duration::from_secs(15);

/// Detaches `volume` here: nothing of it is left when this returns. Idempotent.
pub(in crate::control) async fn detach(node: &Arc<Node>, volume: VolumeId) -> Result<(), Status> {
    let operation = node.attachments.begin_patiently(volume).await?;
    let node = Arc::clone(node);
    let work = tokio::spawn(async move {
        let _operation = operation;
        let device = node
            .attachments
            .inner()
            .get(&volume)
            .filter(|local| local.failed.is_none())
            .and_then(|local| local.device.clone());
        if let Some(device) = device
            && device.in_use().await
        {
            return Err(Status::failed_precondition(format!(
                "the device of volume {volume} is in use (mounted?): unmount it first"
            )));
        }
        let clean = tear_down(&node, volume).await;
        release(&node, volume, clean).await
    });
    work.await.unwrap_or_else(|_| Err(Status::internal("the detach ended unexpectedly")))
}

/// At the end of the daemon, for what ends with it: engines close so that the next attach is quick,
/// and devices go away. Kernel devices that are kept are left to [`retire_all`].
/// An attachment whose device is in use stays in the record: it is dead, as after a kill (R14).
pub(in crate::control) async fn detach_mortal(node: &Arc<Node>) {
    let detach = |volume| async move {
        if outlives(node, volume).await {
            return;
        }
        let ended = match timeout(FAREWELL, detach(node, volume)).await {
            Ok(Ok(())) => return,
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!(node = %node.config.node, %volume, error = ended, "not detached cleanly");
        if let Ok(_operation) = node.attachments.begin(volume) {
            tear_down(node, volume).await;
        }
    };
    futures::future::join_all(node.attachments.volumes().into_iter().map(detach)).await;
}

/// Whether the device of `volume` works and is kept for a successor (R14). Who uses it is not asked:
/// an open raw block device cannot be told from an idle one.
async fn outlives(node: &Arc<Node>, volume: VolumeId) -> bool {
    let device = match node.attachments.inner().get(&volume) {
        Some(Local { device: Some(device), failed: None, .. }) => device.clone(),
        _ => return false,
    };
    device.is_kept(node).await
}

/// At the very end of the daemon: the engines of devices that are kept close, and the devices wait
/// for the next daemon. In the record they stay attached.
pub(in crate::control) async fn retire_all(node: &Arc<Node>) {
    let retire = |volume| async move {
        let Ok(_operation) = node.attachments.begin(volume) else { return };
        let device = node.attachments.inner().get(&volume).and_then(|l| l.device.clone());
        let Some(device) = device else { return };
        let ended = timeout(FAREWELL, async {
            device.retire(node).await;
            stop(node, volume).await
        });
        let clean = ended.await.unwrap_or(false);
        tracing::info!(node = %node.config.node, %volume, clean, "device left for the next daemon");
        node.attachments.inner().remove(&volume);
    };
    futures::future::join_all(node.attachments.volumes().into_iter().map(retire)).await;
}

/// Removes the local half of an attachment, whatever state it is in; returns what was there, and
/// whether the engine closed cleanly (R20).
pub(super) async fn tear_down(
    node: &Node,
    volume: VolumeId,
) -> Option<(Epoch, EngineInstance, bool)> {
    let (epoch, instance, device, failed) = {
        let mut locals = node.attachments.inner();
        let local = locals.get_mut(&volume)?;
        let ours = is_ours(&node.meta.state(), volume, local.epoch, local.instance);
        (local.epoch, local.instance, local.device.take(), local.failed.is_some() || !ours)
    };
    tracing::info!(node = %node.config.node, %volume, %epoch, failed, "detaching");
    if failed {
        node.data.fail_engine(volume);
    }
    if let Some(device) = device {
        device.remove(node, failed).await;
    }
    let clean = stop(node, volume).await && !failed;
    node.attachments.inner().remove(&volume);
    Some((epoch, instance, clean))
}

async fn stop(node: &Node, volume: VolumeId) -> bool {
    match timeout(STOP, node.data.stop_engine(volume)).await {
        Ok(Ok(clean)) => clean,
        Ok(Err(error)) => {
            tracing::warn!(node = %node.config.node, %volume, %error, "the engine did not close cleanly");
            false
        }
        Err(_) => {
            tracing::warn!(node = %node.config.node, %volume, "the engine did not close in time");
            node.data.fail_engine(volume);
            false
        }
    }
}

/// An attach did not come to its end: the engine goes, the record is released if it can be.
pub(super) async fn give_up(node: &Node, volume: VolumeId, epoch: Epoch, instance: EngineInstance) {
    tear_down(node, volume).await;
    // If nobody answers, the next attach takes over by the epoch, or a fence does.
    if let Err(status) = release(node, volume, Some((epoch, instance, false))).await {
        tracing::warn!(node = %node.config.node, %volume, %epoch, error = status.message(), "not released");
    }
}

/// Ends the attachment in the record: that which was torn down here, or one of a former process
/// of this node.
pub(super) async fn release(
    node: &Node,
    volume: VolumeId,
    here: Option<(Epoch, EngineInstance, bool)>,
) -> Result<(), Status> {
    let state = node.meta.state();
    let Some(record) = state.volumes.get(&volume) else { return Ok(()) };
    let held = match record.attachment {
        Attachment::Attaching { node: at, instance }
        | Attachment::Attached { node: at, instance }
            if at == node.config.node =>
        {
            Some((record.epoch, instance))
        }
        _ => None,
    };
    let (epoch, instance, clean) = match (here, held) {
        (Some((epoch, instance, clean)), _) => (epoch, instance, clean),
        (None, Some((epoch, instance))) => (epoch, instance, false),
        (None, None) => return Ok(()),
    };
    let detach = Command::Detach { volume, epoch, instance, clean };
    match node.proposer.propose(detach, COMMAND).await {
        Ok(_) => Ok(()),
        // Somebody took over, or it is gone: not ours any more, which is what was wanted.
        Err(CommandError::Refused(
            Refused::Superseded { .. } | Refused::WrongState { .. } | Refused::NoVolume { .. },
        )) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
