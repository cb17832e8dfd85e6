//! The kernel's NBD driver, by generic netlink (linux/nbd-netlink.h): a block device whose requests
//! go out on sockets.
//!
//! The device is the kernel's own: it outlives the process that made it, and waits for new sockets in
//! place of dead ones. A call may wait for whoever serves the sockets: make it from another thread.

use crate::HostError;
use crate::netlink::{Attributes, Family, attribute};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FAMILY: &str = "nbd";

mod cmd {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
}

mod attr {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const CLIENT_FLAGS: u16 = 6;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    pub const SOCK_ITEM: u16 = 1;
    pub const SOCK_FD: u16 = 1;
}

/// How long a device may take to be what it was asked to be.
const USABLE: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes that the kernel may have on their way into a socket: one request of the usual size, whole.
const SEND_BUFFER: usize = 1 << 20;

/// What a new device shall be.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// Bytes.
    pub size: u64,
    /// Logical blocks, in bytes.
    pub block: u32,
    /// Transmission flags of the protocol.
    pub flags: u16,
    /// How long requests wait for a socket when all are dead; then they get errors.
    pub dead_timeout: Duration,
    /// Says whose it is; see [`find`].
    pub backend: &'a str,
}

/// A configured device. Dropping it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdDevice {
    index: u32,
    path: PathBuf,
}

/// Whether the driver can be had by this process.
///
/// # Errors
/// Why not, in words.
pub fn probe() -> Result<(), String> {
    match Family::open(FAMILY) {
        Ok(_) if Path::new("/sys/block/nbd0").exists() => Ok(()),
        Ok(_) => Err("the kernel's nbd has no devices (nbds_max=0)".to_owned()),
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            Err(format!("generic netlink: {error}"))
        }
        Err(_) if Path::new("/sys/module/nbd").exists() => {
            Err("the kernel's nbd answers only in the host's network namespace".to_owned())
        }
        Err(_) => Err("the kernel has no nbd (not built, or `modprobe nbd` not done)".to_owned()),
    }
}

/// A connection between a device and who serves it: the kernel's end and the server's.
///
/// # Errors
/// EMFILE and the like.
pub fn connection() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (kernel, server) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    for end in [&kernel, &server] {
        // Past net.core.wmem_max where that is allowed; less is slower, nothing else.
        if setsockopt(end, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(end, sockopt::SndBuf, &SEND_BUFFER)?;
        }
    }
    Ok((kernel, server))
}

