//! `holdfast snapshot ...`, and volumes that begin with a snapshot or another volume.

use crate::output::{Output, Table, size};
use crate::target::Target;
use crate::volume::ago;
use anyhow::Result;
use client::api::create_volume_request::Source;
use client::api::{CreateVolumeRequest, Snapshot, Volume, VolumeState};
use client::{Client, Error};
use serde_json::{Value, json};
use std::time::Instant;

/// Snapshots per page of a listing.
const PAGE: u32 = 500;

/// Commands on snapshots; a snapshot is named by its id or its name.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum SnapshotCommand {
    /// Takes a snapshot of a volume, in use or not; the same call again gives the same snapshot.
    Create {
        /// Its name.
        name: String,
        /// Of which volume, by id or name.
        #[arg(long)]
        volume: String,
    },
    /// Shows all snapshots.
    List {
        /// Of this volume only, by id (also of one that is deleted) or name.
        #[arg(long)]
        volume: Option<String>,
    },
    /// Deletes a snapshot; its volume, and volumes that were made of it, stay as they are.
    Delete {
        /// Id or name.
        snapshot: String,
    },
}

/// Runs a snapshot command.
///
/// # Errors
/// As the cluster answers.
pub async fn snapshot(target: &Target, command: SnapshotCommand, output: Output) -> Result<()> {
    let client = target.client()?;
    match command {
        SnapshotCommand::Create { name, volume } => {
            let volume = client.find_volume(&volume).await?.volume_id;
            let taken = client.create_snapshot(&name, &volume).await?;
            output.show(&snapshot_json(&taken), || table(core::slice::from_ref(&taken)))
        }
        SnapshotCommand::List { volume } => list(&client, volume, output).await,
        SnapshotCommand::Delete { snapshot } => {
            let id = client.find_snapshot(&snapshot).await?.snapshot_id;
            client.delete_snapshot(&id).await?;
            if output.json {
                output.line(&json!({ "snapshot_id": id, "result": "deleted" }).to_string())
            } else {
                output.line(&format!("{id} deleted"))
            }
        }
    }
}

async fn list(client: &Client, volume: Option<String>, output: Output) -> Result<()> {
    let volume = match volume {
        None => String::new(),
        // What is no name may be the id of a volume that is gone.
        Some(text) => client.find_volume(&text).await.map_or(text, |found| found.volume_id),
    };
    let mut snapshots = Vec::new();
    let mut after = String::new();
    loop {
        let page = client.list_snapshots(PAGE, &after, &volume).await?;
        snapshots.extend(page.snapshots);
        if page.next.is_empty() {
            break;
        }
        after = page.next;
    }
    let json: Vec<Value> = snapshots.iter().map(snapshot_json).collect();
    output.show(&Value::from(json), || table(&snapshots))
}

fn table(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&["SNAPSHOT", "NAME", "VOLUME", "SIZE", "TAKEN", "STATE", "ON"]);
    for snapshot in snapshots {
        table.row([
            snapshot.snapshot_id.clone(),
            snapshot.name.clone(),
            snapshot.volume_id.clone(),
            size(snapshot.size_bytes),
            ago(snapshot.created_unix_ms / 1000),
            if snapshot.ready { "ready" } else { "being taken" }.to_owned(),
            snapshot.holders.join(", "),
        ]);
    }
    table
}

fn snapshot_json(snapshot: &Snapshot) -> Value {
    json!({
        "snapshot_id": snapshot.snapshot_id,
        "name": snapshot.name,
        "volume_id": snapshot.volume_id,
        "size_bytes": snapshot.size_bytes,
        "created_unix_ms": snapshot.created_unix_ms,
        "ready": snapshot.ready,
        "holders": snapshot.holders,
        "fs_type": snapshot.fs_type,
    })
}

/// What a new volume is to begin with.
pub struct Found {
    /// For the request.
    pub source: Source,
    /// Bytes.
    pub size_bytes: u64,
    /// Filesystem.
    pub fs_type: String,
}

/// Finds the snapshot or the volume that a new volume is to begin with.
///
/// # Errors
/// As the cluster answers.
pub async fn source(
    client: &Client,
    snapshot: Option<String>,
    volume: Option<String>,
) -> Result<Option<Found>> {
    Ok(match (snapshot, volume) {
        (Some(text), _) => {
            let Snapshot { snapshot_id, size_bytes, fs_type, .. } =
                client.find_snapshot(&text).await?;
            Some(Found { source: Source::SourceSnapshotId(snapshot_id), size_bytes, fs_type })
        }
        (None, Some(text)) => {
            let Volume { volume_id, size_bytes, fs_type, .. } = client.find_volume(&text).await?;
            Some(Found { source: Source::SourceVolumeId(volume_id), size_bytes, fs_type })
        }
        (None, None) => None,
    })
}

/// Creates a volume; while one with a source is being filled it waits, and says so.
///
/// # Errors
/// As the cluster answers.
pub async fn create(client: &Client, request: CreateVolumeRequest) -> Result<Volume, Error> {
    let begun = Instant::now();
    loop {
        let error = match client.create_volume(request.clone()).await {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        let volume = client.get_volume_by_name(&request.name).await;
        let filling = volume.is_ok_and(|volume| volume.state() == VolumeState::Filling);
        if request.source.is_none() || !filling {
            return Err(error);
        }
        let seconds = begun.elapsed().as_secs();
        eprintln!("{}: being filled from its source, {seconds} s so far", request.name);
    }
}
