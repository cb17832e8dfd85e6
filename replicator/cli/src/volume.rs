//! `holdfast volume ...`.

use crate::output::{Output, Table, parse_size, size};
use crate::snapshot;
use crate::target::Target;
use anyhow::Result;
use client::Client;
use client::api::{Attachment, CreateVolumeRequest, ModifyVolumeRequest, Volume, VolumeState};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Volumes per page of a listing.
const PAGE: u32 = 500;

/// Commands on volumes; a volume is named by its id or its name.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum VolumeCommand {
    /// Makes a volume; the same call again gives the same volume.
    Create {
        /// Its name.
        name: String,
        /// Its size, for example 10GiB; that of its source if left out.
        #[arg(long, value_parser = parse_size, required_unless_present_any = ["from_snapshot", "from_volume"])]
        size: Option<u64>,
        /// How many copies, 1 to 3.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3))]
        repl: u32,
        /// Class of the pools: high, medium, low; any if left out.
        #[arg(long, default_value = "")]
        priority_io: String,
        /// Filesystem to remember for staging: ext4 or xfs; that of its source if left out.
        #[arg(long, default_value = "")]
        fs_type: String,
        /// Nodes for the first copies if they have room, comma-separated.
        #[arg(long, value_delimiter = ',')]
        prefer: Vec<u64>,
        /// "local": to be used on nodes that hold a copy only, the first on a node of --prefer.
        #[arg(long, default_value = "")]
        placement: String,
        /// Begin with this snapshot, by id or name. The whole of it is copied.
        #[arg(long, conflicts_with = "from_volume")]
        from_snapshot: Option<String>,
        /// Begin with what this volume holds now, by id or name. The whole of it is copied.
        #[arg(long)]
        from_volume: Option<String>,
    },
    /// Changes how many copies a volume has, the class of their pools, or how much I/O it may do, while
    /// it is in use.
    Modify {
        /// Id or name.
        volume: String,
        /// How many copies, 1 to 3.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3))]
        repl: Option<u32>,
        /// Class of the pools: high, medium, low; "" for any.
        #[arg(long)]
        priority_io: Option<String>,
        /// Requests in a second, 100 to 1000000; 0 for no limit.
        #[arg(long)]
        iops_limit: Option<u64>,
        /// Bytes in a second, for example 100MiB, 1MiB to 64GiB; 0 for no limit.
        #[arg(long, value_parser = parse_limit)]
        bandwidth_limit: Option<u64>,
    },
    /// Shows all volumes.
    List,
    /// Shows a volume.
    Get {
        /// Id or name.
        volume: String,
    },
    /// Attaches a volume on the first endpoint's node, or node --on of a lab.
    Attach {
        /// Id or name.
        volume: String,
        /// "kernel-nbd" or "fuse-loop" for a kernel device, "nbd" for a Unix socket only; the node's best
        /// kernel device if left out.
        #[arg(long, default_value = "")]
        frontend: String,
    },
    /// Shows how a volume fares that is attached on that node: its device, and what the scrub has
    /// found since it was attached.
    Status {
        /// Id or name.
        volume: String,
    },
    /// Detaches a volume on that node.
    Detach {
        /// Id or name.
        volume: String,
    },
    /// Grows a volume, and its device if it is attached on that node.
    Expand {
        /// Id or name.
        volume: String,
        /// The new size, for example 20GiB.
        #[arg(long, value_parser = parse_size)]
        size: u64,
    },
    /// Reads all copies in sync, checks every block against its checksum and the other copies, and
    /// rewrites what is unreadable or corrupt from a good copy; the volume stays in use.
    #[command(visible_alias = "compare")]
    Scrub {
        /// Id or name.
        volume: String,
    },
    /// Deletes a volume with its data.
    Delete {
        /// Id or name.
        volume: String,
    },
}

