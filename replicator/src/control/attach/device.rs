//! The device of an attachment: NBD socket, and a kernel device that is FUSE mount and loop device, or
//! [`super::kernel_nbd`]. Everything that can block runs beside the runtime, within a time limit.
//!
//! The /dev/fuse descriptor of a kernel device is also with the device holder, from before the
//! device is shown until it is removed: so it outlives this process (R14).

use super::Frontend;
use super::keeper::{Inherited, Kept, Note};
use super::kernel_nbd::KernelNbd;
use crate::config::Config;
use crate::control::Node;
use crate::control::status::data_status;
use core::time::Duration;
use frontend::select::Kind;
use hostio::HostError;
use hostio::loopdev::LoopDevice;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::Status;
use types::{BLOCK, EngineInstance, VolumeId};

/// How long the kernel may take for one step; then the FUSE connection is aborted.
const KERNEL: Duration = Duration::from_secs(10);

/// A device that is being served; clones are the same device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    frontend: Frontend,
    reason: String,
    volume: VolumeId,
    nbd_socket: PathBuf,
    mount: PathBuf,
    backing: PathBuf,
    /// Of a kernel device, once there is one.
    device: Option<Arc<LoopDevice>>,
    fuse: Option<Arc<OwnedFd>>,
    nbd: Option<KernelNbd>,
    engines: BTreeSet<EngineInstance>,
}

/// Where the FUSE filesystem of `volume` is mounted.
pub(super) fn mount_directory(data_dir: &Path, volume: VolumeId) -> PathBuf {
    data_dir.join("fuse").join(volume.to_string())
}

