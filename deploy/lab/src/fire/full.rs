//! A pool without room: a volume of its node alone takes all that is left.

use super::pod::Pod;
use crate::cluster::Lab;
use crate::exec::run_async;
use anyhow::{Result, ensure};
use client::api::CreateVolumeRequest;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// Bytes of each pool in a soak: more than its volume, and little enough to be filled within seconds.
pub(super) const POOL_BYTES: u64 = 1536 << 20;
/// Longest wait for each call.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the database may take to notice that there is no room.
const NOTICE: Duration = Duration::from_secs(15);
/// The table is committed before it is filled: no crash leaves files of it behind. What was dropped is unlinked by
/// the checkpoint.
const MAKE_TABLE: [&str; 3] =
    ["DROP TABLE IF EXISTS stuffing", "CREATE TABLE stuffing (filler text)", "CHECKPOINT"];
/// 96 MB, and about as much in the log.
const FILL_TABLE: [&str; 2] = [
    "INSERT INTO stuffing
        SELECT repeat(md5(number::text), 60) FROM generate_series(1, 50000) AS number",
    "CHECKPOINT",
];

fn name(node: u64) -> String {
    format!("stuffing-{node}")
}

/// Writes until the pool of `node` has no slot left.
pub(super) async fn fill(lab: &Lab, node: u64) -> Result<()> {
    let request = CreateVolumeRequest {
        name: name(node),
        // Its end is never reached: the first half has more slots than the pool, so has the second one.
        size_bytes: 2 * POOL_BYTES,
        repl: 1,
        preferred_nodes: vec![node],
        placement: "local".into(),
        ..CreateVolumeRequest::default()
    };
    let volume = lab.client(node)?.with_deadline(PATIENCE).create_volume(request).await?;
    let local = lab.local_client(node)?.with_deadline(PATIENCE);
    let device = local.attach_volume(&volume.volume_id, "").await?.device;
    // A large write that fails may leave room for small ones.
    write_until_full(&device, 1 << 20, 0).await?;
    write_until_full(&device, 64 << 10, POOL_BYTES).await
}

async fn write_until_full(device: &str, piece: u64, from: u64) -> Result<()> {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/urandom", "oflag=direct", "conv=notrunc"]);
    dd.args([format!("of={device}"), format!("bs={piece}"), format!("seek={}", from / piece)]);
    let told = run_async(dd).await.unwrap_or_else(|error| error.to_string());
    ensure!(told.contains("No space left on device"), "filling a pool through {device}: {told}");
    Ok(())
}

/// Gives the room back.
pub(super) async fn empty(lab: &Lab, node: u64) -> Result<()> {
    let client = lab.client(node)?.with_deadline(PATIENCE);
    let volume = client.get_volume_by_name(&name(node)).await?;
    lab.local_client(node)?.with_deadline(PATIENCE).detach_volume(&volume.volume_id).await?;
    client.delete_volume(&volume.volume_id).await?;
    Ok(())
}

/// Gives back what the filesystem of `pod` does not use: what the database writes then needs room.
pub(super) async fn trim(pod: &Pod) -> Result<()> {
    execute(pod, &MAKE_TABLE).await?;
    let mount = pod.postgres.layout().target_path(pod.node, &pod.volume.volume_id);
    // syncfs(2) tells of errors once: of those when a pool was full under this mount before.
    let mut sync = Command::new("sync");
    sync.arg("--file-system").arg(&mount);
    if let Err(error) = run_async(sync).await {
        tracing::info!("from an earlier round: {error:#}");
    }
    let mut fstrim = Command::new("fstrim");
    fstrim.arg(&mount);
    run_async(fstrim).await.map(drop)
}

/// Has the database of `pod` write more than a full pool takes, to its disk.
pub(super) async fn need_room(pod: &Pod) -> Result<()> {
    // A filesystem may as well wait for room.
    let written = timeout(NOTICE, execute(pod, &FILL_TABLE)).await;
    ensure!(!matches!(written, Ok(Ok(()))), "a full pool took all that the database wrote");
    Ok(())
}

/// One transaction each.
async fn execute(pod: &Pod, statements: &[&str]) -> Result<()> {
    let client = pod.postgres.connect().await?;
    for statement in statements {
        client.batch_execute(statement).await?;
    }
    Ok(())
}