fn parse_limit(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// Runs a volume command.
///
/// # Errors
/// As the cluster answers.
pub async fn volume(target: &Target, command: VolumeCommand, output: Output) -> Result<()> {
    let client = target.client()?;
    match command {
        VolumeCommand::Create {
            name,
            size,
            repl,
            priority_io,
            fs_type,
            prefer,
            placement,
            from_snapshot,
            from_volume,
        } => {
            let source = snapshot::source(&client, from_snapshot, from_volume).await?;
            let (source, least, carried) = source.map_or((None, 0, String::new()), |found| {
                (Some(found.source), found.size_bytes, found.fs_type)
            });
            let request = CreateVolumeRequest {
                name,
                size_bytes: size.unwrap_or(least),
                repl,
                priority_io,
                fs_type: if fs_type.is_empty() { carried } else { fs_type },
                preferred_nodes: prefer,
                placement,
                source,
            };
            show(&snapshot::create(&client, request).await?, output)
        }
        VolumeCommand::Modify { volume, repl, priority_io, iops_limit, bandwidth_limit } => {
            let volume_id = client.find_volume(&volume).await?.volume_id;
            let request =
                ModifyVolumeRequest { volume_id, repl, priority_io, iops_limit, bandwidth_limit };
            show(&client.modify_volume(request).await?, output)
        }
        VolumeCommand::List => list(&client, output).await,
        VolumeCommand::Get { volume } => show(&client.find_volume(&volume).await?, output),
        VolumeCommand::Attach { volume, frontend } => {
            let id = client.find_volume(&volume).await?.volume_id;
            show_attachment(&client.attach_volume(&id, &frontend).await?, output)
        }
        VolumeCommand::Status { volume } => {
            let id = client.find_volume(&volume).await?.volume_id;
            show_attachment(&client.get_attachment(&id).await?, output)
        }
        VolumeCommand::Detach { volume } => {
            let id = client.find_volume(&volume).await?.volume_id;
            client.detach_volume(&id).await?;
            done(output, &id, "detached")
        }
        VolumeCommand::Expand { volume, size } => expand(&client, &volume, size, output).await,
        VolumeCommand::Scrub { volume } => scrub(&client, &volume, output).await,
        VolumeCommand::Delete { volume } => {
            let id = client.find_volume(&volume).await?.volume_id;
            client.delete_volume(&id).await?;
            done(output, &id, "deleted")
        }
    }
}

fn done(output: Output, id: &str, what: &str) -> Result<()> {
    if output.json {
        output.line(&json!({ "volume_id": id, "result": what }).to_string())
    } else {
        output.line(&format!("{id} {what}"))
    }
}

async fn list(client: &Client, output: Output) -> Result<()> {
    let mut volumes = Vec::new();
    let mut after = String::new();
    loop {
        let page = client.list_volumes(PAGE, &after).await?;
        volumes.extend(page.volumes);
        if page.next.is_empty() {
            break;
        }
        after = page.next;
    }
    let json: Vec<Value> = volumes.iter().map(volume_json).collect();
    output.show(&Value::from(json), || table(&volumes))
}

/// Prints a volume.
///
/// # Errors
/// If standard output is closed.
pub fn show(volume: &Volume, output: Output) -> Result<()> {
    output.show(&volume_json(volume), || table(core::slice::from_ref(volume)))
}

async fn expand(client: &Client, volume: &str, size: u64, output: Output) -> Result<()> {
    let id = client.find_volume(volume).await?.volume_id;
    let grown = client.expand_volume(&id, size).await?;
    if client.get_attachment(&id).await.is_ok() {
        client.resize_device(&id).await?;
    }
    show(&grown, output)
}

async fn scrub(client: &Client, volume: &str, output: Output) -> Result<()> {
    let id = client.find_volume(volume).await?.volume_id;
    let found = client.compare_replicas(&id).await?;
    let json = json!({
        "volume_id": id,
        "compared_bytes": found.compared_bytes,
        "different_blocks": found.different_blocks,
        "replicas": found.replicas,
        "repaired_blocks": found.repaired_blocks,
        "unrepairable_blocks": found.unrepairable_blocks,
    });
    output.show(&json, || {
        let mut table = Table::new(&[
            "VOLUME",
            "REPLICAS",
            "COMPARED",
            "DIFFERENT 64 KIB BLOCKS",
            "REPAIRED 4 KIB BLOCKS",
            "UNREPAIRABLE",
        ]);
        table.row([
            id.clone(),
            found.replicas.to_string(),
            size(found.compared_bytes),
            found.different_blocks.to_string(),
            found.repaired_blocks.to_string(),
            found.unrepairable_blocks.to_string(),
        ]);
        table
    })?;
    anyhow::ensure!(found.different_blocks == 0, "the replicas of {id} differ");
    anyhow::ensure!(
        found.unrepairable_blocks == 0,
        "{} blocks of {id} are unreadable or corrupt on every replica",
        found.unrepairable_blocks
    );
    Ok(())
}

/// A volume's state in a word.
#[must_use]
pub fn state_word(volume: &Volume) -> &'static str {
    match volume.state() {
        VolumeState::Unspecified => "unknown",
        VolumeState::Creating => "creating",
        VolumeState::Detached => "detached",
        VolumeState::Attaching => "attaching",
        VolumeState::Attached => "attached",
        VolumeState::Fenced => "fenced",
        VolumeState::Deleting => "deleting",
        VolumeState::Filling => "filling",
    }
}

