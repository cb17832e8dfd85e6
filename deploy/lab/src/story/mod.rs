//! The main job, on real parts: PostgreSQL on a replicated volume, its node cut off, the cluster moves
//! the volume by itself, nothing acknowledged is lost; then the node comes back and is made equal again.
//!
//! The story plays kubelet and the person; everything else is the daemons' own doing. Nothing in it
//! waits for a time that a protocol should decide.

mod checks;
mod events;
mod failover;
pub mod load;
mod progress;
mod report;
mod svg;

pub use checks::{LIMIT_SECONDS, failures};
pub use progress::{Palette, Progress};
pub use report::{Moments, Report};

use crate::cluster::{Lab, Plan};
use crate::daemons::{HOLDFAST, spawn};
use crate::kubelet::{Claim, Kubelet};
use crate::layout::POSTGRES_PORT;
use crate::ledger::{self, Files};
use crate::postgres::Postgres;
use crate::process::ProcessId;
use crate::{clock, witness};
use anyhow::{Context as _, Result, ensure};
use events::Watcher;
use load::Load;
use proto::csi::Volume;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::sleep;
use types::Instant;

const FS_TYPE: &str = "ext4";
const VOLUME_BYTES: u64 = 1 << 30;
const LEDGER_CLIENTS: u32 = 2;
const LOAD_CLIENTS: u32 = 4;
/// Load before the cut, and after the failover before the heal.
const LOAD_TIME: Duration = Duration::from_secs(8);
/// How long a stale pod goes on after its node is back; kubelet needs 13 to 22 s to kill it.
const STALE_POD: Duration = Duration::from_secs(3);
/// Load after the heal, when both replicas are in sync again.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Longest wait for anything that the cluster has to do by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the story is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the lab.
    pub plan: Plan,
    /// Where report.json and timeline.svg go.
    pub out: PathBuf,
    /// Print nothing.
    pub quiet: bool,
}

/// Everything that is alive during the story.
struct Story {
    lab: Lab,
    kubelet: Kubelet,
    volume: Volume,
    /// Node of the first pod, to be cut off.
    first: u64,
    /// Node of the second pod.
    second: u64,
    ledger: Files,
    witnesses: PathBuf,
    load_dir: PathBuf,
    out: PathBuf,
}

/// Programs of the story that end with it.
#[derive(Default)]
struct Cast {
    ledger: Option<ProcessId>,
    witnesses: Vec<ProcessId>,
}

/// Runs the whole story on a new lab, which stays up. The report says which checks failed.
///
/// # Errors
/// If the story cannot go on; a failed check alone is not an error.
pub async fn run(options: &Options) -> Result<Report> {
    let mut progress = Progress::new(8, options.quiet);
    fs::create_dir_all(&options.out)?;

    progress.step(&format!("a cluster of {} nodes on this machine", options.plan.nodes));
    ensure!(options.plan.nodes >= 3, "the story needs 3 nodes: one of fewer cannot be lost");
    let lab = Lab::up(&options.plan).await?;
    let leader = lab.local_client(1)?.get_node().await?.leader;
    progress.detail(&format!("Raft leader is n{leader}, {} pools ready", lab.nodes));

    progress.step("a volume through CSI: 1 GiB, ext4, repl 2");
    let story = make_volume(lab, options, &progress).await?;
    let device = story.bring_to_first_node(&progress).await?;

    progress.step("PostgreSQL on it, pgbench and a ledger as load");
    let mut cast = Cast::default();
    let mut stale = story.start_database(&progress).await?;
    let load = story.start_load(&stale, &device, &mut cast).await?;
    sleep(LOAD_TIME).await;
    let rows = ledger::acknowledged(&story.ledger, LEDGER_CLIENTS)?.len();
    progress.detail(&format!("{rows} ledger rows acknowledged so far"));

    progress.step(&format!("the cable of n{} is cut", story.first));
    let mut watcher = Watcher::start(story.lab.local_client(story.second)?);
    let cut = clock::now();
    story.lab.cut(story.first)?;
    progress.detail("all its traffic is dropped; nothing on the node is told");

    progress.step("the cluster notices, fences, and the volume moves");
    let moved = story.fail_over(cut, &mut watcher, &progress).await?;
    load.ended(Duration::from_secs(20)).await?;
    let second_load = Load::start(
        &moved.postgres,
        &story.lab.layout,
        story.second,
        LOAD_CLIENTS,
        &story.load_dir,
        "second",
    )?;
    sleep(LOAD_TIME).await;

    progress.step("what was promised is checked");
    let mut report = Report { volume_bytes: VOLUME_BYTES, ..Report::default() };
    report.stage_calls = moved.stage_calls;
    story.check_database(&moved.postgres, &mut report, &progress).await?;
    story.check_cut_node(&moved.moments, &mut report, &progress).await?;

    progress.step(&format!("n{} comes back", story.first));
    let healed = story.heal(&mut stale, &mut cast, &mut report, &progress).await?;
    sleep(AFTERWARDS).await;

    progress.step("everything is compared once more, at rest");
    second_load.stop(&moved.postgres).await?;
    story.final_checks(moved.postgres, &moved.moments, &mut cast, &mut report, &progress).await?;
    story.tell(&moved.moments, healed, &mut report, &progress)?;
    Ok(report)
}

