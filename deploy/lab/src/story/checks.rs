//! The checks of the story. Each measures something into the report; [`failures`] is the one place
//! that says what is good enough.

use super::progress::Progress;
use super::report::{Moments, Report};
use super::{Cast, LEDGER_CLIENTS, Story};
use crate::clock::{self, seconds_between};
use crate::ledger;
use crate::postgres::Postgres;
use crate::process::wait_until;
use crate::witness::Testimony;
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::time::Duration;
use tokio::time::sleep;
use types::Instant;

/// A failover may take this long from the cut to the first commit.
pub const LIMIT_SECONDS: f64 = 10.0;
/// Rows of pgbench at scale 10.
const ACCOUNTS: u64 = 1_000_000;
/// By then I/O on the cut node must have failed: silence is no answer (R4).
const ERROR_LIMIT: Duration = Duration::from_secs(15);

/// Sentences for everything in `report` that is not as promised.
#[must_use]
pub fn failures(report: &Report, moments: &Moments) -> Vec<String> {
    let mut failed = Vec::new();
    let mut check = |passed: bool, sentence: String| {
        if !passed {
            failed.push(sentence);
        }
    };
    let took = report.cut_to_first_commit_seconds;
    check(
        took > 0.0 && took <= LIMIT_SECONDS,
        format!(
            "The first commit came {took:.2} s after the cut; at most {LIMIT_SECONDS} s are allowed."
        ),
    );
    let phases = moments.phases();
    check(
        phases[0].1 > 0.0 && phases.windows(2).all(|pair| pair[0].1 <= pair[1].1),
        format!("The phases of the failover are out of order: {phases:?}."),
    );
    check(report.acknowledged_rows > 0, "The ledger had no row acknowledged at all.".into());
    check(
        report.lost_rows == 0,
        format!("{} acknowledged ledger rows are lost.", report.lost_rows),
    );
    check(
        report.phantom_rows == 0,
        format!("{} ledger rows are there that were never sent.", report.phantom_rows),
    );
    check(
        report.accounts_rows == ACCOUNTS,
        format!("pgbench_accounts has {} rows instead of {ACCOUNTS}.", report.accounts_rows),
    );
    check(
        report.old_epoch_acks == 0,
        format!(
            "The cut node acknowledged {} operations under the old epoch.",
            report.old_epoch_acks
        ),
    );
    let error_limit = ERROR_LIMIT.as_secs_f64();
    for (what, at) in [
        ("commit", report.first_commit_error_on_cut_node),
        ("read", report.first_read_error_on_cut_node),
    ] {
        check(
            at > 0.0 && at <= error_limit,
            format!("No {what} on the cut node got an error within {error_limit} s: silence."),
        );
    }
    check(report.replicas_identical, "The two replicas differ.".into());
    check(
        report.compared_bytes >= report.volume_bytes,
        format!(
            "The comparison read {} bytes of a volume of {}.",
            report.compared_bytes, report.volume_bytes
        ),
    );
    check(
        report.resynced_bytes < report.volume_bytes / 2,
        format!(
            "The resync copied {} bytes: not well under the volume's size.",
            report.resynced_bytes
        ),
    );
    failed
}

