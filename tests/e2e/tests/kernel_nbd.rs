//! The kernel's own NBD driver, in the kernel of a machine (user-mode Linux): filesystem, PostgreSQL and
//! restarts of the daemon under load on /dev/nbdN.
#![allow(clippy::unwrap_used)]

use client::Client;
use client::api::Attachment;
use e2e::{TestLab, compared, eventually, fresh_dir, lab_with_machines, skipped, volume};
use lab::daemons::REPLICATOR;
use lab::machine::Job;
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::Duration;

/// The node that is a machine.
const NODE: u64 = 2;
const SIZE: u64 = 512 << 20;
/// For one step of a script in the machine, which is slow.
const PATIENCE: Duration = Duration::from_secs(90);

/// A lab whose node 2 is a machine; says that the test is skipped where there can be none.
async fn lab_or_skip(test: &str) -> Option<TestLab> {
    if let Some(missing) = lab::machine::missing() {
        skipped(test, &missing);
        return None;
    }
    Some(lab_with_machines(3, [NODE]).await.unwrap())
}

async fn run(lab: &TestLab, script: &str) -> String {
    Job::start(&lab.layout, NODE, script).unwrap().wait(PATIENCE).await.unwrap()
}

async fn attach(client: &Client, id: &str, frontend: &str) -> Attachment {
    eventually("attached", || async { Ok(client.attach_volume(id, frontend).await.is_ok()) })
        .await
        .unwrap();
    client.get_attachment(id).await.unwrap()
}

/// Ends the replicator in the machine, whose init starts it again; returns when the device is served
/// by the next one.
async fn restart(lab: &TestLab, client: &Client, id: &str, signal: &str) {
    let epoch = client.get_attachment(id).await.unwrap().epoch;
    // A machine is slow, and a node that dies unannounced and says nothing for three seconds loses its
    // volumes: the others stand still meanwhile.
    let others: &[u64] = if signal == "KILL" { &[1, 3] } else { &[] };
    for &node in others {
        lab.signal(node, REPLICATOR, Signal::SIGSTOP, None).unwrap();
    }
    let again = format!(
        "old=$(pidof replicator); kill -{signal} $old\n\
         until new=$(pidof replicator) && [ \"$new\" != \"$old\" ]; do sleep 0.1; done"
    );
    let ended = Job::start(&lab.layout, NODE, &again).unwrap().wait(PATIENCE).await;
    let second = client.clone().with_deadline(Duration::from_secs(1));
    eventually("node 2 is up", || async { Ok(second.get_node().await.is_ok()) }).await.unwrap();
    for &node in others {
        lab.signal(node, REPLICATOR, Signal::SIGCONT, None).unwrap();
    }
    ended.unwrap();
    eventually("the device is taken over", || async {
        let attachment = client.get_attachment(id).await;
        Ok(attachment.is_ok_and(|now| now.epoch > epoch && !now.failed))
    })
    .await
    .unwrap();
}

/// PostgreSQL's programs, run as its user, with everything below `/run/volume`, where `$1` is mounted.
const POSTGRES: &str = r#"
cd /
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
as() { program=$1; shift; setpriv --reuid=postgres --regid=postgres --init-groups -- "$bin/$program" "$@"; }
export PGHOST=/run/volume PGUSER=postgres PGDATABASE=postgres
"#;

fn postgres(script: &str) -> String {
    format!("{POSTGRES}{script}")
}

/// A database cluster with pgbench's tables, made on the host, which is quicker.
fn database() -> PathBuf {
    let directory = fresh_dir();
    let script = r#"
        mkdir "$1"
        chown postgres "$1"
        as initdb --no-sync --data-checksums --auth=trust --locale=C --wal-segsize=1 -D "$1" >/dev/null
        cat >>"$1/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '/run/volume'
shared_buffers = 32MB
dynamic_shared_memory_type = mmap
END
        as pg_ctl -D "$1" -o "-k $1" -l "$1/log" -w start >/dev/null
        PGHOST="$1" as pgbench -q -i -s 1 2>/dev/null
        as pg_ctl -D "$1" -w -m fast stop >/dev/null
    "#;
    let name = directory.display().to_string();
    lab::exec::run("sh", &["-euc", &postgres(script), "sh", &name]).unwrap();
    directory
}

