//! Statistics of a volume, and growing one.

use crate::mountinfo::{Mount, MountTable};
use crate::mounts;
use crate::service::{NodeService, device};
use crate::{Error, filesystem};
use client::api::Attachment;
use core::time::Duration;
use csi_common::RequestError;
use nix::sys::statvfs::statvfs;
use proto::csi::{NodeGetVolumeStatsResponse, VolumeUsage, volume_usage::Unit};
use std::path::{Path, PathBuf};
use tonic::Code;
use types::VolumeId;

/// statvfs answers from memory; more than this means that the filesystem is stuck.
const STAT_LIMIT: Duration = Duration::from_secs(5);

/// A volume as found at a path.
struct Found {
    attachment: Attachment,
    device: PathBuf,
    mount: Mount,
}

impl NodeService {
    /// The mount of `volume` at `path`; NOT_FOUND if there is none.
    async fn find(&self, volume: VolumeId, path: &Path) -> Result<Found, Error> {
        let absent = || Error::NotFound(format!("volume {volume} is not at {}", path.display()));
        let path = mounts::resolve(path, &self.bounded).await?;
        let attachment = self.attachment(volume).await?.ok_or_else(absent)?;
        let device = device(&attachment)?;
        let (number, name) = mounts::device_number(&device)?;
        let table = MountTable::read()?;
        let mount = table.of(number, &name).rfind(|mount| mount.point == path);
        let mount = mount.cloned().ok_or_else(absent)?;
        Ok(Found { attachment, device, mount })
    }

    /// Bytes and inodes of a mounted volume; the size of a block volume.
    pub(crate) async fn stats(
        &self,
        volume: VolumeId,
        path: &Path,
    ) -> Result<NodeGetVolumeStatsResponse, Error> {
        let found = self.find(volume, path).await?;
        let usage = if found.mount.is_device_node() {
            let total = to_wire(found.attachment.size_bytes);
            vec![VolumeUsage { total, unit: Unit::Bytes.into(), ..VolumeUsage::default() }]
        } else {
            let point = found.mount.point;
            let stat = move || statvfs(&point).map_err(Error::system("statvfs", &point));
            let stat = self.bounded.run("statvfs", STAT_LIMIT, stat).await?;
            let block = stat.fragment_size();
            let bytes = |blocks: u64| to_wire(blocks.saturating_mul(block));
            let used = stat.blocks().saturating_sub(stat.blocks_free());
            let inodes = stat.files().saturating_sub(stat.files_free());
            vec![
                VolumeUsage {
                    available: bytes(stat.blocks_available()),
                    total: bytes(stat.blocks()),
                    used: bytes(used),
                    unit: Unit::Bytes.into(),
                },
                VolumeUsage {
                    available: to_wire(stat.files_available()),
                    total: to_wire(stat.files()),
                    used: to_wire(inodes),
                    unit: Unit::Inodes.into(),
                },
            ]
        };
        Ok(NodeGetVolumeStatsResponse { usage })
    }

    /// Grows the device to the volume's committed size and the filesystem with it; returns the size in
    /// bytes. Idempotent.
    pub(crate) async fn expand(
        &self,
        volume: VolumeId,
        path: &Path,
        required: u64,
        limit: u64,
    ) -> Result<i64, Error> {
        let found = self.find(volume, path).await?;
        let size = match self.client.resize_device(&volume.to_string()).await {
            Ok(size) => size,
            Err(error) if error.code() == Code::NotFound => {
                return Err(Error::NotFound(error.message()));
            }
            Err(error) => return Err(error.into()),
        };
        if size < required || (limit != 0 && size > limit) {
            let reason = format!(
                "the volume has {size} bytes; required_bytes {required}, limit_bytes {limit}. \
                 ControllerExpandVolume comes first"
            );
            return Err(RequestError::OutOfRange { reason }.into());
        }
        if !found.mount.is_device_node() {
            let fs_type = found.mount.fs_type.parse().map_err(|()| {
                Error::Precondition(format!("cannot grow a {} filesystem", found.mount.fs_type))
            })?;
            filesystem::grow(fs_type, &found.device, &found.mount.point).await?;
        }
        tracing::info!(bytes = size, "expanded");
        Ok(to_wire(size))
    }
}

fn to_wire(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
