//! The pool's device: making it, opening it, and what else the thread needs to start.

use hostio::HostError;
use hostio::pool::PoolFile;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::{FormatOptions, OpenError, OpenOptions, PoolDisk};
use thiserror::Error;
use types::{BootId, Buf, BufMut, ClusterId, PoolId};

/// How long a killed predecessor's operations may take to leave the kernel before whoever holds
/// the pool or the port is taken for alive.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// How much of its beginning is overwritten when a pool is wiped, in bytes: no tool finds a pool then.
const WIPED: u64 = 16 << 20;
/// In writes of so many bytes.
const WIPED_AT_A_TIME: usize = 1 << 20;

/// What the data thread needs.
#[derive(Debug)]
pub struct DataConfig {
    /// The pool: a block device or a file.
    pub pool: PathBuf,
    /// The cluster that it must belong to (R11).
    pub cluster: ClusterId,
    /// The pool that this node had before, if known.
    pub expected_pool: Option<PoolId>,
    /// Boot of the host (R9).
    pub boot: BootId,
    /// Where engines of other nodes connect (see [`listen`]).
    pub listener: TcpListener,
    /// Time in which each attached volume is scrubbed once.
    pub scrub: Duration,
    /// CPU to run on; `None` leaves it to the kernel.
    pub cpu: Option<usize>,
}

/// Why there is no data thread.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The device could not be opened or locked (R12).
    #[error("pool {path}: {source}")]
    Device {
        /// The configured path.
        path: PathBuf,
        /// The cause.
        source: HostError,
    },
    /// The device is not the pool that was expected.
    #[error("pool {path}: {source}")]
    Open {
        /// The configured path.
        path: PathBuf,
        /// The cause.
        source: OpenError,
    },
    /// The device could not be overwritten.
    #[error("wiping pool {path}: {source}")]
    Wipe {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The host refused a resource.
    #[error("cannot set up the {what}: {source}")]
    Setup {
        /// Which.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The thread ended before it could say why.
    #[error("the data thread ended while starting")]
    Ended,
}

/// Synchronous access for formatting and recovery.
pub(super) struct Disk<'a>(pub(super) &'a PoolFile);

impl PoolDisk for Disk<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&mut self, offset: u64, buf: &mut BufMut) -> Result<(), i32> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, data: &Buf) -> Result<(), i32> {
        self.0.write_at(offset, data)
    }

    fn sync(&mut self) -> Result<(), i32> {
        self.0.sync()
    }
}

fn lock(path: &Path) -> Result<PoolFile, PoolError> {
    PoolFile::open(path).map_err(|source| PoolError::Device { path: path.into(), source })
}

/// As [`lock`], but waits for what a killed predecessor still had in the kernel: its lock falls
/// with its last write (R12), a moment after its process is gone.
fn take_over(path: &Path) -> Result<PoolFile, PoolError> {
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match lock(path) {
            Err(PoolError::Device { source: HostError::InUse { .. }, .. })
                if Instant::now() < deadline =>
            {
                std::thread::sleep(PREDECESSOR / 60);
            }
            result => return result,
        }
    }
}

/// Makes a pool on the device or file `path`.
///
/// # Errors
/// In use, not blank (unless `force`), too small, or an I/O error.
pub fn init_pool(
    path: &Path,
    cluster: ClusterId,
    pool: PoolId,
    force: bool,
) -> Result<(), PoolError> {
    let file = lock(path)?;
    let options = FormatOptions { cluster, pool, slot_size: store::DEFAULT_SLOT_SIZE, force };
    store::format(&mut Disk(&file), &options)
        .map_err(|source| PoolError::Open { path: path.into(), source })
}

/// The pool that the device or file `path` is already, if it is one of `cluster`.
///
/// # Errors
/// In use, a pool of another cluster, or damaged.
pub fn existing_pool(path: &Path, cluster: ClusterId) -> Result<Option<PoolId>, PoolError> {
    identify(&lock(path)?, path, cluster)
}

fn identify(file: &PoolFile, path: &Path, cluster: ClusterId) -> Result<Option<PoolId>, PoolError> {
    let error = |source| PoolError::Open { path: path.into(), source };
    match store::identify(&mut Disk(file)) {
        Ok((found, pool)) if found == cluster => Ok(Some(pool)),
        Ok((found, _)) => Err(error(OpenError::OtherCluster { found, expected: cluster })),
        Err(OpenError::Blank | OpenError::Foreign { .. }) => Ok(None),
        Err(source) => Err(error(source)),
    }
}

/// Makes a device or file that is a pool of `cluster` blank to whoever looks at it: its superblocks and
/// tables go, the data are unreachable. `None` if it is no pool.
///
/// # Errors
/// As [`existing_pool`].
pub fn wipe_pool(path: &Path, cluster: ClusterId) -> Result<Option<PoolId>, PoolError> {
    let file = lock(path)?;
    let Some(pool) = identify(&file, path, cluster)? else { return Ok(None) };
    let blank = Buf::zeroed(WIPED_AT_A_TIME);
    let mut disk = Disk(&file);
    let size = disk.size().min(WIPED);
    let write = (0..size / WIPED_AT_A_TIME as u64)
        .try_for_each(|step| disk.write_at(step * WIPED_AT_A_TIME as u64, &blank));
    write.and_then(|()| disk.sync()).map_err(|errno| PoolError::Wipe {
        path: path.into(),
        source: io::Error::from_raw_os_error(errno),
    })?;
    Ok(Some(pool))
}

/// Listens for engines of other nodes. A killed predecessor's socket lives as long as the `accept`
/// in its ring, a moment longer than its process: that is waited for.
///
/// # Errors
/// EADDRINUSE if somebody alive listens there, or what the kernel says.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    outwait(|| TcpListener::bind(address), in_use).await
}

/// Tries until what a predecessor may still hold is free, or it is clear that somebody alive holds
/// it: a killed process looks dead while the last of its threads still end.
pub(crate) async fn outwait<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_taken: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match attempt() {
            Err(error) if is_taken(&error) && Instant::now() < deadline => {
                tokio::time::sleep(PREDECESSOR / 60).await;
            }
            result => return result,
        }
    }
}

/// Opens and recovers the configured pool.
pub(super) fn open(config: &DataConfig) -> Result<(PoolFile, store::Store), PoolError> {
    let file = take_over(&config.pool)?;
    let options = OpenOptions {
        cluster: config.cluster,
        expected_pool: config.expected_pool,
        boot: config.boot,
    };
    let store = store::open(&mut Disk(&file), &options)
        .map_err(|source| PoolError::Open { path: config.pool.clone(), source })?;
    Ok((file, store))
}
