//! What is wrong with a volume, in CSI's words (alpha since 1.13).

use client::api;
use proto::csi::VolumeHealth;
use proto::csi::VolumeHealthErrorType as Kind;
use proto::csi::volume_health::VolumeHealthEntry;

/// The copies of a volume that are not in sync and reachable, as `1 of 2 copies in sync; n2: lost`.
fn copies(volume: &api::Volume) -> String {
    let (good, bad): (Vec<_>, Vec<_>) =
        volume.replicas.iter().partition(|replica| replica.standing == "in sync");
    let mut text = format!("{} of {} copies in sync", good.len(), volume.repl);
    for replica in bad {
        text += &format!("; {}: {}", replica.node_name, replica.standing);
    }
    text
}

/// The health of `volume` as the metadata have it: nothing for one that is as it should be.
pub fn health(volume: &api::Volume) -> VolumeHealth {
    let settled = !matches!(
        volume.state(),
        api::VolumeState::Unspecified | api::VolumeState::Creating | api::VolumeState::Deleting
    );
    let entry = |status: Kind, reason: &str| VolumeHealthEntry {
        status: status.into(),
        reason: reason.into(),
        message: copies(volume),
    };
    let mut members = volume.replicas.iter().filter(|replica| replica.in_sync).peekable();
    let mut health_statuses = Vec::new();
    if settled && members.peek().is_some() {
        let failed = members.clone().all(|replica| replica.state == "failed");
        let reachable = members.any(|replica| replica.standing == "in sync");
        if failed {
            health_statuses.push(entry(Kind::DataLoss, "EveryInSyncCopyFailed"));
        }
        if !reachable {
            health_statuses.push(entry(Kind::Inaccessible, "NoInSyncCopyReachable"));
        } else if volume.degraded {
            health_statuses.push(entry(Kind::Degraded, "CopiesMissing"));
        }
    }
    VolumeHealth { volume_id: volume.volume_id.clone(), health_statuses }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_follows_the_copies() {
        let replica = |node: &str, in_sync, state: &str, standing: &str| api::Replica {
            node_name: node.into(),
            in_sync,
            state: state.into(),
            standing: standing.into(),
            ..api::Replica::default()
        };
        let good = |node| replica(node, true, "ready", "in sync");
        let lost = |node, in_sync| replica(node, in_sync, "ready", "lost");
        let failed = |node, in_sync| replica(node, in_sync, "failed", "failed");
        let table = [
            (vec![good("n1"), good("n2")], false, vec![], ""),
            (
                vec![good("n1"), lost("n2", true)],
                true,
                vec![(Kind::Degraded, "CopiesMissing")],
                "1 of 2 copies in sync; n2: lost",
            ),
            (
                vec![good("n1"), failed("n2", false)],
                true,
                vec![(Kind::Degraded, "CopiesMissing")],
                "1 of 2 copies in sync; n2: failed",
            ),
            (
                vec![lost("n1", true), lost("n2", false)],
                true,
                vec![(Kind::Inaccessible, "NoInSyncCopyReachable")],
                "0 of 2 copies in sync; n1: lost; n2: lost",
            ),
            (
                vec![failed("n1", true), lost("n2", false)],
                true,
                vec![
                    (Kind::DataLoss, "EveryInSyncCopyFailed"),
                    (Kind::Inaccessible, "NoInSyncCopyReachable"),
                ],
                "0 of 2 copies in sync; n1: failed; n2: lost",
            ),
        ];
        for (replicas, degraded, wanted, message) in table {
            let mut volume = api::Volume {
                volume_id: "v".into(),
                repl: 2,
                replicas,
                degraded,
                state: api::VolumeState::Attached.into(),
                ..api::Volume::default()
            };
            let found = health(&volume);
            let kinds: Vec<_> =
                found.health_statuses.iter().map(|e| (e.status(), e.reason.as_str())).collect();
            assert_eq!(kinds, wanted);
            assert!(found.health_statuses.iter().all(|entry| entry.message == message));
            volume.state = api::VolumeState::Deleting.into();
            assert!(health(&volume).health_statuses.is_empty(), "it is going away");
        }
    }
}
