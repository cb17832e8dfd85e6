//! A node whose disk for metadata is full.
#![allow(clippy::unwrap_used)]

use client::api::CreateVolumeRequest;
use e2e::{TestLab, eventually, lab};
use lab::daemons::REPLICATOR;
use lab::exec::run;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// Moves the data directory of a node that is down to a filesystem of its own.
fn on_small_filesystem(lab: &TestLab, node: u64) {
    let data = lab.layout.data_dir(node);
    let aside = data.with_extension("aside");
    let (data, aside) = (data.to_str().unwrap(), aside.to_str().unwrap());
    fs::rename(data, aside).unwrap();
    fs::create_dir(data).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", data]).unwrap();
    run("cp", &["-a", "--no-target-directory", aside, data]).unwrap();
}

fn fill(file: &Path) {
    let mut file = File::create(file).unwrap();
    // The last bytes, too.
    for piece in [&[1; 65_536][..], &[1; 512], &[1]] {
        while file.write_all(piece).is_ok() {}
    }
}

/// It must end: half a daemon keeps its sockets, and whoever asks it waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_cannot_write_its_log_ends_and_comes_back_when_it_can() {
    let lab = lab(3).await.unwrap();
    lab.kill(3).unwrap();
    on_small_filesystem(&lab, 3);
    lab.start(3).unwrap();
    lab.wait_ready([3]).await.unwrap();
    let stuffing = lab.layout.data_dir(3).join("stuffing");
    fill(&stuffing);

    let client = lab.client(1).unwrap().with_deadline(Duration::from_secs(20));
    let mut number = 0;
    eventually("the daemon ends", || {
        number += 1;
        let name = format!("v{number}");
        let request =
            CreateVolumeRequest { name, size_bytes: 1 << 20, repl: 2, ..Default::default() };
        let (client, lab) = (&client, &lab);
        async move {
            // Refused or not for this one or that: the other nodes go on.
            client.create_volume(request).await?;
            Ok(lab.processes(3, REPLICATOR)?.is_empty())
        }
    })
    .await
    .unwrap();

    fs::remove_file(&stuffing).unwrap();
    lab.start(3).unwrap();
    lab.wait_ready([3]).await.unwrap();
    let third = lab.local_client(3).unwrap();
    eventually("the node is up", || async {
        let cluster = lab.client(1)?.get_cluster().await?;
        Ok(third.get_node().await?.ready && cluster.nodes.iter().all(|node| node.state == "up"))
    })
    .await
    .unwrap();
    assert!(client.list_volumes(0, "").await.unwrap().volumes.len() >= number - 1);
}