impl NbdDevice {
    /// Configures a free device on `sockets`, whose other ends are served already, and waits until it
    /// can be used.
    ///
    /// # Errors
    /// [`HostError::Sys`]; nothing is left then.
    pub fn connect(spec: &Spec<'_>, sockets: &[OwnedFd]) -> Result<Self, HostError> {
        let request = Attributes::default()
            .u64(attr::SIZE_BYTES, spec.size)
            .u64(attr::BLOCK_SIZE_BYTES, spec.block.into())
            // A request is never given up for its age: see `set_look_after`.
            .u64(attr::TIMEOUT, 0)
            .u64(attr::DEAD_CONN_TIMEOUT, spec.dead_timeout.as_secs())
            .u64(attr::SERVER_FLAGS, spec.flags.into())
            .u64(attr::CLIENT_FLAGS, 0)
            .text(attr::BACKEND_IDENTIFIER, spec.backend)
            .nested(attr::SOCKETS, &descriptors(sockets));
        // Without an index the kernel takes a free device, or makes one.
        let index = call(cmd::CONNECT, &request)
            .and_then(|answer| {
                let index = attribute(&answer, attr::INDEX).and_then(|value| value.try_into().ok());
                index.map(u32::from_ne_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
            })
            .map_err(|error| HostError::sys("configure", Path::new("/dev/nbd"), error))?;
        let device = Self::at(index);
        if let Err(error) = device.usable(spec) {
            let _ = device.disconnect();
            return Err(error);
        }
        Ok(device)
    }

    fn at(index: u32) -> Self {
        Self { index, path: PathBuf::from(format!("/dev/nbd{index}")) }
    }

    /// The device, `/dev/nbdN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sys(&self, name: &str) -> PathBuf {
        Path::new("/sys/block").join(format!("nbd{}", self.index)).join(name)
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.sys(name)).ok().map(|text| text.trim_end().to_owned())
    }

    /// Waits for the size, the blocks and the node in /dev.
    fn usable(&self, spec: &Spec<'_>) -> Result<(), HostError> {
        let until = Instant::now() + USABLE;
        let fits = || {
            let node = std::fs::metadata(&self.path).ok()?;
            let number = node.file_type().is_block_device().then(|| node.rdev())?;
            let number = format!("{}:{}", libc::major(number), libc::minor(number));
            let is = |name, value: String| self.text(name).filter(|text| *text == value);
            is("size", (spec.size / 512).to_string())?;
            is("queue/logical_block_size", spec.block.to_string())?;
            is("backend", spec.backend.to_owned())?;
            is("dev", number)
        };
        while fits().is_none() {
            if Instant::now() >= until {
                let error = io::Error::from(io::ErrorKind::TimedOut);
                return Err(HostError::sys("wait for", &self.path, error));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// How long a request is out before the kernel looks whether its socket was replaced meanwhile,
    /// and then sends it again (queue/io_timeout). A device with several sockets also shuts the
    /// socket of a request of that age, and sends it on another.
    ///
    /// # Errors
    /// [`HostError::Sys`].
    pub fn set_look_after(&self, age: Duration) -> Result<(), HostError> {
        let path = self.sys("queue/io_timeout");
        std::fs::write(&path, age.as_millis().to_string())
            .map_err(|error| HostError::sys("write", &path, error))
    }

    /// Lets requests be up to `bytes` long, as far as the driver allows (queue/max_sectors_kb).
    ///
    /// # Errors
    /// [`HostError::Sys`].
    pub fn set_longest_request(&self, bytes: u64) -> Result<(), HostError> {
        let path = self.sys("queue/max_sectors_kb");
        std::fs::write(&path, (bytes >> 10).to_string())
            .map_err(|error| HostError::sys("write", &path, error))
    }

    /// Gives the device `sockets` in place of as many dead ones; requests that wait go on. A socket
    /// for which there was no dead one is closed by the kernel.
    ///
    /// # Errors
    /// [`HostError::Sys`]: EINVAL if the device is not one of `backend` any more.
    pub fn reconnect(&self, backend: &str, sockets: &[OwnedFd]) -> Result<(), HostError> {
        let request = self.request(backend).nested(attr::SOCKETS, &descriptors(sockets));
        self.call("reconnect", cmd::RECONFIGURE, &request)
    }

    /// Makes the device `size` bytes long.
    ///
    /// # Errors
    /// As [`Self::reconnect`].
    pub fn resize(&self, backend: &str, size: u64) -> Result<(), HostError> {
        let request = self.request(backend).u64(attr::SIZE_BYTES, size);
        self.call("resize", cmd::RECONFIGURE, &request)
    }

    /// Ends the device: what is out gets errors, the sockets are closed. Idempotent. While others have
    /// it open it stays theirs, without a use.
    ///
    /// # Errors
    /// [`HostError::Sys`].
    pub fn disconnect(&self) -> Result<(), HostError> {
        match self.call(
            "disconnect",
            cmd::DISCONNECT,
            &Attributes::default().u32(attr::INDEX, self.index),
        ) {
            Err(error) if error.errno() == libc::EINVAL && !self.is_configured() => Ok(()),
            done => done,
        }
    }

    /// Whether somebody has configured it.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.sys("pid").exists()
    }

    fn request(&self, backend: &str) -> Attributes {
        Attributes::default().u32(attr::INDEX, self.index).text(attr::BACKEND_IDENTIFIER, backend)
    }

    fn call(
        &self,
        action: &'static str,
        command: u8,
        request: &Attributes,
    ) -> Result<(), HostError> {
        call(command, request).map(drop).map_err(|error| HostError::sys(action, &self.path, error))
    }
}

fn call(command: u8, request: &Attributes) -> io::Result<Vec<u8>> {
    Family::open(FAMILY)?.call(command, request)
}

fn descriptors(sockets: &[OwnedFd]) -> Attributes {
    sockets.iter().fold(Attributes::default(), |all, socket| {
        let fd = socket.as_raw_fd().unsigned_abs();
        all.nested(attr::SOCK_ITEM, &Attributes::default().u32(attr::SOCK_FD, fd))
    })
}

/// Configured devices whose identifier begins with `prefix`, with the rest of it; in the order of
/// their numbers.
#[must_use]
pub fn find(prefix: &str) -> Vec<(NbdDevice, String)> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let named = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let device = NbdDevice::at(name.to_str()?.strip_prefix("nbd")?.parse().ok()?);
        let rest = device.text("backend")?.strip_prefix(prefix)?.to_owned();
        device.is_configured().then_some((device, rest))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(named).collect();
    found.sort_by_key(|(device, _)| device.index);
    found
}