async fn make_volume(lab: Lab, options: &Options, progress: &Progress) -> Result<Story> {
    let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
    let claim = Claim {
        name: "pvc-postgres".into(),
        size: VOLUME_BYTES,
        fs_type: FS_TYPE.into(),
        parameters: HashMap::from([("repl".into(), "2".into())]),
        node: 1,
    };
    let volume = kubelet.create_volume(&claim).await?;
    let known = lab.client(1)?.get_volume(&volume.volume_id).await?;
    let mut holders: Vec<u64> = known.replicas.iter().map(|replica| replica.node).collect();
    ensure!(holders.len() == 2, "repl 2 made {} replicas", holders.len());
    // The pod runs where a replica is: node 1 unless the placement knew better.
    holders.sort_unstable();
    progress.detail(&format!(
        "volume {}, replicas on n{} and n{}",
        volume.volume_id, holders[0], holders[1]
    ));
    let dir = lab.layout.dir.clone();
    let story = Story {
        kubelet,
        volume,
        first: holders[0],
        second: holders[1],
        ledger: Files::new(&dir.join("ledger")),
        witnesses: dir.join("witness"),
        load_dir: dir.join("load"),
        out: options.out.clone(),
        lab,
    };
    for made in [dir.join("ledger"), story.witnesses.clone(), story.load_dir.clone()] {
        fs::create_dir_all(&made)?;
    }
    // pgbench writes its log as user postgres.
    crate::postgres::give_to_postgres(&story.load_dir)?;
    Ok(story)
}

impl Story {
    async fn bring_to_first_node(&self, progress: &Progress) -> Result<PathBuf> {
        self.kubelet.stage_once(self.first, &self.volume, FS_TYPE).await?;
        self.kubelet.publish(self.first, &self.volume, FS_TYPE).await?;
        let client = self.lab.local_client(self.first)?;
        let attachment = client.get_attachment(&self.volume.volume_id).await?;
        progress.detail(&format!(
            "staged and published on n{}: {} by {}, epoch {}",
            self.first, attachment.device, attachment.frontend, attachment.epoch
        ));
        Ok(PathBuf::from(attachment.device))
    }

    fn postgres(&self, node: u64) -> Result<Postgres> {
        let path = self.lab.layout.target_path(node, &self.volume.volume_id);
        Postgres::new(&self.lab.layout, node, &path)
    }

    async fn start_database(&self, progress: &Progress) -> Result<Postgres> {
        let mut postgres = self.postgres(self.first)?;
        postgres.init().await?;
        postgres.start()?;
        postgres.wait_ready(PATIENCE).await?;
        progress.detail("database made, with checksums; fsync and friends are on");
        let mut fill = postgres.local_tool("pgbench");
        fill.args(["--initialize", "--scale=10", "--quiet"]);
        crate::exec::run_async(fill).await?;
        let client = postgres.connect().await?;
        client.batch_execute(&format!("{}; {};", ledger::TABLE, witness::TABLE)).await?;
        progress.detail("pgbench -i -s 10: 1,000,000 accounts");
        Ok(postgres)
    }

    async fn start_load(
        &self,
        postgres: &Postgres,
        device: &std::path::Path,
        cast: &mut Cast,
    ) -> Result<Load> {
        let layout = &self.lab.layout;
        self.ledger.set_target((layout.address(self.first), POSTGRES_PORT).into())?;
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let ledger_dir = layout.dir.join("ledger");
        let ledger = [
            words(&["lab", "ledger", "--clients", &LEDGER_CLIENTS.to_string(), "--dir"]),
            vec![ledger_dir.into()],
        ];
        cast.ledger = Some(self.act(&layout.hub(), &ledger.concat(), "ledger")?);
        let namespace = layout.namespace(self.first);
        let commit = [
            words(&["lab", "witness", "commit", "--socket-dir"]),
            vec![postgres.socket_dir().into(), "--journal".into()],
            vec![self.witnesses.join("commit").into()],
        ];
        let read = [
            words(&["lab", "witness", "read", "--device"]),
            vec![device.into(), "--journal".into(), self.witnesses.join("read").into()],
        ];
        for (name, arguments) in [("commit", commit.concat()), ("read", read.concat())] {
            cast.witnesses.push(self.act(&namespace, &arguments, name)?);
        }
        Load::start(postgres, layout, self.first, LOAD_CLIENTS, &self.load_dir, "first")
    }

    /// Starts this program once more in another part.
    fn act(&self, namespace: &str, arguments: &[OsString], name: &str) -> Result<ProcessId> {
        let program = self.lab.programs.join(HOLDFAST);
        spawn(namespace, &program, arguments, &self.witnesses.join(format!("{name}.log")))
    }

    /// Writes the report and the picture.
    fn tell(
        &self,
        moments: &Moments,
        healed: failover::Healed,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<()> {
        let times = load::transactions(&self.load_dir, &["first", "second"])?;
        let mean = |from: Instant, to: Instant| {
            let count = times.iter().filter(|at| **at >= from && **at < to).count();
            count as f64 / clock::seconds_between(from, to).max(0.001)
        };
        let before = Instant(moments.cut.0.saturating_sub(5_000_000_000));
        report.tps_before_cut = mean(before, moments.cut);
        report.tps_degraded = mean(moments.first_commit.after(Duration::from_secs(1)), healed.at);
        report.failed_checks = failures(report, moments);
        let picture = svg::Picture {
            rate: load::rate(&times, moments.cut, 0.25),
            phases: moments.phases().to_vec(),
            healed: clock::seconds_between(moments.cut, healed.at),
            in_sync: clock::seconds_between(moments.cut, healed.in_sync),
            acknowledged: report.acknowledged_rows,
            lost: report.lost_rows,
        };
        let write = |name: &str, text: String| {
            let path = self.out.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("timeline.svg", picture.draw())?;
        write("report.json", serde_json::to_string_pretty(report)? + "\n")?;
        progress.line("");
        progress.line(&report.table(&moments.phases(), progress.palette()));
        for name in ["report.json", "timeline.svg"] {
            progress.line(&format!("  {}", self.out.join(name).display()));
        }
        Ok(())
    }
}
