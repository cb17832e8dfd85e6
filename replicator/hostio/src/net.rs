//! Sockets made ready for a ring: blocking mode, close-on-exec, no delay.

use crate::ring::Fd;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// An unconnected TCP socket for [`crate::Op::Connect`], with TCP_NODELAY.
pub fn tcp_socket(addr: &SocketAddr) -> io::Result<Fd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    Ok(Arc::new(fd))
}

/// Sets TCP_NODELAY on an accepted or std socket.
pub fn set_nodelay(fd: &impl AsFd) -> io::Result<()> {
    setsockopt(fd, sockopt::TcpNoDelay, &true)?;
    Ok(())
}

/// Takes a socket into a ring's hands: a ring waits by itself, and O_NONBLOCK (set by tokio, for
/// instance) would turn that waiting into EAGAIN.
pub fn into_ring(fd: OwnedFd) -> io::Result<Fd> {
    set_blocking(&fd, true)?;
    Ok(Arc::new(fd))
}

/// Whether the other side has shut a connected socket down, both ways; what it sent before may still
/// wait to be received.
pub fn is_shut_down(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let looked = poll(&mut fds, PollTimeout::ZERO).is_ok();
    looked && fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP))
}

pub(crate) fn set_blocking(fd: &impl AsFd, blocking: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, !blocking);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}
