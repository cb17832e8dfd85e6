//! Live fire: PostgreSQL with a ledger on a replicated volume, and one fault after the other, for as
//! many rounds as wanted. After each, the ledger is compared with what was acknowledged.
//!
//! The soak plays kubelet, a supervisor that starts dead daemons again, and bad luck; everything else
//! is the daemons' own doing.

mod fault;
mod full;
mod pod;

pub use fault::{FAULTS, Fault, Harm, Victim, When};

use crate::clock;
use crate::cluster::{Lab, Plan};
use crate::daemons::{HOLDFAST, REPLICATOR, spawn};
use crate::kubelet::{Claim, Kubelet};
use crate::ledger::{self, Files};
use crate::process::{ProcessId, wait_until};
use crate::rpc;
use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use pod::Pod;
use serde::Serialize;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use types::Instant as Moment;

const VOLUME_BYTES: u64 = 1 << 30;
const LEDGER_CLIENTS: u32 = 4;
/// Load before each fault.
const CALM: Duration = Duration::from_millis(1500);
/// Longest wait for the cluster to be whole again after a fault.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest wait for a resync to begin.
const RESYNC_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What a soak shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory and size of the lab.
    pub plan: Plan,
    /// How many faults.
    pub rounds: u32,
    /// Chooses order of faults and filesystem.
    pub seed: u64,
    /// What may happen, for example [`FAULTS`].
    pub faults: Vec<Fault>,
}

/// What has been seen so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Faults survived.
    pub rounds: u32,
    /// Ledger rows acknowledged.
    pub acknowledged: u64,
    /// Acknowledged rows that are not in the database.
    pub lost: u64,
    /// Rows in the database that were never sent.
    pub phantom: u64,
    /// Longest time without an acknowledgement, in milliseconds, in a round whose fault a volume survives
    /// ([`Fault::is_survived`]).
    pub longest_stall_ms: u64,
    /// The fault of that round.
    pub longest_stall_in: String,
}

struct Soak {
    lab: Lab,
    pod: Pod,
    ledger: Files,
    writer: ProcessId,
}

/// Runs a soak on a new lab, which stays up; `tell` gets a line per round. A row that is lost or was
/// never sent ends it at once, so that the lab shows what happened.
///
/// # Errors
/// If the cluster did not do what was promised, with a sentence.
pub async fn run(options: &Options, mut tell: impl FnMut(&str)) -> Result<Tally> {
    ensure!(options.plan.nodes == 3, "a soak needs 3 nodes");
    ensure!(!options.faults.is_empty(), "a soak needs faults");
    let fs_type = if options.seed.is_multiple_of(2) { "ext4" } else { "xfs" };
    let mut soak = Soak::start(options, fs_type).await?;
    tell(&format!(
        "PostgreSQL on {fs_type}, {LEDGER_CLIENTS} ledger clients, seed {}",
        options.seed
    ));
    let mut tally = Tally::default();
    let mut order = Order::new(options.seed, &options.faults);
    for round in 1..=options.rounds {
        let fault = order.next();
        let before = clock::now();
        let line = format!("round {round}: {fault}");
        soak.round(fault, order.number()).await.with_context(|| line.clone())?;
        let stall = soak.judge(&mut tally, before).await.with_context(|| line.clone())?;
        tally.rounds = round;
        if fault.is_survived() && stall > tally.longest_stall_ms {
            tally.longest_stall_ms = stall;
            tally.longest_stall_in = fault.to_string();
        }
        tell(&format!(
            "{line}: stall {:.2} s; {} rows acknowledged, {} lost, {} phantom, longest stall {:.2} s",
            stall as f64 / 1e3,
            tally.acknowledged,
            tally.lost,
            tally.phantom,
            tally.longest_stall_ms as f64 / 1e3,
        ));
        ensure!(tally.lost == 0 && tally.phantom == 0, "{line}: rows lost or never sent");
    }
    soak.end(&mut tally).await?;
    Ok(tally)
}

