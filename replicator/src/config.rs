//! Configuration of the daemon: a TOML file and flags with the same names; a flag wins.
//!
//! Everything is checked here, before anything is opened, and every refusal names the key, the
//! value and what is accepted.

#[cfg(test)]
mod tests;

use core::net::{IpAddr, SocketAddr};
use core::ops::RangeInclusive;
use core::time::Duration;
use frontend::select::Kind;
use metadata::PoolClass;
use policy::leader::REPLACE_AFTER;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use types::{ClusterId, NodeId};

/// Port of `control_address` if none is written.
pub const CONTROL_PORT: u16 = 7420;
/// Port of `data_address` if none is written.
pub const DATA_PORT: u16 = 7421;
/// Most bytes that a Unix socket's path may have (unix(7): 108 with the terminator).
pub const SOCKET_PATH_MAX: usize = 107;
/// Most members that a Raft group may start with.
pub const MAX_VOTERS: usize = 5;

/// Seconds accepted for `replace_after_seconds`. Below, a restart of a daemon would cost a copy of each
/// volume; a month is as good as never.
pub const REPLACE_AFTER_RANGE: RangeInclusive<u64> = 5..=2_592_000;

/// Days accepted for `scrub_days`.
pub const SCRUB_DAYS_RANGE: RangeInclusive<u64> = 1..=365;
/// Days of a pass of the scrub if nothing is written.
pub const SCRUB_DAYS: u64 = 7;

/// Numbers accepted for `nbd_connections`.
pub const NBD_CONNECTIONS_RANGE: RangeInclusive<u64> = 1..=16;
/// `nbd_connections` if none is written.
pub const NBD_CONNECTIONS: u64 = 1;

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("configuration file {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why; it names unknown keys and the known ones.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is needed and there is none.
    #[error("{key} is missing: give it in the configuration file or as --{}; accepted: {accepted}", key.replace('_', "-"))]
    Missing {
        /// The key.
        key: &'static str,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// A value is refused.
    #[error("{key} = {value:?} is refused; accepted: {accepted}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
}

/// The flags; each has a key of the same name (with `_`) in the configuration file.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Number of this node in the cluster: 1 or more, never reused for another node
    #[arg(long, value_name = "NUMBER")]
    pub node: Option<u64>,
    /// Name of this node, as Kubernetes knows it [default: node-NUMBER]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// UUID of the cluster; the same on every node, and in the superblock of every pool
    #[arg(long, value_name = "UUID")]
    pub cluster: Option<String>,
    /// Directory for metadata, sockets and mounts of this node; made if absent
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Address where the other nodes reach this one's control API (gRPC) [default port: 7420]
    #[arg(long, value_name = "IP[:PORT]")]
    pub control_address: Option<String>,
    /// Address where the other nodes reach this one's replicas [default port: 7421]
    #[arg(long, value_name = "IP[:PORT]")]
    pub data_address: Option<String>,
    /// Unix socket of the control API for this machine [default: DATA_DIR/control.sock]
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// The pool: a disk, partition, loop device or file that `replicator pool init` has prepared
    #[arg(long, value_name = "PATH")]
    pub pool: Option<PathBuf>,
    /// The nodes that Raft starts with, this one among them, the same list on each of them: like
    /// 1=10.0.0.1:7420,2=10.0.0.2:7420. A node that is added later lists the others without itself.
    /// Without a list the node is a cluster of its own. In the file: [[peers]] node = 1,
    /// control_address = "10.0.0.1:7420"
    #[arg(long, value_name = "NODE=IP:PORT", value_delimiter = ',', value_parser = parse_peer)]
    pub peers: Option<Vec<PeerSetting>>,
    /// Class of this node's pool, for volumes that ask for one: high, medium or low
    /// [default: medium]
    #[arg(long, value_name = "CLASS")]
    pub priority_io: Option<String>,
    /// Where this node stands: what fails together, like a rack or a data centre. Copies of a volume go
    /// to different zones as far as there are any [default: none]
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// How long a node may be lost before its replicas are replaced on other nodes, 5 to 2592000 (30
    /// days); the same on every node, since the leader's counts [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub replace_after_seconds: Option<u64>,
    /// Program that keeps kernel devices alive while this daemon restarts
    /// [default: device-holder beside this program]
    #[arg(long, value_name = "PATH")]
    pub device_holder: Option<PathBuf>,
    /// Unix socket of a device holder that runs as a service (`device-holder --socket`): then none is
    /// started, and devices survive also what ends everything that this daemon started
    #[arg(long, value_name = "PATH")]
    pub device_holder_socket: Option<PathBuf>,
    /// How long kernel devices wait for a daemon that is gone before their I/O gets errors: 1 to
    /// 3600 seconds [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub device_grace_seconds: Option<u64>,
    /// How this node's kernel reaches a volume: auto (the best that there is), kernel-nbd (the kernel's
    /// NBD driver) or fuse-loop (FUSE and a loop device) [default: auto]
    #[arg(long, value_name = "NAME")]
    pub frontend: Option<String>,
    /// Connections of a kernel-nbd device, 1 to 16. With several, requests that a daemon left
    /// unanswered are sent again only 15 seconds later, with one after 1 to 2 seconds [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub nbd_connections: Option<u64>,
    /// Days in which the scrub reads and checks all copies of a volume once, while it is attached on
    /// this node, 1 to 365 [default: 7]
    #[arg(long, value_name = "DAYS")]
    pub scrub_days: Option<u64>,
    /// What to log: error, warn, info, debug, trace, or per module like info,raft=debug
    /// [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// One entry of `peers`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSetting {
    /// Number of the node.
    pub node: u64,
    /// Its control address, `IP[:PORT]`.
    pub control_address: String,
}

