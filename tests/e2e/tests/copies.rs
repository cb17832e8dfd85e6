//! The copies of a volume in use: more of them, fewer, elsewhere; grow before shrink.
#![allow(clippy::unwrap_used)]

use client::Client;
use e2e::{Stamped, Stamper, TestLab, eventually, lab, volume};
use lab::exec::run;
use lab::rpc;
use proto::csi::ControllerModifyVolumeRequest;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const BLOCKS: u64 = 16_384;
const SIZE: u64 = 128 << 20;

/// A volume in use on node 1, and somebody who looks at its copies all the time.
struct InUse {
    lab: TestLab,
    client: Client,
    id: String,
    device: PathBuf,
    stamper: Stamper,
    least: Arc<AtomicUsize>,
    watcher: JoinHandle<()>,
}

impl InUse {
    async fn new(name: &str) -> Self {
        let lab = lab(3).await.unwrap();
        let id = volume(&lab, name, SIZE).await.unwrap().volume_id;
        let client = lab.client(1).unwrap();
        let local = lab.local_client(1).unwrap();
        let device = PathBuf::from(local.attach_volume(&id, "").await.unwrap().device);
        let stamper = Stamper::start(&device, BLOCKS, Stamped::default()).unwrap();
        eventually("some writes", || async { Ok(stamper.writes() > 1_000) }).await.unwrap();
        let least = Arc::new(AtomicUsize::new(usize::MAX));
        let watcher = tokio::spawn({
            let (client, id, least) = (client.clone(), id.clone(), Arc::clone(&least));
            async move {
                loop {
                    if let Ok(volume) = client.get_volume(&id).await {
                        let good = volume.replicas.iter().filter(|r| r.standing == "in sync");
                        least.fetch_min(good.count(), Ordering::Relaxed);
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        });
        Self { lab, client, id, device, stamper, least, watcher }
    }

    /// Waits until exactly the copies on `nodes` are there, all in sync, and the volume goes on.
    async fn settled(&self, nodes: &[u64]) {
        eventually(&format!("copies on {nodes:?} and nowhere else"), || async {
            let Ok(volume) = self.client.get_volume(&self.id).await else { return Ok(false) };
            let mut found: Vec<u64> = volume.replicas.iter().map(|r| r.node).collect();
            found.sort_unstable();
            let whole = !volume.degraded && volume.replicas.iter().all(|r| r.in_sync);
            Ok(whole && found == nodes)
        })
        .await
        .unwrap();
        let before = self.stamper.writes();
        eventually("writes go on", || async { Ok(self.stamper.writes() > before + 500) })
            .await
            .unwrap();
    }

    /// The fewest in-sync copies that were seen since the last call.
    fn least(&self) -> usize {
        self.least.swap(usize::MAX, Ordering::Relaxed)
    }

    /// Nothing was lost, nothing failed, all copies are the same.
    async fn end(self, copies: u32) {
        self.watcher.abort();
        let stamped = self.stamper.stop().unwrap();
        assert_eq!(stamped.error, None);
        assert!(stamped.longest_stall_ms < 10_000, "{} ms", stamped.longest_stall_ms);
        stamped.check(&self.device).unwrap();
        let local = self.lab.local_client(1).unwrap();
        let compared = local.compare_replicas(&self.id).await.unwrap();
        assert_eq!((compared.different_blocks, compared.replicas), (0, copies));
        local.detach_volume(&self.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_attributes_class_changes_how_many_copies_a_volume_in_use_has() {
    let used = InUse::new("modified").await;
    let modify = async |repl: &str| {
        let layout = &used.lab.layout;
        let mut controller = rpc::csi_controller(layout, used.lab.controller_node).await.unwrap();
        let request = ControllerModifyVolumeRequest {
            volume_id: used.id.clone(),
            mutable_parameters: [("repl".to_owned(), repl.to_owned())].into(),
            ..ControllerModifyVolumeRequest::default()
        };
        controller.controller_modify_volume(request).await
    };
    modify("3").await.unwrap();
    used.settled(&[1, 2, 3]).await;
    assert_eq!(used.least(), 2, "never fewer than it had");
    modify("1").await.unwrap();
    used.settled(&[1]).await;
    used.least();
    modify("2").await.unwrap();
    modify("2").await.unwrap();
    eventually("two copies", || async {
        let volume = used.client.get_volume(&used.id).await;
        Ok(volume.is_ok_and(|v| !v.degraded && v.repl == 2 && v.replicas.len() == 2))
    })
    .await
    .unwrap();
    assert_eq!(modify("4").await.unwrap_err().code(), tonic::Code::InvalidArgument);
    used.end(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_moves_while_the_volume_is_in_use_and_has_its_copies_at_every_moment() {
    let used = InUse::new("moved").await;
    let program = lab::daemons::programs().unwrap().join(lab::daemons::HOLDFAST);
    let dir = used.lab.layout.dir.display().to_string();
    let order = async |arguments: &'static [&'static str]| {
        let (program, dir) = (program.display().to_string(), dir.clone());
        let all = ["--lab", &dir, "replica", "move", "moved", "--wait", "60"]
            .iter()
            .chain(arguments)
            .map(|word| (*word).to_owned())
            .collect::<Vec<String>>();
        tokio::task::spawn_blocking(move || run(&program, &all)).await.unwrap()
    };
    order(&["--from", "2"]).await.unwrap();
    used.settled(&[1, 3]).await;
    // The one beside the engine as well: then every block comes over the network.
    order(&["--from", "1", "--to", "2"]).await.unwrap();
    used.settled(&[2, 3]).await;
    assert_eq!(used.least(), 2, "two copies at every moment");
    // What makes no sense is said.
    for (arguments, part) in [
        (&["--from", "1"] as &[&str], "no replica on node 1"),
        (&["--from", "2", "--to", "3"], "has a replica of the volume already"),
        (&["--from", "2", "--to", "9"], "there is no node"),
    ] {
        let error = order(arguments).await.unwrap_err().to_string();
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
    used.end(2).await;
}
