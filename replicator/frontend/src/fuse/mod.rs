//! One volume as the one file of a FUSE filesystem; a loop device on that file is the volume's
//! block device on kernels without nbd (design §7).
//!
//! The path of a write: readv copies the payload out of the kernel's hands into an aligned buffer
//! (R15), which goes to the device as it is (small ones in a buffer of their own size), and the
//! reply is one writev when the device has answered.

mod abi;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use crate::{BlockDevice, Frontend, Status, index_of, io_id};
use abi::{InHeader, OutHeader, ROOT, WRITE_HEAD, decode, falloc, fopen, init, op};
use bytemuck::{Pod, Zeroable, bytes_of};
use hostio::fuse::{FuseRead, read_request, write_reply};
use hostio::{Completion, Fd, Op, Ring, Token};
use types::{BLOCK, BlockOp, BlockResult, BufMut, IoError, IoId, MAX_IO, in_bounds};

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;
const EPROTO: i32 = 71;
const EPERM: i32 = 1;

/// Requests in flight; the kernel's background limit too.
const MAX_REQUESTS: usize = 256;
/// Payload bytes in flight; one request more may begin below it.
const MAX_BYTES: u64 = 32 << 20;
/// Requests read before other parts of the thread get their turn.
const BATCH: usize = 64;
/// Payloads up to this are copied out of the receive buffer, so that a small write does not hold
/// [`MAX_IO`] of memory while it is in flight.
const COPY_BELOW: usize = 64 << 10;
/// Inode of the volume's file.
const FILE: u64 = 2;

const POLL: u32 = 0;

/// What an answered block request still owes the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    unique: u64,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The data, of this length.
    Data(u32),
    /// The number of bytes written.
    Written(u32),
    /// Just success.
    Nothing,
}

impl Answer {
    /// Bytes that the request keeps in memory, either way.
    fn payload(self) -> u64 {
        match self {
            Self::Data(len) | Self::Written(len) => u64::from(len),
            Self::Nothing => 0,
        }
    }
}

/// A FUSE mount serving one volume as one file.
///
/// Stopping it, or an unmount, ends it; the loop device must be detached before, or its I/O waits
/// for an abort of the connection ([`hostio::fuse::abort`]).
pub struct Fuse {
    owner: u32,
    fd: Fd,
    name: Vec<u8>,
    size: u64,
    /// Receives the part of a request behind [`WRITE_HEAD`]; `None` while its bytes are on their way
    /// to the device.
    receive: Option<BufMut>,
    /// Indexed by the low half of the block request's id.
    pending: Vec<Option<Pending>>,
    free: Vec<u32>,
    /// Payload of what is pending, in bytes.
    bytes: u64,
    polling: bool,
    stopping: bool,
}

impl Fuse {
    /// Serves `fd` (from [`hostio::fuse::mount_at`]) with one file `file_name` of `size` bytes.
    /// `owner` marks its tokens and block requests.
    #[must_use]
    pub fn new(owner: u32, fd: Fd, file_name: &str, size: u64) -> Self {
        Self {
            owner,
            fd,
            name: file_name.as_bytes().to_vec(),
            size,
            receive: None,
            pending: Vec::new(),
            free: Vec::new(),
            bytes: 0,
            polling: false,
            stopping: false,
        }
    }

