//! The disk as formatting and opening see it: synchronous, before anything is served.

use types::{Buf, BufMut};

use crate::OpenError;

/// A pool's device. Errors are positive errno values; a short transfer is an error. Offsets and
/// lengths are multiples of 4096.
pub trait PoolDisk {
    /// Bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The errno.
    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32>;
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// The errno.
    fn write_at(&mut self, offset: u64, data: &Buf) -> Result<(), i32>;
    /// Makes every completed write durable.
    ///
    /// # Errors
    /// The errno.
    fn sync(&mut self) -> Result<(), i32>;
}

pub(crate) fn read(disk: &mut dyn PoolDisk, offset: u64, len: u64) -> Result<BufMut, OpenError> {
    let mut buf = BufMut::zeroed(usize::try_from(len).unwrap_or(usize::MAX));
    disk.read_at(offset, &mut buf).map_err(|errno| OpenError::Io { errno, offset })?;
    Ok(buf)
}

pub(crate) fn write(disk: &mut dyn PoolDisk, offset: u64, data: &Buf) -> Result<(), OpenError> {
    disk.write_at(offset, data).map_err(|errno| OpenError::Io { errno, offset })
}

pub(crate) fn sync(disk: &mut dyn PoolDisk) -> Result<(), OpenError> {
    disk.sync().map_err(|errno| OpenError::Io { errno, offset: 0 })
}
