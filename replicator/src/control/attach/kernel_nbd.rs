//! A device of the kernel's NBD driver. The kernel itself keeps it while no daemon is there (R14), and
//! sends what was not answered again on the sockets that the next daemon brings; what that one must
//! know of it is in a note on disk.

use super::device::{blocking, log};
use super::keeper::Note;
use super::{Local, Node};
use crate::config::Config;
use crate::control::status::data_status;
use core::time::Duration;
use hostio::nbd::{NbdDevice, Spec};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::Status;
use types::{BLOCK, MAX_IO, VolumeId};

/// How long a request is out before the kernel looks whether its socket was replaced. With one socket
/// it only looks, so this is what a restart may cost beyond its own time.
const LOOK: Duration = Duration::from_secs(1);
/// With several sockets the kernel also gives up the one that the request is on: not before an engine
/// would have failed it (10 s, R4).
const LOOK_OF_SEVERAL: Duration = Duration::from_secs(15);
/// Before a dead connection is replaced: the kernel notes by itself that it is dead.
const RELINK: Duration = Duration::from_millis(200);

/// See the module; clones are the same device.
#[derive(Clone, Debug)]
pub(super) struct KernelNbd {
    device: NbdDevice,
    backend: String,
    note: PathBuf,
}

/// What the identifiers of this node's devices begin with; the volume follows.
fn backends(config: &Config) -> String {
    format!("holdfast/{}/{}/", config.cluster, config.node)
}

fn notes(data_dir: &Path) -> PathBuf {
    data_dir.join("kernel-nbd")
}

fn note_of(data_dir: &Path, volume: VolumeId) -> PathBuf {
    notes(data_dir).join(format!("{volume}.json"))
}

/// Devices of a former daemon, each with its note, and removes those that nobody can take over.
/// Blocking.
pub(super) fn inherit(config: &Config) -> Vec<(VolumeId, Note, NbdDevice)> {
    let mut inherited = Vec::new();
    for (device, name) in hostio::nbd::find(&backends(config)) {
        let noted = name.parse::<VolumeId>().ok().and_then(|volume| {
            let text = std::fs::read(note_of(&config.data_dir, volume)).ok()?;
            let note: Note = serde_json::from_slice(&text).ok()?;
            (note.device == device.path()).then_some((volume, note))
        });
        match noted {
            Some((volume, note)) => inherited.push((volume, note, device)),
            None => {
                let path = device.path().display();
                tracing::info!(device = %path, name, "removing what a former process left");
                if let Err(error) = device.disconnect() {
                    tracing::warn!(device = %path, %error, "a remnant could not be removed");
                }
            }
        }
    }
    // Notes of devices that a reboot ended.
    for entry in std::fs::read_dir(notes(&config.data_dir)).into_iter().flatten().flatten() {
        let path = entry.path();
        let kept = |volume: &VolumeId| note_of(&config.data_dir, *volume) == path;
        if !inherited.iter().any(|(volume, ..)| kept(volume)) {
            let _ = std::fs::remove_file(&path);
        }
    }
    inherited
}

impl KernelNbd {
    pub(super) fn inherited(config: &Config, volume: VolumeId, device: NbdDevice) -> Self {
        Self {
            device,
            backend: format!("{}{volume}", backends(config)),
            note: note_of(&config.data_dir, volume),
        }
    }

    /// Makes a device for `volume`, whose engine serves I/O.
    pub(super) async fn create(node: &Node, volume: VolumeId, size: u64) -> Result<Self, Status> {
        let config = &node.config;
        let backend = format!("{}{volume}", backends(config));
        let sockets = connect(node, volume, config.nbd_connections).await?;
        let (grace, wanted) = (config.device_grace, backend.clone());
        let several = sockets.len() > 1;
        let device = blocking("configure the kernel's nbd", move || {
            let spec = Spec {
                size,
                block: BLOCK as u32,
                flags: frontend::TRANSMISSION_FLAGS,
                dead_timeout: grace,
                backend: &wanted,
            };
            let device = NbdDevice::connect(&spec, &sockets)?;
            let set = device.set_look_after(if several { LOOK_OF_SEVERAL } else { LOOK });
            set.inspect_err(|_| drop(device.disconnect()))?;
            if let Err(error) = device.set_longest_request(MAX_IO) {
                tracing::debug!(%error, "requests stay as short as they are");
            }
            Ok::<_, hostio::HostError>(device)
        })
        .await?;
        Ok(Self { device, backend, note: note_of(&config.data_dir, volume) })
    }

    /// Serves the device of a former daemon, all of whose sockets have died with it.
    pub(super) async fn resume(&self, node: &Node, volume: VolumeId) -> Result<(), Status> {
        self.link(node, volume, node.config.nbd_connections).await
    }

    /// `count` new sockets in place of dead ones.
    async fn link(&self, node: &Node, volume: VolumeId, count: usize) -> Result<(), Status> {
        let sockets = connect(node, volume, count).await?;
        let (device, backend) = (self.device.clone(), self.backend.clone());
        let reconnect = move || device.reconnect(&backend, &sockets);
        blocking("reconnect the kernel's nbd", reconnect).await
    }

    /// Writes down what a successor must know; whole or not at all.
    pub(super) async fn keep(&self, note: &Note) -> Result<(), Status> {
        let (path, text) = (self.note.clone(), note.text().map_err(Status::from)?);
        let write = move || -> io::Result<()> {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, text)?;
            std::fs::rename(&fresh, &path)
        };
        blocking("note a device for the next daemon", write).await
    }

    pub(super) fn is_kept(&self) -> bool {
        self.note.exists()
    }

    /// Ends the device: what the kernel still waits for gets errors.
    pub(super) async fn remove(&self, volume: VolumeId) {
        // First: what is half removed must not be taken over.
        let _ = std::fs::remove_file(&self.note);
        let device = self.device.clone();
        log(volume, blocking("disconnect the kernel's nbd", move || device.disconnect()).await);
    }

    pub(super) async fn resize(&self, size: u64) -> Result<(), Status> {
        let (device, backend) = (self.device.clone(), self.backend.clone());
        blocking("grow the kernel's nbd", move || device.resize(&backend, size)).await
    }

    pub(super) fn path(&self) -> &Path {
        self.device.path()
    }
}

/// New connections whose servers' ends are served; the kernel's ends.
async fn connect(node: &Node, volume: VolumeId, count: usize) -> Result<Vec<OwnedFd>, Status> {
    let mut kernel_ends = Vec::new();
    for _ in 0..count {
        let (kernel, server) = hostio::nbd::connection()?;
        node.data
            .attach_kernel_nbd(volume, server)
            .await
            .map_err(|error| data_status("NBD front-end", &error))?;
        kernel_ends.push(kernel);
    }
    Ok(kernel_ends)
}

/// Replaces a connection that ended, if there is still a device that lacks it.
pub(in crate::control) async fn relink(node: Arc<Node>, volume: VolumeId) {
    loop {
        tokio::time::sleep(RELINK).await;
        // An operation that is under way may be the end of the device.
        let Ok(_operation) = node.attachments.begin(volume) else { continue };
        let nbd = match node.attachments.inner().get(&volume) {
            Some(Local { device: Some(device), .. }) => device.kernel_nbd().cloned(),
            _ => None,
        };
        let Some(nbd) = nbd else { return };
        tracing::warn!(%volume, device = %nbd.path().display(), "replacing a dead connection");
        log(volume, nbd.link(&node, volume, 1).await);
        return;
    }
}