    fn poll(&mut self, ring: &mut Ring) {
        if !self.polling && !self.stopping && self.has_room() {
            self.polling = true;
            ring.submit(Token { owner: self.owner, op: POLL }, Op::PollIn { fd: self.fd.clone() });
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight() < MAX_REQUESTS && self.bytes < MAX_BYTES
    }

    fn status(&self) -> Status {
        let over = self.stopping && !self.polling && self.in_flight() == 0;
        if over { Status::Closed } else { Status::Open }
    }

    /// Reads and handles requests until none waits, the bound is reached or others want a turn.
    fn serve(&mut self, device: &mut dyn BlockDevice) {
        for _ in 0..BATCH {
            if self.stopping || !self.has_room() {
                return;
            }
            let mut head = [0; WRITE_HEAD];
            let mut rest = self.receive.take().unwrap_or_else(|| BufMut::with_len(MAX_IO as usize));
            match read_request(&self.fd, &mut head, rest.as_mut_slice()) {
                Ok(FuseRead::Request(len)) => self.request(&head, rest, len, device),
                Ok(FuseRead::Empty) => {
                    self.receive = Some(rest);
                    return;
                }
                Ok(FuseRead::Gone) => self.stopping = true,
                Err(errno) => {
                    tracing::error!(errno, "reading /dev/fuse failed");
                    self.stopping = true;
                }
            }
        }
    }

    /// Handles one request of `len` bytes, the first of them in `head`, the others in `rest`.
    fn request(
        &mut self,
        head: &[u8; WRITE_HEAD],
        rest: BufMut,
        len: usize,
        device: &mut dyn BlockDevice,
    ) {
        let Some(header) = decode::<InHeader>(head).filter(|header| {
            header.len as usize == len && len >= abi::IN_HEADER && len <= WRITE_HEAD + rest.len()
        }) else {
            tracing::error!(len, "a FUSE request contradicts its header");
            self.receive = Some(rest);
            return;
        };
        let unique = header.unique;
        if header.opcode == op::WRITE {
            return self.write(unique, head, rest, len, device);
        }
        // Everything else is short: put it together again.
        let mut body = [0; 512];
        let body_len = (len - abi::IN_HEADER).min(body.len());
        let in_head = body_len.min(WRITE_HEAD - abi::IN_HEADER);
        body[..in_head].copy_from_slice(&head[abi::IN_HEADER..abi::IN_HEADER + in_head]);
        body[in_head..body_len].copy_from_slice(&rest.as_slice()[..body_len - in_head]);
        self.receive = Some(rest);
        self.small(&header, &body[..body_len], device);
    }

    fn small(&mut self, header: &InHeader, body: &[u8], device: &mut dyn BlockDevice) {
        let unique = header.unique;
        match header.opcode {
            op::INIT => self.init(unique, body),
            op::LOOKUP => {
                let name = body.strip_suffix(&[0]).unwrap_or(body);
                if header.nodeid == ROOT && name == self.name {
                    self.reply(unique, &self.entry());
                } else {
                    self.refuse(unique, ENOENT);
                }
            }
            op::GETATTR => self.attr(unique, header.nodeid),
            op::SETATTR => match decode::<abi::SetAttrIn>(body) {
                None => self.refuse(unique, EINVAL),
                // The volume's size is changed by expanding the volume only (R25).
                Some(set) if set.valid & abi::FATTR_SIZE != 0 && set.size != self.size => {
                    self.refuse(unique, EPERM);
                }
                Some(_) => self.attr(unique, header.nodeid),
            },
            op::OPEN if header.nodeid == FILE => {
                let open_flags = fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES | fopen::NOFLUSH;
                self.reply(unique, &abi::OpenOut { fh: 0, open_flags, padding: 0 });
            }
            op::OPENDIR if header.nodeid == ROOT => {
                self.reply(unique, &abi::OpenOut::zeroed());
            }
            op::READDIR if header.nodeid == ROOT => self.readdir(unique, body),
            op::READ if header.nodeid == FILE => self.read(unique, body, device),
            op::FSYNC if header.nodeid == FILE => {
                self.begin(unique, Answer::Nothing, BlockOp::Flush, device);
            }
            op::FALLOCATE if header.nodeid == FILE => self.fallocate(unique, body, device),
            op::STATFS => self.statfs(unique),
            op::FLUSH | op::RELEASE | op::RELEASEDIR | op::ACCESS | op::DESTROY => {
                self.answer(unique, &[]);
            }
            // These have no answer.
            op::FORGET | op::BATCH_FORGET => {}
            // ENOSYS also tells the kernel not to send INTERRUPT and GETXATTR again.
            _ => self.refuse(unique, ENOSYS),
        }
    }

    fn init(&mut self, unique: u64, body: &[u8]) {
        let Some(kernel) = decode::<abi::InitIn>(body) else {
            return self.refuse(unique, EPROTO);
        };
        if kernel.major != abi::MAJOR || kernel.minor < abi::MIN_MINOR {
            tracing::error!(kernel.major, kernel.minor, "this kernel's FUSE is too old");
            return self.refuse(unique, EPROTO);
        }
        let wanted = init::ASYNC_READ
            | init::BIG_WRITES
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::INIT_EXT;
        let flags = kernel.flags & wanted;
        for (flag, name) in [(init::ASYNC_DIO, "ASYNC_DIO"), (init::MAX_PAGES, "MAX_PAGES")] {
            if flags & flag == 0 {
                tracing::warn!(name, "this kernel's FUSE lacks a feature; expect slow I/O");
            }
        }
        let out = abi::InitOut {
            major: abi::MAJOR,
            minor: abi::MINOR.min(kernel.minor),
            max_readahead: kernel.max_readahead,
            flags,
            max_background: MAX_REQUESTS as u16,
            congestion_threshold: MAX_REQUESTS as u16,
            max_write: MAX_IO as u32,
            time_gran: 1,
            max_pages: (MAX_IO / BLOCK) as u16,
            ..abi::InitOut::zeroed()
        };
        self.reply(unique, &out);
    }

    fn read(&mut self, unique: u64, body: &[u8], device: &mut dyn BlockDevice) {
        let Some(io) = decode::<abi::IoIn>(body) else { return self.refuse(unique, EINVAL) };
        // Past the end a file reads short.
        let len = u64::from(io.size).min(self.size.saturating_sub(io.offset));
        if len == 0 {
            return self.answer(unique, &[]);
        }
        if len > MAX_IO || !in_bounds(io.offset, len, self.size) {
            return self.refuse(unique, EINVAL);
        }
        let len = len as u32;
        self.begin(unique, Answer::Data(len), BlockOp::Read { offset: io.offset, len }, device);
    }

    fn write(
        &mut self,
        unique: u64,
        head: &[u8; WRITE_HEAD],
        payload: BufMut,
        len: usize,
        device: &mut dyn BlockDevice,
    ) {
        let io = decode::<abi::IoIn>(&head[abi::IN_HEADER..]);
        let Some(io) = io.filter(|io| len == WRITE_HEAD + io.size as usize) else {
            self.receive = Some(payload);
            return self.refuse(unique, EINVAL);
        };
        let size = io.size as usize;
        if !in_bounds(io.offset, u64::from(io.size), self.size) {
            self.receive = Some(payload);
            return self.refuse(unique, EINVAL);
        }
        let data = if size <= COPY_BELOW {
            let data = BufMut::copy_of(&payload.as_slice()[..size]).freeze();
            self.receive = Some(payload);
            data
        } else {
            payload.freeze().slice(0..size)
        };
        let op = BlockOp::Write { offset: io.offset, data, fua: false };
        self.begin(unique, Answer::Written(io.size), op, device);
    }

    /// The two forms that a loop device makes of discard and write-zeroes.
    fn fallocate(&mut self, unique: u64, body: &[u8], device: &mut dyn BlockDevice) {
        let Some(range) = decode::<abi::FallocateIn>(body) else {
            return self.refuse(unique, EINVAL);
        };
        let (offset, len) = (range.offset, range.length);
        let op = match range.mode & !falloc::KEEP_SIZE {
            falloc::PUNCH_HOLE => BlockOp::Discard { offset, len },
            falloc::ZERO_RANGE => BlockOp::WriteZeroes { offset, len, fua: false },
            _ => return self.refuse(unique, EOPNOTSUPP),
        };
        if !in_bounds(offset, len, self.size) {
            return self.refuse(unique, EINVAL);
        }
        self.begin(unique, Answer::Nothing, op, device);
    }

    fn readdir(&self, unique: u64, body: &[u8]) {
        let Some(io) = decode::<abi::IoIn>(body) else { return self.refuse(unique, EINVAL) };
        let mut listing = Vec::new();
        let names: [(u64, &[u8], u32); 3] = [
            (ROOT, b".", abi::S_IFDIR),
            (ROOT, b"..", abi::S_IFDIR),
            (FILE, &self.name, abi::S_IFREG),
        ];
        for (at, (ino, name, mode)) in (1u64..).zip(names) {
            let whole = (size_of::<abi::DirentHead>() + name.len()).next_multiple_of(8);
            if at <= io.offset || listing.len() + whole > io.size as usize {
                continue;
            }
            let head =
                abi::DirentHead { ino, off: at, namelen: name.len() as u32, kind: mode >> 12 };
            let end = listing.len() + whole;
            listing.extend_from_slice(bytes_of(&head));
            listing.extend_from_slice(name);
            listing.resize(end, 0);
        }
        self.answer(unique, &listing);
    }

    fn statfs(&self, unique: u64) {
        // A loop device takes its discard granularity from bsize.
        let out = abi::StatfsOut {
            blocks: self.size / BLOCK,
            files: 2,
            bsize: BLOCK as u32,
            namelen: 255,
            frsize: BLOCK as u32,
            ..abi::StatfsOut::zeroed()
        };
        self.reply(unique, &out);
    }

    fn attributes(&self, ino: u64) -> abi::Attr {
        let (mode, size, nlink) = match ino {
            ROOT => (abi::S_IFDIR | 0o500, 0, 2),
            _ => (abi::S_IFREG | 0o600, self.size, 1),
        };
        let blksize = BLOCK as u32;
        abi::Attr { ino, size, blocks: size / 512, mode, nlink, blksize, ..abi::Attr::zeroed() }
    }

    fn entry(&self) -> abi::EntryOut {
        // Attributes are valid for no time at all: the size is asked for after an expand.
        abi::EntryOut { nodeid: FILE, attr: self.attributes(FILE), ..abi::EntryOut::zeroed() }
    }

    fn attr(&self, unique: u64, ino: u64) {
        match ino {
            ROOT | FILE => {
                let out = abi::AttrOut { attr: self.attributes(ino), ..abi::AttrOut::zeroed() };
                self.reply(unique, &out);
            }
            _ => self.refuse(unique, ENOENT),
        }
    }

    fn begin(&mut self, unique: u64, answer: Answer, op: BlockOp, device: &mut dyn BlockDevice) {
        self.bytes += answer.payload();
        let pending = Some(Pending { unique, answer });
        let index = match self.free.pop() {
            Some(index) => {
                self.pending[index as usize] = pending;
                index
            }
            None => {
                self.pending.push(pending);
                (self.pending.len() - 1) as u32
            }
        };
        device.submit(io_id(self.owner, index), op);
    }

    fn reply<T: Pod>(&self, unique: u64, out: &T) {
        self.answer(unique, bytes_of(out));
    }

    fn answer(&self, unique: u64, body: &[u8]) {
        self.send(OutHeader { len: 0, error: 0, unique }, body);
    }

    fn refuse(&self, unique: u64, errno: i32) {
        self.send(OutHeader { len: 0, error: -errno, unique }, &[]);
    }

    fn send(&self, mut header: OutHeader, body: &[u8]) {
        header.len = (size_of::<OutHeader>() + body.len()) as u32;
        match write_reply(&self.fd, &[bytes_of(&header), body]) {
            // ENOENT: the request was aborted meanwhile; ENODEV: so was everything.
            Ok(()) | Err(ENOENT | 19) => {}
            Err(errno) => tracing::error!(errno, header.unique, "the kernel refused a FUSE reply"),
        }
    }
}

impl Frontend for Fuse {
    fn start(&mut self, ring: &mut Ring) {
        self.poll(ring);
    }

