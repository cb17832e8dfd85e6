//! `holdfast failovers`: volumes that were taken from lost nodes, and where the seconds went.

use crate::cluster::remembered;
use crate::output::{Output, Table};
use crate::target::Target;
use anyhow::Result;
use client::Client;
use client::record::{Failover, STEPS, learn};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Column heads, a step each.
const HEADS: [&str; STEPS.len()] =
    ["LAST HEARD", "LOST", "FENCED", "SEALED", "POD DELETED", "ATTACHED", "FIRST WRITE"];

/// Which.
#[derive(Clone, Debug, clap::Args)]
pub struct FailoversArguments {
    /// Only those of this volume (id or name).
    #[arg(long)]
    volume: Option<String>,
}

/// Date and time of day, UTC (the civil calendar of days since 1970, Hinnant's `civil_from_days`).
fn calendar(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1000 % 60, ms % 1000);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}")
}

fn table(all: &[Failover], names: &BTreeMap<u64, String>) -> Table {
    let name = |node: Option<u64>| match node {
        Some(node) => names.get(&node).cloned().unwrap_or_else(|| format!("node {node}")),
        None => "-".to_owned(),
    };
    let mut heads = vec!["VOLUME", "FROM", "TO", "EPOCH", "SEALED BY", "BEGAN (UTC)"];
    heads.extend(HEADS);
    let mut table = Table::new(&heads);
    for failover in all {
        let begun = failover.begun().unwrap_or_default();
        let mut row = vec![
            failover.volume_id.clone(),
            name(failover.from()),
            name(failover.to()),
            failover.epoch.to_string(),
            name(failover.sealed_by()),
            calendar(begun),
        ];
        row.extend(STEPS.iter().map(|step| match failover.seconds(step) {
            Some(seconds) => format!("{seconds:+.3}"),
            None => "-".to_owned(),
        }));
        table.words(row);
    }
    table
}

fn json(failover: &Failover) -> Value {
    let step = |step: &&str| {
        let at = failover.at(step)?;
        Some((format!("{}_unix_ms", step.trim_start_matches("failover_")), Value::from(at)))
    };
    let times: Map<String, Value> = STEPS.iter().filter_map(step).collect();
    let mut all = json!({
        "volume_id": failover.volume_id,
        "epoch": failover.epoch,
        "from": failover.from(),
        "to": failover.to(),
        "sealed_by": failover.sealed_by(),
    });
    if let Some(all) = all.as_object_mut() {
        all.extend(times);
    }
    all
}

/// Prints the failovers that the cluster remembers. Each time is that of the clock of the node that saw it.
///
/// # Errors
/// As the cluster answers.
pub async fn show(target: &Target, arguments: &FailoversArguments, output: Output) -> Result<()> {
    let client = target.client()?;
    let volume = match &arguments.volume {
        Some(volume) => client.find_volume(volume).await?.volume_id,
        None => String::new(),
    };
    let mut all = Vec::new();
    for event in remembered(&client, &volume).await? {
        learn(&mut all, &event);
    }
    let names = if output.json { BTreeMap::new() } else { names(&client).await };
    output.show(&all.iter().map(json).collect(), || table(&all, &names))
}

/// Names of the nodes, as far as anybody knows.
async fn names(client: &Client) -> BTreeMap<u64, String> {
    let nodes = client.get_cluster().await.map(|cluster| cluster.nodes).unwrap_or_default();
    nodes.into_iter().map(|node| (node.node, node.name)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_have_their_names_and_steps_their_seconds() {
        let mut all = Vec::new();
        for (kind, node, ms) in [
            ("failover_heard", 1, 10_000),
            ("failover_lost", 1, 13_020),
            ("failover_sealed", 2, 13_100),
            ("failover_attached", 3, 14_000),
        ] {
            let (kind, message) = (kind.into(), ms.to_string());
            let event = client::api::Event { kind, node, epoch: 3, message, ..Default::default() };
            learn(&mut all, &event);
        }
        let names = BTreeMap::from([(1, "n1".to_owned()), (3, "n3".to_owned())]);
        let text = format!("{:?}", table(&all, &names).rows());
        for part in ["\"n1\", \"n3\", \"3\", \"node 2\"", "+0.000", "+3.020", "+4.000", "\"-\""] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let told = json(&all[0]);
        let numbers = (told["lost_unix_ms"].as_u64(), told["sealed_by"].as_u64());
        assert_eq!(numbers, (Some(13_020), Some(2)));
        assert_eq!(told.get("written_unix_ms"), None);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (ms, wanted) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_763_737_735_208, "2025-11-21 15:08:55.208"),
            (4_107_542_399_999, "2100-02-28 23:59:59.999"),
        ] {
            assert_eq!(calendar(ms), wanted);
        }
    }
}