/// All faults in shuffled order, then in another one. The first twelve of the list come first, so
/// that a short soak has one of each kind.
struct Order<'f> {
    random: u64,
    all: &'f [Fault],
    left: Vec<Fault>,
}

impl<'f> Order<'f> {
    fn new(seed: u64, all: &'f [Fault]) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut order = Self { random, all, left: Vec::new() };
        let (first, rest) = all.split_at(all.len().min(12));
        let (mut first, mut rest) = (first.to_vec(), rest.to_vec());
        order.shuffle(&mut first);
        order.shuffle(&mut rest);
        // Taken from the end.
        order.left = rest;
        order.left.extend(first);
        order
    }

    fn shuffle(&mut self, faults: &mut [Fault]) {
        for at in (1..faults.len()).rev() {
            let number = self.number();
            faults.swap(at, (number % (at as u64 + 1)) as usize);
        }
    }

    fn number(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn next(&mut self) -> Fault {
        if self.left.is_empty() {
            let mut all = self.all.to_vec();
            self.shuffle(&mut all);
            self.left = all;
        }
        self.left.pop().unwrap_or(self.all[0])
    }
}

impl Soak {
    async fn start(options: &Options, fs_type: &'static str) -> Result<Self> {
        let plan = Plan {
            disks: true,
            pool_bytes: full::POOL_BYTES,
            replace_after_seconds: Some(fault::REPLACE_AFTER_SECONDS),
            ..options.plan.clone()
        };
        let lab = Lab::up(&plan).await?;
        let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
        let claim = Claim {
            name: "pvc-soak".into(),
            size: VOLUME_BYTES,
            fs_type: fs_type.into(),
            parameters: HashMap::from([("repl".into(), "2".into())]),
            node: 1,
        };
        let volume = kubelet.create_volume(&claim).await?;
        let dir = lab.layout.dir.join("ledger");
        fs::create_dir_all(&dir)?;
        let ledger = Files::new(&dir);
        let mut pod = Pod::new(&lab, kubelet, volume, fs_type, 1, ledger.clone()).await?;
        pod.postgres.init().await?;
        pod.postgres.start()?;
        pod.postgres.wait_ready(PATIENCE).await?;
        let mut fill = pod.postgres.local_tool("pgbench");
        fill.args(["--initialize", "--scale=1", "--quiet"]);
        crate::exec::run_async(fill).await?;
        pod.postgres.connect().await?.batch_execute(ledger::TABLE).await?;
        let clients = LEDGER_CLIENTS.to_string();
        let mut words: Vec<OsString> =
            ["lab", "ledger", "--clients", &clients, "--dir"].map(OsString::from).into();
        words.push(dir.clone().into());
        let program = lab.programs.join(HOLDFAST);
        let writer = spawn(&lab.layout.hub(), &program, &words, &dir.join("ledger.log"))?;
        Ok(Self { lab, pod, ledger, writer })
    }

    /// The nodes that a fault hits.
    async fn victims(&self, victim: Victim) -> Result<Vec<u64>> {
        let volume = self.lab.client(1)?.get_volume(&self.pod.volume.volume_id).await?;
        let copies: Vec<u64> = volume
            .replicas
            .iter()
            .filter(|replica| replica.in_sync)
            .map(|replica| replica.node)
            .collect();
        let other = |node: &u64| *node != self.pod.node;
        let all = 1..=self.lab.nodes;
        Ok(match victim {
            Victim::All => all.collect(),
            Victim::Pod => vec![self.pod.node],
            Victim::Copy => copies.into_iter().filter(other).take(1).collect(),
            Victim::Vote => {
                all.filter(|node| !copies.contains(node) && other(node)).take(1).collect()
            }
        })
    }

