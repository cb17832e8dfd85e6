//! Unix sockets of whole messages (SOCK_SEQPACKET), each with a file descriptor if need be
//! (SCM_RIGHTS, unix(7)).

use crate::HostError;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixAddr, bind, connect as connect_to, listen as listen_on, recvmsg, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

fn unconnected() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

/// Listens on `path`, for root only, in place of a socket of nobody that is there.
///
/// # Errors
/// [`HostError::Sys`]: ENAMETOOLONG beyond 107 bytes, ENOENT without the directory.
pub fn listen(path: &Path) -> Result<OwnedFd, HostError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(HostError::sys("replace", path, error));
        }
        _ => {}
    }
    let bound = || -> io::Result<OwnedFd> {
        let fd = unconnected()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listen_on(&fd, Backlog::MAXCONN)?;
        Ok(fd)
    };
    bound().map_err(|error| HostError::sys("listen on", path, error))
}

/// Connects to `path`. No call on the connection waits longer than `patience` (EAGAIN).
///
/// # Errors
/// [`HostError::Sys`]: ENOENT or ECONNREFUSED if nobody listens.
pub fn connect(path: &Path, patience: Duration) -> Result<OwnedFd, HostError> {
    let connected = || -> io::Result<OwnedFd> {
        let fd = unconnected()?;
        let patience = TimeVal::new(patience.as_secs() as i64, patience.subsec_micros().into());
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        connect_to(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(fd)
    };
    connected().map_err(|error| HostError::sys("connect to", path, error))
}

/// Takes a connection that waits on a listening socket.
///
/// # Errors
/// The kernel's; EAGAIN if none waits on a non-blocking one.
pub fn accept(listener: &UnixListener) -> io::Result<OwnedFd> {
    // The type of the socket makes no difference to accept(2).
    Ok(listener.accept()?.0.into())
}

/// Sends one message, with a copy of `fd` if there is one.
///
/// # Errors
/// EPIPE if the other side is gone, EMSGSIZE for a message that does not fit the send buffer.
pub fn send(socket: &impl AsFd, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(message)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, control, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message into `buffer`: its length in bytes, and the descriptor that came with it.
/// Length 0 is the end of the connection.
///
/// # Errors
/// EMSGSIZE for a message that is longer than `buffer` or brings several descriptors (they are
/// closed), EAGAIN if none came in time.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        let fd = socket.as_fd().as_raw_fd();
        match recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) {
            Ok(message) => break message,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just installed these descriptors for this process alone, and
            // each is turned into an owner once.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    if cut || fds.len() > 1 {
        return Err(Errno::EMSGSIZE.into());
    }
    Ok((message.bytes, fds.pop()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Seek, Write};

    fn pair(directory: &Path) -> (OwnedFd, OwnedFd) {
        let path = directory.join("socket");
        let listener = UnixListener::from(listen(&path).unwrap());
        let near = connect(&path, Duration::from_millis(200)).unwrap();
        (near, accept(&listener).unwrap())
    }

    #[test]
    fn a_descriptor_travels_with_its_message() {
        let directory = tempfile::tempdir().unwrap();
        let (near, far) = pair(directory.path());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"what it holds").unwrap();
        send(&near, b"here", Some(file.as_fd())).unwrap();
        send(&near, b"and no more", None).unwrap();
        drop(file);
        let mut buffer = [0; 64];
        let (len, fd) = receive(&far, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"here");
        let mut file = std::fs::File::from(fd.unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "what it holds");
        let (len, fd) = receive(&far, &mut buffer).unwrap();
        assert_eq!((&buffer[..len], fd.is_none()), (&b"and no more"[..], true));
        drop(near);
        assert_eq!(receive(&far, &mut buffer).unwrap().0, 0);
        assert_eq!(send(&far, b"late", None).unwrap_err().raw_os_error(), Some(32));
    }

    #[test]
    fn what_is_too_long_or_does_not_come_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (near, far) = pair(directory.path());
        send(&far, &[7; 100], None).unwrap();
        let error = receive(&near, &mut [0; 99]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        let error = receive(&near, &mut [0; 99]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_of_nobody_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(listen(&path).unwrap());
        assert!(connect(&path, Duration::from_secs(1)).is_err());
        let _listener = listen(&path).unwrap();
        assert!(connect(&path, Duration::from_secs(1)).is_ok());
    }
}
