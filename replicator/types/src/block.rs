//! The block device as front-ends and engines see it; they know only this of each other.

use crate::{Buf, IoError};

/// Identifies a block request while it is in flight; chosen by who submits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// One request to a block device. Offsets and lengths are bytes, multiples of [`crate::BLOCK`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Read `len` bytes, at most [`crate::MAX_IO`].
    Read {
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`, at most [`crate::MAX_IO`] bytes.
    Write {
        /// Bytes from the start.
        offset: u64,
        /// Payload; never changed after submission (R15).
        data: Buf,
        /// Force unit access: durable before it completes.
        fua: bool,
    },
    /// Make every write completed before this durable (R29).
    Flush,
    /// The range may be forgotten; it reads as zeros afterwards (R24).
    Discard {
        /// Bytes from the start.
        offset: u64,
        /// Bytes, any length within the device.
        len: u64,
    },
    /// The range reads as zeros afterwards (R24).
    WriteZeroes {
        /// Bytes from the start.
        offset: u64,
        /// Bytes, any length within the device.
        len: u64,
        /// Force unit access.
        fua: bool,
    },
}

/// How a request ended: `Some` with the bytes for a read, `None` otherwise.
pub type BlockResult = Result<Option<Buf>, IoError>;