fn parse_peer(text: &str) -> Result<PeerSetting, String> {
    let wanted = "wanted NODE=IP:PORT, like 1=10.0.0.1:7420";
    let (node, address) = text.split_once('=').ok_or(wanted)?;
    let node = node.parse().map_err(|_| wanted)?;
    Ok(PeerSetting { node, control_address: address.to_owned() })
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node; never 0.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Absolute.
    pub data_dir: PathBuf,
    /// Where peers reach the control API.
    pub control_address: SocketAddr,
    /// Where engines reach the replicas.
    pub data_address: SocketAddr,
    /// Absolute.
    pub control_socket: PathBuf,
    /// Absolute.
    pub pool: PathBuf,
    /// Members known from the start: the initial voters if this node is among them.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// Class of the pool.
    pub priority_io: PoolClass,
    /// What fails together with this node, if that is known.
    pub zone: Option<String>,
    /// How long a node may be lost before its replicas are replaced (R27).
    pub replace_after: Duration,
    /// Absolute.
    pub device_holder: PathBuf,
    /// Absolute; of a holder that is a service.
    pub device_holder_socket: Option<PathBuf>,
    /// How long kernel devices outlive a daemon.
    pub device_grace: Duration,
    /// How the kernel is to reach volumes; `None`: by what there is.
    pub frontend: Option<Kind>,
    /// Connections of a device of the kernel's NBD driver.
    pub nbd_connections: usize,
    /// Time of one pass of the scrub.
    pub scrub: Duration,
    /// Filter directives for `tracing_subscriber::EnvFilter`.
    pub log: String,
}

impl Config {
    /// The initial voters of Raft: `peers`, or none if this node joins an existing cluster.
    #[must_use]
    pub fn initial_voters(&self) -> Vec<NodeId> {
        if self.peers.contains_key(&self.node) {
            self.peers.keys().copied().collect()
        } else {
            Vec::new()
        }
    }
}