const NO_ERRORS: &str = r#"
! dmesg | grep -E "I/O error|EXT4-fs error|Aborting journal"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_on_the_kernels_nbd_outlives_kill_and_upgrade_of_the_daemon() {
    let name = "postgres_on_the_kernels_nbd_outlives_kill_and_upgrade_of_the_daemon";
    let Some(lab) = lab_or_skip(name).await else { return };
    let client = lab.local_client(NODE).unwrap();
    let id = volume(&lab, "database", SIZE).await.unwrap().volume_id;
    let attached = attach(&client, &id, "kernel-nbd").await;
    let device = &attached.device;
    assert_eq!((device.as_str(), attached.frontend.as_str()), ("/dev/nbd0", "kernel-nbd"));
    run(&lab, &format!("mkfs.ext4 -q {device}; mkdir /run/volume; mount {device} /run/volume"))
        .await;
    // What the device promises is what makes a filesystem safe on it.
    let promises = "cd /sys/block/nbd0/queue; cat logical_block_size write_cache fua";
    assert_eq!(run(&lab, promises).await, "4096\nwrite back\n1\n");
    let made = database();
    let copy = format!(
        "chown postgres /run/volume
         cp -a {} /run/volume/data
         as postgres -D /run/volume/data >/run/postgres.log 2>&1 &
         until as pg_isready -q; do sleep 0.1; done",
        made.display()
    );
    run(&lab, &postgres(&copy)).await;
    std::fs::remove_dir_all(&made).unwrap();

    // One verified byte stream beside the database: fio reads back what it wrote.
    let verified = Job::start(
        &lab.layout,
        NODE,
        "fio --name=verified --directory=/run/volume --size=8M --rw=randwrite --bs=8k --direct=1 \
         --ioengine=psync --fsync=16 --verify=crc32c --verify_fatal=1 --rate_iops=60 \
         --minimal",
    )
    .unwrap();
    let load = postgres("as pgbench -n -c 2 -T 25 -P 1 --failures-detailed");
    let load = Job::start(&lab.layout, NODE, &load).unwrap();
    eventually("transactions", || async { Ok(load.output().matches("progress:").count() > 2) })
        .await
        .unwrap();
    for signal in ["KILL", "TERM"] {
        restart(&lab, &client, &id, signal).await;
    }
    let said = load.wait(PATIENCE).await.unwrap();
    println!("{said}");
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    verified.wait(PATIENCE).await.unwrap();
    run(&lab, &postgres(&format!("as pg_amcheck --install-missing\n{NO_ERRORS}"))).await;
    assert_eq!(compared(&lab, NODE, &client, &id, 2).await.unwrap(), 0);

    // Nobody takes a device away that somebody uses; then nothing of it is left.
    assert!(client.detach_volume(&id).await.is_err(), "it is mounted");
    run(&lab, &postgres("as pg_ctl stop -D /run/volume/data -m fast\numount /run/volume")).await;
    client.detach_volume(&id).await.unwrap();
    let left = run(&lab, "ls -d /sys/block/nbd*/pid 2>/dev/null || true; cat /sys/block/nbd0/size");
    assert_eq!(left.await, "0\n");
    run(&lab, NO_ERRORS).await;
}

/// With several connections the kernel waits longer before it sends again what nobody answered.
#[tokio::test(flavor = "multi_thread")]
async fn several_connections_lose_nothing_in_a_restart_and_the_device_grows() {
    let name = "several_connections_lose_nothing_in_a_restart_and_the_device_grows";
    let Some(lab) = lab_or_skip(name).await else { return };
    let client = lab.local_client(NODE).unwrap();
    let config = lab::daemons::config_file(&lab.layout, NODE);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("nbd_connections = 4\n{text}")).unwrap();
    run(&lab, "kill -TERM $(pidof replicator)").await;
    lab.wait_ready([NODE]).await.unwrap();
    let id = volume(&lab, "wide", SIZE).await.unwrap().volume_id;
    let device = attach(&client, &id, "kernel-nbd").await.device;
    let verified = Job::start(
        &lab.layout,
        NODE,
        &format!(
            "fio --name=verified --filename={device} --size=24M --rw=randwrite --bs=8k --direct=1 \
             --ioengine=libaio --iodepth=16 --rate_iops=200 --verify=crc32c --verify_fatal=1"
        ),
    )
    .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    restart(&lab, &client, &id, "KILL").await;
    verified.wait(PATIENCE).await.unwrap();

    lab.client(1).unwrap().expand_volume(&id, 2 * SIZE).await.unwrap();
    assert_eq!(client.resize_device(&id).await.unwrap(), 2 * SIZE);
    let size = run(&lab, &format!("blockdev --getsize64 {device}")).await;
    assert_eq!(size.trim(), (2 * SIZE).to_string());
    assert_eq!(compared(&lab, NODE, &client, &id, 2).await.unwrap(), 0);
    client.detach_volume(&id).await.unwrap();
    run(&lab, NO_ERRORS).await;
}
