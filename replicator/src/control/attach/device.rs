//! The device of an attachment: NBD socket, FUSE mount and loop device. Everything that can block
//! runs beside the runtime, within a time limit.

use super::Frontend;
use crate::control::Node;
use crate::control::status::data_status;
use crate::data::FUSE_FILE;
use core::time::Duration;
use hostio::HostError;
use hostio::loopdev::LoopDevice;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::Status;
use types::{BLOCK, VolumeId};

/// How long the kernel may take for one step; then the FUSE connection is aborted.
const KERNEL: Duration = Duration::from_secs(10);

/// A device that is being served; clones are the same device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    frontend: Frontend,
    reason: &'static str,
    nbd_socket: PathBuf,
    mount: PathBuf,
    device: Option<Arc<LoopDevice>>,
}

/// Where the FUSE filesystem of `volume` is mounted.
pub(super) fn mount_directory(data_dir: &Path, volume: VolumeId) -> PathBuf {
    data_dir.join("fuse").join(volume.to_string())
}

fn nbd_socket(data_dir: &Path, volume: VolumeId) -> PathBuf {
    data_dir.join("nbd").join(format!("{volume}.sock"))
}

impl Device {
    /// Serves `volume`, whose engine is active. On failure nothing is left.
    pub(super) async fn create(
        node: &Node,
        volume: VolumeId,
        frontend: Frontend,
    ) -> Result<Self, Status> {
        let mut device = Self {
            frontend,
            reason: match frontend {
                Frontend::FuseLoop => {
                    "a kernel device: a loop device with direct I/O over FUSE works on every kernel"
                }
                Frontend::Nbd => "asked for: a Unix socket for NBD clients, no kernel device",
            },
            nbd_socket: nbd_socket(&node.config.data_dir, volume),
            mount: mount_directory(&node.config.data_dir, volume),
            device: None,
        };
        match device.serve(node, volume).await {
            Ok(()) => Ok(device),
            Err(status) => {
                device.remove(node, volume, true).await;
                Err(status)
            }
        }
    }

    async fn serve(&mut self, node: &Node, volume: VolumeId) -> Result<(), Status> {
        let listener = listen(&self.nbd_socket).map_err(|error| {
            Status::internal(format!("NBD socket {}: {error}", self.nbd_socket.display()))
        })?;
        node.data
            .attach_nbd(volume, listener)
            .await
            .map_err(|error| data_status("NBD front-end", &error))?;
        if self.frontend == Frontend::Nbd {
            return Ok(());
        }
        let mount = self.mount.clone();
        let source = format!("holdfast-{volume}");
        std::fs::create_dir_all(&mount).map_err(|error| {
            Status::internal(format!("cannot make {}: {error}", mount.display()))
        })?;
        let fuse = kernel("mount FUSE", move || hostio::fuse::mount_at(&mount, &source)).await?;
        node.data
            .attach_fuse(volume, fuse)
            .await
            .map_err(|error| data_status("FUSE front-end", &error))?;
        let backing = self.mount.join(FUSE_FILE);
        let device =
            kernel("attach a loop device", move || LoopDevice::attach(&backing, BLOCK as u32))
                .await?;
        if !device.direct_io() {
            tracing::warn!(%volume, device = %device.path().display(), "the kernel refused direct I/O on the loop device: data is cached twice");
        }
        self.device = Some(Arc::new(device));
        Ok(())
    }

    /// Takes the device away without ever hanging; `dead` also fails what the kernel still waits for.
    pub(super) async fn remove(mut self, node: &Node, volume: VolumeId, dead: bool) {
        if self.frontend == Frontend::FuseLoop {
            let abort = |mount: PathBuf| kernel("abort FUSE", move || hostio::fuse::abort(&mount));
            if dead {
                log(volume, abort(self.mount.clone()).await);
            }
            let backing = self.mount.join(FUSE_FILE);
            let device = self.device.take();
            let detach = move || {
                // The kernel detaches when the last one closes the device: that must not be us.
                drop(device);
                detach_loops(&backing)
            };
            if log(volume, kernel("detach the loop device", detach).await).is_none() {
                log(volume, abort(self.mount.clone()).await);
            }
            let mount = self.mount.clone();
            log(volume, kernel("unmount FUSE", move || unmount(&mount)).await);
        }
        if let Err(error) = node.data.detach_frontends(volume).await {
            tracing::warn!(%volume, %error, "while detaching");
        }
        // A socket file of no listener is harmless, and replaced at the next attach.
        let _ = std::fs::remove_file(&self.nbd_socket);
    }

    /// Makes the kernel device as large as the engine has become.
    pub(super) async fn resize(&self) -> Result<(), Status> {
        let Some(device) = self.device.clone() else { return Ok(()) };
        kernel("grow the loop device", move || device.set_capacity()).await
    }

    /// Whether somebody has the kernel device for himself: a mounted filesystem, for one.
    pub(super) async fn in_use(&self) -> bool {
        let Some(path) = self.path().map(Path::to_owned) else { return false };
        let open = move || {
            use std::os::unix::fs::OpenOptionsExt;
            let flags = nix::fcntl::OFlag::O_EXCL | nix::fcntl::OFlag::O_NONBLOCK;
            std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
        };
        let opened = tokio::time::timeout(KERNEL, tokio::task::spawn_blocking(open)).await;
        matches!(opened, Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::ResourceBusy)
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.device.as_ref().map(|device| device.path())
    }

    pub(super) fn nbd_socket(&self) -> &Path {
        &self.nbd_socket
    }

    pub(super) const fn frontend(&self) -> Frontend {
        self.frontend
    }

    pub(super) const fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Detaches every loop device over `backing`.
pub(super) fn detach_loops(backing: &Path) -> Result<(), HostError> {
    for path in hostio::loopdev::find_by_backing(backing)? {
        hostio::loopdev::detach_at(&path)?;
    }
    Ok(())
}

/// Unmounts at once, whoever still uses it, and removes the directory.
pub(super) fn unmount(mount: &Path) -> Result<(), HostError> {
    hostio::fuse::unmount(mount, true)?;
    // Only an empty directory goes; one that is absent is as good.
    let _ = std::fs::remove_dir(mount);
    Ok(())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Runs a system call that may block, for at most [`KERNEL`].
async fn kernel<T: Send + 'static>(
    doing: &'static str,
    call: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::time::timeout(KERNEL, tokio::task::spawn_blocking(call)).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(error))) => Err(Status::internal(format!("cannot {doing}: {error}"))),
        Ok(Err(_)) => Err(Status::internal(format!("cannot {doing}: the call panicked"))),
        Err(_) => Err(Status::internal(format!(
            "cannot {doing}: no answer of the kernel within {} s",
            KERNEL.as_secs()
        ))),
    }
}

fn log<T>(volume: VolumeId, result: Result<T, Status>) -> Option<T> {
    result
        .inspect_err(|status| tracing::warn!(%volume, error = status.message(), "while detaching"))
        .ok()
}
