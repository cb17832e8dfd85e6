//! The requests of one connection that are in flight, without I/O: what they become for the device
//! and what they are answered with.

use super::MAX_REQUEST;
use super::proto::{
    EINVAL, EIO, ENOSPC, ESHUTDOWN, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, cmd,
};
use crate::{BlockDevice, io_id};
use types::{BLOCK, BlockOp, BlockResult, Buf, IoError, MAX_IO, in_bounds};

/// What a request asks for, once it is known to be legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    /// Its payload follows the header.
    Write {
        fua: bool,
    },
    Flush,
    Discard,
    Zero {
        fua: bool,
    },
    Disconnect,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Answer with the errno. A write's payload is to be read and thrown away first.
    Errno(u32),
    /// Answer with EINVAL and close: its payload is longer than anybody is willing to read.
    TooLong,
}

/// Checks a request against what was negotiated and a device of `size` bytes.
pub(super) fn check(request: &Request, size: u64, structured: bool) -> Result<Command, Refusal> {
    let len = u64::from(request.len);
    let fua = request.flags & cmd::FLAG_FUA != 0;
    let (command, flags, beyond) = match request.command {
        cmd::DISC => return Ok(Command::Disconnect),
        cmd::READ => (Command::Read, if structured { cmd::FLAG_DF } else { 0 }, EINVAL),
        cmd::WRITE => (Command::Write { fua }, 0, ENOSPC),
        cmd::FLUSH => (Command::Flush, 0, EINVAL),
        // A durable discard is a write of zeroes, which has FUA.
        cmd::TRIM if fua => (Command::Zero { fua }, 0, EINVAL),
        cmd::TRIM => (Command::Discard, 0, EINVAL),
        cmd::WRITE_ZEROES => (Command::Zero { fua }, cmd::FLAG_NO_HOLE, ENOSPC),
        _ => return Err(Refusal::Errno(EINVAL)),
    };
    if request.command == cmd::WRITE && request.len > MAX_REQUEST {
        return Err(Refusal::TooLong);
    }
    // FUA is legal on every command once it is advertised.
    if request.flags & !(flags | cmd::FLAG_FUA) != 0 {
        return Err(Refusal::Errno(EINVAL));
    }
    if command == Command::Flush {
        let plain = request.offset == 0 && request.len == 0;
        return if plain { Ok(command) } else { Err(Refusal::Errno(EINVAL)) };
    }
    if command == Command::Read && request.len > MAX_REQUEST {
        return Err(Refusal::Errno(EINVAL));
    }
    if request.offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(Refusal::Errno(beyond));
    }
    if !in_bounds(request.offset, len, size) {
        return Err(Refusal::Errno(EINVAL));
    }
    Ok(command)
}

/// One request that the device is working on, or that still receives its payload.
struct Active {
    cookie: u64,
    offset: u64,
    /// Payload bytes it may hold, either way.
    bytes: u32,
    /// Pieces at the device, plus one while more may come.
    open: u32,
    errno: Option<u32>,
    /// Not to be answered.
    silent: bool,
    /// `Some` for a read: its pieces in order.
    data: Option<Vec<Option<Buf>>>,
}

#[derive(Clone, Copy)]
struct Piece {
    request: u32,
    number: u32,
    len: u32,
}

/// Bounded by its user through [`Requests::count`] and [`Requests::bytes`].
#[derive(Default)]
pub(super) struct Requests {
    active: Slab<Active>,
    pieces: Slab<Piece>,
    bytes: u64,
}

/// A finished request's answer.
pub(super) struct Answer {
    /// Header first.
    pub bufs: Vec<Buf>,
    /// What the request counted in [`Requests::bytes`].
    pub bytes: u32,
}

impl Requests {
    pub(super) fn count(&self) -> usize {
        self.active.len()
    }

    /// Requests at the device, in pieces.
    pub(super) fn at_device(&self) -> usize {
        self.pieces.len()
    }

