//! A lab and what can be done to it.

use crate::layout::Layout;
use crate::net::Cut;
use crate::process::{ProcessId, named_in_network_namespace, wait_until};
use crate::state::{Registry, State, check_nodes, lock};
use crate::{daemons, disk, down, machine, net, pool, rpc};
use anyhow::{Context as _, Result, bail, ensure};
use client::Client;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Bytes of a pool unless said otherwise.
pub const POOL_BYTES: u64 = 10 << 30;
/// How long the daemons may take from start to ready.
const READY_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at whether a node is ready.
const LOOK: Duration = Duration::from_millis(50);

/// What a new lab shall be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// How many nodes.
    pub nodes: u64,
    /// Bytes of each pool.
    pub pool_bytes: u64,
    /// Nodes with a kernel of their own ([`machine`]).
    pub machines: BTreeSet<u64>,
    /// Whether the pools are on disks whose power can be cut ([`disk`]).
    pub disks: bool,
    /// After how many seconds a lost copy is replaced (R27), if not the usual time.
    pub replace_after_seconds: Option<u64>,
}

impl Plan {
    /// The usual lab of `nodes` nodes in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, nodes: u64) -> Self {
        let machines = BTreeSet::new();
        Self {
            dir,
            nodes,
            pool_bytes: POOL_BYTES,
            machines,
            disks: false,
            replace_after_seconds: None,
        }
    }
}

/// A lab of this machine.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Names, addresses and paths.
    pub layout: Layout,
    /// The cluster's UUID.
    pub cluster: String,
    /// How many nodes, numbered from 1.
    pub nodes: u64,
    /// Node that runs the CSI controller.
    pub controller_node: u64,
    /// Directory of the programs.
    pub programs: PathBuf,
}

