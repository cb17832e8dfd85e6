//! What both CSI plugins do alike: serving a Unix socket, checking requests, one operation in flight.
//!
//! This crate must never log a request: requests may carry secrets.
#![forbid(unsafe_code)]

mod capacity;
mod check;
mod config;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod identity;
mod inflight;
mod plugin;
mod serve;

pub use capacity::{DEFAULT_VOLUME, VOLUME_UNIT, volume_size};
pub use check::{
    Access, Capability, FsType, MAX_PATH, Mode, capability, non_empty, path, snapshot_id_in,
    volume_id, volume_id_in,
};
pub use config::{ConfigError, read_config};
pub use error::{RequestError, from_client};
pub use identity::{Identity, PLUGIN_NAME, Readiness};
pub use inflight::{Guard, InFlight};
pub use plugin::{PluginError, serve};
pub use serve::ServeError;

/// Topology key: the value is a node's name in Holdfast.
pub const TOPOLOGY_NODE: &str = "holdfast.dev/node";

/// Topology key: the value is a node's zone; nodes without one do not have the key.
pub const TOPOLOGY_ZONE: &str = "holdfast.dev/zone";

/// Key in a volume's context: the filesystem it was created for, `ext4` or `xfs`.
pub const CONTEXT_FS_TYPE: &str = "holdfast.dev/fstype";
