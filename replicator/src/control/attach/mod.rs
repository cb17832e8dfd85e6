//! Attachments of this node: from an epoch that Raft grants to a device that works, and back (R2).
//!
//! One operation at a time per volume. What is here is only the local half of an attachment; the
//! record in the applied state rules, and an attachment that it does not know (any more) is failed
//! at once, so that nothing is served under a superseded epoch (promise 3).
//!
//! Some attachments have no device: `internal` takes snapshots of detached volumes and fills new ones, `tend`
//! brings replicas of detached volumes up to date.
//!
//! A kernel device outlives the daemon that served it (R14): `keeper` has its descriptor kept, or the
//! kernel keeps it (`kernel_nbd`); `resume` takes it over.

mod begin;
mod device;
mod end;
mod internal;
mod keeper;
mod kernel_nbd;
mod resume;
mod tend;
mod watch;

pub(super) use begin::attach;
pub(super) use end::{detach, detach_mortal, retire_all};
pub(super) use internal::{fill, release_dead, take_snapshot};
pub use keeper::Keeper;
pub(super) use keeper::{Inherited, guard, inherit};
pub(super) use kernel_nbd::relink;
pub(super) use resume::{claim, resume};
pub(super) use tend::{reclaim, tend};
pub(super) use watch::follow;

use super::Node;
use super::convert;
use client::api;
use core::time::Duration;
use device::Device;
use frontend::select::Kind;
use metadata::{Command, Done};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use types::{EngineInstance, Epoch, VolumeId};

/// How long a user of a volume waits for what this node does with it by itself.
const INTERNAL: Duration = Duration::from_secs(60);
/// How long a resize waits for the metadata leader.
const RESIZE: Duration = Duration::from_secs(10);

/// What serves the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    /// A kernel block device.
    Kernel(Kind),
    /// Only the NBD Unix socket.
    Nbd,
}

impl Frontend {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel(kind) => kind.name(),
            Self::Nbd => "nbd",
        }
    }
}

/// The local half of an attachment.
#[derive(Debug)]
pub(super) struct Local {
    epoch: Epoch,
    instance: EngineInstance,
    /// `None` until I/O may start.
    device: Option<Device>,
    /// Why every I/O fails, once it does.
    failed: Option<String>,
}

/// All attachments of this node.
#[derive(Debug, Default)]
pub struct Attachments {
    inner: Mutex<BTreeMap<VolumeId, Local>>,
    busy: Arc<Busy>,
}

/// For whom an operation on a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// Somebody who waits for its answer.
    Request,
    /// A snapshot, a filling or tending: others may wait for its end.
    Internal,
}

/// An operation under way.
#[derive(Debug)]
struct Running {
    on: On,
    /// Somebody waits for its end.
    wanted: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Busy {
    volumes: Mutex<BTreeMap<VolumeId, Running>>,
    freed: Notify,
}

/// The right to change one volume's attachment; released on drop.
#[derive(Debug)]
pub(super) struct Operation {
    volume: VolumeId,
    busy: Arc<Busy>,
    wanted: Arc<Notify>,
}

impl Operation {
    /// Completes when somebody waits for its end, who may have come before.
    async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.busy.volumes().remove(&self.volume);
        self.busy.freed.notify_waiters();
    }
}

