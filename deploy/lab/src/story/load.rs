//! pgbench as the load, and its per-transaction log as a rate over time.

use crate::clock;
use crate::layout::{Layout, POSTGRES_PORT};
use crate::postgres::Postgres;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Child;
use tokio::time::timeout;
use types::Instant;

/// pgbench gives up on a silent server after this (TCP_USER_TIMEOUT and keepalive).
const SILENCE: Duration = Duration::from_secs(2);

/// One pgbench, running.
pub struct Load {
    child: Child,
}

impl Load {
    /// Starts pgbench in the hub, over TCP, with `clients` connections; its log goes to
    /// `dir/NAME.*`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        postgres: &Postgres,
        layout: &Layout,
        node: u64,
        clients: u32,
        dir: &Path,
        name: &str,
    ) -> Result<Self> {
        let target = format!(
            "host={} port={POSTGRES_PORT} user=postgres dbname=postgres application_name=pgbench \
             connect_timeout=2 tcp_user_timeout={} keepalives_idle=1 keepalives_interval=1 keepalives_count=2",
            layout.address(node),
            SILENCE.as_millis(),
        );
        let output = File::create(dir.join(format!("{name}.out")))?;
        let mut pgbench = postgres.tool(&layout.hub(), "pgbench");
        pgbench
            .args(["--no-vacuum", "--jobs=2", "--time=3600", "--log"])
            .arg(format!("--client={clients}"))
            .arg(format!("--log-prefix={}", dir.join(name).display()))
            .arg(target)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true);
        Ok(Self { child: pgbench.spawn().context("cannot start pgbench")? })
    }

    /// Waits until pgbench has ended and written its log, because its server went silent or closed
    /// the connections.
    ///
    /// # Errors
    /// If it does not within `patience`; then it is killed and the end of its log is lost.
    pub async fn ended(mut self, patience: Duration) -> Result<()> {
        timeout(patience, self.child.wait())
            .await
            .with_context(|| format!("pgbench did not end within {patience:?}"))??;
        Ok(())
    }

    /// Has the server close pgbench's connections, so that it ends and writes its log.
    ///
    /// # Errors
    /// If the server cannot be asked, or pgbench does not end.
    pub async fn stop(self, postgres: &Postgres) -> Result<()> {
        let client = postgres.connect().await?;
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgbench'";
        client.query(end, &[]).await?;
        self.ended(Duration::from_secs(10)).await
    }
}

/// Completion times of all transactions in pgbench's logs `dir/NAME.PID[.THREAD]`.
///
/// # Errors
/// If a log cannot be read.
pub fn transactions(dir: &Path, names: &[&str]) -> Result<Vec<Instant>> {
    let offset = clock::boottime_minus_realtime();
    let mut times = Vec::new();
    for path in logs(dir, names)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        times.extend(text.lines().filter_map(|line| completion(line, offset)));
    }
    times.sort_unstable();
    Ok(times)
}

fn logs(dir: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let ours = |prefix: &&str| {
            let rest = name.strip_prefix(*prefix).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        if names.iter().any(ours) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// `client transaction latency script seconds microseconds ...`; failed ones have words as latency.
fn completion(line: &str, offset: i128) -> Option<Instant> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    words.get(2)?.parse::<u64>().ok()?;
    let seconds: i128 = words.get(4)?.parse().ok()?;
    let micros: i128 = words.get(5)?.parse().ok()?;
    let nanos = seconds * 1_000_000_000 + micros * 1_000 + offset;
    Some(Instant(u64::try_from(nanos).ok()?))
}

/// Transactions per second in bins of `width` seconds, from the first to the last transaction, as
/// (middle of the bin in seconds relative to `zero`, rate). Bins without a transaction are there.
#[must_use]
pub fn rate(times: &[Instant], zero: Instant, width: f64) -> Vec<(f64, f64)> {
    let mut bins: BTreeMap<i64, u64> = BTreeMap::new();
    for at in times {
        let bin = (clock::seconds_between(zero, *at) / width).floor();
        *bins.entry(bin as i64).or_default() += 1;
    }
    let (Some(first), Some(last)) = (bins.keys().next().copied(), bins.keys().next_back().copied())
    else {
        return Vec::new();
    };
    let bin = |bin: i64| {
        let count = bins.get(&bin).copied().unwrap_or(0);
        ((bin as f64 + 0.5) * width, count as f64 / width)
    };
    (first..=last).map(bin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_become_a_rate_with_its_gaps() {
        let line = |at: &str| format!("0 1 2000 0 {at}");
        let lines =
            [line("100 0"), line("100 200000"), line("103 500000"), "0 9 failed 0 103 1".into()];
        let times: Vec<Instant> =
            lines.iter().filter_map(|line| completion(line, -90_000_000_000)).collect();
        assert_eq!(times.len(), 3);
        let rate = rate(&times, Instant(11_000_000_000), 1.0);
        assert_eq!(rate, [(-0.5, 2.0), (0.5, 0.0), (1.5, 0.0), (2.5, 1.0)]);
    }
}