impl Lab {
    /// The lab in `dir`.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(dir: &Path) -> Result<Self> {
        let state = State::load(dir)?.with_context(|| {
            format!(
                "no lab in {}: `holdfast lab up --dir {}` makes one",
                dir.display(),
                dir.display()
            )
        })?;
        Ok(Self::of(dir, &state))
    }

    fn of(dir: &Path, state: &State) -> Self {
        Self {
            layout: Layout { number: state.number, dir: dir.to_path_buf() },
            cluster: state.cluster.clone(),
            nodes: state.nodes,
            controller_node: state.controller_node,
            programs: state.programs.clone(),
        }
    }

    /// Makes a lab and waits until every node is ready. When it fails, or when the future is dropped
    /// half-way, what was made stays for [`down::lab`] to find.
    ///
    /// # Errors
    /// If the machine lacks something, or the daemons do not become ready.
    pub async fn up(plan: &Plan) -> Result<Self> {
        check_nodes(plan.nodes)?;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab needs root: namespaces, loop devices, mounts"
        );
        // The CSI plugins run beside the mounts of this kernel.
        let controller_node = (1..=plan.nodes).rev().find(|node| !plan.machines.contains(node));
        let controller_node = controller_node.context("a lab needs one node without a machine")?;
        let programs = daemons::programs()?;
        let layout = Registry::default().claim(&plan.dir)?;
        fs::create_dir_all(&plan.dir)?;
        let mut state = State {
            number: layout.number,
            cluster: uuid::Uuid::new_v4().to_string(),
            nodes: plan.nodes,
            controller_node,
            pool_bytes: plan.pool_bytes,
            machines: plan.machines.clone(),
            disks: plan.disks,
            replace_after_seconds: plan.replace_after_seconds,
            programs,
            pools: BTreeMap::new(),
            daemons: BTreeMap::new(),
        };
        state.save(&plan.dir)?;
        {
            let _lock = lock(&plan.dir)?;
            net::make_hub(&layout)?;
            if plan.disks {
                daemons::share_mounts(&plan.dir)?;
            }
            for node in 1..=plan.nodes {
                net::make_node(&layout, node)?;
                fs::create_dir_all(layout.node_dir(node))?;
                let pool = if plan.machines.contains(&node) {
                    net::hand_over(&layout, node)?;
                    machine::make(&layout, node, plan.pool_bytes)?
                } else {
                    let file = pool::make(&layout, node, plan.pool_bytes)?;
                    pool::attach(&if plan.disks {
                        daemons::new_boot_id(&layout, node)?;
                        disk::start(&layout, node, &state.programs, &file)?
                    } else {
                        file
                    })?
                };
                state.pools.insert(node, pool);
                state.save(&plan.dir)?;
                daemons::configure(&layout, &state, node)?;
                daemons::format_pool(&state, node)?;
            }
            for node in 1..=plan.nodes {
                daemons::start(&layout, &mut state, node)?;
            }
        }
        let lab = Self::of(&plan.dir, &state);
        lab.wait_ready(1..=plan.nodes).await?;
        Ok(lab)
    }

    fn change<T>(&self, what: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let _lock = lock(&self.layout.dir)?;
        let mut state = State::load(&self.layout.dir)?.context("the lab is gone")?;
        what(&mut state)
    }

    /// Fails unless `node` is one of the lab's.
    ///
    /// # Errors
    /// Naming the nodes there are.
    pub fn check_node(&self, node: u64) -> Result<()> {
        ensure!(
            (1..=self.nodes).contains(&node),
            "node {node}: this lab has nodes 1 to {}",
            self.nodes
        );
        Ok(())
    }

    /// Drops all traffic of a node, both ways.
    ///
    /// # Errors
    /// As [`Lab::cut_some`].
    pub fn cut(&self, node: u64) -> Result<()> {
        self.cut_some(node, Cut::All)
    }

    /// Drops some of a node's traffic.
    ///
    /// # Errors
    /// If there is no such node, it is a machine (its packets pass by this kernel's filters), or
    /// `nft` fails.
    pub fn cut_some(&self, node: u64, cut: Cut) -> Result<()> {
        self.check_node(node)?;
        let state = State::load(&self.layout.dir)?.context("the lab is gone")?;
        ensure!(!state.machines.contains(&node), "node {node} is a machine: it cannot be cut");
        net::cut(&self.layout, node, cut)
    }

    /// Ends a cut.
    ///
    /// # Errors
    /// If there is no such node or `nft` fails.
    pub fn heal(&self, node: u64) -> Result<()> {
        self.check_node(node)?;
        net::heal(&self.layout, node)
    }

    /// SIGKILLs the node's daemons; a machine loses power.
    ///
    /// # Errors
    /// If there is no such node or a daemon will not go.
    pub fn kill(&self, node: u64) -> Result<()> {
        self.check_node(node)?;
        self.change(|state| daemons::kill(&self.layout, state, node))
    }

    /// SIGKILLs all processes of a node: the daemons, what they started, what uses their volumes.
    ///
    /// # Errors
    /// If there is no such node or a process will not go.
    pub fn crash(&self, node: u64) -> Result<()> {
        self.check_node(node)?;
        daemons::crash(&self.layout, node)
    }

    /// Cuts the power of a node of a lab with disks: its processes are gone, its disk loses what was
    /// not flushed, by `seed`, and the next boot of its host is another one. The disk is off until
    /// [`Lab::set_disk`].
    ///
    /// # Errors
    /// If there is no such node or disk, or a process will not go.
    pub fn cut_power(&self, node: u64, seed: u64) -> Result<disk::Loss> {
        self.crash(node)?;
        daemons::new_boot_id(&self.layout, node)?;
        disk::cut_power(&self.layout, node, seed)
    }

    /// Has the disk of a node fail, hang, or be well again.
    ///
    /// # Errors
    /// If there is no such node or disk.
    pub fn set_disk(&self, node: u64, mode: disk::Mode) -> Result<()> {
        self.check_node(node)?;
        disk::set_mode(&self.layout, node, mode)
    }

    /// Sends a signal to one daemon of a node, and waits until it is gone if `patience` says so.
    ///
    /// # Errors
    /// If there is no such daemon, or it is still there.
    pub fn signal(
        &self,
        node: u64,
        daemon: &str,
        signal: Signal,
        patience: Option<Duration>,
    ) -> Result<()> {
        self.check_node(node)?;
        let state = State::load(&self.layout.dir)?.context("the lab is gone")?;
        let process = daemons::process(&state, node, daemon)?;
        process.signal(signal)?;
        let gone = |patience| wait_until(patience, || !process.is_alive());
        ensure!(patience.is_none_or(gone), "{daemon} of node {node} is still there");
        Ok(())
    }

    /// The processes of a node whose program is called `name`, also those that the daemons started.
    ///
    /// # Errors
    /// If there is no such node or /proc cannot be listed.
    pub fn processes(&self, node: u64, name: &str) -> Result<Vec<ProcessId>> {
        self.check_node(node)?;
        let namespace = Layout::namespace_path(&self.layout.namespace(node));
        named_in_network_namespace(&namespace, name)
    }

    /// Starts what does not run of the node's daemons; see [`Lab::wait_ready`].
    ///
    /// # Errors
    /// If there is no such node or a daemon cannot be started.
    pub fn start(&self, node: u64) -> Result<()> {
        self.check_node(node)?;
        self.change(|state| daemons::start(&self.layout, state, node))
    }

    /// Replicators by Unix socket, `node` first.
    ///
    /// # Errors
    /// If a socket path does not fit.
    pub fn client(&self, node: u64) -> Result<Client> {
        rpc::replicators(&self.layout, core::iter::once(node).chain(self.others(node)))
    }

    /// The replicator of `node` alone: its own view.
    ///
    /// # Errors
    /// If the socket path does not fit.
    pub fn local_client(&self, node: u64) -> Result<Client> {
        rpc::replicators(&self.layout, [node])
    }

    /// All nodes but `node`.
    pub fn others(&self, node: u64) -> impl Iterator<Item = u64> + use<> {
        (1..=self.nodes).filter(move |other| *other != node)
    }

    /// Waits until the nodes' replicators say that they are ready (leader known, metadata applied,
    /// pool served) and their CSI plugins answer.
    ///
    /// # Errors
    /// If one is not within 30 s or its process ended; with the last words of its log.
    pub async fn wait_ready(&self, nodes: impl IntoIterator<Item = u64>) -> Result<()> {
        let end = Instant::now() + READY_PATIENCE;
        for node in nodes {
            loop {
                let missing = match self.missing(node).await? {
                    None => break,
                    Some(missing) => missing,
                };
                if Instant::now() >= end {
                    bail!(
                        "{} of node {node} is not ready after {READY_PATIENCE:?}; {}",
                        missing,
                        daemons::last_words(&self.layout, node, missing)
                    );
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// The first daemon of `node` that is not ready yet.
    async fn missing(&self, node: u64) -> Result<Option<&'static str>> {
        let state = State::load(&self.layout.dir)?.context("the lab is gone")?;
        for name in daemons::names(&state, node) {
            let process = state.daemons.get(&node).and_then(|daemons| daemons.get(name));
            if !process.is_some_and(|process| process.is_alive()) {
                bail!(
                    "{name} of node {node} ended; {}",
                    daemons::last_words(&self.layout, node, name)
                );
            }
            let ready = match name {
                daemons::REPLICATOR => self.replicator_ready(node).await,
                daemons::RELAY => true,
                daemons::CSI_NODE => probe(&self.layout.csi_socket(node)).await,
                _ => probe(&self.layout.controller_socket(node)).await,
            };
            if !ready {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    async fn replicator_ready(&self, node: u64) -> bool {
        let Ok(client) = self.local_client(node) else { return false };
        let client = client.with_deadline(Duration::from_secs(1));
        client.get_node().await.is_ok_and(|node| node.ready && node.leader != 0)
    }

    /// Ends the lab and removes everything of it.
    ///
    /// # Errors
    /// If something could not be removed; the rest is.
    pub fn down(&self) -> Result<()> {
        down::lab(&self.layout)
    }

    /// What a person needs to point clients at the lab.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "lab {} in {}: cluster {}\n",
            self.layout.number,
            self.layout.dir.display(),
            self.cluster
        );
        for node in 1..=self.nodes {
            text += &format!(
                "  n{node}  control  {}  unix://{}\n      replicas {}\n      csi-node unix://{}\n",
                self.layout.control_address(node),
                self.layout.control_socket(node).display(),
                self.layout.data_address(node),
                self.layout.csi_socket(node).display(),
            );
            if node == self.controller_node {
                let socket = self.layout.controller_socket(node);
                text += &format!("      csi-controller unix://{}\n", socket.display());
            }
        }
        text += &format!(
            "  TCP addresses live in network namespaces: nsenter --net={} COMMAND\n",
            Layout::namespace_path(&self.layout.hub()).display()
        );
        text
    }
}

async fn probe(socket: &Path) -> bool {
    let probe = async {
        let mut identity = rpc::csi_identity(socket).await?;
        let answer = identity.probe(proto::csi::ProbeRequest {}).await?.into_inner();
        // An absent value means ready (CSI specification, Probe).
        Ok::<_, anyhow::Error>(answer.ready.unwrap_or(true))
    };
    matches!(timeout(Duration::from_secs(1), probe).await, Ok(Ok(true)))
}
