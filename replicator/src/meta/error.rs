//! Why metadata could not be opened or had to stop.

use metadata::DriverError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;
use types::{ClusterId, NodeId};

/// Failure of the metadata member. All are final for this process.
#[derive(Debug, Error)]
pub enum MetaError {
    /// Another process serves this directory.
    #[error("{} is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is another node's or another cluster's.
    #[error(
        "{} belongs to node {found_node} of cluster {found_cluster}, not to node {node} of cluster {cluster}",
        dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// This node.
        node: NodeId,
        /// This cluster.
        cluster: ClusterId,
        /// Whose it is.
        found_node: NodeId,
        /// Whose it is.
        found_cluster: ClusterId,
    },
    /// The directory was in use, but its log (or part of it that was acknowledged) is gone. This
    /// node must come back under a new id.
    #[error("the Raft log in {} is lost: {detail}; bring this node back under a new id", dir.display())]
    LogLost {
        /// The directory.
        dir: PathBuf,
        /// What was seen.
        detail: String,
    },
    /// The log holds bytes that were not written there.
    #[error("{} is corrupt at byte {offset}: {detail}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What was seen.
        detail: String,
    },
    /// The log cannot be continued.
    #[error("the metadata in {} cannot be used", dir.display())]
    Driver {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: DriverError,
    },
    /// An I/O error, errno kept.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// A configuration that cannot work.
    #[error("{field}: {value} is not accepted; {accepted}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be.
        accepted: &'static str,
    },
}