/// Volumes as a table.
#[must_use]
pub fn table(volumes: &[Volume]) -> Table {
    let mut table =
        Table::new(&["VOLUME", "NAME", "SIZE", "STATE", "ON", "EPOCH", "COPIES (in sync: *)"]);
    for volume in volumes {
        let copies: Vec<String> = volume
            .replicas
            .iter()
            .map(|replica| {
                let mark = if replica.in_sync { "*" } else { "" };
                let state = match replica.standing.as_str() {
                    "in sync" => "",
                    standing => standing,
                };
                let leaving = if replica.leaving { " leaving" } else { "" };
                format!(
                    "{}{mark}{}{state}{leaving}",
                    replica.node_name,
                    if state.is_empty() { "" } else { " " }
                )
            })
            .collect();
        let degraded = if volume.degraded { " DEGRADED" } else { "" };
        table.row([
            volume.volume_id.clone(),
            volume.name.clone(),
            size(volume.size_bytes),
            state_word(volume).to_owned(),
            volume.attached_node_name.clone(),
            volume.epoch.to_string(),
            format!("{}{degraded}", copies.join(", ")),
        ]);
    }
    table
}

/// A volume as JSON, with the names of the control API.
#[must_use]
pub fn volume_json(volume: &Volume) -> Value {
    let replicas: Vec<Value> = volume
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "replica_id": replica.replica_id,
                "node": replica.node,
                "node_name": replica.node_name,
                "in_sync": replica.in_sync,
                "state": replica.state,
                "standing": replica.standing,
                "leaving": replica.leaving,
            })
        })
        .collect();
    json!({
        "volume_id": volume.volume_id,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "repl": volume.repl,
        "priority_io": volume.priority_io,
        "fs_type": volume.fs_type,
        "iops_limit": volume.iops_limit,
        "bandwidth_limit": volume.bandwidth_limit,
        "placement": volume.placement,
        "source_snapshot_id": volume.source_snapshot_id,
        "source_volume_id": volume.source_volume_id,
        "state": state_word(volume),
        "epoch": volume.epoch,
        "isr_version": volume.isr_version,
        "attached_node": volume.attached_node,
        "attached_node_name": volume.attached_node_name,
        "degraded": volume.degraded,
        "replicas": replicas,
    })
}

/// How long ago that was.
#[must_use]
pub fn ago(unix_seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match (unix_seconds, now.saturating_sub(unix_seconds)) {
        (0, _) => "not yet".to_owned(),
        (_, seconds @ 0..120) => format!("{seconds} s ago"),
        (_, seconds @ 120..7200) => format!("{} min ago", seconds / 60),
        (_, seconds) => format!("{} h ago", seconds / 3600),
    }
}

fn show_attachment(attachment: &Attachment, output: Output) -> Result<()> {
    let json = json!({
        "volume_id": attachment.volume_id,
        "epoch": attachment.epoch,
        "device": attachment.device,
        "nbd_socket": attachment.nbd_socket,
        "frontend": attachment.frontend,
        "reason": attachment.reason,
        "failed": attachment.failed,
        "size_bytes": attachment.size_bytes,
        "scrubbed_bytes": attachment.scrubbed_bytes,
        "scrubbed_unix_seconds": attachment.scrubbed_unix_seconds,
        "repaired_blocks": attachment.repaired_blocks,
        "unrepairable_blocks": attachment.unrepairable_blocks,
        "differing_blocks": attachment.differing_blocks,
    });
    output.show(&json, || {
        let mut table = Table::new(&[
            "DEVICE",
            "FRONT-END",
            "EPOCH",
            "SCRUBBED",
            "LAST WHOLE SCRUB",
            "REPAIRED 4 KIB BLOCKS",
            "UNREPAIRABLE",
            "NBD",
        ]);
        table.row([
            attachment.device.clone(),
            attachment.frontend.clone(),
            attachment.epoch.to_string(),
            size(attachment.scrubbed_bytes),
            ago(attachment.scrubbed_unix_seconds),
            attachment.repaired_blocks.to_string(),
            attachment.unrepairable_blocks.to_string(),
            format!("nbd+unix:///{}?socket={}", attachment.volume_id, attachment.nbd_socket),
        ]);
        table
    })
}
