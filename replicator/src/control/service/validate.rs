//! Every value that a caller sends, checked: a refusal names the field, the value and what is
//! accepted (promise 6).

use crate::control::attach::Frontend;
use crate::control::status::invalid;
use client::api::CreateVolumeRequest;
use client::api::create_volume_request::Source;
use core::net::SocketAddr;
use core::ops::RangeInclusive;
use core::str::FromStr;
use metadata::{FailoverStep, FsType, PoolClass};
use tonic::Status;
use types::{MAX_VOLUME, NodeId, REGION, SnapshotId, VolumeId};

#[cfg(test)]
mod tests;

/// A checked CreateVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewVolume {
    pub(super) name: String,
    /// Bytes, a multiple of 1 MiB.
    pub(super) size: u64,
    pub(super) repl: u32,
    pub(super) class: Option<PoolClass>,
    pub(super) fs_type: Option<FsType>,
    pub(super) preferred: Vec<NodeId>,
    pub(super) pinned: bool,
    pub(super) source: Option<WantedSource>,
}

/// What a new volume is to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WantedSource {
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

pub(super) fn new_volume(request: CreateVolumeRequest) -> Result<NewVolume, Status> {
    Ok(NewVolume {
        name: volume_name(request.name)?,
        size: size(request.size_bytes)?,
        repl: repl(request.repl)?,
        class: pool_class(&request.priority_io)?,
        fs_type: FsType::parse_optional(&request.fs_type).map_err(|error| {
            let accepted = format!("\"\" or {}", error.accepted);
            invalid("fs_type", error.value, &accepted)
        })?,
        preferred: request.preferred_nodes.into_iter().map(NodeId).collect(),
        pinned: match request.placement.as_str() {
            "" => false,
            "local" => true,
            other => return Err(invalid("placement", other, "\"\" or \"local\"")),
        },
        source: match request.source {
            None => None,
            Some(Source::SourceSnapshotId(text)) => {
                let snapshot = parse("source_snapshot_id", &text, SNAPSHOT)?;
                Some(WantedSource::Snapshot(snapshot))
            }
            Some(Source::SourceVolumeId(text)) => {
                Some(WantedSource::Volume(parse("source_volume_id", &text, VOLUME)?))
            }
        },
    })
}

const VOLUME: &str = "the UUID that CreateVolume returned";
const SNAPSHOT: &str = "the UUID that CreateSnapshot returned";

fn parse<T: FromStr>(field: &str, text: &str, accepted: &str) -> Result<T, Status> {
    text.parse().map_err(|_| invalid(field, text, accepted))
}

pub(super) fn volume_id(text: &str) -> Result<VolumeId, Status> {
    parse("volume_id", text, VOLUME)
}

pub(super) fn snapshot_id(text: &str) -> Result<SnapshotId, Status> {
    parse("snapshot_id", text, SNAPSHOT)
}

/// For a `starting_after` that no listing gave; ABORTED is CSI's word for a token that cannot be used any
/// more.
pub(super) fn token(text: &str) -> Status {
    Status::aborted(format!(
        "starting_after: {text:?} is not accepted; accepted: \"\" or `next` of an earlier answer"
    ))
}

pub(super) fn volume_name(name: String) -> Result<String, Status> {
    let good = (1..=128).contains(&name.len()) && !name.chars().any(char::is_control);
    if good { Ok(name) } else { Err(invalid("name", name, "1 to 128 printable bytes")) }
}

/// Rounded up to whole MiB.
pub(super) fn size(bytes: u64) -> Result<u64, Status> {
    if (1..=MAX_VOLUME).contains(&bytes) {
        return Ok(bytes.next_multiple_of(REGION));
    }
    Err(invalid("size_bytes", bytes, &format!("1 to {MAX_VOLUME} bytes")))
}

pub(super) fn repl(copies: u32) -> Result<u32, Status> {
    if (1..=3).contains(&copies) { Ok(copies) } else { Err(invalid("repl", copies, "1, 2 or 3")) }
}

pub(super) fn pool_class(text: &str) -> Result<Option<PoolClass>, Status> {
    PoolClass::parse_optional(text).map_err(|error| {
        invalid("priority_io", error.value, &format!("\"\" or {}", error.accepted))
    })
}

/// A limit of I/O; 0 is none.
pub(super) fn limit(
    field: &str,
    limit: u64,
    accepted: RangeInclusive<u64>,
) -> Result<Option<u64>, Status> {
    if limit != 0 && !accepted.contains(&limit) {
        let accepted = format!("0 (none) or {} to {}", accepted.start(), accepted.end());
        return Err(invalid(field, limit, &accepted));
    }
    Ok(Some(limit).filter(|limit| *limit != 0))
}

/// `None`: the kernel device that the node chose.
pub(super) fn front_end(text: &str) -> Result<Option<Frontend>, Status> {
    let accepted = "\"\" (a kernel device), \"kernel-nbd\", \"fuse-loop\" or \"nbd\"";
    match (text, text.parse()) {
        ("", _) => Ok(None),
        ("nbd", _) => Ok(Some(Frontend::Nbd)),
        (_, Ok(kind)) => Ok(Some(Frontend::Kernel(kind))),
        (_, Err(_)) => Err(invalid("frontend", text, accepted)),
    }
}

pub(super) fn node_id(field: &str, node: u64) -> Result<NodeId, Status> {
    if node == 0 { Err(invalid(field, node, "a number from 1 on")) } else { Ok(NodeId(node)) }
}

pub(super) fn failover_step(text: &str) -> Result<FailoverStep, Status> {
    let accepted = || FailoverStep::ALL.map(FailoverStep::as_str).join(", ");
    FailoverStep::parse(text).ok_or_else(|| invalid("step", text, &accepted()))
}

pub(super) fn address(field: &str, text: &str) -> Result<SocketAddr, Status> {
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_unspecified() && address.port() != 0 => Ok(address),
        _ => Err(invalid(field, text, "IP:PORT as the other nodes reach it")),
    }
}
