//! Stage and unstage: attach the volume here and mount it once; the reverse.

use crate::mountinfo::{Mount, MountTable};
use crate::mounts::{self, Health};
use crate::service::{NodeService, Stage, StageAccess, device};
use crate::{Error, extent, filesystem};
use client::api::Attachment;
use csi_common::FsType;
use std::path::Path;
use types::VolumeId;

impl NodeService {
    /// Stages a volume. Idempotent; a stage of a dead epoch is cleared away and made anew.
    pub(crate) async fn stage(&self, stage: Stage) -> Result<(), Error> {
        let volume = stage.volume;
        let path = mounts::resolve(&stage.path, &self.bounded).await?;
        let before = self.attachment(volume).await?;
        match &before {
            Some(attachment) if attachment.failed => self.clear(attachment).await?,
            Some(attachment) => {
                let (number, _) = mounts::device_number(&device(attachment)?)?;
                let table = MountTable::read()?;
                match (table.top(&path), &stage.access) {
                    (Some(top), StageAccess::Mount { fs_type, read_only, .. })
                        if top.device == number =>
                    {
                        return same_stage(top, *fs_type, *read_only);
                    }
                    _ => {}
                }
            }
            None => {}
        }
        // Whatever is mounted there now belongs to an earlier attachment.
        mounts::unmount_all(&path, Health::Dead, &self.bounded).await?;

        let attachment = self.client.attach_volume(&volume.to_string(), "").await?;
        tracing::info!(epoch = attachment.epoch, device = attachment.device, "attached");
        let mounted = self.mount(&stage, &path, &attachment).await;
        if mounted.is_err() {
            self.give_back(volume, &attachment).await;
        }
        mounted
    }

    async fn mount(
        &self,
        stage: &Stage,
        path: &Path,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        if attachment.failed {
            let epoch = attachment.epoch;
            return Err(Error::Precondition(format!(
                "the attachment of epoch {epoch} failed already; stage again"
            )));
        }
        let device = device(attachment)?;
        let StageAccess::Mount { fs_type, options, read_only } = &stage.access else {
            return Ok(());
        };
        mounts::make_directory(path, true, &self.bounded).await?;
        let fs_type = filesystem::ensure(stage.volume, &device, *fs_type, &self.bounded).await?;
        let options = options.clone().with_defaults(fs_type, *read_only);
        let room = !read_only && extent::leaves_room(fs_type, &device, &self.bounded).await?;
        mounts::mount_filesystem(&device, path, fs_type, &options, &self.bounded).await?;
        // A copy that is larger than its source. Data that can be had come before room that cannot.
        if room && let Err(error) = filesystem::grow(fs_type, &device, path).await {
            tracing::warn!(%error, "the filesystem stays smaller than its volume");
        }
        tracing::info!(epoch = attachment.epoch, %fs_type, path = %path.display(), "mounted");
        Ok(())
    }

    /// After a failed stage: a volume that nothing here uses must not stay held by this node.
    async fn give_back(&self, volume: VolumeId, attachment: &Attachment) {
        let used = || -> Result<bool, Error> {
            let (number, name) = mounts::device_number(&device(attachment)?)?;
            Ok(MountTable::read()?.of(number, &name).next().is_some())
        };
        // When in doubt it stays attached: the next stage or unstage finds it.
        if !matches!(used(), Ok(false)) {
            return;
        }
        if let Err(error) = self.client.detach_volume(&volume.to_string()).await {
            tracing::warn!(%error, "cannot detach after a failed stage");
        }
    }

    /// Takes away everything of a dead attachment: its mounts, wherever they are, then itself.
    async fn clear(&self, attachment: &Attachment) -> Result<(), Error> {
        tracing::warn!(epoch = attachment.epoch, "clearing away a dead attachment");
        if !attachment.device.is_empty() {
            let (number, name) = match mounts::device_number(&device(attachment)?) {
                Ok(found) => found,
                // The device node is gone, and with it every mount that could name it.
                Err(Error::Io { .. }) => return self.detach(attachment).await,
                Err(error) => return Err(error),
            };
            loop {
                let table = MountTable::read()?;
                let Some(mount) = table.of(number, &name).next_back() else { break };
                mounts::unmount_all(&mount.point, Health::Dead, &self.bounded).await?;
            }
        }
        self.detach(attachment).await
    }

    async fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        Ok(self.client.detach_volume(&attachment.volume_id).await?)
    }

    /// Unstages a volume. Idempotent. Never waits for a dead device.
    pub(crate) async fn unstage(&self, volume: VolumeId, path: &Path) -> Result<(), Error> {
        let path = mounts::resolve(path, &self.bounded).await?;
        let attachment = self.attachment(volume).await?;
        let Some(attachment) = attachment else {
            return mounts::unmount_all(&path, Health::Dead, &self.bounded).await;
        };
        if Self::health(Some(&attachment)) == Health::Dead {
            mounts::unmount_all(&path, Health::Dead, &self.bounded).await?;
            return self.clear(&attachment).await;
        }
        if !attachment.device.is_empty() {
            self.unmount_live(volume, &path, &attachment).await?;
        }
        self.detach(&attachment).await
    }

    /// Unmounts the stage of a live attachment, with everything written out when it returns `Ok`.
    async fn unmount_live(
        &self,
        volume: VolumeId,
        path: &Path,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        let device = device(attachment)?;
        let (number, name) = mounts::device_number(&device)?;
        let table = MountTable::read()?;
        if let Some(other) = table.of(number, &name).find(|mount| mount.point != path) {
            let other = other.point.display();
            return Err(Error::Precondition(format!(
                "volume {volume} is still published at {other}; unpublish it first"
            )));
        }
        // A mount of another device there is left from an earlier attachment.
        let health = match table.top(path) {
            Some(top) if top.device != number => Health::Dead,
            _ => Health::Alive,
        };
        match mounts::unmount_all(path, health, &self.bounded).await {
            // It may have died under the umount.
            Err(error @ (Error::Stuck { .. } | Error::Precondition(_))) => {
                let now = self.attachment(volume).await?;
                if Self::health(now.as_ref()) == Health::Alive {
                    return Err(error);
                }
                mounts::unmount_all(path, Health::Dead, &self.bounded).await
            }
            Err(error) => Err(error),
            // Detaching now would cut off what is still being written out.
            Ok(()) => mounts::check_unused(&device, &self.bounded).await,
        }
    }
}

/// A second stage of what is staged: fine if it asks for the same.
fn same_stage(top: &Mount, fs_type: Option<FsType>, read_only: bool) -> Result<(), Error> {
    let at = top.point.display();
    if let Some(wanted) = fs_type
        && wanted.name() != top.fs_type
    {
        let is = &top.fs_type;
        return Err(Error::Conflict(format!("{at}: staged as {is}, and {wanted} was asked for")));
    }
    // A filesystem that went read-only by itself after an error is no other request.
    if read_only && !top.read_only() {
        return Err(Error::Conflict(format!("{at}: staged writable, and read-only was asked for")));
    }
    Ok(())
}
