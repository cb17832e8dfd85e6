//! Attaching (R2).

use super::device::Device;
use super::{Frontend, Local, describe, end, tend};
use crate::control::Node;
use crate::control::status::{CommandError, data_status};
use client::api;
use core::time::Duration;
use engine::IsrView;
use metadata::{Command, Done, Refused, Volume};
use policy::attachment::{AfterRefusal, LOOK_AGAIN, after_refusal, is_ours, members, situation};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;
use types::{EngineInstance, Epoch, ReplicaId, VolumeId};
use uuid::Uuid;

/// How long an attach waits while a lost holder is being fenced.
const FENCE_WAIT: Duration = Duration::from_secs(60);
/// How long a device that a former daemon left waits for its volume to be granted again; then its
/// I/O gets errors.
const RESUME_WAIT: Duration = Duration::from_secs(30);
/// How long what is done without a device waits for its volume; it can be asked for again.
const INTERNAL_WAIT: Duration = Duration::from_secs(5);
/// How long one command may take through changes of the leader.
const COMMAND: Duration = Duration::from_secs(15);
/// How long the engine may take to seal and reconcile: two leases, and the I/O timeout.
const START: Duration = Duration::from_secs(30);

/// Attaches `volume` here and returns once the device works; without a `frontend`, with the kernel
/// device that this node chose. Idempotent.
pub(in crate::control) async fn attach(
    node: &Arc<Node>,
    volume: VolumeId,
    frontend: Option<Frontend>,
) -> Result<api::Attachment, Status> {
    let operation = node.attachments.begin_patiently(volume).await?;
    // A caller that goes away must not leave half an attachment: the work runs to its end.
    let node = Arc::clone(node);
    let work = tokio::spawn(async move {
        let _operation = operation;
        run(&node, volume, frontend).await
    });
    work.await.unwrap_or_else(|_| Err(Status::internal("the attach ended unexpectedly")))
}

async fn run(
    node: &Arc<Node>,
    volume: VolumeId,
    frontend: Option<Frontend>,
) -> Result<api::Attachment, Status> {
    if let Some(present) = healthy(node, volume, frontend).await? {
        return Ok(present);
    }
    let frontend = match frontend {
        Some(frontend) => frontend,
        None => node.kernel_device()?,
    };
    end::tear_down(node, volume).await;
    let begun = hostio::clock::boottime();
    let instance = EngineInstance(Uuid::new_v4());
    let epoch = admit(node, volume, instance, &Purpose::Anew).await?;
    match serve(node, volume, epoch, instance, frontend).await {
        Ok(device) => {
            if let Some(local) = node.attachments.inner().get_mut(&volume) {
                local.device = Some(device);
            }
        }
        Err(status) => {
            tracing::warn!(node = %node.config.node, %volume, %epoch, error = status.message(), "attach failed");
            end::give_up(node, volume, epoch, instance).await;
            return Err(status);
        }
    }
    let took = hostio::clock::boottime().since(begun);
    let message = format!("device ready after {:.3} s", took.as_secs_f64());
    node.events.local("device_ready", Some(volume), Some(epoch), &message);
    describe(node, volume)
        .await
        .ok_or_else(|| Status::aborted(format!("volume {volume} was superseded while attaching")))
}

/// The attachment that is here already, if it works.
async fn healthy(
    node: &Node,
    volume: VolumeId,
    frontend: Option<Frontend>,
) -> Result<Option<api::Attachment>, Status> {
    let ours = match node.attachments.inner().get(&volume) {
        None => return Ok(None),
        Some(local) => is_ours(&node.meta.state(), volume, local.epoch, local.instance),
    };
    match describe(node, volume).await {
        Some(present) if ours && !present.failed => {
            let wanted = frontend.map_or("a kernel device", Frontend::as_str);
            let fits = match frontend {
                Some(frontend) => present.frontend == frontend.as_str(),
                None => !present.device.is_empty(),
            };
            if fits {
                return Ok(Some(present));
            }
            Err(Status::already_exists(format!(
                "volume {volume} is attached here with front-end {:?}, not {wanted:?}: detach it \
                 first",
                present.frontend
            )))
        }
        _ => Ok(None),
    }
}

/// What an epoch is asked for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// For a device that does not exist yet.
    Anew,
    /// For no device: a snapshot or a filling.
    Internal,
    /// For one that was served by one of these engines, and only if no other has had the volume
    /// since (R14).
    Resume(BTreeSet<EngineInstance>),
}

impl Purpose {
    const fn resumes(&self) -> bool {
        matches!(self, Self::Resume(_))
    }

    fn patience(&self) -> Duration {
        match self {
            Self::Anew => FENCE_WAIT,
            Self::Internal => INTERNAL_WAIT,
            Self::Resume(_) => RESUME_WAIT,
        }
    }

    /// Whether it may be asked for as the record is. The epoch in it is the compare-and-set.
    fn allows(&self, record: Option<&Volume>) -> bool {
        match self {
            // An absent volume may only be unknown here yet: the leader decides.
            Self::Anew | Self::Internal => true,
            Self::Resume(former) => record
                .and_then(|record| record.attachment.instance())
                .is_some_and(|instance| former.contains(&instance)),
        }
    }
}

