//! The holder's side: one thread that waits for daemons, signals and the end of its patience.

use crate::message::{Device, MAX_MESSAGE, Request, Response, decode, encode};
use hostio::unix;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// Connections at a time: a daemon, and its successor while the kernel buries the first.
const MAX_CLIENTS: usize = 8;
/// Devices that are kept.
const MAX_DEVICES: usize = 4096;

#[derive(Debug, Default)]
struct Kept {
    devices: BTreeMap<String, (Device, OwnedFd)>,
}

/// How long a holder is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as it keeps something or somebody is connected: it was started by a daemon, and its
    /// end is the end of what it keeps.
    Needed,
    /// Until SIGTERM or SIGINT: a service of its own. A daemon that is connected then keeps its
    /// devices and hands them to the next holder.
    Lasting,
}

/// Serves connections on `listener` for its `life`. When nobody was connected for `grace`, and when it
/// ends, what is kept is removed; what could not be is reported to stderr.
///
/// # Errors
/// Only if it cannot wait at all: the kernel's refusal of a signal or poll descriptor.
pub fn serve(listener: UnixListener, grace: Duration, life: Life) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    listener.set_nonblocking(true)?;
    let mut kept = Kept::default();
    let mut clients: Vec<OwnedFd> = Vec::new();
    let mut alone_since = Instant::now();
    loop {
        let patience = grace.saturating_sub(alone_since.elapsed());
        let idle = life == Life::Lasting && kept.devices.is_empty();
        let timeout = match clients.is_empty() {
            true if idle => PollTimeout::NONE,
            true if patience.is_zero() && life == Life::Lasting => {
                kept.remove_all();
                continue;
            }
            true if patience.is_zero() => break,
            // Rounded up: a wait that ends too early would only be repeated.
            true => PollTimeout::try_from(patience + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX),
            false => PollTimeout::NONE,
        };
        let (stop, joining, speaking) = wait(&signals, &listener, &clients, timeout)?;
        if stop && life == Life::Lasting && !clients.is_empty() {
            return Ok(());
        }
        if stop {
            break;
        }
        let had_clients = !clients.is_empty();
        // From the last on, so that the numbers before stay right.
        for index in speaking.into_iter().rev() {
            if let Err(_gone) = kept.answer(&clients[index]) {
                clients.remove(index);
            }
        }
        while joining && clients.len() < MAX_CLIENTS {
            let Ok(client) = unix::accept(&listener) else { break };
            clients.push(client);
        }
        if clients.is_empty() && had_clients {
            if kept.devices.is_empty() && life == Life::Needed {
                break;
            }
            alone_since = Instant::now();
        }
    }
    kept.remove_all();
    Ok(())
}

/// Waits: whether a signal came, somebody wants to connect, and which clients speak or are gone.
fn wait(
    signals: &SignalFd,
    listener: &UnixListener,
    clients: &[OwnedFd],
    timeout: PollTimeout,
) -> io::Result<(bool, bool, Vec<usize>)> {
    let mut fds = vec![
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(listener.as_fd(), PollFlags::POLLIN),
    ];
    fds.extend(clients.iter().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    let speaking = (0..clients.len()).filter(|index| ready(&fds[index + 2])).collect();
    Ok((ready(&fds[0]), ready(&fds[1]), speaking))
}

impl Kept {
    /// Answers one request of a client that speaks.
    fn answer(&mut self, client: &OwnedFd) -> io::Result<()> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (len, fd) = unix::receive(client, &mut buffer)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let response = match decode(&buffer[..len]) {
            Ok(request) => self.handle(request, fd),
            Err(error) => Response::Refused { reason: format!("not a request: {error}") },
        };
        let fd = match &response {
            Response::Device(device) => self.devices.get(&device.volume).map(|(_, fd)| fd.as_fd()),
            _ => None,
        };
        unix::send(client, &encode(&response)?, fd)
    }

    fn handle(&mut self, request: Request, fd: Option<OwnedFd>) -> Response {
        let refused = |reason: &str| Response::Refused { reason: reason.to_owned() };
        match request {
            Request::Keep(device) => {
                let Some(fd) = fd else { return refused("no descriptor came along") };
                if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&device.volume) {
                    return refused("too many devices are kept");
                }
                self.devices.insert(device.volume.clone(), (device, fd));
                Response::Done
            }
            Request::Note { volume, note } => match self.devices.get_mut(&volume) {
                Some((device, _)) => {
                    device.note = note;
                    Response::Done
                }
                None => refused("this device is not kept"),
            },
            Request::Forget { volume } => {
                self.devices.remove(&volume);
                Response::Done
            }
            Request::Next { after } => {
                let start = after.map_or(Bound::Unbounded, Bound::Excluded);
                let next = self.devices.range::<String, _>((start, Bound::Unbounded)).next();
                next.map_or(Response::End, |(_, (device, _))| Response::Device(device.clone()))
            }
        }
    }

    fn remove_all(&mut self) {
        for (device, fd) in std::mem::take(&mut self.devices).into_values() {
            for error in crate::remove_device(&device.mount, &device.backing) {
                eprintln!("device-holder: volume {}: {error}", device.volume);
            }
            drop(fd);
        }
    }
}