    /// Payload bytes of all requests.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands everything but a write to the device.
    pub(super) fn start(
        &mut self,
        owner: u32,
        request: &Request,
        command: Command,
        device: &mut dyn BlockDevice,
    ) {
        let (offset, len) = (request.offset, u64::from(request.len));
        let op = match command {
            Command::Read => {
                let count = len.div_ceil(MAX_IO) as u32;
                let index = self.open(request, Some(count));
                for number in 0..count {
                    let at = u64::from(number) * MAX_IO;
                    let piece = (len - at).min(MAX_IO) as u32;
                    let id = self.piece(index, number, piece);
                    device.submit(
                        io_id(owner, id),
                        BlockOp::Read { offset: offset + at, len: piece },
                    );
                }
                self.close(index);
                return;
            }
            Command::Flush => BlockOp::Flush,
            Command::Discard => BlockOp::Discard { offset, len },
            Command::Zero { fua } => BlockOp::WriteZeroes { offset, len, fua },
            Command::Write { .. } | Command::Disconnect => return,
        };
        let index = self.open(request, None);
        let id = self.piece(index, 0, 0);
        device.submit(io_id(owner, id), op);
        self.close(index);
    }

    /// Begins a write whose payload will come piece by piece; it stays open until
    /// [`Self::end_write`].
    pub(super) fn begin_write(&mut self, request: &Request) -> u32 {
        self.open(request, None)
    }

    /// Hands one piece of a write to the device.
    pub(super) fn write_piece(
        &mut self,
        owner: u32,
        index: u32,
        offset: u64,
        data: Buf,
        fua: bool,
        device: &mut dyn BlockDevice,
    ) {
        let id = self.piece(index, 0, 0);
        device.submit(io_id(owner, id), BlockOp::Write { offset, data, fua });
    }

    /// All of a write's payload has come. Its answer, if the device was faster.
    pub(super) fn end_write(&mut self, index: u32, structured: bool) -> Option<Answer> {
        self.close(index);
        self.finish(index, structured)
    }

    /// The rest of a write's payload will not come: whatever the device made of the beginning, the
    /// request has failed. `silent`: it is not answered, since the client sends it again elsewhere.
    pub(super) fn abandon_write(
        &mut self,
        index: u32,
        silent: bool,
        structured: bool,
    ) -> Option<Answer> {
        if let Some(active) = self.active.get_mut(index) {
            active.errno = active.errno.or(Some(ESHUTDOWN));
            active.silent = silent;
        }
        self.end_write(index, structured)
    }

    /// Takes the device's answer to a piece; the request's answer if that was its last.
    pub(super) fn done(
        &mut self,
        id: u32,
        result: BlockResult,
        structured: bool,
    ) -> Option<Answer> {
        let piece = self.pieces.take(id)?;
        let active = self.active.get_mut(piece.request)?;
        active.open -= 1;
        match (result, &mut active.data) {
            (Err(error), _) => active.errno = active.errno.or(Some(errno(error))),
            (Ok(Some(buf)), Some(data)) if buf.len() == piece.len as usize => {
                if let Some(slot) = data.get_mut(piece.number as usize) {
                    *slot = Some(buf);
                }
            }
            (Ok(_), Some(_)) => active.errno = Some(EIO),
            (Ok(_), None) => {}
        }
        self.finish(piece.request, structured)
    }

    fn open(&mut self, request: &Request, pieces: Option<u32>) -> u32 {
        let carries = pieces.is_some() || request.command == cmd::WRITE;
        let bytes = if carries { request.len } else { 0 };
        self.bytes += u64::from(bytes);
        self.active.put(Active {
            cookie: request.cookie,
            offset: request.offset,
            bytes,
            open: 1,
            errno: None,
            silent: false,
            data: pieces.map(|count| vec![None; count as usize]),
        })
    }

    fn close(&mut self, index: u32) {
        if let Some(active) = self.active.get_mut(index) {
            active.open -= 1;
        }
    }

    fn piece(&mut self, request: u32, number: u32, len: u32) -> u32 {
        if let Some(active) = self.active.get_mut(request) {
            active.open += 1;
        }
        self.pieces.put(Piece { request, number, len })
    }

