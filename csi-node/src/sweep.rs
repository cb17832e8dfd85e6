//! Mounts that a crash left behind: of volumes that this node serves no more.
//!
//! What is ours is what kubelet says is ours: it keeps `vol_data.json`, with the driver and the volume,
//! beside each place where it had a volume staged or published. What has no such file is never touched,
//! nor is a mount of the device that the volume is attached as now: kubelet still needs it.

use crate::mountinfo::{Mount, MountTable};
use crate::mounts::{self, Health};
use crate::service::NodeService;
use crate::{Error, bounded::Bounded};
use client::api::Attachment;
use core::time::Duration;
use csi_common::PLUGIN_NAME;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tonic::Code;
use types::VolumeId;

/// Between two questions whether the replicator is there.
const PAUSE: Duration = Duration::from_secs(1);

/// Reading a small file of the machine's own disk.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// What we read of `vol_data.json` (pkg/volume/csi in Kubernetes).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeData {
    driver_name: String,
    volume_handle: String,
}

/// Where kubelet keeps the data of what it mounted at `point`.
fn data_files(point: &Path) -> Vec<PathBuf> {
    // …/pods/UID/volumes/kubernetes.io~csi/PV/mount and …/csi/DRIVER/HASH/globalmount
    let mut files: Vec<PathBuf> =
        point.parent().map(|parent| parent.join("vol_data.json")).into_iter().collect();
    // …/volumeDevices/publish/PV/POD: data in …/volumeDevices/PV/data
    if let Some(pv) = point.parent()
        && let Some(publish) = pv.parent()
        && publish.ends_with("volumeDevices/publish")
        && let (Some(devices), Some(name)) = (publish.parent(), pv.file_name())
    {
        files.push(devices.join(name).join("data/vol_data.json"));
    }
    files
}

/// The volume that kubelet had mounted at `point`, if it was one of ours.
async fn volume_at(point: &Path, bounded: &Bounded) -> Option<VolumeId> {
    let files = data_files(point);
    let read = move || {
        let read = |file: &PathBuf| {
            let text = std::fs::read(file).ok()?;
            let data: VolumeData = serde_json::from_slice(&text).ok()?;
            (data.driver_name == PLUGIN_NAME).then(|| data.volume_handle.parse().ok()).flatten()
        };
        Ok(files.iter().find_map(read))
    };
    bounded.run("read of vol_data.json", READ_LIMIT, read).await.ok().flatten()
}

/// Whether `mount` shows the device of a live or dead attachment of today.
fn is_of(mount: &Mount, attachment: &Attachment) -> Result<bool, Error> {
    if attachment.device.is_empty() {
        return Ok(false);
    }
    let (number, name) = mounts::device_number(Path::new(&attachment.device))?;
    Ok(mount.is_of(number, &name))
}

impl NodeService {
    /// Waits for the replicator, then takes away what is mounted below `directory` of volumes of ours on
    /// devices that they no longer have. To be called once, at start, beside the serving.
    pub async fn sweep(self, directory: PathBuf) {
        let mut told = false;
        while let Err(error) = self.client.get_node().await {
            if !told {
                tracing::info!(%error, "waiting for the replicator before looking for remains");
                told = true;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let table = match MountTable::read() {
            Ok(table) => table,
            Err(error) => return tracing::warn!(%error, "cannot look for remains"),
        };
        for mount in table.below(&directory).filter(|mount| mount.could_be_ours()) {
            let Some(volume) = volume_at(&mount.point, &self.bounded).await else { continue };
            let (this, mount) = (self.clone(), mount.clone());
            let work = async move { this.sweep_one(volume, &mount).await };
            // An operation of kubelet's on the same volume sees to it itself.
            if let Err(status) = self.alone("sweep", volume, work).await
                && status.code() != Code::Aborted
            {
                tracing::warn!(%volume, %status, "remains stay");
            }
        }
    }

    async fn sweep_one(&self, volume: VolumeId, mount: &Mount) -> Result<(), Error> {
        if let Some(attachment) = self.attachment(volume).await?
            && is_of(mount, &attachment)?
        {
            return Ok(());
        }
        // Something else may have been mounted there since the table was read.
        if MountTable::read()?.top(&mount.point) != Some(mount) {
            return Ok(());
        }
        tracing::warn!(%volume, path = %mount.point.display(), "unmounting what a crash left");
        mounts::unmount_all(&mount.point, Health::Dead, &self.bounded).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_kubelet_keeps_its_data() {
        let table = [
            (
                "/k/pods/u/volumes/kubernetes.io~csi/pv1/mount",
                vec!["/k/pods/u/volumes/kubernetes.io~csi/pv1/vol_data.json"],
            ),
            (
                "/k/plugins/kubernetes.io/csi/csi.holdfast.dev/1f/globalmount",
                vec!["/k/plugins/kubernetes.io/csi/csi.holdfast.dev/1f/vol_data.json"],
            ),
            (
                "/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv1/u",
                vec![
                    "/k/plugins/kubernetes.io/csi/volumeDevices/publish/pv1/vol_data.json",
                    "/k/plugins/kubernetes.io/csi/volumeDevices/pv1/data/vol_data.json",
                ],
            ),
        ];
        for (point, wanted) in table {
            let wanted: Vec<PathBuf> = wanted.into_iter().map(PathBuf::from).collect();
            assert_eq!(data_files(Path::new(point)), wanted);
        }
        assert!(data_files(Path::new("/")).is_empty());
    }
}
