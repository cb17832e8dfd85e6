//! The copies of a volume in use: more of them, fewer, elsewhere; grow before shrink.
#![allow(clippy::unwrap_used)]

use client::Client;
use client::api::{ModifyVolumeRequest, MoveReplicaRequest, Volume};
use e2e::{Stamped, Stamper, TestLab, eventually, lab, lab_that_replaces, volume};
use lab::exec::run;
use lab::rpc;
use proto::csi::ControllerModifyVolumeRequest;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

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

/// Waits until exactly the copies on `nodes` are there, all in sync.
async fn settled(client: &Client, id: &str, nodes: &[u64]) {
    eventually(&format!("copies on {nodes:?} and nowhere else"), || async {
        let Ok(volume) = client.get_volume(id).await else { return Ok(false) };
        let mut found: Vec<u64> = volume.replicas.iter().map(|r| r.node).collect();
        found.sort_unstable();
        let whole = !volume.degraded && volume.replicas.iter().all(|r| r.in_sync);
        Ok(whole && found == nodes)
    })
    .await
    .unwrap();
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
        settled(&self.client, &self.id, nodes).await;
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

/// What passes in three seconds is what three seconds and the burst allow, and a lift is felt at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_io_holds_while_it_is_set() {
    let used = InUse::new("limited").await;
    let limit = async |iops: u64| {
        let request = ModifyVolumeRequest {
            volume_id: used.id.clone(),
            iops_limit: Some(iops),
            ..ModifyVolumeRequest::default()
        };
        used.client.modify_volume(request).await
    };
    limit(100).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let (before, begun) = (used.stamper.writes(), Instant::now());
    sleep(Duration::from_secs(3)).await;
    let (passed, took) = (used.stamper.writes() - before, begun.elapsed());
    let most = (took.as_secs_f64() * 100.0) as u64 + 12;
    assert!(passed <= most, "{passed} writes passed in {took:?}");
    assert_eq!(used.client.get_volume(&used.id).await.unwrap().iops_limit, 100);
    limit(0).await.unwrap();
    let lifted = used.stamper.writes();
    eventually("writes beyond the limit", || async { Ok(used.stamper.writes() > lifted + 1_000) })
        .await
        .unwrap();
    assert_eq!(limit(99).await.unwrap_err().code(), tonic::Code::InvalidArgument);
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

/// Nobody uses the volume: its copies are brought up to what it wants all the same, and whoever wants to
/// use it meanwhile need not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_detached_volume_are_replaced_moved_and_resynced() {
    const REPLACE_AFTER: u64 = 5;
    let lab = lab_that_replaces(4, REPLACE_AFTER).await.unwrap();
    let id = volume(&lab, "idle", 1 << 30).await.unwrap().volume_id;
    let local = lab.local_client(1).unwrap();
    let device = PathBuf::from(local.attach_volume(&id, "").await.unwrap().device);
    let stamper = Stamper::start(&device, BLOCKS, Stamped::default()).unwrap();
    eventually("some writes", || async { Ok(stamper.writes() > 3_000) }).await.unwrap();
    let stamped = stamper.stop().unwrap();
    local.detach_volume(&id).await.unwrap();

    let client = lab.client(1).unwrap();
    settled(&client, &id, &[1, 2]).await;
    let order = async |from, to| {
        let request = MoveReplicaRequest { volume_id: id.clone(), from, to };
        client.move_replica(request).await.unwrap();
    };
    order(2, 3).await;
    settled(&client, &id, &[1, 3]).await;
    lab.crash(3).unwrap();
    let gone = async || {
        let volume = client.get_volume(&id).await;
        // What it has is deleted when it is back.
        let good = |v: &Volume| v.replicas.iter().filter(|r| r.node != 3 && r.in_sync).count();
        Ok(volume.is_ok_and(|v| good(&v) == 2 && !v.degraded))
    };
    eventually("the copy of a lost node is replaced", gone).await.unwrap();
    lab.start(3).unwrap();
    lab.wait_ready([3]).await.unwrap();
    let forgotten = async || {
        let volume = client.get_volume(&id).await;
        Ok(volume.is_ok_and(|v| v.replicas.iter().all(|r| r.node != 3)))
    };
    eventually("what it had is deleted", forgotten).await.unwrap();

    // Somebody comes while a copy is being filled.
    let volume = client.get_volume(&id).await.unwrap();
    let other = volume.replicas.iter().find(|r| r.node != 1).unwrap().node;
    order(1, 3).await;
    eventually("a copy that is not in sync", || async {
        let volume = client.get_volume(&id).await?;
        let filling = volume.replicas.iter().any(|r| r.node == 3 && r.standing == "rebuilding");
        Ok(filling || volume.replicas.iter().any(|r| r.node == 3 && r.in_sync))
    })
    .await
    .unwrap();
    let user = lab.local_client(2).unwrap();
    let begun = Instant::now();
    let device = PathBuf::from(user.attach_volume(&id, "").await.unwrap().device);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    stamped.check(&device).unwrap();
    let mut nodes = vec![other, 3];
    nodes.sort_unstable();
    settled(&client, &id, &nodes).await;
    let compared = user.compare_replicas(&id).await.unwrap();
    assert_eq!((compared.different_blocks, compared.replicas), (0, 2));
    user.detach_volume(&id).await.unwrap();
    client.delete_volume(&id).await.unwrap();
}