    fn on_completion(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        device: &mut dyn BlockDevice,
    ) -> Status {
        if completion.token.op == POLL {
            self.polling = false;
            // Also after a poll error: the read tells what it was.
            self.serve(device);
            self.poll(ring);
        }
        self.status()
    }

    fn on_block_done(&mut self, id: IoId, result: BlockResult, ring: &mut Ring) -> Status {
        let index = index_of(id);
        let Some(pending) = self.pending.get_mut(index as usize).and_then(Option::take) else {
            tracing::error!(index, "an answer to a request that is not in flight");
            return self.status();
        };
        self.free.push(index);
        self.bytes -= pending.answer.payload();
        let unique = pending.unique;
        match (result, pending.answer) {
            (Ok(Some(data)), Answer::Data(len)) if data.len() == len as usize => {
                self.answer(unique, data.as_slice());
            }
            (Ok(_), Answer::Data(_)) => self.refuse(unique, EIO),
            (Ok(_), Answer::Written(size)) => {
                self.reply(unique, &abi::WriteOut { size, padding: 0 });
            }
            (Ok(_), Answer::Nothing) => self.answer(unique, &[]),
            (Err(error), _) => self.refuse(unique, IoError::errno(error)),
        }
        // Where the bound had stopped the reading.
        self.poll(ring);
        self.status()
    }

    fn resize(&mut self, size: u64) {
        self.size = size;
    }

    fn stop(&mut self, ring: &mut Ring) {
        self.stopping = true;
        ring.cancel(Token { owner: self.owner, op: POLL });
    }

    fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len()
    }
}
