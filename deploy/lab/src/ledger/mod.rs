//! The ledger: a client outside the nodes that inserts rows, and keeps its own durable record of what
//! was sent and what was acknowledged; afterwards the database must agree with it.

mod client;
mod verdict;

pub use client::{Arguments, run};
pub use verdict::{Row, Verdict, acknowledged, audit, compare, sent};

use anyhow::{Context as _, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The table, made once before the client starts.
pub const TABLE: &str =
    "create table ledger (client integer, seq bigint, primary key (client, seq))";

/// Files of the ledger in its directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// The ledger that is kept in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// Where the database is now: `IP:PORT`, replaced in one step when it moves.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.dir.join("target")
    }

    /// Rows of one client, noted before they are sent: `CLIENT SEQ`.
    #[must_use]
    pub fn sent(&self, client: u32) -> PathBuf {
        self.dir.join(format!("client{client}.sent"))
    }

    /// Rows of one client, noted and synced after their acknowledgement: `CLIENT SEQ ADDRESS`.
    #[must_use]
    pub fn acknowledged(&self, client: u32) -> PathBuf {
        self.dir.join(format!("client{client}.acknowledged"))
    }

    /// Successful connections of all clients: `CLIENT ADDRESS`.
    #[must_use]
    pub fn connections(&self) -> PathBuf {
        self.dir.join("connections")
    }

    /// Points the clients at `address`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_target(&self, address: SocketAddr) -> Result<()> {
        let fresh = self.dir.join("target.new");
        fs::write(&fresh, address.to_string())
            .and_then(|()| fs::rename(&fresh, self.target()))
            .with_context(|| format!("writing {}", self.target().display()))
    }
}
