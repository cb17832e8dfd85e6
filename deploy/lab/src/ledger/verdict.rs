//! Comparing the database with the client's record.

use super::Files;
use crate::journal;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use types::Instant;

/// (client, sequence).
pub type Row = (u32, u64);

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many rows were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged rows that are not in the database.
    pub lost: Vec<Row>,
    /// Rows in the database that were never sent.
    pub phantom: Vec<Row>,
}

/// Compares what is there with what was sent and acknowledged. A row that was sent and not
/// acknowledged may be there or not.
#[must_use]
pub fn compare(
    sent: &BTreeSet<Row>,
    acknowledged: &BTreeSet<Row>,
    present: &BTreeSet<Row>,
) -> Verdict {
    Verdict {
        acknowledged: acknowledged.len() as u64,
        lost: acknowledged.difference(present).copied().collect(),
        phantom: present.difference(sent).copied().collect(),
    }
}

/// Compares the table in `database` with the record in `files`; right also while the clients go on.
///
/// # Errors
/// If the database or a file cannot be read.
pub async fn audit(
    files: &Files,
    clients: u32,
    database: &tokio_postgres::Client,
) -> Result<Verdict> {
    // In this order: what was acknowledged before the query must be in it, what is in it must have
    // been sent by now.
    let acknowledged = acknowledged(files, clients)?.into_iter().map(|(row, ..)| row).collect();
    let mut present = BTreeSet::new();
    for row in database.query("select client, seq from ledger", &[]).await? {
        let (client, seq): (i32, i64) = (row.get(0), row.get(1));
        present.insert((u32::try_from(client)?, u64::try_from(seq)?));
    }
    Ok(compare(&sent(files, clients)?, &acknowledged, &present))
}

/// Every row that the first `clients` clients may have sent.
///
/// # Errors
/// If a file cannot be read or understood.
pub fn sent(files: &Files, clients: u32) -> Result<BTreeSet<Row>> {
    let mut rows = BTreeSet::new();
    for client in 0..clients {
        for entry in journal::read(&files.sent(client))? {
            rows.insert(row(&entry.text)?.0);
        }
    }
    Ok(rows)
}

/// Every acknowledgement of the first `clients` clients: row, when, and from which address.
///
/// # Errors
/// If a file cannot be read or understood.
pub fn acknowledged(files: &Files, clients: u32) -> Result<Vec<(Row, Instant, SocketAddr)>> {
    let mut rows = Vec::new();
    for client in 0..clients {
        for entry in journal::read(&files.acknowledged(client))? {
            let (row, rest) = row(&entry.text)?;
            let address = rest.parse().with_context(|| format!("address in {:?}", entry.text))?;
            rows.push((row, entry.at, address));
        }
    }
    Ok(rows)
}

fn row(text: &str) -> Result<(Row, &str)> {
    let mut words = text.splitn(3, ' ');
    let parsed = (|| {
        let client = words.next()?.parse().ok()?;
        let seq = words.next()?.parse().ok()?;
        Some((client, seq))
    })();
    let row = parsed.with_context(|| format!("{text:?} is not a ledger row"))?;
    Ok((row, words.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rows(rows: &[Row]) -> BTreeSet<Row> {
        rows.iter().copied().collect()
    }

    #[test]
    fn lost_and_phantom_rows_are_told_apart() {
        let sent = rows(&[(0, 1), (0, 2), (0, 3)]);
        let acknowledged = rows(&[(0, 1), (0, 2)]);
        for (present, lost, phantom) in [
            (rows(&[(0, 1), (0, 2)]), 0, 0),
            (rows(&[(0, 1), (0, 2), (0, 3)]), 0, 0),
            (rows(&[(0, 1), (0, 3)]), 1, 0),
            (rows(&[(0, 1), (0, 2), (1, 1)]), 0, 1),
            (rows(&[]), 2, 0),
        ] {
            let verdict = compare(&sent, &acknowledged, &present);
            assert_eq!((verdict.lost.len(), verdict.phantom.len()), (lost, phantom), "{present:?}");
            assert_eq!(verdict.acknowledged, 2);
        }
    }

    #[test]
    fn entries_are_rows_with_an_address() {
        assert_eq!(row("1 22 10.0.0.1:5432").unwrap(), ((1, 22), "10.0.0.1:5432"));
        assert_eq!(row("1 22").unwrap(), ((1, 22), ""));
        assert!(row("1").is_err());
    }
}