/// Begins the attachment: Raft grants the epoch, and the local half exists from here on.
pub(super) async fn admit(
    node: &Node,
    volume: VolumeId,
    instance: EngineInstance,
    purpose: &Purpose,
) -> Result<Epoch, Status> {
    let epoch = begin_epoch(node, volume, instance, purpose).await?;
    let resumes = purpose.resumes();
    tracing::info!(node = %node.config.node, %volume, %epoch, resumes, "attaching");
    let local = Local { epoch, instance, device: None, failed: None };
    node.attachments.inner().insert(volume, local);
    Ok(epoch)
}

/// Has Raft grant the next epoch, waiting while a lost holder is being fenced.
async fn begin_epoch(
    node: &Node,
    volume: VolumeId,
    instance: EngineInstance,
    purpose: &Purpose,
) -> Result<Epoch, Status> {
    let deadline = Instant::now() + purpose.patience();
    let mut applied = node.meta.watch();
    loop {
        applied.borrow_and_update();
        let state = node.meta.state();
        let record = state.volumes.get(&volume);
        if !purpose.allows(record) {
            return Err(Status::aborted(format!("volume {volume} was taken over meanwhile")));
        }
        let expected_epoch = record.map_or(Epoch::default(), |record| record.epoch);
        let internal = matches!(purpose, Purpose::Internal);
        let here = node.config.node;
        let begin = Command::BeginAttach { volume, node: here, instance, expected_epoch, internal };
        let refused = match node.proposer.propose(begin, COMMAND).await {
            Ok(Done::Epoch { epoch, .. }) => return Ok(epoch),
            Ok(other) => return Err(Status::internal(format!("unexpected outcome {other:?}"))),
            Err(CommandError::Refused(refused)) => refused,
            Err(unknown) => return Err(unknown.into()),
        };
        match after_refusal(&refused) {
            AfterRefusal::LookAgain if Instant::now() < deadline => continue,
            AfterRefusal::Wait => {
                if let Refused::HeldInternally { node: holder, .. } = refused {
                    tend::ask_back(node, volume, holder).await;
                }
                tracing::info!(node = %node.config.node, %volume, reason = %refused, "attach waits");
            }
            _ => return Err(CommandError::Refused(refused).into()),
        }
        // From the state that was looked at before: what the refusal was about may have changed
        // before its answer came, and then nothing would change any more.
        let changed = async {
            let before = situation(&state, volume, node.config.node);
            while before == situation(&node.meta.state(), volume, node.config.node) {
                if applied.changed().await.is_err() {
                    return;
                }
            }
        };
        let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
        if timeout_at(look_again, changed).await.is_err() && Instant::now() >= deadline {
            let waited = purpose.patience().as_secs();
            return Err(Status::deadline_exceeded(format!("after {waited} s still: {refused}")));
        }
    }
}

/// Seals, reconciles, activates and makes the device.
async fn serve(
    node: &Node,
    volume: VolumeId,
    epoch: Epoch,
    instance: EngineInstance,
    frontend: Frontend,
) -> Result<Device, Status> {
    activate(node, volume, epoch, instance, &Purpose::Anew).await?;
    Device::create(node, volume, frontend, instance).await
}

/// Seals, reconciles and activates: I/O may start.
pub(super) async fn activate(
    node: &Node,
    volume: VolumeId,
    epoch: Epoch,
    instance: EngineInstance,
    purpose: &Purpose,
) -> Result<(), Status> {
    let superseded =
        || Status::aborted(format!("volume {volume} was taken over while attaching at {epoch}"));
    let state = node.meta.state();
    let record = state.volumes.get(&volume).ok_or_else(superseded)?;
    let spec = engine::EngineConfig {
        cluster: node.config.cluster,
        volume,
        size: record.size,
        epoch,
        instance,
        process: node.process,
        resumed: purpose.resumes(),
        isr_version: record.isr_version,
        members: members(&state, record, node.config.node),
    };
    let (isr_version, limits) = (record.isr_version, record.limits);
    let start = timeout(START, node.data.start_engine(spec));
    let isr: Vec<ReplicaId> = tokio::select! {
        started = start => match started {
            Ok(Ok(isr)) => isr,
            Ok(Err(error)) => return Err(data_status("starting the engine", &error)),
            Err(_) => return Err(Status::unavailable("the engine found no in-sync replica in time")),
        },
        () = lost(node, volume, epoch, instance) => return Err(superseded()),
    };
    // Until the answer is known the record may hold either ISR: only then may I/O start.
    let activate = Command::Activate { volume, epoch, instance, isr: isr.clone(), isr_version };
    let version = match node.proposer.propose(activate, COMMAND).await? {
        Done::Isr { isr_version } => isr_version,
        other => return Err(Status::internal(format!("unexpected outcome {other:?}"))),
    };
    // Before the first I/O; later changes come through `watch`.
    node.data.set_limits(volume, limits);
    node.data
        .activate(volume, IsrView { version, isr })
        .await
        .map_err(|error| data_status("activating the engine", &error))?;
    tracing::info!(node = %node.config.node, %volume, %epoch, "active");
    Ok(())
}

/// Completes when the record does not grant the volume to this engine any more.
async fn lost(node: &Node, volume: VolumeId, epoch: Epoch, instance: EngineInstance) {
    let mut applied = node.meta.watch();
    loop {
        applied.borrow_and_update();
        if !is_ours(&node.meta.state(), volume, epoch, instance) {
            return;
        }
        if applied.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
