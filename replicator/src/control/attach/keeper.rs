//! The daemon's link to its device holder (R14): a service if one is configured, else started with the
//! first kernel device, inherited from a former daemon, replaced when it dies.

use crate::config::Config;
use crate::control::Node;
use core::time::Duration;
use holder::{Holder, HolderError};
use hostio::nbd::NbdDevice;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use types::{EngineInstance, VolumeId};

/// What a daemon wants its successor to know of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The engines that the device may be served by: if Raft's record names one of them, no other
    /// node has written the volume since.
    pub(super) engines: BTreeSet<EngineInstance>,
    /// The device.
    pub(super) device: PathBuf,
}

/// A device that a former daemon left.
#[derive(Debug)]
pub(in crate::control) struct Inherited {
    pub(super) volume: VolumeId,
    pub(super) note: Note,
    pub(super) kept: Kept,
}

/// What is left of it.
#[derive(Debug)]
pub(super) enum Kept {
    /// The holder's copy of its descriptor.
    Fuse(OwnedFd),
    /// All of it, but for its sockets.
    Nbd(NbdDevice),
}

/// How often a service that is not there is looked for.
const SERVICE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    /// `None`: the holder is a service.
    program: Option<PathBuf>,
    socket: PathBuf,
    grace: Duration,
    link: Mutex<Option<Holder>>,
    /// A link was made.
    linked: Notify,
}