    fn finish(&mut self, index: u32, structured: bool) -> Option<Answer> {
        if self.active.get_mut(index)?.open > 0 {
            return None;
        }
        let active = self.active.take(index)?;
        self.bytes -= u64::from(active.bytes);
        if active.silent {
            return None;
        }
        let bytes = active.bytes;
        let bufs = match (active.data, active.errno) {
            (Some(_), Some(errno)) if structured => vec![error_chunk(active.cookie, errno)],
            (_, Some(errno)) => vec![simple(active.cookie, errno)],
            (None, None) => vec![simple(active.cookie, 0)],
            (Some(data), None) => {
                let head = if structured {
                    data_chunk(active.cookie, active.offset, bytes)
                } else {
                    simple(active.cookie, 0)
                };
                std::iter::once(head).chain(data.into_iter().flatten()).collect()
            }
        };
        Some(Answer { bufs, bytes })
    }
}

/// The answer to a request that is not served.
pub(super) fn refuse(request: &Request, errno: u32, structured: bool) -> Buf {
    if structured && request.command == cmd::READ {
        error_chunk(request.cookie, errno)
    } else {
        simple(request.cookie, errno)
    }
}

fn simple(cookie: u64, errno: u32) -> Buf {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    Buf::copy_of(&bytes)
}

fn chunk_head(kind: u16, cookie: u64, len: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// One chunk for the whole read: never fragmented, with or without DF.
fn data_chunk(cookie: u64, offset: u64, len: u32) -> Buf {
    let mut bytes = [0; 28];
    bytes[..20].copy_from_slice(&chunk_head(chunk::OFFSET_DATA, cookie, len + 8));
    bytes[20..].copy_from_slice(&offset.to_be_bytes());
    Buf::copy_of(&bytes)
}

fn error_chunk(cookie: u64, errno: u32) -> Buf {
    let mut bytes = [0; 26];
    bytes[..20].copy_from_slice(&chunk_head(chunk::ERROR, cookie, 6));
    bytes[20..24].copy_from_slice(&errno.to_be_bytes());
    Buf::copy_of(&bytes)
}

fn errno(error: IoError) -> u32 {
    match error {
        IoError::Io => EIO,
        IoError::NoSpace => ENOSPC,
        IoError::Invalid => EINVAL,
        IoError::Fenced => ESHUTDOWN,
    }
}

/// Values under small numbers, which are used again.
struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn put(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            return index;
        }
        self.slots.push(Some(value));
        (self.slots.len() - 1) as u32
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.as_mut()
    }

    fn take(&mut self, index: u32) -> Option<T> {
        let value = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(value)
    }
}

const _: () = assert!(MAX_IO.is_multiple_of(BLOCK) && (MAX_REQUEST as u64).is_multiple_of(BLOCK));

#[cfg(test)]
mod tests {
    use super::*;

    /// Every request over small sets of interesting values: what passes is legal for the device.
    #[test]
    fn what_passes_the_check_is_legal() {
        let size = 8 * BLOCK;
        let offsets = [0, 1, 511, BLOCK, size - BLOCK, size - 1, size, u64::MAX - 4095, u64::MAX];
        let lens = [0, 1, 4095, 4096, 8192, size as u32, size as u32 + 4096, MAX_REQUEST, u32::MAX];
        let mut passed = 0;
        for command in 0..10 {
            for flags in 0..64 {
                for offset in offsets {
                    for len in lens {
                        let request = Request { flags, command, cookie: 0, offset, len };
                        for structured in [false, true] {
                            match check(&request, size, structured) {
                                Ok(Command::Disconnect) => assert_eq!(command, cmd::DISC),
                                Ok(Command::Flush) => assert_eq!((offset, len), (0, 0)),
                                Ok(_) => assert!(in_bounds(offset, u64::from(len), size)),
                                Err(Refusal::Errno(errno)) => assert_ne!(errno, 0),
                                Err(Refusal::TooLong) => assert!(len > MAX_REQUEST),
                            }
                            passed += u32::from(check(&request, size, structured).is_ok());
                        }
                    }
                }
            }
        }
        assert!(passed > 0);
    }
}
