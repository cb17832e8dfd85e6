//! PostgreSQL on a volume whose daemon is upgraded and killed under it: a pause, and no error (R14).
#![allow(clippy::unwrap_used)]

use e2e::{fresh_dir, in_sync, lab};
use lab::clock::seconds_between;
use lab::daemons::REPLICATOR;
use lab::kubelet::{Claim, Kubelet};
use lab::postgres::Postgres;
use lab::story::load::transactions;
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(60);
/// How long pgbench runs, and more than the restarts take.
const LOAD: Duration = Duration::from_secs(30);
/// No transaction for so long is more than a pause.
const STALL: f64 = 10.0;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_sees_a_pause_and_no_error_when_its_daemon_is_upgraded_or_killed() {
    let lab = lab(3).await.unwrap();
    let kubelet = Kubelet::new(&lab.layout, lab.controller_node);
    let claim = Claim {
        name: "pvc-upgraded".into(),
        size: 1 << 30,
        fs_type: "ext4".into(),
        parameters: HashMap::from([("repl".into(), "2".into())]),
        node: 1,
    };
    let volume = kubelet.create_volume(&claim).await.unwrap();
    let id = volume.volume_id.clone();
    let target = kubelet.mount(1, &volume, "ext4", PATIENCE).await.unwrap();
    let mut postgres = Postgres::new(&lab.layout, 1, &target).unwrap();
    postgres.init().await.unwrap();
    postgres.start().unwrap();
    postgres.wait_ready(PATIENCE).await.unwrap();
    let mut init = postgres.local_tool("pgbench");
    init.args(["--initialize", "--quiet", "--scale=5"]);
    lab::exec::run_async(init).await.unwrap();

    let logs = fresh_dir();
    std::fs::create_dir(&logs).unwrap();
    let mut pgbench = postgres.local_tool("pgbench");
    pgbench
        .args(["--no-vacuum", "--client=4", "--jobs=2", "--log", "--failures-detailed"])
        .arg(format!("--time={}", LOAD.as_secs()))
        .arg(format!("--log-prefix={}", logs.join("pgbench").display()));
    // Its user writes the log.
    std::fs::set_permissions(&logs, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let load = tokio::spawn(lab::exec::run_async(pgbench));
    sleep(Duration::from_secs(2)).await;
    let mut restarts = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        restarts.push((signal, lab::clock::now()));
        lab.signal(1, REPLICATOR, signal, Some(PATIENCE)).unwrap();
        lab.start(1).unwrap();
        lab.wait_ready([1]).await.unwrap();
        in_sync(&lab, 1, &id).await.unwrap();
        sleep(Duration::from_secs(2)).await;
    }
    let said = load.await.unwrap().unwrap();
    let times = transactions(&logs, &["pgbench"]).unwrap();
    std::fs::remove_dir_all(&logs).unwrap();
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    let stalls = |begin, end| {
        let during = times.windows(2).filter(move |pair| pair[1] >= begin && pair[0] < end);
        during.map(|pair| seconds_between(pair[0], pair[1])).fold(0.0, f64::max)
    };
    for (number, (signal, at)) in restarts.iter().enumerate() {
        let end = restarts.get(number + 1).map_or(at.after(LOAD), |(_, next)| *next);
        let stall: f64 = stalls(*at, end);
        println!("{signal}: longest time without a transaction {:.0} ms", stall * 1000.0);
        assert!(stall < STALL, "{signal}: {stall} s");
    }
    postgres.amcheck().await.unwrap();
    postgres.stop().unwrap();
    postgres.verify_checksums().await.unwrap();
    let log = std::fs::read_to_string(postgres.log()).unwrap();
    let bad = |line: &&str| ["PANIC", "could not", "Input/output"].iter().any(|w| line.contains(w));
    assert_eq!(log.lines().find(bad), None);
    let compared = lab.local_client(1).unwrap().compare_replicas(&id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));
    kubelet.take_down(1, &volume, PATIENCE).await.unwrap();
}
