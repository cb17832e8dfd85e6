//! The lab without daemons: namespaces, cable, pools, PostgreSQL and ledger on a plain loop device, and
//! that nothing of it stays. Needs root.
#![allow(clippy::unwrap_used)]

use lab::journal;
use lab::layout::{Layout, POSTGRES_PORT};
use lab::ledger::{self, Files};
use lab::postgres::Postgres;
use lab::process::{in_network_namespace, wait_until};
use lab::state::{Registry, namespaces};
use lab::{down, exec, net, pool};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A lab that ends with the test, also when it fails.
struct Guard(Layout);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = down::lab(&self.0);
    }
}

fn claim(name: &str) -> Guard {
    let dir = PathBuf::from(format!("/var/lib/hf-{name}-{}", std::process::id()));
    let layout = Registry::default().claim(&dir).unwrap();
    fs::create_dir_all(&dir).unwrap();
    Guard(layout)
}

fn reaches(layout: &Layout, from: u64, to: u64) -> bool {
    // Without anybody listening a reachable node refuses; a cut one stays silent.
    let script = format!("exec 3<>/dev/tcp/{}/9", layout.address(to));
    let enter = format!("--net=/run/netns/{}", layout.namespace(from));
    let said = exec::run("nsenter", &[&enter, "timeout", "0.5", "bash", "-c", &script]);
    said.is_err_and(|error| error.to_string().contains("refused"))
}

#[test]
fn a_cut_node_is_silent_until_healed_and_nothing_stays() {
    let lab = claim("cut");
    let layout = &lab.0;
    net::make_hub(layout).unwrap();
    for node in 1..=2 {
        net::make_node(layout, node).unwrap();
        fs::create_dir_all(layout.node_dir(node)).unwrap();
    }
    let device = pool::make(layout, 1, 64 << 20).unwrap();
    assert!(reaches(layout, 1, 2) && reaches(layout, 1, 1));
    for _ in 0..2 {
        net::cut(layout, 2, net::Cut::All).unwrap();
        assert!(net::is_cut(layout, 2).unwrap());
        assert!(!reaches(layout, 1, 2) && !reaches(layout, 2, 1));
        assert!(reaches(layout, 2, 2), "loopback stays");
    }
    net::heal(layout, 2).unwrap();
    net::heal(layout, 2).unwrap();
    assert!(!net::is_cut(layout, 2).unwrap() && reaches(layout, 1, 2));

    let mount = layout.node_dir(1).join("mount");
    fs::create_dir(&mount).unwrap();
    exec::run("mkfs.ext4", &["-q", device.to_str().unwrap()]).unwrap();
    exec::run("mount", &[device.to_str().unwrap(), mount.to_str().unwrap()]).unwrap();
    let file = mount.join("log");
    let sleep =
        lab::daemons::spawn(&layout.namespace(1), "sleep".as_ref(), &["1000".into()], &file)
            .unwrap();

    down::lab(layout).unwrap();
    assert!(!sleep.is_alive());
    assert!(!layout.dir.exists());
    let prefix = format!("hf{}-", layout.number);
    assert!(!namespaces().iter().any(|name| name.starts_with(&prefix)));
    assert!(!pool::loop_devices().unwrap().iter().any(|d| d.is_below(&layout.dir)));
    assert!(
        !fs::read_to_string("/proc/self/mounts").unwrap().contains(layout.dir.to_str().unwrap())
    );
    assert!(!Registry::default().list().unwrap().contains_key(&layout.number));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_follows_postgres_from_one_node_to_another() {
    let lab = claim("pg");
    let layout = &lab.0;
    net::make_hub(layout).unwrap();
    for node in 1..=2 {
        net::make_node(layout, node).unwrap();
        fs::create_dir_all(layout.log_dir(node)).unwrap();
    }
    let device = pool::make(layout, 1, 1 << 30).unwrap();
    let volume = layout.node_dir(1).join("volume");
    fs::create_dir(&volume).unwrap();
    exec::run("mkfs.ext4", &["-q", device.to_str().unwrap()]).unwrap();
    exec::run("mount", &[device.to_str().unwrap(), volume.to_str().unwrap()]).unwrap();

    let mut first = Postgres::new(layout, 1, &volume).unwrap();
    first.init().await.unwrap();
    first.start().unwrap();
    first.wait_ready(Duration::from_secs(30)).await.unwrap();
    first.connect().await.unwrap().batch_execute(ledger::TABLE).await.unwrap();

    // The client runs in the test's own process here: over the Unix socket of no namespace it could
    // not reach the nodes, so it is this test that is moved.
    let dir = layout.dir.join("ledger");
    fs::create_dir(&dir).unwrap();
    let files = Files::new(&dir);
    files.set_target((layout.address(1), POSTGRES_PORT).into()).unwrap();
    let hub = fs::File::open(Layout::namespace_path(&layout.hub())).unwrap();
    let client = std::thread::spawn({
        let dir = dir.clone();
        move || {
            nix::sched::setns(hub, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let run = ledger::run(ledger::Arguments { dir, clients: 2 });
            runtime.block_on(async {
                let _ = tokio::time::timeout(Duration::from_secs(6), run).await;
            });
        }
    });
    let acknowledged_at = |node: u64| {
        let target = (layout.address(node), POSTGRES_PORT).into();
        let rows = ledger::acknowledged(&files, 2).unwrap();
        rows.into_iter().filter(|(_, _, address)| *address == target).count()
    };
    assert!(wait_until(Duration::from_secs(5), || acknowledged_at(1) > 20));

    // The node is lost; its server is killed without a word and another takes over the data.
    net::cut(layout, 1, net::Cut::All).unwrap();
    first.kill().unwrap();
    let mut second = Postgres::new(layout, 2, &volume).unwrap();
    second.start().unwrap();
    files.set_target((layout.address(2), POSTGRES_PORT).into()).unwrap();
    assert!(wait_until(Duration::from_secs(5), || acknowledged_at(2) > 20));
    client.join().unwrap();

    let connection = second.connect().await.unwrap();
    let present = connection.query("select client, seq from ledger", &[]).await.unwrap();
    let present = present
        .iter()
        .map(|row| {
            let (client, seq): (i32, i64) = (row.get(0), row.get(1));
            (u32::try_from(client).unwrap(), u64::try_from(seq).unwrap())
        })
        .collect();
    let acknowledged = ledger::acknowledged(&files, 2).unwrap();
    let acknowledged = acknowledged.into_iter().map(|(row, ..)| row).collect();
    let verdict = ledger::compare(&ledger::sent(&files, 2).unwrap(), &acknowledged, &present);
    assert_eq!((verdict.lost, verdict.phantom), (vec![], vec![]));
    assert!(journal::read(&files.connections()).unwrap().len() >= 4);
    drop(connection);

    second.stop().unwrap();
    second.verify_checksums().await.unwrap();
    let left = in_network_namespace(&Layout::namespace_path(&layout.namespace(1))).unwrap();
    assert_eq!(left, [], "a killed server leaves no process");
}
