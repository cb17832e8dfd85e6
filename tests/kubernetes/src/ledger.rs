//! A client that commits numbered rows one after the other and writes down when each was
//! acknowledged: what a failover is measured and judged by.

use crate::bed::{Bed, Namespace};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::time::Duration;

/// Sends a row, says `sent`, commits, says `ack` with the times of both, or `fail` with the time and the reason;
/// never the same number twice.
const LOOP: &str = r#"
n=0
while :; do
  n=$((n + 1))
  at=$EPOCHREALTIME
  echo "sent $n"
  if why=$(timeout 2 psql "host=pg-0.pg user=postgres connect_timeout=1" -qtAX -c "insert into $0 values ($n)" 2>&1)
  then echo "ack $n $at $EPOCHREALTIME"
  else echo "fail $n $at $EPOCHREALTIME $? ${why//$'\n'/ }"; sleep 0.1
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

/// A row that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its number.
    pub n: u64,
    /// When it was sent, in seconds since 1970.
    pub sent: f64,
    /// When its acknowledgement was there, likewise.
    pub at: f64,
}

/// What it wrote down.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Rows that were sent, acknowledged or not.
    pub sent: BTreeSet<u64>,
    /// Acknowledged rows, in order.
    pub acknowledged: Vec<Row>,
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
        let text = self.log()?;
        let mut record = Record::default();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["sent", n] => drop(record.sent.insert(n.parse()?)),
                ["ack", n, sent, at] => {
                    let row = Row { n: n.parse()?, sent: sent.parse()?, at: at.parse()? };
                    record.acknowledged.push(row);
                }
                _ => {}
            }
        }
        Ok(record)
    }

    fn log(&self) -> Result<String> {
        self.bed.kubectl(&["logs", "-n", self.namespace, &self.name, "--tail=-1"])
    }

    /// What it wrote down of attempts that failed, for people.
    ///
    /// # Errors
    /// kubectl's.
    pub fn failures(&self) -> Result<String> {
        let text = self.log()?;
        let failed = text.lines().filter(|line| line.starts_with("fail "));
        Ok(failed.collect::<Vec<_>>().join("\n"))
    }

    /// Waits for the first row that was acknowledged of those sent after `time`; returns when that was. (One
    /// that was sent before may have been committed before, and its acknowledgement noted late.)
    ///
    /// # Errors
    /// If there is none in time.
    pub fn after(&self, time: f64, patience: Duration) -> Result<f64> {
        let found = crate::poll(patience, || {
            let record = self.record().ok()?;
            record.acknowledged.into_iter().find(|row| row.sent > time).map(|row| row.at)
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
        let acknowledged = before.acknowledged.iter().map(|row| row.n);
        let lost: Vec<u64> = acknowledged.filter(|n| !rows.contains(n)).collect();
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
