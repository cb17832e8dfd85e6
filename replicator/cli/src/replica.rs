//! `holdfast replica ...`.

use crate::output::Output;
use crate::target::Target;
use crate::volume::show;
use anyhow::{Result, bail};
use client::Client;
use client::api::{MoveReplicaRequest, Volume};
use core::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at a move that is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// Commands on copies of volumes.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ReplicaCommand {
    /// Makes a copy of a volume on another node and gives up an old one: the volume has its copies at
    /// every moment, and stays in use, or detached. Returns when the old copy is gone.
    Move {
        /// Id or name of the volume.
        volume: String,
        /// Number of the node whose copy leaves.
        #[arg(long)]
        from: u64,
        /// Number of the node for the new copy; the one with most room, in a zone of its own, if left
        /// out.
        #[arg(long, default_value_t = 0)]
        to: u64,
        /// Seconds to wait until it is done; 0: only order it. The move goes on either way.
        #[arg(long, default_value_t = 3600)]
        wait: u64,
    },
}

/// Runs a replica command.
///
/// # Errors
/// As the cluster answers; if the move is not done in time.
pub async fn replica(target: &Target, command: ReplicaCommand, output: Output) -> Result<()> {
    let ReplicaCommand::Move { volume, from, to, wait } = command;
    let client = target.client()?;
    let volume_id = client.find_volume(&volume).await?.volume_id;
    let request = MoveReplicaRequest { volume_id: volume_id.clone(), from, to };
    let ordered = client.move_replica(request).await?;
    if wait == 0 {
        return show(&ordered, output);
    }
    let end = Instant::now() + Duration::from_secs(wait);
    show(&moved(&client, &volume_id, from, end).await?, output)
}

/// Waits until `node` has no copy of the volume any more and the others are in sync.
async fn moved(client: &Client, volume_id: &str, node: u64, end: Instant) -> Result<Volume> {
    loop {
        let volume = client.get_volume(volume_id).await?;
        if !volume.degraded && volume.replicas.iter().all(|replica| replica.node != node) {
            return Ok(volume);
        }
        if Instant::now() >= end {
            bail!("node {node} still has its copy of {volume_id}; the move goes on");
        }
        sleep(LOOK).await;
    }
}
