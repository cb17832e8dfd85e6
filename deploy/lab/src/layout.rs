//! Names, addresses and paths of a lab: all of them follow from its number, its directory and the
//! node, so that `down` finds everything of a lab that died at any point.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// TCP port of the control API in every node's namespace.
pub const CONTROL_PORT: u16 = 7420;
/// TCP port of the replica protocol in every node's namespace.
pub const DATA_PORT: u16 = 7421;
/// TCP port of PostgreSQL in every node's namespace.
pub const POSTGRES_PORT: u16 = 5432;
/// Longest lab directory in bytes: Unix socket addresses below it must stay under 108.
pub const MAX_DIR: usize = 40;
/// Most nodes in one lab.
pub const MAX_NODES: u64 = 9;
/// Every pool file of every lab starts with this, so that loop devices of dead labs are found.
pub const POOL_PREFIX: &str = "holdfast-lab-";

/// Where everything of one lab is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The lab's number on this machine, 1 to 254: its network is 10.77.NUMBER.0/24.
    pub number: u8,
    /// Its directory.
    pub dir: PathBuf,
}

impl Layout {
    /// Network namespace of the bridge and of clients.
    #[must_use]
    pub fn hub(&self) -> String {
        format!("hf{}-hub", self.number)
    }

    /// Network namespace of `node`.
    #[must_use]
    pub fn namespace(&self, node: u64) -> String {
        format!("hf{}-n{node}", self.number)
    }

    /// The file that holds a network namespace of this name.
    #[must_use]
    pub fn namespace_path(name: &str) -> PathBuf {
        Path::new("/run/netns").join(name)
    }

    /// The name that `node` has in the cluster.
    #[must_use]
    pub fn node_name(node: u64) -> String {
        format!("n{node}")
    }

    /// Address of `node` on the bridge.
    #[must_use]
    pub fn address(&self, node: u64) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, u8::try_from(node).unwrap_or(u8::MAX))
    }

    /// Address of the hub on the bridge.
    #[must_use]
    pub fn hub_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 254)
    }

    /// The control API of `node` over TCP.
    #[must_use]
    pub fn control_address(&self, node: u64) -> SocketAddr {
        (self.address(node), CONTROL_PORT).into()
    }

    /// The replica protocol of `node`.
    #[must_use]
    pub fn data_address(&self, node: u64) -> SocketAddr {
        (self.address(node), DATA_PORT).into()
    }

    /// Directory of everything that belongs to `node`.
    #[must_use]
    pub fn node_dir(&self, node: u64) -> PathBuf {
        self.dir.join(Self::node_name(node))
    }

    /// The replicator's data directory on `node`.
    #[must_use]
    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("data")
    }

    /// Directory of the daemons' logs on `node`.
    #[must_use]
    pub fn log_dir(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("log")
    }

    /// The file behind the pool of `node`.
    #[must_use]
    pub fn pool_file(&self, node: u64) -> PathBuf {
        self.node_dir(node).join(format!("{POOL_PREFIX}{}-n{node}.pool", self.number))
    }

    /// Where the disk under the pool of `node` is mounted, if it is one of ours ([`crate::disk`]).
    #[must_use]
    pub fn disk_dir(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("disk")
    }

    /// Unix socket that tells the disk of `node` what shall go wrong.
    #[must_use]
    pub fn disk_socket(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("disk.sock")
    }

    /// What the replicator of `node` takes for the boot id of its host, if its disk is one of ours.
    #[must_use]
    pub fn boot_id_file(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("boot_id")
    }

    /// The replicator's Unix socket on `node`.
    #[must_use]
    pub fn control_socket(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("control.sock")
    }

    /// The CSI node plugin's Unix socket on `node`.
    #[must_use]
    pub fn csi_socket(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("csi.sock")
    }

    /// The CSI controller's Unix socket on `node`.
    #[must_use]
    pub fn controller_socket(&self, node: u64) -> PathBuf {
        self.node_dir(node).join("controller.sock")
    }

    /// Where the part of kubelet that the lab plays has volumes staged on `node`.
    #[must_use]
    pub fn staging_path(&self, node: u64, volume: &str) -> PathBuf {
        self.node_dir(node).join("stage").join(volume)
    }

    /// Where the part of kubelet that the lab plays has volumes published on `node`.
    #[must_use]
    pub fn target_path(&self, node: u64, volume: &str) -> PathBuf {
        self.node_dir(node).join("publish").join(volume)
    }
}

/// The lab number in the name of one of our network namespaces.
#[must_use]
pub fn number_of_namespace(name: &str) -> Option<u8> {
    let (number, rest) = name.strip_prefix("hf")?.split_once('-')?;
    let node = rest.strip_prefix('n').is_some_and(|digits| digits.parse::<u64>().is_ok());
    if rest == "hub" || node { number.parse().ok().filter(|number| *number > 0) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_namespace_names_are_recognised() {
        let layout = Layout { number: 7, dir: PathBuf::from("/l") };
        for (name, number) in [
            (layout.hub().as_str(), Some(7)),
            (layout.namespace(3).as_str(), Some(7)),
            ("hf0-hub", None),
            ("hf7-nx", None),
            ("hf7-", None),
            ("cni-7f", None),
            ("hf300-n1", None),
        ] {
            assert_eq!(number_of_namespace(name), number, "{name}");
        }
    }

    #[test]
    fn socket_paths_fit_the_longest_directory() {
        let dir = PathBuf::from(format!("/{}", "d".repeat(MAX_DIR - 1)));
        let layout = Layout { number: 254, dir };
        for path in [layout.controller_socket(MAX_NODES), layout.control_socket(MAX_NODES)] {
            assert!(path.as_os_str().len() < 108);
        }
        // The replicator's own sockets below its data directory: nbd/<36 characters>.sock.
        assert!(layout.data_dir(MAX_NODES).as_os_str().len() + 4 + 1 + 36 + 5 + 8 < 108);
    }
}
