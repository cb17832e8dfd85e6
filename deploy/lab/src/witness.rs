//! Witnesses on a node that will be cut off: one commits through the node's own PostgreSQL, one reads
//! the block device past every cache. What they succeed in after the fence, and whether they get errors
//! or silence, is what is to be known.

use crate::journal::{self, Journal};
use anyhow::{Context as _, Result};
use nix::libc::O_DIRECT;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;
use tokio_postgres::NoTls;
use types::{BufMut, Instant};

/// The table, made once before the witness starts.
pub const TABLE: &str = "create table witness (seq bigint primary key)";

/// Between two attempts of a witness.
const PACE: Duration = Duration::from_millis(10);
/// After an error.
const PACE_AFTER_ERROR: Duration = Duration::from_millis(100);
const BLOCK: usize = 4096;

/// Which witness, and where.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Witness {
    /// Commits rows through a Unix socket of PostgreSQL.
    Commit {
        /// Directory of the socket.
        #[arg(long)]
        socket_dir: PathBuf,
        /// Where to note what happened.
        #[arg(long)]
        journal: PathBuf,
    },
    /// Reads blocks of a device with O_DIRECT.
    Read {
        /// The device.
        #[arg(long)]
        device: PathBuf,
        /// Where to note what happened.
        #[arg(long)]
        journal: PathBuf,
    },
}

/// Witnesses until killed.
///
/// # Errors
/// If its own journal fails, or the device is not there at the start.
pub async fn run(witness: Witness) -> Result<()> {
    match witness {
        Witness::Commit { socket_dir, journal } => commit(&socket_dir, &journal).await,
        Witness::Read { device, journal } => {
            tokio::task::spawn_blocking(move || read(&device, &journal)).await?
        }
    }
}

async fn commit(socket_dir: &Path, journal: &Path) -> Result<()> {
    let mut journal = Journal::open(journal)?;
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket_dir).user("postgres").dbname("postgres").application_name("witness");
    let mut seq: i64 = 0;
    loop {
        let (client, connection) = match config.connect(NoTls).await {
            Ok(connected) => connected,
            Err(error) => {
                journal.note(&format!("error connecting: {error}"))?;
                tokio::time::sleep(PACE_AFTER_ERROR).await;
                continue;
            }
        };
        tokio::spawn(connection);
        loop {
            seq += 1;
            match client.execute("insert into witness values ($1)", &[&seq]).await {
                Ok(_) => journal.note(&format!("success {seq}"))?,
                Err(error) => {
                    journal.note(&format!("error committing {seq}: {error}"))?;
                    break;
                }
            }
            tokio::time::sleep(PACE).await;
        }
        tokio::time::sleep(PACE_AFTER_ERROR).await;
    }
}

fn read(device: &Path, journal: &Path) -> Result<()> {
    let mut journal = Journal::open(journal)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(device)
        .with_context(|| format!("opening {}", device.display()))?;
    let name = device.file_name().context("a device has a name")?;
    let sectors = std::fs::read_to_string(Path::new("/sys/block").join(name).join("size"))
        .with_context(|| format!("size of {}", device.display()))?;
    let blocks = sectors.trim().parse::<u64>()? * 512 / BLOCK as u64;
    let mut buffer = BufMut::with_len(BLOCK);
    let mut at: u64 = 1;
    loop {
        // A fixed walk over all of the device: 2654435761 is prime and larger than its blocks.
        at = (at + 2_654_435_761) % blocks.max(1);
        match file.read_exact_at(buffer.as_mut_slice(), at * BLOCK as u64) {
            Ok(()) => {
                journal.note("success")?;
                sleep(PACE);
            }
            Err(error) => {
                journal.note(&format!("error reading block {at}: {error}"))?;
                sleep(PACE_AFTER_ERROR);
            }
        }
    }
}

/// What a witness saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Testimony {
    /// Times of its successes.
    pub successes: Vec<Instant>,
    /// Times and words of its errors.
    pub errors: Vec<(Instant, String)>,
}

impl Testimony {
    /// Reads a witness's journal.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::of(journal::read(path)?))
    }

    fn of(entries: Vec<journal::Entry>) -> Self {
        let mut testimony = Self::default();
        for entry in entries {
            if entry.text.starts_with("success") {
                testimony.successes.push(entry.at);
            } else {
                testimony.errors.push((entry.at, entry.text));
            }
        }
        testimony
    }

    /// How many successes are later than `time`.
    #[must_use]
    pub fn successes_after(&self, time: Instant) -> u64 {
        self.successes.iter().filter(|at| **at > time).count() as u64
    }

    /// The first error later than `time`.
    #[must_use]
    pub fn first_error_after(&self, time: Instant) -> Option<&(Instant, String)> {
        self.errors.iter().find(|(at, _)| *at > time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Entry;

    #[test]
    fn a_success_after_the_fence_is_seen() {
        let entry = |at, text: &str| Entry { at: Instant(at), text: text.into() };
        let testimony = Testimony::of(vec![
            entry(1, "success 1"),
            entry(5, "success 2"),
            entry(7, "error committing 3: closed"),
        ]);
        assert_eq!(testimony.successes_after(Instant(4)), 1);
        assert_eq!(testimony.successes_after(Instant(5)), 0);
        assert_eq!(testimony.first_error_after(Instant(2)).map(|(at, _)| at.0), Some(7));
        assert_eq!(testimony.first_error_after(Instant(7)), None);
    }
}
