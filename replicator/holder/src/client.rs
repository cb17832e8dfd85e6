//! The daemon's side.

use crate::message::{Device, MAX_MESSAGE, Request, Response, decode, encode};
use hostio::{HostError, unix};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use thiserror::Error;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the holder did not do what it was asked.
#[derive(Debug, Error)]
pub enum HolderError {
    /// There is none, or it cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] HostError),
    /// It could not be started.
    #[error("cannot start {program:?}")]
    Start {
        /// The program.
        program: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the device holder does not answer")]
    Broken(#[source] io::Error),
    /// It refused.
    #[error("the device holder refused: {0}")]
    Refused(String),
}

impl From<io::Error> for HolderError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A connection to the holder. While it stands, the holder keeps what it has.
#[derive(Debug)]
pub struct Holder {
    socket: OwnedFd,
}

impl Holder {
    /// Connects to the holder that listens on `socket`.
    ///
    /// # Errors
    /// [`HolderError::Unreachable`] if there is none.
    pub fn connect(socket: &Path) -> Result<Self, HolderError> {
        Ok(Self { socket: unix::connect(socket, PATIENCE)? })
    }

    /// Starts a holder on `socket` and connects to it. It outlives this process; `grace` is how
    /// long it waits for the next one.
    ///
    /// # Errors
    /// [`HolderError::Start`], [`HolderError::Unreachable`].
    pub fn start(
        program: &Path,
        socket: &Path,
        grace: Duration,
    ) -> Result<(Self, Child), HolderError> {
        // It inherits the socket, so that it can be reached from the first moment on.
        let listener = unix::listen(socket)?;
        let child = Command::new(program)
            .arg("--grace-seconds")
            .arg(grace.as_secs().to_string())
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| HolderError::Start { program: program.to_owned(), source })?;
        Ok((Self::connect(socket)?, child))
    }

    /// Has `device` kept by `fuse`, in place of one of the same volume. Idempotent.
    ///
    /// # Errors
    /// [`HolderError`]; what was kept before still is.
    pub fn keep(&self, device: &Device, fuse: BorrowedFd<'_>) -> Result<(), HolderError> {
        self.done(&Request::Keep(device.clone()), Some(fuse))
    }

    /// Replaces the note of a kept device.
    ///
    /// # Errors
    /// [`HolderError::Refused`] if it is not kept.
    pub fn note(&self, volume: &str, note: &str) -> Result<(), HolderError> {
        self.done(&Request::Note { volume: volume.into(), note: note.into() }, None)
    }

    /// Ends the keeping of a device; the device itself is left as it is. Idempotent.
    ///
    /// # Errors
    /// [`HolderError`].
    pub fn forget(&self, volume: &str) -> Result<(), HolderError> {
        self.done(&Request::Forget { volume: volume.into() }, None)
    }

    /// Every device that is kept, with copies of their descriptors.
    ///
    /// # Errors
    /// [`HolderError`].
    pub fn devices(&self) -> Result<Vec<(Device, OwnedFd)>, HolderError> {
        let mut devices: Vec<(Device, OwnedFd)> = Vec::new();
        loop {
            let after = devices.last().map(|(device, _)| device.volume.clone());
            match self.ask(&Request::Next { after }, None)? {
                (Response::Device(device), Some(fuse)) => devices.push((device, fuse)),
                (Response::End, _) => return Ok(devices),
                (other, _) => return Err(unexpected(other)),
            }
        }
    }

    fn done(&self, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<(), HolderError> {
        match self.ask(request, fd)?.0 {
            Response::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn ask(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Response, Option<OwnedFd>), HolderError> {
        unix::send(&self.socket, &encode(request)?, fd)?;
        let mut buffer = vec![0; MAX_MESSAGE];
        let (len, fd) = unix::receive(&self.socket, &mut buffer)?;
        if len == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok((decode(&buffer[..len])?, fd))
    }
}

/// The connection itself. The holder never speaks unasked: it is readable only when that is gone.
impl From<Holder> for OwnedFd {
    fn from(holder: Holder) -> Self {
        holder.socket
    }
}

fn unexpected(response: Response) -> HolderError {
    match response {
        Response::Refused { reason } => HolderError::Refused(reason),
        other => HolderError::Refused(format!("unexpected answer {other:?}")),
    }
}
