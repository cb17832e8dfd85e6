//! What the story found, as a file for machines and a table for people.

use super::progress::Palette;
use crate::clock::seconds_between;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use types::Instant;

/// `report.json`. Times are seconds after the cut unless said otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// From the cut to the first acknowledged commit on the other node.
    pub cut_to_first_commit_seconds: f64,
    /// When each phase was reached: detected, fenced, sealed, staged, mounted, recovered, first_commit.
    pub phases: BTreeMap<String, f64>,
    /// Ledger rows whose commit was acknowledged.
    pub acknowledged_rows: u64,
    /// Acknowledged rows that are not there.
    pub lost_rows: u64,
    /// Rows that are there and were never sent.
    pub phantom_rows: u64,
    /// Rows in pgbench_accounts.
    pub accounts_rows: u64,
    /// Commits acknowledged on the cut node after the fence, and reads answered there after the seal.
    pub old_epoch_acks: u64,
    /// Bytes copied to bring the healed replica back in sync.
    pub resynced_bytes: u64,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Whether the full comparison of both replicas found no difference.
    pub replicas_identical: bool,
    /// Bytes that the resync compared (R19).
    pub resync_compared_bytes: u64,
    /// Bytes that the full comparison read of each replica.
    pub compared_bytes: u64,
    /// From the heal to two replicas in sync.
    pub heal_to_in_sync_seconds: f64,
    /// How long unpublish and unstage took on the healed node.
    pub dead_stage_unmounted_seconds: f64,
    /// Last commit that the cut node acknowledged.
    pub last_commit_on_cut_node: f64,
    /// Last read that the cut node answered.
    pub last_read_on_cut_node: f64,
    /// First I/O error of a commit on the cut node.
    pub first_commit_error_on_cut_node: f64,
    /// First I/O error of a read on the cut node.
    pub first_read_error_on_cut_node: f64,
    /// pgbench's mean rate in the last seconds before the cut.
    pub tps_before_cut: f64,
    /// pgbench's mean rate on the other node, one copy in sync.
    pub tps_degraded: f64,
    /// How often NodeStageVolume was called on the other node.
    pub stage_calls: u32,
    /// Sentences, one per check that failed.
    pub failed_checks: Vec<String>,
}

/// The moments of a failover, in the order in which they must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// All traffic of the node dropped.
    pub cut: Instant,
    /// The cluster committed that the node is lost.
    pub detected: Instant,
    /// The new epoch is committed.
    pub fenced: Instant,
    /// A surviving replica refuses the old epoch.
    pub sealed: Instant,
    /// NodeStageVolume returned on the other node.
    pub staged: Instant,
    /// NodePublishVolume returned there.
    pub mounted: Instant,
    /// PostgreSQL took a connection there.
    pub recovered: Instant,
    /// The ledger had its first commit acknowledged there.
    pub first_commit: Instant,
}

impl Moments {
    /// Names and seconds after the cut, in order.
    #[must_use]
    pub fn phases(&self) -> [(&'static str, f64); 7] {
        let after = |at| seconds_between(self.cut, at);
        [
            ("detected", after(self.detected)),
            ("fenced", after(self.fenced)),
            ("sealed", after(self.sealed)),
            ("staged", after(self.staged)),
            ("mounted", after(self.mounted)),
            ("recovered", after(self.recovered)),
            ("first_commit", after(self.first_commit)),
        ]
    }
}

impl Report {
    /// The table at the end.
    #[must_use]
    pub fn table(&self, phases: &[(&str, f64)], palette: Palette) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<34} {value}");
        };
        row(
            "cut to first commit",
            palette.bold(&format!("{:.2} s", self.cut_to_first_commit_seconds)),
        );
        let mut before = 0.0;
        for (name, at) in phases {
            row(
                &format!("  {}", name.replace('_', " ")),
                format!("{at:>6.2} s  (+{:.2} s)", at - before),
            );
            before = *at;
        }
        row("ledger rows acknowledged", self.acknowledged_rows.to_string());
        let zero = |value: u64| {
            if value == 0 { palette.green("0") } else { palette.red(&value.to_string()) }
        };
        row("  lost", zero(self.lost_rows));
        row("  never sent and yet there", zero(self.phantom_rows));
        row("pgbench_accounts rows", self.accounts_rows.to_string());
        row("acknowledged by the cut node later", zero(self.old_epoch_acks));
        row(
            "  its last commit, last read",
            format!("{:.2} s, {:.2} s", self.last_commit_on_cut_node, self.last_read_on_cut_node),
        );
        row(
            "  its first error: commit, read",
            format!(
                "{:.2} s, {:.2} s",
                self.first_commit_error_on_cut_node, self.first_read_error_on_cut_node
            ),
        );
        row(
            "resync: copied, compared, volume",
            format!(
                "{}, {}, {}",
                mebibytes(self.resynced_bytes),
                mebibytes(self.resync_compared_bytes),
                mebibytes(self.volume_bytes)
            ),
        );
        row("  heal to in sync", format!("{:.2} s", self.heal_to_in_sync_seconds));
        row("  dead stage unmounted in", format!("{:.2} s", self.dead_stage_unmounted_seconds));
        let identical =
            if self.replicas_identical { palette.green("yes") } else { palette.red("no") };
        row("replicas identical", identical);
        row(
            "pgbench before, on one copy",
            format!("{:.0} tps, {:.0} tps", self.tps_before_cut, self.tps_degraded),
        );
        text
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
