//! A client that commits numbered rows one after the other and writes down when each was
//! acknowledged: what a failover is measured and judged by.

use crate::bed::{Bed, Namespace};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;

/// Sends a row, says `sent`, commits, says `ack` with the time; never the same number twice.
const LOOP: &str = r#"
n=0
while :; do
  n=$((n + 1))
  echo "sent $n"
  if timeout 2 psql "host=pg-0.pg user=postgres connect_timeout=1" -qtAX -c "insert into $0 values ($n)" 2>/dev/null
  then echo "ack $n $(date +%s.%N)"
  else sleep 0.1
  fi
done
"#;

/// One pod, and a table of the same name in the database `pg-0` of one namespace.
#[derive(Debug)]
pub struct Ledger<'a> {
    bed: &'a Bed,
    namespace: &'a str,
    name: String,
}

/// What it wrote down.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Rows that were sent, acknowledged or not.
    pub sent: BTreeSet<u64>,
    /// Acknowledged rows with the time in seconds since 1970, in order.
    pub acknowledged: Vec<(u64, f64)>,
}

impl<'a> Ledger<'a> {
    /// Starts the client on `node`; the database `pg-0` must be ready.
    ///
    /// # Errors
    /// kubectl's.
    pub fn start(bed: &'a Bed, namespace: &'a Namespace, node: &str) -> Result<Self> {
        Self::named(bed, namespace, node, "ledger")
    }

    /// As [`Self::start`], under another name than `ledger`: small letters and digits.
    ///
    /// # Errors
    /// kubectl's.
    pub fn named(bed: &'a Bed, namespace: &'a Namespace, node: &str, name: &str) -> Result<Self> {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "ledger", "image": bed.postgres, "command": ["bash", "-c", LOOP, name],
                                "imagePullPolicy": "IfNotPresent"}],
            },
        });
        let psql =
            ["exec", "-n", &namespace.name, "pg-0", "--", "psql", "-U", "postgres", "-qtAX", "-c"];
        let table = format!("create table if not exists {name} (n bigint primary key)");
        bed.kubectl(&[&psql[..], &[table.as_str()]].concat())?;
        namespace.apply(&pod.to_string())?;
        let ledger = Self { bed, namespace: &namespace.name, name: name.to_owned() };
        ledger.after(0.0, Duration::from_secs(60)).context("the ledger's first row")?;
        Ok(ledger)
    }

    /// What it has written down so far.
    ///
    /// # Errors
    /// kubectl's.
    pub fn record(&self) -> Result<Record> {
        let text = self.bed.kubectl(&["logs", "-n", self.namespace, &self.name, "--tail=-1"])?;
        let mut record = Record::default();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["sent", n] => drop(record.sent.insert(n.parse()?)),
                ["ack", n, time] => record.acknowledged.push((n.parse()?, time.parse()?)),
                _ => {}
            }
        }
        Ok(record)
    }

    /// Waits for the first row that was acknowledged after `time`; returns when that was.
    ///
    /// # Errors
    /// If there is none in time.
    pub fn after(&self, time: f64, patience: Duration) -> Result<f64> {
        let found = crate::poll(patience, || {
            let record = self.record().ok()?;
            record.acknowledged.into_iter().map(|(_, at)| at).find(|at| *at > time)
        });
        found.with_context(|| format!("no row was acknowledged within {patience:?}"))
    }

    /// Compares what it has written down with the table in `pg-0`: no row that was acknowledged before
    /// the look is missing, none is there that was not sent by the end of it. Returns what it wrote.
    ///
    /// # Errors
    /// A row that is lost or was never sent; kubectl's.
    pub fn audit(self) -> Result<Record> {
        let before = self.record()?;
        let psql =
            ["exec", "-n", self.namespace, "pg-0", "--", "psql", "-U", "postgres", "-qtAX", "-c"];
        let select = format!("select n from {}", self.name);
        let rows = self.bed.kubectl(&[&psql[..], &[select.as_str()]].concat())?;
        let rows: BTreeSet<u64> = rows.lines().map(str::parse).collect::<Result<_, _>>()?;
        let lost = |n: &&(u64, f64)| !rows.contains(&n.0);
        let lost: Vec<u64> = before.acknowledged.iter().filter(lost).map(|(n, _)| *n).collect();
        ensure!(lost.is_empty(), "acknowledged rows are gone: {lost:?}");
        // What it says may reach its log a moment after the row reached the table.
        let found = crate::poll(Duration::from_secs(5), || {
            let after = self.record().ok()?;
            rows.is_subset(&after.sent).then_some(after)
        });
        let record = found.context("rows are in the table that were never sent")?;
        self.bed.kubectl(&["delete", "pod", "-n", self.namespace, &self.name, "--wait=false"])?;
        Ok(record)
    }
}