impl Keeper {
    /// Without a holder yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let service = config.device_holder_socket.clone();
        Self {
            program: service.is_none().then(|| config.device_holder.clone()),
            socket: service.unwrap_or_else(|| config.data_dir.join("holder.sock")),
            grace: config.device_grace,
            link: Mutex::new(None),
            linked: Notify::new(),
        }
    }

    fn link(&self) -> MutexGuard<'_, Option<Holder>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a former daemon left, if its holder still lives. Blocking.
    pub(super) fn inherit(&self) -> Vec<(holder::Device, OwnedFd)> {
        let connected = Holder::connect(&self.socket);
        let Ok(holder) = connected else { return Vec::new() };
        match holder.devices() {
            Ok(devices) => {
                *self.link() = Some(holder);
                self.linked.notify_one();
                devices
            }
            Err(error) => {
                tracing::warn!(%error, "a former daemon's device holder is of no use");
                Vec::new()
            }
        }
    }

    /// Runs `ask` with the holder; a link that is broken is given up.
    fn with<T>(&self, ask: impl Fn(&Holder) -> Result<T, HolderError>) -> Result<T, HolderError> {
        let mut link = self.link();
        let asked = match link.as_ref() {
            None => return Err(HolderError::Broken(io::ErrorKind::NotConnected.into())),
            Some(holder) => ask(holder),
        };
        if matches!(asked, Err(HolderError::Broken(_))) {
            *link = None;
        }
        asked
    }

    /// Has the holder keep a device; if there is none, the service is connected to or one started.
    /// Blocking.
    pub(super) fn keep(
        &self,
        device: &holder::Device,
        fuse: &impl AsFd,
    ) -> Result<(), HolderError> {
        match self.with(|holder| holder.keep(device, fuse.as_fd())) {
            Err(HolderError::Broken(_)) => {}
            answered => return answered,
        }
        let mut link = self.link();
        let holder = self.find()?;
        holder.keep(device, fuse.as_fd())?;
        *link = Some(holder);
        self.linked.notify_one();
        Ok(())
    }

    fn find(&self) -> Result<Holder, HolderError> {
        let Some(program) = &self.program else { return Holder::connect(&self.socket) };
        let (holder, mut child) = Holder::start(program, &self.socket, self.grace)?;
        // Whoever started a process has to bury it.
        std::thread::spawn(move || child.wait());
        Ok(holder)
    }

    /// Changes the note of a kept device. Blocking.
    pub(super) fn note(&self, volume: VolumeId, note: &Note) -> Result<(), HolderError> {
        let text = note.text()?;
        self.with(|holder| holder.note(&volume.to_string(), &text))
    }

    /// Has a device kept no longer. Blocking. Without a holder nothing is kept.
    pub(super) fn forget(&self, volume: VolumeId) {
        if let Err(error) = self.with(|holder| holder.forget(&volume.to_string())) {
            tracing::debug!(%volume, %error, "no device holder to tell");
        }
    }

    /// Whether a holder that answers keeps the device of `volume`. Blocking.
    pub(super) fn keeps(&self, volume: VolumeId) -> bool {
        let name = volume.to_string();
        let listed = self.with(Holder::devices);
        listed.is_ok_and(|devices| devices.iter().any(|(device, _)| device.volume == name))
    }

    /// Completes when the holder is gone.
    async fn lost(&self) {
        loop {
            if self.link().is_none() {
                match self.program {
                    Some(_) => self.linked.notified().await,
                    // It may come, and there may be devices that it was not there for.
                    None => drop(tokio::time::timeout(SERVICE, self.linked.notified()).await),
                }
                if self.program.is_none() && Holder::connect(&self.socket).is_ok() {
                    return;
                }
                continue;
            }
            // A connection of its own: the holder never speaks on it, so all that can come is its end.
            match Holder::connect(&self.socket).and_then(watch) {
                Ok(connection) => {
                    let _ = connection.readable().await;
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

fn watch(holder: Holder) -> Result<UnixStream, HolderError> {
    let socket = std::os::unix::net::UnixStream::from(OwnedFd::from(holder));
    socket.set_nonblocking(true)?;
    Ok(UnixStream::from_std(socket)?)
}

impl Note {
    pub(super) fn text(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

/// Hands all devices to a new holder whenever the present one is gone, for ever.
pub(in crate::control) async fn guard(node: Arc<Node>) {
    loop {
        node.keeper.lost().await;
        *node.keeper.link() = None;
        tracing::warn!(node = %node.config.node, "the device holder is gone");
        for volume in node.attachments.volumes() {
            let device = node.attachments.inner().get(&volume).and_then(|l| l.device.clone());
            if let Some(device) = device {
                device.hand_over(&node).await;
            }
        }
    }
}

/// Takes what a former daemon of this configuration left, and removes what nobody keeps: loop and NBD
/// devices, FUSE mounts and sockets. Blocking; to be called before anything is served.
pub(in crate::control) fn inherit(keeper: &Keeper, config: &Config) -> Vec<Inherited> {
    let data_dir = &config.data_dir;
    let mut inherited = Vec::new();
    for (device, fuse) in keeper.inherit() {
        let parsed = device.volume.parse().ok().zip(serde_json::from_str(&device.note).ok());
        // Of a device without a note that makes sense nobody knows who may serve it.
        let Some((volume, note)) = parsed else {
            tracing::warn!(
                volume = device.volume,
                note = device.note,
                "a strange device is removed"
            );
            remove(&device.mount, &device.backing);
            drop(keeper.with(|holder| holder.forget(&device.volume)));
            continue;
        };
        inherited.push(Inherited { volume, note, kept: Kept::Fuse(fuse) });
    }
    for mount in entries(&data_dir.join("fuse")) {
        let volume = mount.file_name().and_then(|name| name.to_string_lossy().parse().ok());
        let Some(volume) = volume else {
            tracing::warn!(mount = %mount.display(), "not named after a volume, left alone");
            continue;
        };
        if !inherited.iter().any(|inherited| inherited.volume == volume) {
            tracing::info!(mount = %mount.display(), "removing what a former process left");
            remove(&mount, &super::device::backing_file(config, volume));
        }
    }
    inherited.extend(
        super::kernel_nbd::inherit(config).into_iter().map(|(volume, note, device)| Inherited {
            volume,
            note,
            kept: Kept::Nbd(device),
        }),
    );
    for socket in entries(&data_dir.join("nbd")) {
        if let Err(error) = std::fs::remove_file(&socket) {
            tracing::warn!(socket = %socket.display(), %error, "a remnant could not be removed");
        }
    }
    inherited
}

fn remove(mount: &Path, backing: &Path) {
    for error in holder::remove_device(mount, backing) {
        tracing::warn!(mount = %mount.display(), %error, "a remnant could not be removed");
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
