//! Generic netlink: one request and its answer at a time (linux/netlink.h, linux/genetlink.h).

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// The family that knows the numbers of the others.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const NESTED: u16 = 1 << 15;
const KIND: u16 = !(3 << 14);
/// struct nlmsghdr, struct genlmsghdr and struct nlattr, in bytes.
const HEAD: usize = 16;
const GENERIC_HEAD: usize = 4;
const ATTRIBUTE_HEAD: usize = 4;
/// Longest datagram of an answer.
const ANSWER: usize = 32 << 10;
/// How long an answer may take, in seconds. The kernel answers from within the request.
const PATIENCE: i64 = 10;

/// Attributes of a request, in the kernel's layout: length, kind, value, padding to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // Nothing here comes near 64 KiB.
        let len = (ATTRIBUTE_HEAD + value.len()) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u64(self, kind: u16, value: u64) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// A string, with its final zero.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.with(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nested(self, kind: u16, value: &Self) -> Self {
        self.with(kind | NESTED, &value.0)
    }
}

/// The value of the first attribute of `kind`; `None` as well where the lengths make no sense.
pub(crate) fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND;
        let value = bytes.get(ATTRIBUTE_HEAD..len)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

/// A generic netlink family of the kernel, on a socket of its own.
#[derive(Debug)]
pub(crate) struct Family {
    socket: OwnedFd,
    id: u16,
    sequence: u32,
}

impl Family {
    /// # Errors
    /// ENOENT if the kernel has no family of this name, or shows it to other network namespaces only.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkGeneric;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        let mut family = Self { socket, id: CONTROL, sequence: 0 };
        let answer = family.call(GET_FAMILY, &Attributes::default().text(FAMILY_NAME, name))?;
        let id = attribute(&answer, FAMILY_ID).and_then(|value| value.try_into().ok());
        family.id = u16::from_ne_bytes(id.ok_or_else(malformed)?);
        Ok(family)
    }

    /// Sends one command and waits until it is done; the attributes of the answer, empty if there
    /// was nothing to say.
    ///
    /// # Errors
    /// What the kernel refused with.
    pub(crate) fn call(&mut self, command: u8, attributes: &Attributes) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let len = HEAD + GENERIC_HEAD + attributes.0.len();
        let mut message = Vec::with_capacity(len);
        message.extend_from_slice(&(len as u32).to_ne_bytes());
        message.extend_from_slice(&self.id.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&[command, 1, 0, 0]);
        message.extend_from_slice(&attributes.0);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        let mut said = Vec::new();
        let mut datagram = vec![0; ANSWER];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            let mut rest = &datagram[..len];
            while !rest.is_empty() {
                let (message, after) = next_message(rest).ok_or_else(malformed)?;
                rest = after;
                if message.sequence != self.sequence {
                    continue;
                }
                if message.kind != NLMSG_ERROR {
                    said = message.body.get(GENERIC_HEAD..).ok_or_else(malformed)?.to_vec();
                    continue;
                }
                let code = message.body.first_chunk().ok_or_else(malformed)?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(said),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The first message of a datagram, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let body = bytes.get(HEAD..len)?;
    let after = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, sequence, body }, after))
}

fn malformed() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADMSG)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_written_is_found_and_damage_is_not_followed() {
        let inner = Attributes::default().u32(7, 5);
        let all = Attributes::default().text(2, "abcd").nested(3, &inner).u64(4, 9).0;
        assert_eq!(all.len() % 4, 0);
        assert_eq!(attribute(&all, 2), Some(&b"abcd\0"[..]));
        assert_eq!(attribute(attribute(&all, 3).unwrap(), 7), Some(&5u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&all, 4), Some(&9u64.to_ne_bytes()[..]));
        assert_eq!(attribute(&all, 5), None);
        for cut in 0..all.len() {
            assert_eq!(attribute(&all[..cut], 5), None);
            assert_eq!(attribute(&all[..cut], 4), None);
        }
        assert_eq!(attribute(&[0, 0, 0, 0, 0, 0, 0, 0], 1), None, "a length of nothing");
        assert!(next_message(&[200, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]).is_none());
    }

    #[test]
    fn the_kernel_knows_its_own_families() {
        assert!(Family::open("nlctrl").is_ok());
        let error = Family::open("no-such-family").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
