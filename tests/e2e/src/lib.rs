//! What the end-to-end tests share: labs that end with the test, and a writer that knows what a device
//! must hold. The tests need root and the programs in target/release.
#![forbid(unsafe_code)]

mod stamper;

pub use stamper::{Stamped, Stamper};

use anyhow::{Context as _, Result, bail};
use client::Client;
use client::api::{CreateVolumeRequest, Volume};
use lab::layout::Layout;
use lab::{Lab, Plan, daemons, down};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

/// Longest wait for something that the cluster has to do by itself.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of each replicator's log that a test which fails shows.
const LAST_LINES: usize = 60;

/// One lab at a time: they share two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A lab of a test, ended when dropped.
pub struct TestLab {
    lab: Lab,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl core::ops::Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if thread::panicking() {
            tell_last_lines(&self.lab);
        }
        if let Err(error) = self.lab.down() {
            eprintln!("ending the lab: {error:#}");
        }
    }
}

/// What the replicators of a lab said last, for a test that fails: its lab is gone afterwards.
pub fn tell_last_lines(lab: &Lab) {
    for node in 1..=lab.nodes {
        eprintln!("{}", daemons::last_lines(&lab.layout, node, daemons::REPLICATOR, LAST_LINES));
    }
}

/// A directory for one more lab of this process.
#[must_use]
pub fn fresh_dir() -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/var/lib/hf-e2e-{}-{number}", std::process::id()))
}

/// A lab of `nodes` nodes, ready; waits for its turn first.
///
/// # Errors
/// If it does not come up.
pub async fn lab(nodes: u64) -> Result<TestLab> {
    lab_with_machines(nodes, []).await
}

/// As [`lab`]; some of its nodes have a kernel of their own.
///
/// # Errors
/// If it does not come up.
pub async fn lab_with_machines(
    nodes: u64,
    machines: impl IntoIterator<Item = u64>,
) -> Result<TestLab> {
    let machines = machines.into_iter().collect();
    in_turn(Plan { machines, ..plan(nodes) }).await
}

/// As [`lab`]; copies on nodes that were lost for so long are replaced.
///
/// # Errors
/// If it does not come up.
pub async fn lab_that_replaces(nodes: u64, after_seconds: u64) -> Result<TestLab> {
    in_turn(Plan { replace_after_seconds: Some(after_seconds), ..plan(nodes) }).await
}

/// A lab beside others of the same test.
///
/// # Errors
/// If it does not come up.
pub async fn lab_beside(nodes: u64) -> Result<TestLab> {
    up(plan(nodes)).await
}

fn plan(nodes: u64) -> Plan {
    Plan { pool_bytes: 4 << 30, ..Plan::new(fresh_dir(), nodes) }
}

async fn in_turn(plan: Plan) -> Result<TestLab> {
    let turn = ONE_AT_A_TIME.lock().await;
    let mut lab = up(plan).await?;
    lab._turn = Some(turn);
    Ok(lab)
}

async fn up(plan: Plan) -> Result<TestLab> {
    match Lab::up(&plan).await {
        Ok(lab) => Ok(TestLab { lab, _turn: None }),
        Err(error) => {
            if let Ok(lab) = Lab::open(&plan.dir) {
                lab.down().context("cleaning up after a lab that did not come up")?;
            }
            Err(error)
        }
    }
}

/// Says that a test cannot run here, in the line that scripts/test counts. The test runner holds back
/// what the print macros write, so this does not use them.
pub fn skipped(test: &str, reason: &str) {
    // A runner whose output is gone has nobody to tell.
    let _ = writeln!(std::io::stdout(), "\nSKIPPED: {test}: {reason}");
}

/// Waits for the turn of a test that makes labs in other ways.
pub async fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// Ends what is left of a lab in `dir`, whoever made it.
///
/// # Errors
/// If something stays.
pub fn end(layout: &Layout) -> Result<()> {
    down::lab(layout)
}

/// A volume with two copies, the first on node 1.
///
/// # Errors
/// As the cluster answers.
pub async fn volume(lab: &Lab, name: &str, size: u64) -> Result<Volume> {
    let request = CreateVolumeRequest {
        name: name.into(),
        size_bytes: size,
        repl: 2,
        preferred_nodes: vec![1, 2],
        ..CreateVolumeRequest::default()
    };
    Ok(lab.client(1)?.create_volume(request).await?)
}

/// Waits until `done` says so.
///
/// # Errors
/// If it does not within [`PATIENCE`], or fails.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done().await? {
        if Instant::now() >= end {
            bail!("{what}: not within {PATIENCE:?}");
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until every copy of a volume is in sync again.
///
/// # Errors
/// If it is not within [`PATIENCE`].
pub async fn in_sync(lab: &Lab, ask: u64, volume_id: &str) -> Result<()> {
    eventually("all copies in sync", || async {
        Ok(lab.client(ask)?.get_volume(volume_id).await.is_ok_and(|volume| {
            !volume.degraded && volume.replicas.iter().all(|replica| replica.in_sync)
        }))
    })
    .await
}

/// Waits until `copies` copies of a volume that `engine`'s node has attached are in sync and were compared; returns the
/// blocks that differ. A copy whose disk stands still for some seconds leaves, and comes back.
///
/// # Errors
/// If they are not within [`PATIENCE`].
pub async fn compared(
    lab: &Lab,
    ask: u64,
    engine: &Client,
    volume_id: &str,
    copies: u32,
) -> Result<u64> {
    let mut different = 0;
    eventually("all copies compared", async || {
        in_sync(lab, ask, volume_id).await?;
        let found = engine.compare_replicas(volume_id).await?;
        different = found.different_blocks;
        Ok(found.replicas == copies)
    })
    .await?;
    Ok(different)
}

/// Runs `what` on a thread of its own in a network namespace.
///
/// # Errors
/// If the namespace cannot be entered, or as `what`.
pub fn in_namespace<T: Send + 'static>(
    namespace: &str,
    what: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let file = File::open(Layout::namespace_path(namespace))?;
    let thread = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        what()
    });
    thread.join().map_err(|_| anyhow::anyhow!("the thread in the namespace panicked"))?
}