impl Story {
    /// Accounts, ledger and index structure, while the load goes on.
    pub(super) async fn check_database(
        &self,
        postgres: &Postgres,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<()> {
        self.count(postgres, report).await?;
        progress.check(
            report.accounts_rows == ACCOUNTS,
            &format!("{} rows in pgbench_accounts", report.accounts_rows),
        );
        progress.check(
            report.lost_rows + report.phantom_rows == 0,
            &format!(
                "{} ledger rows acknowledged, {} lost, {} phantom",
                report.acknowledged_rows, report.lost_rows, report.phantom_rows
            ),
        );
        postgres.amcheck().await?;
        progress.check(true, "pg_amcheck is clean");
        Ok(())
    }

    async fn count(&self, postgres: &Postgres, report: &mut Report) -> Result<()> {
        let client = postgres.connect().await?;
        let accounts: i64 =
            client.query_one("select count(*) from pgbench_accounts", &[]).await?.get(0);
        report.accounts_rows = u64::try_from(accounts)?;
        let verdict = ledger::audit(&self.ledger, LEDGER_CLIENTS, &client).await?;
        report.acknowledged_rows = verdict.acknowledged;
        report.lost_rows = verdict.lost.len() as u64;
        report.phantom_rows = verdict.phantom.len() as u64;
        Ok(())
    }

    /// Waits until the witnesses on the cut node have had their errors, or had time for them.
    pub(super) async fn check_cut_node(
        &self,
        moments: &Moments,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<()> {
        let end = moments.cut.after(ERROR_LIMIT);
        loop {
            self.hear_witnesses(moments, report)?;
            let both = report.first_commit_error_on_cut_node > 0.0
                && report.first_read_error_on_cut_node > 0.0;
            if both || clock::now() >= end {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        progress.check(
            report.old_epoch_acks == 0,
            &format!(
                "the cut node's last commit was {:.2} s after the cut, its last read {:.2} s",
                report.last_commit_on_cut_node, report.last_read_on_cut_node
            ),
        );
        let (commit, read) =
            (report.first_commit_error_on_cut_node, report.first_read_error_on_cut_node);
        progress.check(
            commit > 0.0 && read > 0.0,
            &format!("its commits failed after {commit:.2} s, its reads after {read:.2} s"),
        );
        Ok(())
    }

    fn hear_witnesses(&self, moments: &Moments, report: &mut Report) -> Result<()> {
        let commits = Testimony::read(&self.witnesses.join("commit"))?;
        let reads = Testimony::read(&self.witnesses.join("read"))?;
        for (name, testimony) in [("commit", &commits), ("read", &reads)] {
            let before = testimony.successes.iter().any(|at| *at < moments.cut);
            ensure!(before, "the {name} witness never succeeded before the cut: it proves nothing");
        }
        // A commit needs both replicas, so that none can succeed from the fence on; a read may be
        // answered under its lease until the seal, which waits for the lease (R3, R8).
        report.old_epoch_acks =
            commits.successes_after(moments.fenced) + reads.successes_after(moments.sealed);
        let after = |at: Option<Instant>| at.map_or(0.0, |at| seconds_between(moments.cut, at));
        report.last_commit_on_cut_node = after(commits.successes.last().copied());
        report.last_read_on_cut_node = after(reads.successes.last().copied());
        report.first_commit_error_on_cut_node =
            after(commits.first_error_after(moments.cut).map(|(at, _)| *at));
        report.first_read_error_on_cut_node =
            after(reads.first_error_after(moments.cut).map(|(at, _)| *at));
        Ok(())
    }

    /// All of it once more when nothing moves: ledger, indexes, every page checksum, both replicas.
    pub(super) async fn final_checks(
        &self,
        mut postgres: Postgres,
        moments: &Moments,
        cast: &mut Cast,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<()> {
        if let Some(ledger) = cast.ledger.take() {
            ledger.signal(Signal::SIGTERM)?;
            let gone = wait_until(Duration::from_secs(5), || !ledger.is_alive());
            ensure!(gone, "the ledger's client does not end");
        }
        report.cut_to_first_commit_seconds = seconds_between(moments.cut, moments.first_commit);
        report.phases =
            moments.phases().into_iter().map(|(name, at)| (name.to_owned(), at)).collect();
        self.check_database(&postgres, report, progress).await?;
        self.hear_witnesses(moments, report)?;
        progress.check(
            report.old_epoch_acks == 0,
            "the stale pod got nowhere after its node was healed either",
        );
        postgres.stop()?;
        postgres.verify_checksums().await.context("page checksums")?;
        progress.check(true, "pg_checksums finds every page whole");
        let client = self.lab.local_client(self.second)?.with_deadline(Duration::from_secs(120));
        let compared = client.compare_replicas(&self.volume.volume_id).await?;
        report.compared_bytes = compared.compared_bytes;
        report.replicas_identical = compared.different_blocks == 0 && compared.replicas == 2;
        progress.check(
            report.replicas_identical,
            &format!(
                "{} replicas compared over {} MiB: {} blocks differ",
                compared.replicas,
                compared.compared_bytes >> 20,
                compared.different_blocks
            ),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Report, Moments) {
        let at = |ms: u64| Instant(1_000_000_000_000 + ms * 1_000_000);
        let moments = Moments {
            cut: at(0),
            detected: at(3000),
            fenced: at(3010),
            sealed: at(3100),
            staged: at(3300),
            mounted: at(3310),
            recovered: at(4000),
            first_commit: at(4010),
        };
        let report = Report {
            cut_to_first_commit_seconds: 4.01,
            acknowledged_rows: 10,
            accounts_rows: ACCOUNTS,
            volume_bytes: 1 << 30,
            compared_bytes: 1 << 30,
            replicas_identical: true,
            resynced_bytes: 1 << 20,
            first_commit_error_on_cut_node: 10.0,
            first_read_error_on_cut_node: 10.0,
            ..Report::default()
        };
        (report, moments)
    }

    #[test]
    fn a_good_run_passes_and_each_check_can_fail() {
        let (report, moments) = good();
        assert_eq!(failures(&report, &moments), Vec::<String>::new());
        type Spoil = fn(&mut Report, &mut Moments);
        let spoilt: [(&str, Spoil); 12] = [
            ("first commit", |report, _| report.cut_to_first_commit_seconds = 10.1),
            ("out of order", |_, moments| moments.sealed = moments.cut),
            ("no row", |report, _| report.acknowledged_rows = 0),
            ("lost", |report, _| report.lost_rows = 1),
            ("never sent", |report, _| report.phantom_rows = 1),
            ("pgbench_accounts", |report, _| report.accounts_rows -= 1),
            ("old epoch", |report, _| report.old_epoch_acks = 1),
            ("No commit", |report, _| report.first_commit_error_on_cut_node = 0.0),
            ("No read", |report, _| report.first_read_error_on_cut_node = 15.5),
            ("differ", |report, _| report.replicas_identical = false),
            ("comparison read", |report, _| report.compared_bytes = 0),
            ("resync copied", |report, _| report.resynced_bytes = 1 << 30),
        ];
        for (words, spoil) in spoilt {
            let (mut report, mut moments) = good();
            spoil(&mut report, &mut moments);
            let failed = failures(&report, &moments);
            assert_eq!(failed.len(), 1, "{words}: {failed:?}");
            assert!(failed[0].contains(words), "{words}: {failed:?}");
        }
    }
}
