//! A node with its replicator faked, everything of it below one temporary directory and gone when dropped.

use crate::mountinfo::MountTable;
use crate::{NodeIdentity, NodeService};
use client::Client;
use csi_common::fake::{FakeControl, FakeServer};
use nix::mount::{MntFlags, umount2};
use proto::csi::node_server::Node;
use proto::csi::volume_capability::access_mode::Mode;
use proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use proto::csi::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use tonic::{Request, Status};

pub const MIB: u64 = 1 << 20;

pub struct Fixture {
    pub service: NodeService,
    pub fake: FakeServer,
    pub directory: tempfile::TempDir,
    frozen: Option<PathBuf>,
}

/// Whether this process has CAP_SYS_RESOURCE (bit 24), without which the kernel grows no ext4.
pub fn may_resize_ext4() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> 24 & 1 == 1
}

/// Runs a program and wants success.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn may_mount() -> bool {
    let may = nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !may {
        eprintln!("SKIPPED: this test mounts loop devices, for which it must be root");
    }
    may
}

impl Fixture {
    /// A fixture that mounts nothing: for requests that are refused.
    pub async fn without_devices() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::over(directory, |path| path.to_owned()).await
    }

    /// A fixture with devices; `None`, with a word, where there can be none.
    pub async fn new() -> Option<Self> {
        may_mount().then_some(())?;
        Some(Self::without_devices().await)
    }

    async fn over(directory: tempfile::TempDir, files: impl FnOnce(&Path) -> PathBuf) -> Self {
        let files = files(directory.path());
        let fake = FakeControl::new(directory.path().to_owned(), files).serve().await;
        let client = Client::new([&fake.endpoint]).unwrap();
        let identity = NodeIdentity { name: "n1".into(), id: 1, max_volumes: 128, alpha: true };
        Self { service: NodeService::new(client, identity), fake, directory, frozen: None }
    }

    /// A fixture whose volumes lie on a filesystem that can be frozen: a device that hangs.
    pub async fn freezable() -> Option<Self> {
        may_mount().then_some(())?;
        let directory = tempfile::tempdir().unwrap();
        let outer = directory.path().join("outer");
        let image = directory.path().join("image");
        std::fs::create_dir(&outer).unwrap();
        std::fs::File::create(&image).unwrap().set_len(200 * MIB).unwrap();
        let (image, point) = (image.to_string_lossy(), outer.to_string_lossy());
        run("mkfs.ext4", &["-q", &image]);
        // mount(8) makes the loop device vanish with the mount.
        run("mount", &["-o", "loop", &image, &point]);
        Some(Self::over(directory, |path| path.join("outer")).await)
    }

    /// From now on every write to a device of [`Fixture::freezable`] hangs.
    pub fn freeze(&mut self) {
        let outer = self.path("outer");
        run("fsfreeze", &["--freeze", &outer.to_string_lossy()]);
        self.frozen = Some(outer);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    pub fn volume(&self, mib: u64) -> String {
        let number = self.fake.control.state().volumes.len();
        self.fake.control.add_volume(&format!("volume-{number}"), mib * MIB)
    }

    /// The device of an attached volume.
    pub fn device(&self, volume: &str) -> PathBuf {
        PathBuf::from(&self.fake.control.state().attachments[volume].device)
    }

    pub fn mounted(&self, name: &str) -> bool {
        MountTable::read().unwrap().top(&self.path(name)).is_some()
    }

    pub async fn stage(&self, volume: &str, capability: VolumeCapability) -> Result<(), Status> {
        self.stage_at("stage", volume, capability).await
    }

    pub async fn stage_at(
        &self,
        path: &str,
        volume: &str,
        capability: VolumeCapability,
    ) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: self.text(path),
            volume_capability: Some(capability),
            ..NodeStageVolumeRequest::default()
        };
        self.service.node_stage_volume(Request::new(request)).await.map(|_| ())
    }

    pub async fn unstage(&self, volume: &str) -> Result<(), Status> {
        self.unstage_at("stage", volume).await
    }

    pub async fn unstage_at(&self, path: &str, volume: &str) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: self.text(path),
        };
        self.service.node_unstage_volume(Request::new(request)).await.map(|_| ())
    }

    pub async fn publish(
        &self,
        volume: &str,
        target: &str,
        capability: VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: self.text("stage"),
            target_path: self.text(target),
            volume_capability: Some(capability),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        self.service.node_publish_volume(Request::new(request)).await.map(|_| ())
    }

    pub async fn unpublish(&self, volume: &str, target: &str) -> Result<(), Status> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: volume.into(), target_path: self.text(target) };
        self.service.node_unpublish_volume(Request::new(request)).await.map(|_| ())
    }

    /// Total, used and available bytes, and the number of kinds of usage.
    pub async fn stats(&self, volume: &str, at: &str) -> Result<(VolumeUsage, usize), Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.into(),
            volume_path: self.text(at),
            ..NodeGetVolumeStatsRequest::default()
        };
        let answer = self.service.node_get_volume_stats(Request::new(request)).await?.into_inner();
        assert_eq!(answer.usage[0].unit(), volume_usage::Unit::Bytes);
        Ok((answer.usage[0], answer.usage.len()))
    }

    /// Grows the volume as the controller would, then here; returns the size in MiB.
    pub async fn expand(&self, volume: &str, at: &str, mib: u64) -> Result<u64, Status> {
        self.fake.control.state().volumes.get_mut(volume).unwrap().size_bytes = mib * MIB;
        let request = NodeExpandVolumeRequest {
            volume_id: volume.into(),
            volume_path: self.text(at),
            capacity_range: Some(CapacityRange {
                required_bytes: (mib * MIB) as i64,
                limit_bytes: 0,
            }),
            ..NodeExpandVolumeRequest::default()
        };
        let answer = self.service.node_expand_volume(Request::new(request)).await?.into_inner();
        Ok(answer.capacity_bytes as u64 / MIB)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(outer) = self.frozen.take() {
            let _ = Command::new("fsfreeze").arg("--unfreeze").arg(outer).status();
        }
        // Lazily, newest first; the loop devices go when the server is dropped.
        let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
        let points: Vec<PathBuf> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from)
            .filter(|point| point.starts_with(self.directory.path()))
            .collect();
        for point in points.iter().rev() {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn mount(fs_type: &str) -> VolumeCapability {
    mount_mode(fs_type, Mode::SingleNodeWriter)
}

pub fn mount_mode(fs_type: &str, mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    capability(AccessType::Mount(mount), mode)
}

pub fn block() -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter)
}