    /// Calm, the fault, its end, and everything whole again.
    async fn round(&mut self, fault: Fault, seed: u64) -> Result<()> {
        sleep(CALM).await;
        let nodes = self.victims(fault.victim).await?;
        if fault.harm == Harm::Full {
            full::trim(&self.pod).await?;
        }
        match fault.when {
            When::Calm => fault.strike(&self.lab, &nodes, seed).await?,
            When::Resync => {
                self.begin_resync().await?;
                fault.strike(&self.lab, &nodes, seed).await?;
            }
            When::Attach => {
                let Self { lab, pod, .. } = self;
                let strike = async {
                    sleep(Duration::from_millis(seed % 400)).await;
                    fault.strike(lab, &nodes, seed).await?;
                    sleep(fault.lasts()).await;
                    fault.undo(lab, &nodes).await
                };
                pod.stop().await?;
                let (brought, struck) = tokio::join!(pod.start(), strike);
                brought.and(struck)?;
            }
        }
        if fault.harm == Harm::Full {
            full::need_room(&self.pod).await?;
        }
        let lab = self.lab.clone();
        let over = Cell::new(false);
        let end = async {
            sleep(fault.lasts()).await;
            let undone = fault.undo(&lab, &nodes).await;
            over.set(true);
            undone
        };
        let care = async {
            // What cannot be mounted on a full pool can be while this waits for it.
            while !over.get() {
                self.be_kubelet(&nodes).await?;
                sleep(LOOK).await;
            }
            Ok(())
        };
        let (cared, undone) = tokio::join!(care, end);
        cared.and(undone)?;
        let healed = clock::now();
        let end = Instant::now() + PATIENCE;
        loop {
            self.be_kubelet(&[]).await?;
            let Some(missing) = self.missing(healed).await? else { return Ok(()) };
            ensure!(Instant::now() < end, "{PATIENCE:?} after the fault's end still: {missing}");
            sleep(LOOK).await;
        }
    }

