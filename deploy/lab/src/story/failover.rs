//! The two movements of the story: away from the cut node, and back into sync.

use super::events::{Watcher, time};
use super::progress::Progress;
use super::report::{Moments, Report};
use super::{Cast, FS_TYPE, LEDGER_CLIENTS, PATIENCE, STALE_POD, Story};
use crate::clock::{self, seconds_between};
use crate::journal;
use crate::layout::POSTGRES_PORT;
use crate::ledger;
use crate::postgres::Postgres;
use anyhow::{Context as _, Result, bail};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{self, sleep};
use types::Instant;

/// Between two looks at a file or a status.
const LOOK: Duration = Duration::from_millis(20);
/// How long a dead stage may take to go.
const TAKE_DOWN_PATIENCE: Duration = Duration::from_secs(30);

/// After the failover.
pub(super) struct Moved {
    pub(super) postgres: Postgres,
    pub(super) moments: Moments,
    pub(super) stage_calls: u32,
}

/// After the heal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Healed {
    pub(super) at: Instant,
    pub(super) in_sync: Instant,
}

impl Story {
    /// From the cut to the first commit on the second node.
    pub(super) async fn fail_over(
        &self,
        cut: Instant,
        watcher: &mut Watcher,
        progress: &Progress,
    ) -> Result<Moved> {
        let (first, second) = (self.first, self.second);
        let volume = &self.volume.volume_id;
        let say = |what: &str, at: Instant| {
            progress.detail(&format!("{what} {:.2} s after the cut", seconds_between(cut, at)));
        };
        let lost = watcher
            .wait_for("node_lost", cut, PATIENCE, |event| {
                event.kind == "node_lost" && event.node == first
            })
            .await?;
        // From here on the lab is kubelet: the pod was moved as soon as the node was called lost.
        let target = (self.lab.layout.address(second), POSTGRES_PORT).into();
        self.ledger.set_target(target)?;
        say(&format!("n{first} is lost"), time(&lost));
        let stage_calls = self.kubelet.stage(second, &self.volume, FS_TYPE, PATIENCE).await?;
        let staged = clock::now();
        self.kubelet.publish(second, &self.volume, FS_TYPE).await?;
        let mounted = clock::now();
        let mut postgres = self.postgres(second)?;
        postgres.start()?;
        let of_volume = |kind: &'static str| {
            move |event: &client::api::Event| event.kind == kind && event.volume_id == *volume
        };
        let fenced = watcher.wait_for("fenced", cut, PATIENCE, of_volume("fenced")).await?;
        let sealed = watcher.wait_for("sealed", cut, PATIENCE, of_volume("sealed")).await?;
        say("fenced", time(&fenced));
        say("sealed", time(&sealed));
        say("staged", staged);
        let recovered = self.wait_for_connection(target).await?;
        let first_commit = self.wait_for_commit(target).await?;
        say("PostgreSQL has recovered", recovered);
        say("the ledger commits again", first_commit);
        let moments = Moments {
            cut,
            detected: time(&lost),
            fenced: time(&fenced),
            sealed: time(&sealed),
            staged,
            mounted,
            recovered,
            first_commit,
        };
        Ok(Moved { postgres, moments, stage_calls })
    }

    async fn wait_for_connection(&self, target: SocketAddr) -> Result<Instant> {
        let path = self.ledger.connections();
        let here = |entry: &journal::Entry| entry.text.ends_with(&format!(" {target}"));
        let find = || Ok(journal::read(&path)?.into_iter().find(here).map(|entry| entry.at));
        poll("a connection of the ledger to the second node", PATIENCE, find).await
    }

    async fn wait_for_commit(&self, target: SocketAddr) -> Result<Instant> {
        let find = || {
            let rows = ledger::acknowledged(&self.ledger, LEDGER_CLIENTS)?;
            let there = rows.iter().filter(|(_, _, address)| *address == target);
            Ok(there.map(|(_, at, _)| *at).min())
        };
        poll("a commit of the ledger on the second node", PATIENCE, find).await
    }

    /// Brings the first node back and waits until both replicas are in sync.
    pub(super) async fn heal(
        &self,
        stale: &mut Postgres,
        cast: &mut Cast,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Healed> {
        let at = clock::now();
        self.lab.heal(self.first)?;
        // The stale pod goes on for a while, as it does in Kubernetes; it must not get anywhere.
        sleep(STALE_POD).await;
        crate::process::kill_all(&cast.witnesses, Duration::from_secs(15))
            .context("a witness is stuck in the dead device")?;
        cast.witnesses.clear();
        stale.kill().context("the stale PostgreSQL is stuck on the dead device")?;
        let took = self.kubelet.take_down(self.first, &self.volume, TAKE_DOWN_PATIENCE).await?;
        report.dead_stage_unmounted_seconds = took.as_secs_f64();
        progress.detail(&format!("its dead stage is unmounted, in {:.2} s", took.as_secs_f64()));
        let in_sync = self.wait_for_sync().await?;
        report.heal_to_in_sync_seconds = seconds_between(at, in_sync);
        let client = self.lab.local_client(self.second)?;
        let attachment = client.get_attachment(&self.volume.volume_id).await?;
        let back = attachment.replicas.iter().find(|replica| replica.node == self.first);
        let back = back.context("the attachment does not name the healed replica")?;
        report.resynced_bytes = back.resync_copied_bytes;
        report.resync_compared_bytes = back.resync_compared_bytes;
        progress.detail(&format!(
            "two replicas in sync {:.1} s after the heal: {:.1} MiB compared, {:.1} MiB copied",
            report.heal_to_in_sync_seconds,
            mebibytes(back.resync_compared_bytes),
            mebibytes(back.resync_copied_bytes),
        ));
        Ok(Healed { at, in_sync })
    }

    async fn wait_for_sync(&self) -> Result<Instant> {
        let client = self.lab.client(self.second)?;
        let end = time::Instant::now() + PATIENCE;
        loop {
            let volume = client.get_volume(&self.volume.volume_id).await?;
            if !volume.degraded && volume.replicas.iter().filter(|r| r.in_sync).count() == 2 {
                return Ok(clock::now());
            }
            if time::Instant::now() >= end {
                bail!("the replica on n{} is not in sync {PATIENCE:?} after the heal", self.first);
            }
            sleep(LOOK).await;
        }
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Looks until `find` finds something.
async fn poll<T>(
    what: &str,
    patience: Duration,
    mut find: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = time::Instant::now() + patience;
    loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        if time::Instant::now() >= end {
            bail!("there was no {what} within {patience:?}");
        }
        sleep(LOOK).await;
    }
}