impl Settings {
    /// The settings in the TOML file `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: source.into() })
    }

    /// These settings, and `other` where they say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            node: self.node.or(other.node),
            name: self.name.or(other.name),
            cluster: self.cluster.or(other.cluster),
            data_dir: self.data_dir.or(other.data_dir),
            control_address: self.control_address.or(other.control_address),
            data_address: self.data_address.or(other.data_address),
            control_socket: self.control_socket.or(other.control_socket),
            pool: self.pool.or(other.pool),
            peers: self.peers.or(other.peers),
            priority_io: self.priority_io.or(other.priority_io),
            zone: self.zone.or(other.zone),
            replace_after_seconds: self.replace_after_seconds.or(other.replace_after_seconds),
            device_holder: self.device_holder.or(other.device_holder),
            device_holder_socket: self.device_holder_socket.or(other.device_holder_socket),
            device_grace_seconds: self.device_grace_seconds.or(other.device_grace_seconds),
            frontend: self.frontend.or(other.frontend),
            nbd_connections: self.nbd_connections.or(other.nbd_connections),
            scrub_days: self.scrub_days.or(other.scrub_days),
            log: self.log.or(other.log),
        }
    }

    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    /// [`ConfigError::Missing`], [`ConfigError::Invalid`].
    pub fn check(self) -> Result<Config, ConfigError> {
        let accepted = "a number from 1 on";
        let node = NodeId(self.node.ok_or(ConfigError::Missing { key: "node", accepted })?);
        if node.0 == 0 {
            return Err(invalid("node", 0, accepted));
        }
        let accepted = "the same UUID on every node, like the output of uuidgen";
        let cluster = self.cluster.ok_or(ConfigError::Missing { key: "cluster", accepted })?;
        let cluster = parse_cluster(&cluster)?;
        let data_dir = absolute("data_dir", self.data_dir)?;
        let control_socket = match self.control_socket {
            None => data_dir.join("control.sock"),
            Some(path) => absolute("control_socket", Some(path))?,
        };
        if control_socket.as_os_str().len() > SOCKET_PATH_MAX {
            let accepted = "a path of at most 107 bytes (a longer one is no Unix socket)";
            return Err(invalid("control_socket", control_socket.display(), accepted));
        }
        let control_address =
            reachable("control_address", self.control_address.as_deref(), CONTROL_PORT)?;
        let data_address = reachable("data_address", self.data_address.as_deref(), DATA_PORT)?;
        if data_address == control_address {
            let accepted = "another port than that of control_address";
            return Err(invalid("data_address", data_address, accepted));
        }
        let priority_io = self.priority_io.unwrap_or_else(|| "medium".to_owned());
        let priority_io = priority_io
            .parse()
            .map_err(|_| invalid("priority_io", &priority_io, "high, medium, low"))?;
        if let Some(zone) = &self.zone
            && (!(1..=63).contains(&zone.len()) || zone.chars().any(|c| c.is_control() || c == ' '))
        {
            // A value of a Kubernetes label.
            return Err(invalid("zone", zone, "1 to 63 bytes without spaces"));
        }
        let replace_after = self.replace_after_seconds.unwrap_or(REPLACE_AFTER.as_secs());
        if !REPLACE_AFTER_RANGE.contains(&replace_after) {
            let accepted = "5 to 2592000 (30 days)";
            return Err(invalid("replace_after_seconds", replace_after, accepted));
        }
        let device_holder = match self.device_holder {
            Some(path) => absolute("device_holder", Some(path))?,
            None => beside_this_program("device-holder"),
        };
        let device_holder_socket = match self.device_holder_socket {
            Some(path) => Some(absolute("device_holder_socket", Some(path))?),
            None => None,
        };
        let grace = self.device_grace_seconds.unwrap_or(30);
        if !(1..=3600).contains(&grace) {
            return Err(invalid("device_grace_seconds", grace, "1 to 3600"));
        }
        let frontend = match self.frontend.as_deref() {
            None | Some("auto") => None,
            Some(name) => Some(
                name.parse()
                    .map_err(|_| invalid("frontend", name, "auto, kernel-nbd or fuse-loop"))?,
            ),
        };
        let nbd_connections = self.nbd_connections.unwrap_or(NBD_CONNECTIONS);
        if !NBD_CONNECTIONS_RANGE.contains(&nbd_connections) {
            return Err(invalid("nbd_connections", nbd_connections, "1 to 16"));
        }
        let scrub_days = self.scrub_days.unwrap_or(SCRUB_DAYS);
        if !SCRUB_DAYS_RANGE.contains(&scrub_days) {
            return Err(invalid("scrub_days", scrub_days, "1 to 365"));
        }
        let log = self.log.unwrap_or_else(|| "info".to_owned());
        if EnvFilter::try_new(&log).is_err() {
            let accepted = "error, warn, info, debug, trace, or filters like info,raft=debug";
            return Err(invalid("log", log, accepted));
        }
        Ok(Config {
            node,
            name: check_name(self.name.unwrap_or_else(|| format!("node-{node}")))?,
            cluster,
            pool: absolute("pool", self.pool)?,
            peers: check_peers(self.peers.unwrap_or_default(), node, control_address)?,
            data_dir,
            control_address,
            data_address,
            control_socket,
            priority_io,
            zone: self.zone,
            replace_after: Duration::from_secs(replace_after),
            device_holder,
            device_holder_socket,
            device_grace: Duration::from_secs(grace),
            frontend,
            nbd_connections: nbd_connections as usize,
            scrub: Duration::from_secs(scrub_days * 86_400),
            log,
        })
    }
}