/// The volume as the one file of that filesystem. No other file on this host has its name: when the mount
/// namespace that a loop device's file was opened in has ended with its daemon, the kernel says nothing
/// but this name (see [`hostio::loopdev::find_by_backing`]).
pub(super) fn backing_file(config: &Config, volume: VolumeId) -> PathBuf {
    mount_directory(&config.data_dir, volume).join(format!("{volume}.{}", config.node.0))
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
        instance: EngineInstance,
    ) -> Result<Self, Status> {
        let mut device = Self::new(node, volume, frontend);
        device.engines.insert(instance);
        match device.serve(node).await {
            Ok(()) => Ok(device),
            Err(status) => {
                device.remove(node, true).await;
                Err(status)
            }
        }
    }

    fn new(node: &Node, volume: VolumeId, frontend: Frontend) -> Self {
        Self {
            frontend,
            reason: match &node.frontend {
                Ok(selection) if frontend == Frontend::Kernel(selection.kind) => {
                    selection.reason.clone()
                }
                _ => "asked for, or made by a former daemon".to_owned(),
            },
            volume,
            nbd_socket: nbd_socket(&node.config.data_dir, volume),
            mount: mount_directory(&node.config.data_dir, volume),
            backing: backing_file(&node.config, volume),
            device: None,
            fuse: None,
            nbd: None,
            engines: BTreeSet::new(),
        }
    }

    async fn serve_nbd(&self, node: &Node) -> Result<(), Status> {
        let listener = listen(&self.nbd_socket).map_err(|error| {
            Status::internal(format!("NBD socket {}: {error}", self.nbd_socket.display()))
        })?;
        node.data
            .attach_nbd(self.volume, listener)
            .await
            .map_err(|error| data_status("NBD front-end", &error))
    }

    async fn serve_fuse(&self, node: &Node, fuse: &OwnedFd) -> Result<(), Status> {
        let fuse = fuse
            .try_clone()
            .map_err(|error| Status::internal(format!("cannot copy a descriptor: {error}")))?;
        let name = self.backing.file_name().unwrap_or_default().to_string_lossy().into_owned();
        node.data
            .attach_fuse(self.volume, fuse, name)
            .await
            .map_err(|error| data_status("FUSE front-end", &error))
    }

    async fn serve(&mut self, node: &Node) -> Result<(), Status> {
        let volume = self.volume;
        self.serve_nbd(node).await?;
        match self.frontend {
            Frontend::Nbd => return Ok(()),
            Frontend::Kernel(Kind::FuseLoop) => self.make_fuse_loop(node).await?,
            Frontend::Kernel(Kind::KernelNbd) => {
                let status = node.data.engine_status(volume).await;
                let size = status.map(|status| status.size);
                let gone = || Status::aborted(format!("volume {volume} lost its engine"));
                let device = KernelNbd::create(node, volume, size.ok_or_else(gone)?).await?;
                self.nbd = Some(device);
            }
        }
        self.hand_over(node).await;
        Ok(())
    }

    async fn make_fuse_loop(&mut self, node: &Node) -> Result<(), Status> {
        let volume = self.volume;
        let mount = self.mount.clone();
        let source = format!("holdfast-{volume}");
        std::fs::create_dir_all(&mount).map_err(|error| {
            Status::internal(format!("cannot make {}: {error}", mount.display()))
        })?;
        let fuse = kernel("mount FUSE", move || hostio::fuse::mount_at(&mount, &source)).await?;
        let fuse = Arc::clone(self.fuse.insert(Arc::new(fuse)));
        self.serve_fuse(node, &fuse).await?;
        let backing = self.backing.clone();
        let device =
            kernel("attach a loop device", move || LoopDevice::attach(&backing, BLOCK as u32))
                .await?;
        if !device.direct_io() {
            tracing::warn!(%volume, device = %device.path().display(), "the kernel refused direct I/O on the loop device: data is cached twice");
        }
        self.device = Some(Arc::new(device));
        Ok(())
    }

    /// A device that a former daemon left; nobody serves it yet.
    pub(super) fn inherited(node: &Node, inherited: Inherited, instance: EngineInstance) -> Self {
        let Inherited { volume, note, kept } = inherited;
        let mut device = match kept {
            Kept::Fuse(fuse) => {
                let device = Self::new(node, volume, Frontend::Kernel(Kind::FuseLoop));
                Self { fuse: Some(Arc::new(fuse)), ..device }
            }
            Kept::Nbd(nbd) => {
                let device = Self::new(node, volume, Frontend::Kernel(Kind::KernelNbd));
                Self { nbd: Some(KernelNbd::inherited(&node.config, volume, nbd)), ..device }
            }
        };
        device.engines = note.engines;
        device.engines.insert(instance);
        device
    }

    /// Serves an inherited device with the active engine `instance`; the kernel sends again what
    /// nobody answered.
    pub(super) async fn resume(
        &mut self,
        node: &Node,
        path: PathBuf,
        instance: EngineInstance,
    ) -> Result<(), Status> {
        self.serve_nbd(node).await?;
        if let Some(nbd) = &self.nbd {
            nbd.resume(node, self.volume).await?;
        }
        if let Some(fuse) = self.fuse.clone() {
            self.resume_fuse_loop(node, path, fuse).await?;
        }
        self.engines = BTreeSet::from([instance]);
        self.hand_over(node).await;
        Ok(())
    }

    async fn resume_fuse_loop(
        &mut self,
        node: &Node,
        path: PathBuf,
        fuse: Arc<OwnedFd>,
    ) -> Result<(), Status> {
        let backing = self.backing.clone();
        let again = Arc::clone(&fuse);
        let open = move || {
            let device = LoopDevice::open(&path, &backing)?;
            hostio::fuse::resend(&again)?;
            Ok(device)
        };
        self.device = Some(Arc::new(kernel("take over the kernel device", open).await?));
        self.serve_fuse(node, &fuse).await
    }

    fn to_note(&self, device: PathBuf) -> Note {
        Note { engines: self.engines.clone(), device }
    }

    /// What the holder is to know of a kernel device.
    fn described(&self) -> Result<holder::Device, Status> {
        let note = self.to_note(self.path().map(Path::to_owned).unwrap_or_default());
        Ok(holder::Device {
            volume: self.volume.to_string(),
            mount: self.mount.clone(),
            backing: self.backing.clone(),
            note: note.text()?,
        })
    }

    /// Gives the holder what it needs to keep the device, or notes it. Without that the device works,
    /// and ends with this process, or with the next one's start.
    pub(super) async fn hand_over(&self, node: &Node) {
        let keeper = Arc::clone(&node.keeper);
        let kept = async {
            if let Some(nbd) = &self.nbd {
                return nbd.keep(&self.to_note(nbd.path().to_owned())).await;
            }
            let Some(fuse) = self.fuse.clone() else { return Ok(()) };
            let device = self.described()?;
            blocking("hand the device to its holder", move || keeper.keep(&device, &fuse)).await
        };
        if let Err(status) = kept.await {
            let message = format!("it will not survive a restart: {}", status.message());
            tracing::warn!(volume = %self.volume, "{message}");
            node.events.local("device_not_kept", Some(self.volume), None, &message);
        }
    }

    /// Has it noted who may serve an inherited device; the rest is known.
    pub(super) async fn note(&self, node: &Node, device: PathBuf) -> Result<(), Status> {
        let (keeper, volume) = (Arc::clone(&node.keeper), self.volume);
        let note = self.to_note(device);
        if let Some(nbd) = &self.nbd {
            return nbd.keep(&note).await;
        }
        blocking("tell the device holder", move || keeper.note(volume, &note)).await
    }

    /// Whether the device outlives this process.
    pub(super) async fn is_kept(&self, node: &Node) -> bool {
        if let Some(nbd) = &self.nbd {
            return nbd.is_kept();
        }
        let (keeper, volume) = (Arc::clone(&node.keeper), self.volume);
        let asked = move || Ok::<bool, HostError>(keeper.keeps(volume));
        self.fuse.is_some() && blocking("ask the device holder", asked).await.unwrap_or(false)
    }

    /// Stops serving the device without ending it: what the kernel sends from here on waits for a
    /// successor.
    pub(super) async fn retire(&self, node: &Node) {
        if let Err(error) = node.data.detach_frontends(self.volume).await {
            tracing::warn!(volume = %self.volume, %error, "while retiring");
        }
        let _ = std::fs::remove_file(&self.nbd_socket);
    }

    /// Takes the device away without ever hanging; `dead` also fails what the kernel still waits for.
    pub(super) async fn remove(mut self, node: &Node, dead: bool) {
        let volume = self.volume;
        if let Some(nbd) = &self.nbd {
            nbd.remove(volume).await;
        }
        if self.frontend == Frontend::Kernel(Kind::FuseLoop) {
            // First: what is half removed must not be taken over.
            let keeper = Arc::clone(&node.keeper);
            let forget = move || {
                keeper.forget(volume);
                Ok::<(), HostError>(())
            };
            log(volume, blocking("tell the device holder", forget).await);
        }
        if self.frontend == Frontend::Kernel(Kind::FuseLoop) {
            let abort = |mount: PathBuf| kernel("abort FUSE", move || hostio::fuse::abort(&mount));
            if dead {
                log(volume, abort(self.mount.clone()).await);
            }
            let backing = self.backing.clone();
            let device = self.device.take();
            let detach = move || {
                // The kernel detaches when the last one closes the device: that must not be us.
                drop(device);
                hostio::loopdev::detach_all(&backing)
            };
            if log(volume, kernel("detach the loop device", detach).await).is_none() {
                log(volume, abort(self.mount.clone()).await);
            }
            let mount = self.mount.clone();
            log(volume, kernel("unmount FUSE", move || hostio::fuse::remove(&mount)).await);
        }
        if let Err(error) = node.data.detach_frontends(volume).await {
            tracing::warn!(%volume, %error, "while detaching");
        }
        // A socket file of no listener is harmless, and replaced at the next attach.
        let _ = std::fs::remove_file(&self.nbd_socket);
    }

    /// Makes the kernel device as large as the engine has become.
    pub(super) async fn resize(&self, size: u64) -> Result<(), Status> {
        if let Some(nbd) = &self.nbd {
            return nbd.resize(size).await;
        }
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
        let nbd = self.nbd.as_ref().map(KernelNbd::path);
        self.device.as_ref().map(|device| device.path()).or(nbd)
    }

    pub(super) const fn kernel_nbd(&self) -> Option<&KernelNbd> {
        self.nbd.as_ref()
    }

    pub(super) fn nbd_socket(&self) -> &Path {
        &self.nbd_socket
    }

    pub(super) const fn frontend(&self) -> Frontend {
        self.frontend
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }
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
    blocking(doing, call).await
}

pub(super) async fn blocking<T: Send + 'static, E: std::error::Error + Send + 'static>(
    doing: &'static str,
    call: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Status> {
    match tokio::time::timeout(KERNEL, tokio::task::spawn_blocking(call)).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(error))) => Err(Status::internal(format!("cannot {doing}: {error}"))),
        Ok(Err(_)) => Err(Status::internal(format!("cannot {doing}: the call panicked"))),
        Err(_) => Err(Status::internal(format!(
            "cannot {doing}: no answer within {} s",
            KERNEL.as_secs()
        ))),
    }
}

pub(super) fn log<T>(volume: VolumeId, result: Result<T, Status>) -> Option<T> {
    result
        .inspect_err(|status| tracing::warn!(%volume, error = status.message(), "while detaching"))
        .ok()
}
