//! Taking over a kernel device whose daemon is gone (R14): an attach with the next epoch, after
//! which the kernel sends again what was not answered.

use super::begin::{Purpose, activate, admit};
use super::device::Device;
use super::keeper::Inherited;
use super::{Attachments, Operation, end};
use crate::control::Node;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::Status;
use types::{EngineInstance, Epoch, VolumeId};
use uuid::Uuid;

/// A device to be taken over, and the right to do it: nobody else may attach the volume before.
#[derive(Debug)]
pub(in crate::control) struct Resumption {
    inherited: Inherited,
    operation: Operation,
}

/// Claims all inherited devices. To be called before anybody is served.
pub(in crate::control) fn claim(
    attachments: &Attachments,
    inherited: Vec<Inherited>,
) -> Vec<Resumption> {
    let claim = |inherited: Inherited| {
        let operation = attachments.begin(inherited.volume).ok()?;
        Some(Resumption { inherited, operation })
    };
    inherited.into_iter().filter_map(claim).collect()
}

/// Takes over one device; if that cannot be, its I/O gets errors and it is removed.
pub(in crate::control) async fn resume(node: Arc<Node>, resumption: Resumption) {
    let Resumption { inherited, operation: _operation } = resumption;
    let volume = inherited.volume;
    let begun = hostio::clock::boottime();
    let former = Purpose::Resume(inherited.note.engines.clone());
    let path = inherited.note.device.clone();
    let instance = EngineInstance(Uuid::new_v4());
    let mut device = Device::inherited(&node, inherited, instance);
    match run(&node, volume, &mut device, path, &former, instance).await {
        Ok(epoch) => {
            let took = hostio::clock::boottime().since(begun).as_secs_f64();
            let message = format!("device taken over from a former daemon after {took:.3} s");
            node.events.local("device_resumed", Some(volume), Some(epoch), &message);
        }
        Err(status) => {
            let message = format!("the device of a former daemon is lost: {}", status.message());
            tracing::warn!(node = %node.config.node, %volume, "{message}");
            node.events.local("device_lost", Some(volume), None, &message);
            device.remove(&node, true).await;
            let epoch = node.attachments.inner().get(&volume).map(|local| local.epoch);
            if let Some(epoch) = epoch {
                end::give_up(&node, volume, epoch, instance).await;
            }
        }
    }
}

async fn run(
    node: &Node,
    volume: VolumeId,
    device: &mut Device,
    path: PathBuf,
    former: &Purpose,
    instance: EngineInstance,
) -> Result<Epoch, Status> {
    // Before Raft hears of it: a successor of ours must know this engine as one of the device's.
    device.note(node, path.clone()).await?;
    let epoch = admit(node, volume, instance, former).await?;
    activate(node, volume, epoch, instance, former).await?;
    device.resume(node, path, instance).await?;
    if let Some(local) = node.attachments.inner().get_mut(&volume) {
        local.device = Some(device.clone());
    }
    Ok(epoch)
}