/// The cluster's UUID in its canonical form.
///
/// # Errors
/// [`ConfigError::Invalid`]; the nil UUID is refused as well.
pub fn parse_cluster(text: &str) -> Result<ClusterId, ConfigError> {
    let accepted = "a UUID in lower case, like 6f1c1dcb-41a8-4d1c-9f3a-2f5a2d0c7b11";
    match text.parse::<ClusterId>() {
        Ok(cluster) if cluster != ClusterId::default() => Ok(cluster),
        _ => Err(invalid("cluster", text, accepted)),
    }
}

fn beside_this_program(name: &str) -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name(name)
}

fn invalid(key: &'static str, value: impl ToString, accepted: &'static str) -> ConfigError {
    ConfigError::Invalid { key, value: value.to_string(), accepted }
}

fn absolute(key: &'static str, path: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let accepted = "an absolute path";
    let path = path.ok_or(ConfigError::Missing { key, accepted })?;
    if path.is_absolute() { Ok(path) } else { Err(invalid(key, path.display(), accepted)) }
}

/// An address that other nodes can use: they are told it.
fn reachable(key: &'static str, text: Option<&str>, port: u16) -> Result<SocketAddr, ConfigError> {
    let accepted = "IP or IP:PORT of this node as the other nodes reach it (not 0.0.0.0)";
    let text = text.ok_or(ConfigError::Missing { key, accepted })?;
    let address = text
        .parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)))
        .map_err(|_| invalid(key, text, accepted))?;
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        return Err(invalid(key, text, accepted));
    }
    Ok(address)
}

/// Names as Kubernetes gives them to nodes (RFC 1123 subdomains).
fn check_name(name: String) -> Result<String, ConfigError> {
    let accepted = "1 to 253 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit";
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let good = (1..=253).contains(&bytes.len())
        && bytes.iter().all(|byte| plain(*byte) || matches!(byte, b'-' | b'.'))
        && bytes.first().is_some_and(|byte| plain(*byte))
        && bytes.last().is_some_and(|byte| plain(*byte));
    if good { Ok(name) } else { Err(invalid("name", name, accepted)) }
}

fn check_peers(
    list: Vec<PeerSetting>,
    node: NodeId,
    control_address: SocketAddr,
) -> Result<BTreeMap<NodeId, SocketAddr>, ConfigError> {
    if list.is_empty() {
        return Ok(BTreeMap::from([(node, control_address)]));
    }
    let mut peers = BTreeMap::new();
    for peer in list {
        let shown = format!("{}={}", peer.node, peer.control_address);
        let address = reachable("peers", Some(&peer.control_address), CONTROL_PORT)
            .map_err(|_| invalid("peers", &shown, "NODE=IP:PORT, like 1=10.0.0.1:7420"))?;
        if peer.node == 0 {
            return Err(invalid("peers", shown, "node numbers from 1 on"));
        }
        if peer.node == node.0 && address != control_address {
            let accepted = "for this node itself, the same address as control_address";
            return Err(invalid("peers", shown, accepted));
        }
        if peers.values().any(|other| *other == address) {
            return Err(invalid("peers", shown, "an address of its own for every node"));
        }
        if peers.insert(NodeId(peer.node), address).is_some() {
            return Err(invalid("peers", shown, "every node once"));
        }
    }
    if peers.len() > MAX_VOTERS {
        let accepted = "at most 5 nodes; others are added later with `holdfast node add`";
        return Err(invalid("peers", format!("{} nodes", peers.len()), accepted));
    }
    Ok(peers)
}
