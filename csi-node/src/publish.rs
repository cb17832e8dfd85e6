//! Publish and unpublish: the staged volume at a pod's path; the reverse.

use crate::Error;
use crate::mountinfo::{DeviceNumber, Mount, MountTable};
use crate::mounts::{self, Health};
use crate::service::{NodeService, Publish, device};
use client::api::Attachment;
use core::time::Duration;
use std::path::{Path, PathBuf};
use types::VolumeId;

/// An unpublish must not wait long for a replicator that is down: it works without.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// The live device that a publish binds from.
struct Source {
    epoch: u64,
    device: PathBuf,
    number: DeviceNumber,
    name: PathBuf,
}

impl Source {
    /// Whether `mount` shows this device.
    fn is_at(&self, mount: &Mount, block: bool) -> bool {
        if block {
            mount.is_device_node() && mount.root.strip_prefix("/") == Ok(self.name.as_path())
        } else {
            mount.device == self.number && mount.root == Path::new("/")
        }
    }
}

impl NodeService {
    /// The live attachment behind a publish: a dead epoch must never reach a pod.
    async fn source(&self, volume: VolumeId) -> Result<Source, Error> {
        let attachment = self.attachment(volume).await?.ok_or_else(|| {
            Error::Precondition(format!(
                "volume {volume} is not staged on this node; stage it first"
            ))
        })?;
        let Attachment { epoch, failed, .. } = attachment;
        if failed {
            return Err(Error::Precondition(format!(
                "the stage of volume {volume} is dead: its epoch {epoch} was superseded or failed; \
                 unstage it and stage it again"
            )));
        }
        let device = device(&attachment)?;
        let (number, name) = mounts::device_number(&device)?;
        Ok(Source { epoch, device, number, name })
    }

    /// Publishes a staged volume. Idempotent.
    pub(crate) async fn publish(&self, publish: Publish) -> Result<(), Error> {
        let staging = mounts::resolve(&publish.staging, &self.bounded).await?;
        let target = mounts::resolve(&publish.target, &self.bounded).await?;
        let source = self.source(publish.volume).await?;
        let table = MountTable::read()?;
        let staged = table.top(&staging).filter(|mount| source.is_at(mount, false));
        if !publish.block && staged.is_none() {
            return Err(Error::Precondition(format!(
                "{}: not a mount of volume {} of epoch {}; stage it there first",
                staging.display(),
                publish.volume,
                source.epoch
            )));
        }
        if let Some(top) = table.top(&target)
            && source.is_at(top, publish.block)
        {
            return same_publish(top, &publish);
        }
        let other = table
            .of(source.number, &source.name)
            .find(|mount| mount.point != staging && mount.point != target);
        if let Some(other) = other
            && publish.single
        {
            return Err(Error::Precondition(format!(
                "volume {} is published at {} already, and SINGLE_NODE_SINGLE_WRITER allows one",
                publish.volume,
                other.point.display()
            )));
        }
        // What else is mounted there is left from an earlier attachment.
        mounts::unmount_all(&target, Health::Dead, &self.bounded).await?;
        if publish.block {
            mounts::make_file(&target, &self.bounded).await?;
            mounts::bind(&source.device, &target, false, &[], &self.bounded).await?;
        } else {
            let like = staged.map(|mount| mount.options.clone()).unwrap_or_default();
            mounts::make_directory(&target, false, &self.bounded).await?;
            mounts::bind(&staging, &target, publish.read_only, &like, &self.bounded).await?;
        }
        self.check_still(&publish, &source, &target).await
    }

    /// The epoch may have ended while we were binding.
    async fn check_still(
        &self,
        publish: &Publish,
        source: &Source,
        target: &Path,
    ) -> Result<(), Error> {
        let result = match self.source(publish.volume).await {
            Ok(now) if now.epoch == source.epoch => return Ok(()),
            Ok(now) => Err(Error::Precondition(format!(
                "volume {} was attached anew (epoch {}) during the publish; publish again",
                publish.volume, now.epoch
            ))),
            Err(error) => Err(error),
        };
        mounts::unmount_all(target, Health::Dead, &self.bounded).await?;
        mounts::remove_target(target, &self.bounded).await?;
        result
    }

    /// Unpublishes a volume. Idempotent; needs neither a live device nor a replicator.
    pub(crate) async fn unpublish(&self, volume: VolumeId, target: &Path) -> Result<(), Error> {
        let target = mounts::resolve(target, &self.bounded).await?;
        if MountTable::read()?.top(&target).is_some() {
            let client = self.client.with_deadline(ASK_LIMIT);
            let attachment = client.get_attachment(&volume.to_string()).await.ok();
            // Without an answer: lazily. Unstage looks whether something still writes.
            let health = Self::health(attachment.as_ref());
            mounts::unmount_all(&target, health, &self.bounded).await?;
        }
        mounts::remove_target(&target, &self.bounded).await
    }
}

/// A second publish of what is published: fine if it asks for the same.
fn same_publish(top: &Mount, publish: &Publish) -> Result<(), Error> {
    let is = top.read_only();
    if publish.block || is == publish.read_only {
        return Ok(());
    }
    let word = |read_only| if read_only { "read-only" } else { "writable" };
    Err(Error::Conflict(format!(
        "{}: published {}, and {} was asked for",
        top.point.display(),
        word(is),
        word(publish.read_only)
    )))
}
