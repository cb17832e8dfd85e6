//! Snapshots, restores and clones as users ask for them: by objects.
#![allow(clippy::unwrap_used)]

use kubernetes::bed::{Bed, Namespace};
use kubernetes::poll;
use kubernetes::postgres::{Postgres, Wanted};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const SNAPSHOTS: &str = "volumesnapshots.snapshot.storage.k8s.io";

const SNAPSHOT: &str = "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: before}
spec: {volumeSnapshotClassName: holdfast, source: {persistentVolumeClaimName: data-pg-0}}
";

/// A claim that begins as a copy of `source`.
fn copy(name: &str, source: &str) -> String {
    format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, labels: {{app: pg}}}}
spec:
  storageClassName: holdfast-replicated
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 1Gi}}}}
  dataSource: {source}
"
    )
}

/// What a database must hold at any instant of pgbench's (TPC-B): all balances agree with the history.
fn agrees(postgres: &Postgres<'_>, ordinal: u32) {
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from \
                pgbench_history) and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from \
                pgbench_tellers)";
    assert_eq!(postgres.sql(ordinal, sums).unwrap(), "t");
}

#[test]
fn a_snapshot_under_load_is_restored_and_a_volume_in_use_is_cloned() {
    let test = "a_snapshot_under_load_is_restored_and_a_volume_in_use_is_cloned";
    let Some(bed) = Bed::find(test) else { return };
    let kinds = bed.kubectl(&["api-resources", "-o", "name"]).unwrap();
    if !kinds.lines().any(|kind| kind == SNAPSHOTS) {
        println!("SKIPPED: {test}: the cluster has no snapshots (their CRDs and controller)");
        return;
    }
    let namespace = Namespace::new(&bed, "holdfast-e2e-copies").unwrap();
    let postgres = Postgres::start(&bed, &namespace, &Wanted::default()).unwrap();
    postgres.exec(0, &["pgbench", "-U", "postgres", "-i", "-q", "-s", "5"]).unwrap();
    postgres.sql(0, "create table kept as select generate_series(1, 1000) as n").unwrap();

    let bench =
        "touch /tmp/go; while [ -e /tmp/go ]; do pgbench -U postgres -n -c 2 -T 2 || exit 1; done";
    std::thread::scope(|scope| {
        let running = scope.spawn(|| postgres.exec(0, &["bash", "-c", bench]));
        std::thread::sleep(Duration::from_secs(3));
        namespace.apply(SNAPSHOT).unwrap();
        let ready = poll(PATIENCE, || {
            let snapshot = bed.get(&[SNAPSHOTS, "before", "-n", &namespace.name]).ok()?;
            (snapshot["status"]["readyToUse"] == true).then_some(())
        });
        ready.expect("the snapshot becomes ready to use");
        postgres.exec(0, &["rm", "/tmp/go"]).unwrap();
        running.join().unwrap().unwrap();
    });
    let later = postgres.sql(0, "select count(*) from pgbench_history").unwrap();
    postgres.sql(0, "drop table kept").unwrap();

    // As a user goes back: away with the claim, and another one of its name with what was.
    postgres.scale(0).unwrap();
    bed.kubectl(&["delete", "pvc", "data-pg-0", "-n", &namespace.name]).unwrap();
    let source = "{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}";
    namespace.apply(&copy("data-pg-0", source)).unwrap();
    postgres.scale(1).unwrap();
    assert_eq!(postgres.sql(0, "select count(*) from kept").unwrap(), "1000");
    agrees(&postgres, 0);
    let then = postgres.sql(0, "select count(*) from pgbench_history").unwrap();
    let number = |text: &str| text.parse::<u64>().unwrap();
    assert!(0 < number(&then) && number(&then) <= number(&later), "{then} of {later}");

    // The next pod of the set finds a claim of its name: a clone of the first one's.
    namespace.apply(&copy("data-pg-1", "{kind: PersistentVolumeClaim, name: data-pg-0}")).unwrap();
    postgres.scale(2).unwrap();
    assert_eq!(postgres.sql(1, "select count(*) from kept").unwrap(), "1000");
    agrees(&postgres, 1);
    postgres.sql(1, "drop table kept").unwrap();
    assert_eq!(postgres.sql(0, "select count(*) from kept").unwrap(), "1000", "they share nothing");

    bed.kubectl(&["delete", SNAPSHOTS, "before", "-n", &namespace.name]).unwrap();
    let nodes = bed.nodes().unwrap();
    let gone = poll(PATIENCE, || {
        let left = bed.holdfast(&nodes[0], &["snapshot", "list"]).ok()?;
        left.as_array()?.is_empty().then_some(())
    });
    gone.expect("the snapshot is deleted on the nodes as well");
}
