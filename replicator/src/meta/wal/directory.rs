//! The files of the log: what it needs of a filesystem, and no more.
//!
//! What a loss of power may do between these calls: bytes that no sync of their file covers may be
//! there or not, 512 bytes at a time, and read as zeros where the length came and they did not; a
//! new length, a file that was created, and a rename may be there or not until the file, or the
//! directory, is synced. `tests/crash` does all of that to it.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::io_error;
use crate::meta::MetaError;

const LOCK: &str = "lock";

/// A file that is open for writing.
pub trait LogFile: fmt::Debug + Send {
    /// Appends all of `bytes`.
    ///
    /// # Errors
    /// As of `write(2)`.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file off at `len` bytes.
    ///
    /// # Errors
    /// As of `ftruncate(2)`.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    ///
    /// # Errors
    /// As of `fdatasync(2)`.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Makes everything about the file durable, but not its name.
    ///
    /// # Errors
    /// As of `fsync(2)`.
    fn sync_all(&mut self) -> io::Result<()>;
}

/// A directory that belongs to this process alone.
pub trait Directory: fmt::Debug + Send {
    /// Its open files.
    type File: LogFile;
    /// Where it is, for messages.
    fn path(&self) -> &Path;
    /// Whether there is a file or directory of this name.
    fn exists(&self, name: &str) -> bool;
    /// The whole content of a file; `None` if there is none.
    ///
    /// # Errors
    /// As of `open(2)` and `read(2)`.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Opens an empty file, in place of one that may be there.
    ///
    /// # Errors
    /// As of `open(2)`.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens a file for appending.
    ///
    /// # Errors
    /// As of `open(2)`.
    fn append(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name, in place of the one that has it.
    ///
    /// # Errors
    /// As of `rename(2)`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes names durable.
    ///
    /// # Errors
    /// As of `fsync(2)`.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the machine.
#[derive(Debug)]
pub struct RealDirectory {
    path: PathBuf,
    /// Keeps other processes out; the kernel gives it up with the process.
    _lock: File,
}

impl RealDirectory {
    /// Takes a directory for this process; makes it if there is none.
    ///
    /// # Errors
    /// Another process has it, or it cannot be made or opened.
    pub(super) fn lock(dir: &Path) -> Result<Self, MetaError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let path = dir.join(LOCK);
        let file = options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: dir.to_path_buf(), _lock: file }),
            Err(TryLockError::WouldBlock) => Err(MetaError::InUse { dir: dir.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

impl Directory for RealDirectory {
    type File = File;

    fn path(&self) -> &Path {
        &self.path
    }

    fn exists(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match File::open(self.path.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(mut file) => file.read_to_end(&mut bytes).map(|_| Some(bytes)),
        }
    }

    fn create(&self, name: &str) -> io::Result<File> {
        options().create(true).truncate(true).write(true).open(self.path.join(name))
    }

    fn append(&self, name: &str) -> io::Result<File> {
        options().append(true).open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl LogFile for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Write::write_all(self, bytes)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn sync_all(&mut self) -> io::Result<()> {
        Self::sync_all(self)
    }
}