impl Busy {
    fn volumes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Running>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachments {
    fn inner(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Local>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation on `volume`.
    ///
    /// # Errors
    /// ABORTED while another one is in flight.
    pub(super) fn begin(&self, volume: VolumeId) -> Result<Operation, Status> {
        self.begin_as(volume, On::Request).map_err(|_| in_flight(volume))
    }

    /// As [`Self::begin`], once what this node does with the volume by itself has ended.
    ///
    /// # Errors
    /// ABORTED while another one is in flight, or after [`INTERNAL`].
    async fn begin_patiently(&self, volume: VolumeId) -> Result<Operation, Status> {
        let deadline = Instant::now() + INTERNAL;
        loop {
            let mut freed = core::pin::pin!(self.busy.freed.notified());
            // From here on no end is missed.
            freed.as_mut().enable();
            match self.begin_as(volume, On::Request) {
                Ok(operation) => return Ok(operation),
                Err(On::Internal) => {
                    self.want(volume);
                    if timeout_at(deadline, freed).await.is_err() {
                        return Err(in_flight(volume));
                    }
                }
                Err(On::Request) => return Err(in_flight(volume)),
            }
        }
    }

    /// Somebody waits for the end of what this node does with `volume` by itself, if it does anything:
    /// what can be gone on with later ends now.
    pub(super) fn want(&self, volume: VolumeId) {
        if let Some(running) = self.busy.volumes().get(&volume) {
            running.wanted.notify_one();
        }
    }

    /// Begins an operation, or says what is in flight.
    fn begin_as(&self, volume: VolumeId, on: On) -> Result<Operation, On> {
        let mut volumes = self.busy.volumes();
        if let Some(other) = volumes.get(&volume) {
            return Err(other.on);
        }
        let wanted = Arc::new(Notify::new());
        volumes.insert(volume, Running { on, wanted: Arc::clone(&wanted) });
        Ok(Operation { volume, busy: Arc::clone(&self.busy), wanted })
    }

    /// Volumes attached (or being attached) here.
    pub(super) fn volumes(&self) -> Vec<VolumeId> {
        self.inner().keys().copied().collect()
    }

    /// Notes that every I/O fails from now on; false if that was known or the attachment is gone.
    pub(super) fn fail(&self, volume: VolumeId, epoch: Epoch, reason: &str) -> bool {
        match self.inner().get_mut(&volume) {
            Some(local) if local.epoch == epoch && local.failed.is_none() => {
                local.failed = Some(reason.to_owned());
                true
            }
            _ => false,
        }
    }
}

fn in_flight(volume: VolumeId) -> Status {
    Status::aborted(format!("another operation on volume {volume} is in flight on this node"))
}

/// The attachment of `volume` as the control API shows it; `None` if it is not attached here.
pub(super) async fn describe(node: &Node, volume: VolumeId) -> Option<api::Attachment> {
    let status = node.data.engine_status(volume).await;
    let locals = node.attachments.inner();
    let local = locals.get(&volume)?;
    let device = local.device.as_ref()?;
    let failed = local.failed.is_some()
        || status.as_ref().is_none_or(|status| status.failed.is_some() || !status.active);
    let path = device.path();
    let scrub = status.as_ref().map(|status| status.scrub).unwrap_or_default();
    Some(api::Attachment {
        volume_id: volume.to_string(),
        epoch: local.epoch.0,
        device: path.map(|path| path.display().to_string()).unwrap_or_default(),
        nbd_socket: device.nbd_socket().display().to_string(),
        frontend: device.frontend().as_str().to_owned(),
        reason: local.failed.clone().unwrap_or_else(|| device.reason().to_owned()),
        failed,
        size_bytes: status.as_ref().map_or(0, |status| status.size),
        replicas: status.as_ref().map(convert::progress).unwrap_or_default(),
        writes: status.as_ref().map_or(0, |status| status.writes),
        reads: status.as_ref().map_or(0, |status| status.reads),
        flushes: status.as_ref().map_or(0, |status| status.flushes),
        repaired_blocks: status.as_ref().map_or(0, |status| status.repaired),
        scrubbed_bytes: scrub.checked,
        differing_blocks: scrub.different,
        scrubbed_unix_seconds: scrub.finished.map_or(0, unix_seconds),
        unrepairable_blocks: status.as_ref().map_or(0, |status| status.unrepairable),
    })
}

/// A past moment on the calendar, for people.
fn unix_seconds(at: types::Instant) -> u64 {
    let now = hostio::clock::unix_time();
    now.saturating_sub(hostio::clock::boottime().since(at)).as_secs()
}

/// Grows the device of `volume` to its committed size (R25); returns that in bytes.
pub(super) async fn resize(node: &Node, volume: VolumeId) -> Result<u64, Status> {
    let _operation = node.attachments.begin(volume)?;
    let size = committed_size(node, volume).await?;
    let device = match node.attachments.inner().get(&volume) {
        Some(Local { device: Some(device), failed: None, .. }) => device.clone(),
        Some(_) => {
            return Err(Status::failed_precondition(format!(
                "the attachment of volume {volume} failed"
            )));
        }
        None => return Err(Status::not_found(format!("volume {volume} is not attached here"))),
    };
    node.data
        .resize_engine(volume, size)
        .await
        .map_err(|error| super::status::data_status("resize", &error))?;
    device.resize(size).await?;
    Ok(size)
}

/// The committed size. The state of this node may be older than the ExpandVolume that the caller
/// saw succeed: a command that changes nothing goes through Raft first.
async fn committed_size(node: &Node, volume: VolumeId) -> Result<u64, Status> {
    let known = node.meta.state().volumes.get(&volume).map(|record| record.size);
    let size = known.ok_or_else(|| Status::not_found(format!("there is no volume {volume}")))?;
    match node.proposer.propose(Command::ExpandBegin { volume, size }, RESIZE).await? {
        Done::Size { committed, .. } => Ok(committed),
        other => Err(Status::internal(format!("unexpected outcome {other:?}"))),
    }
}