    /// One copy has missed some writes and is being brought up to date.
    async fn begin_resync(&self) -> Result<()> {
        let copies = self.victims(Victim::Copy).await?;
        let patience = Some(Duration::from_secs(20));
        for node in &copies {
            self.lab.signal(*node, REPLICATOR, Signal::SIGKILL, patience)?;
        }
        let mut fill = self.pod.postgres.local_tool("pgbench");
        fill.args(["--initialize", "--scale=3", "--quiet"]);
        crate::exec::run_async(fill).await?;
        for node in &copies {
            self.lab.start(*node)?;
        }
        let client = self.lab.local_client(self.pod.node)?.with_deadline(PATIENCE);
        let end = Instant::now() + RESYNC_PATIENCE;
        while Instant::now() < end {
            let attachment = client.get_attachment(&self.pod.volume.volume_id).await?;
            if attachment.replicas.iter().any(|replica| replica.role == "resyncing") {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
        // It was over between two looks: then this round is as good as one in a calm.
        Ok(())
    }

    /// Moves the pod when its node is called lost, restarts it when it has died; `struck` are nodes that
    /// kubelet cannot reach now.
    async fn be_kubelet(&mut self, struck: &[u64]) -> Result<()> {
        let reachable: Vec<u64> =
            (1..=self.lab.nodes).filter(|node| !struck.contains(node)).collect();
        if reachable.is_empty() {
            return Ok(());
        }
        // Whichever of them leads.
        let client = rpc::replicators(&self.lab.layout, reachable)?;
        let client = client.with_deadline(Duration::from_millis(500));
        let Ok(cluster) = client.get_cluster().await else { return Ok(()) };
        let lost = |node: u64| cluster.nodes.iter().any(|n| n.node == node && n.state == "lost");
        let at = self.pod.node;
        if lost(at) {
            let to = (1..=self.lab.nodes)
                .find(|node| *node != at && !struck.contains(node) && !lost(*node))
                .filter(|node| !self.pod.left_behind(*node));
            if let Some(to) = to {
                self.pod.move_to(to).await?;
            }
            return Ok(());
        }
        if struck.contains(&at) || self.pod.postgres.is_alive() && !self.device_failed().await {
            return Ok(());
        }
        self.pod.restart().await
    }

    async fn device_failed(&self) -> bool {
        let Ok(client) = self.lab.local_client(self.pod.node) else { return false };
        let client = client.with_deadline(Duration::from_millis(500));
        client.get_attachment(&self.pod.volume.volume_id).await.is_ok_and(|found| found.failed)
    }

    /// What is not whole yet: all daemons ready, nothing stale left, both copies in sync, and a row of
    /// the ledger acknowledged since `healed`.
    async fn missing(&mut self, healed: Moment) -> Result<Option<String>> {
        let quick = Duration::from_millis(500);
        for node in 1..=self.lab.nodes {
            let client = self.lab.local_client(node)?.with_deadline(quick);
            if !client.get_node().await.is_ok_and(|node| node.ready && node.leader != 0) {
                return Ok(Some(format!("node {node} is not ready")));
            }
        }
        let client = self.lab.client(self.pod.node)?.with_deadline(quick);
        let Ok(cluster) = client.get_cluster().await else {
            return Ok(Some("the cluster does not answer".into()));
        };
        if let Some(node) = cluster.nodes.iter().find(|node| node.state != "up") {
            return Ok(Some(format!("node {} is {}", node.node, node.state)));
        }
        self.pod.clear().await?;
        let Ok(volume) = client.get_volume(&self.pod.volume.volume_id).await else {
            return Ok(Some("nobody says how the volume is".into()));
        };
        let in_sync = volume.replicas.iter().filter(|replica| replica.in_sync).count();
        if volume.degraded || in_sync != 2 || volume.replicas.len() != 2 {
            let copies = volume.replicas.len();
            return Ok(Some(format!("{in_sync} of {copies} copies are in sync")));
        }
        let rows = ledger::acknowledged(&self.ledger, LEDGER_CLIENTS)?;
        let works = rows.iter().any(|(_, at, _)| *at > healed);
        Ok((!works).then(|| "the ledger has no row acknowledged".into()))
    }

    /// Compares the ledger with the database; returns the longest time in milliseconds without an
    /// acknowledgement since `since`.
    async fn judge(&self, tally: &mut Tally, since: Moment) -> Result<u64> {
        let database = self.pod.postgres.connect().await?;
        let verdict = ledger::audit(&self.ledger, LEDGER_CLIENTS, &database).await?;
        tally.acknowledged = verdict.acknowledged;
        tally.lost = verdict.lost.len() as u64;
        tally.phantom = verdict.phantom.len() as u64;
        let mut times: Vec<Moment> = ledger::acknowledged(&self.ledger, LEDGER_CLIENTS)?
            .into_iter()
            .map(|(_, at, _)| at)
            .filter(|at| *at >= since)
            .collect();
        times.push(since);
        times.push(clock::now());
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1].since(pair[0]));
        Ok(gaps.max().map_or(0, |gap| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX)))
    }

    /// At rest: indexes, page checksums, and both copies.
    async fn end(&mut self, tally: &mut Tally) -> Result<()> {
        self.writer.signal(Signal::SIGTERM)?;
        ensure!(
            wait_until(Duration::from_secs(5), || !self.writer.is_alive()),
            "the ledger's client does not end"
        );
        self.judge(tally, clock::now()).await?;
        ensure!(tally.lost == 0 && tally.phantom == 0, "rows lost or never sent at the end");
        self.pod.postgres.amcheck().await?;
        self.pod.postgres.stop()?;
        self.pod.postgres.verify_checksums().await.context("page checksums")?;
        let client = self.lab.local_client(self.pod.node)?.with_deadline(Duration::from_secs(120));
        let compared = client.compare_replicas(&self.pod.volume.volume_id).await?;
        if compared.different_blocks != 0 || compared.replicas != 2 {
            bail!(
                "{} copies compared: {} blocks differ",
                compared.replicas,
                compared.different_blocks
            );
        }
        Ok(())
    }
}
