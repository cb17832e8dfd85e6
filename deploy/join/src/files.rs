//! The files of a node's data directory: what it remembers, and the configuration of its daemons.

use crate::registry::{Identity, Registry};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// Port of the replicators' control API.
pub const CONTROL_PORT: u16 = 7420;
/// Port of the replica protocol.
pub const DATA_PORT: u16 = 7421;

/// File of the node's [`Identity`].
pub const IDENTITY: &str = "identity.json";
/// Configuration of the replicator.
pub const REPLICATOR: &str = "replicator.toml";
/// Configuration of csi-node.
pub const CSI_NODE: &str = "csi-node.toml";
/// Unix socket of the device holder's service.
const HOLDER_SOCKET: &str = "holder.sock";
/// Unix socket of the replicator's control API.
pub const CONTROL_SOCKET: &str = "control.sock";

/// What the configuration says, with the names of its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ReplicatorFile {
    node: u64,
    name: String,
    cluster: String,
    data_dir: PathBuf,
    control_address: String,
    data_address: String,
    control_socket: PathBuf,
    pool: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_io: Option<String>,
    device_holder_socket: PathBuf,
    peers: Vec<Peer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Peer {
    node: u64,
    control_address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct CsiNodeFile {
    replicator: String,
    node_name: String,
    node_id: u64,
}

/// Reads what the node remembers; `None` for a new one.
///
/// # Errors
/// A file that cannot be read, or is not one.
pub fn read_identity(directory: &Path) -> Result<Option<Identity>> {
    read_json(&directory.join(IDENTITY))
}

/// Makes the node remember.
///
/// # Errors
/// The operating system's.
pub fn write_identity(directory: &Path, identity: &Identity) -> Result<()> {
    replace(&directory.join(IDENTITY), &serde_json::to_string_pretty(identity)?)
}

/// Writes the configuration of the node called `name`.
///
/// # Errors
/// The operating system's; a node that is not in the registry.
pub fn write_configuration(
    directory: &Path,
    registry: &Registry,
    name: &str,
    pool: &Path,
    priority_io: Option<String>,
) -> Result<()> {
    let entry = registry.nodes.get(name).context("the node is not in the registry")?;
    let control = |address: &str| format!("{}:{CONTROL_PORT}", bracketed(address));
    let founding = registry.founding().into_iter();
    let replicator = ReplicatorFile {
        node: entry.number,
        name: name.to_owned(),
        cluster: registry.cluster.to_string(),
        data_dir: directory.join(format!("node-{}", entry.number)),
        control_address: control(&entry.address),
        data_address: format!("{}:{DATA_PORT}", bracketed(&entry.address)),
        control_socket: directory.join(CONTROL_SOCKET),
        pool: pool.to_owned(),
        priority_io,
        device_holder_socket: directory.join(HOLDER_SOCKET),
        peers: founding
            .map(|(node, address)| Peer { node, control_address: control(address) })
            .collect(),
    };
    let csi_node = CsiNodeFile {
        replicator: format!("unix://{}", directory.join(CONTROL_SOCKET).display()),
        node_name: name.to_owned(),
        node_id: entry.number,
    };
    replace(&directory.join(REPLICATOR), &toml::to_string(&replicator)?)?;
    replace(&directory.join(CSI_NODE), &toml::to_string(&csi_node)?)
}

/// An address as it stands before a port.
#[must_use]
pub fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    serde_json::from_str(&text).with_context(|| path.display().to_string()).map(Some)
}

/// Whole or not at all, also through a loss of power.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("renaming {}", new.display()))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all().with_context(|| format!("syncing {}", directory.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_founder_lists_all_founders_and_a_later_node_all_of_them_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = Registry::new(Uuid::from_u128(7), 1, None).unwrap();
        registry.enter("a", "10.0.0.1", None).unwrap();
        registry.enter("b", "fd00::2", None).unwrap();
        let pool = Path::new("/dev/sdb");
        write_configuration(directory.path(), &registry, "b", pool, Some("high".into())).unwrap();
        let text = fs::read_to_string(directory.path().join(REPLICATOR)).unwrap();
        let file: toml::Table = text.parse().unwrap();
        assert_eq!(file["node"].as_integer(), Some(2));
        assert_eq!(file["control_address"].as_str(), Some("[fd00::2]:7420"));
        assert_eq!(file["priority_io"].as_str(), Some("high"));
        let peers = file["peers"].as_array().unwrap();
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0]["control_address"].as_str(), Some("10.0.0.1:7420"));
    }

    #[test]
    fn a_node_remembers_who_it_is() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read_identity(directory.path()).unwrap(), None);
        let mut registry = Registry::new(Uuid::from_u128(7), 1, None).unwrap();
        registry.enter("a", "10.0.0.1", None).unwrap();
        let identity = registry.identity("a").unwrap();
        write_identity(directory.path(), &identity).unwrap();
        assert_eq!(read_identity(directory.path()).unwrap(), Some(identity));
        fs::write(directory.path().join(IDENTITY), "{").unwrap();
        assert!(read_identity(directory.path()).is_err(), "damage is not a new node");
    }
}
