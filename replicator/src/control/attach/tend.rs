//! Brings the replicas of a volume that nobody has attached up to date (R27): an engine without a device
//! lets them be added, resyncs them and grows the ISR, until the volume has what it wants or somebody else
//! wants the volume.

use super::internal::{Internal, internally};
use crate::control::Node;
use crate::control::snapshots::peer;
use core::time::Duration;
use metadata::{Lifecycle, Volume};
use policy::replace::tended;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::Status;
use types::{NodeId, VolumeId};

/// With nothing to do for so long the engine ends. The leader adds replicas sooner.
const IDLE: Duration = Duration::from_secs(3);

/// How long a node may take to hear that somebody wants a volume back.
const ASK: Duration = Duration::from_millis(500);
/// How long the end of what a node does with a volume by itself is waited for.
const RECLAIM: Duration = Duration::from_secs(5);

/// Begins to tend `volume`; returns once an engine of this node is active for it.
///
/// # Errors
/// ABORTED while another operation on the volume is in flight here; as an attach.
pub(in crate::control) async fn tend(node: &Arc<Node>, volume: VolumeId) -> Result<(), Status> {
    let operation = internally(node, volume)?;
    let node = Arc::clone(node);
    let (begun, beginning) = oneshot::channel();
    // It goes on when the caller has its answer, or has gone away.
    tokio::spawn(async move {
        let internal = match Internal::begin(&node, volume, operation).await {
            Ok(internal) => internal,
            Err(status) => return drop(begun.send(Err(status))),
        };
        let _ = begun.send(Ok(()));
        tokio::select! {
            () = finished(&node, volume, &internal) => {}
            () = internal.wanted() => {
                tracing::info!(node = %node.config.node, %volume, "somebody else wants the volume");
            }
        }
        let clean = internal.stop().await;
        internal.release(clean).await;
    });
    beginning.await.unwrap_or_else(|_| Err(Status::internal("the tending ended unexpectedly")))
}

/// Completes when there has been nothing to do for [`IDLE`], or the volume must be attached anew: somebody else
/// has it, the engine failed, or the volume grew.
async fn finished(node: &Node, volume: VolumeId, internal: &Internal<'_>) {
    let mut applied = node.meta.watch();
    let size = || node.meta.state().volumes.get(&volume).map(|record| record.size);
    let begun_with = size();
    loop {
        applied.borrow_and_update();
        // An engine without a device does not grow.
        if !internal.works() || size() != begun_with {
            return;
        }
        let idle = tended(&node.meta.state(), volume);
        // A failed engine changes no state: it is looked for again and again.
        match timeout(IDLE, applied.changed()).await {
            Ok(Err(_)) => return,
            Err(_) if idle => return,
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

/// Tells `holder`, which has `volume` without a device, that somebody wants it. Lost if the node does not
/// answer: to be repeated while it holds it.
pub(super) async fn ask_back(node: &Node, volume: VolumeId, holder: NodeId) {
    if holder == node.config.node {
        return node.attachments.want(volume);
    }
    let asked = match peer(node, holder, ASK) {
        Ok(peer) => peer.yield_volume(&volume.to_string()).await.map_err(|e| e.to_string()),
        Err(status) => Err(status.message().to_owned()),
    };
    if let Err(error) = asked {
        tracing::info!(%volume, node = %holder, error, "could not be asked to give the volume back");
    }
}

/// If a node has `volume` without a device, and does not fill it, asks for it until it is detached, for at
/// most [`RECLAIM`].
pub(in crate::control) async fn reclaim(node: &Node, volume: VolumeId) {
    let mut applied = node.meta.watch();
    let detached = async {
        loop {
            // Before the state is looked at, so that no later one is missed and no older one wakes us.
            applied.borrow_and_update();
            let state = node.meta.state();
            let live = |record: &&Volume| record.internal && record.lifecycle == Lifecycle::Live;
            let record = state.volumes.get(&volume).filter(live);
            let Some(holder) = record.and_then(|record| record.attachment.holder()) else { return };
            ask_back(node, volume, holder).await;
            let _ = timeout(ASK, applied.changed()).await;
        }
    };
    let _ = timeout(RECLAIM, detached).await;
}
