//! Snapshots of a database that is being written: each is one moment of it, on every copy (R26).
#![allow(clippy::unwrap_used)]

use e2e::{TestLab, eventually, in_sync, lab};
use lab::daemons::REPLICATOR;
use lab::kubelet::{Claim, Kubelet};
use lab::postgres::Postgres;
use nix::sys::signal::Signal;
use proto::csi::Volume;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(60);
const SIZE: u64 = 512 << 20;

fn claim(name: &str) -> Claim {
    Claim {
        name: name.into(),
        size: SIZE,
        fs_type: "ext4".into(),
        parameters: HashMap::from([("repl".into(), "2".into())]),
        node: 1,
    }
}

/// PostgreSQL on `volume` at `node`, started: after a crash, as far as it can tell.
async fn serve(lab: &TestLab, kubelet: &Kubelet, node: u64, volume: &Volume) -> Postgres {
    let target = kubelet.mount(node, volume, "ext4", PATIENCE).await.unwrap();
    Postgres::new(&lab.layout, node, &target).unwrap()
}

/// pgbench's transactions that the database has: each changes three balances by the same amount and
/// writes one row with it. Checks that it has each of them as a whole.
async fn transactions(postgres: &Postgres) -> i64 {
    let client = postgres.connect().await.unwrap();
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts)::bigint,
        (SELECT sum(tbalance) FROM pgbench_tellers)::bigint,
        (SELECT sum(bbalance) FROM pgbench_branches)::bigint,
        (SELECT coalesce(sum(delta), 0) FROM pgbench_history)::bigint,
        (SELECT count(*) FROM pgbench_history)::bigint";
    let row = client.query_one(sums, &[]).await.unwrap();
    let [accounts, tellers, branches, history, count] =
        [0, 1, 2, 3, 4].map(|at| row.get::<_, i64>(at));
    assert_eq!((accounts, tellers, branches), (history, history, history));
    count
}

async fn committed(postgres: &Postgres) -> i64 {
    let client = postgres.connect().await.unwrap();
    let count = "SELECT count(*)::bigint FROM pgbench_history";
    client.query_one(count, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_load_is_one_moment_of_the_database_wherever_it_is_restored() {
    let lab = lab(3).await.unwrap();
    let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
    let volume = kubelet.create_volume(&claim("written")).await.unwrap();
    let mut postgres = serve(&lab, &kubelet, 1, &volume).await;
    postgres.init().await.unwrap();
    postgres.start().unwrap();
    postgres.wait_ready(PATIENCE).await.unwrap();
    let mut init = postgres.local_tool("pgbench");
    init.args(["--initialize", "--quiet", "--scale=1"]);
    lab::exec::run_async(init).await.unwrap();
    let mut pgbench = postgres.local_tool("pgbench");
    pgbench.args(["--no-vacuum", "--client=4", "--jobs=2", "--time=15", "--failures-detailed"]);
    let load = tokio::spawn(lab::exec::run_async(pgbench));
    eventually("transactions", || async { Ok(committed(&postgres).await > 100) }).await.unwrap();

    // Each with what was committed before it was asked for, and after it was there.
    let mut taken = Vec::new();
    let copies = lab.client(1).unwrap().get_volume(&volume.volume_id).await.unwrap().replicas;
    let other = copies.iter().find(|replica| replica.node != 1).unwrap().node;
    for number in 0..3 {
        let away = number == 2;
        if away {
            // The copy that is away gets this one when it is back, before it counts again.
            lab.signal(other, REPLICATOR, Signal::SIGKILL, Some(PATIENCE)).unwrap();
        }
        let before = committed(&postgres).await;
        let name = format!("moment-{number}");
        let id = kubelet.snapshot(&volume.volume_id, &name, PATIENCE).await.unwrap();
        taken.push((id, before, committed(&postgres).await));
        if away {
            lab.start(other).unwrap();
            lab.wait_ready([other]).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
    }
    let said = load.await.unwrap().unwrap();
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    in_sync(&lab, 1, &volume.volume_id).await.unwrap();
    postgres.stop().unwrap();
    kubelet.take_down(1, &volume, PATIENCE).await.unwrap();

    // The last ones from the copy that was away, without the volume that they are of.
    kubelet.delete_volume(&volume.volume_id).await.unwrap();
    for (number, (snapshot, before, after)) in taken.iter().enumerate() {
        if number == 2 {
            lab.crash(1).unwrap();
            let away = || async {
                let cluster = lab.client(2)?.get_cluster().await?;
                Ok(cluster.nodes.iter().any(|node| node.node == 1 && node.state == "lost"))
            };
            eventually("node 1 is lost", away).await.unwrap();
        }
        let restored = Claim { node: 3, ..claim(&format!("restored-{number}")) };
        let restored = kubelet.restore(&restored, snapshot, PATIENCE).await.unwrap();
        let mut postgres = serve(&lab, &kubelet, 3, &restored).await;
        postgres.start().unwrap();
        postgres.wait_ready(PATIENCE).await.unwrap();
        let count = transactions(&postgres).await;
        assert!((*before..=*after).contains(&count), "{before} <= {count} <= {after}");
        postgres.amcheck().await.unwrap();
        postgres.stop().unwrap();
        postgres.verify_checksums().await.unwrap();
        kubelet.take_down(3, &restored, PATIENCE).await.unwrap();
    }
}
