//! What a new volume begins with: a snapshot, another volume as it is now, or zeros.

use client::{Client, api};
use core::fmt;
use csi_common::{FsType, RequestError, from_client, snapshot_id_in, volume_id_in};
use proto::csi::VolumeContentSource;
use proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use tonic::Status;
use types::{SnapshotId, VolumeId};

/// What a volume is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A restore.
    Snapshot(SnapshotId),
    /// A clone.
    Volume(VolumeId),
}

/// What is known of a [`Source`] before it is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// In bytes; a copy is at least as large.
    pub size: u64,
    /// What it was made for; `None`: raw use.
    pub fs_type: Option<FsType>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Volume(id) => write!(f, "volume {id}"),
        }
    }
}

impl Source {
    /// Reads `volume_content_source`. Call it after the other checks of a request: an id that cannot exist is
    /// an absent source, not a malformed request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it names nothing, NOT_FOUND if the id cannot be one of ours.
    pub fn parse(given: Option<&VolumeContentSource>) -> Result<Option<Self>, RequestError> {
        let Some(given) = given else { return Ok(None) };
        match &given.r#type {
            None => Err(RequestError::Missing {
                field: "volume_content_source.type",
                accepted: "snapshot, volume",
            }),
            Some(Type::Snapshot(SnapshotSource { snapshot_id })) => {
                let field = "volume_content_source.snapshot.snapshot_id";
                snapshot_id_in(field, snapshot_id).map(|id| Some(Self::Snapshot(id)))
            }
            Some(Type::Volume(VolumeSource { volume_id })) => {
                let field = "volume_content_source.volume.volume_id";
                volume_id_in(field, volume_id).map(|id| Some(Self::Volume(id)))
            }
        }
    }

    /// What `volume` was made of. An id that is none came from no replicator of ours.
    pub fn of(volume: &api::Volume) -> Option<Self> {
        let snapshot = volume.source_snapshot_id.parse().ok().map(Self::Snapshot);
        snapshot.or_else(|| volume.source_volume_id.parse().ok().map(Self::Volume))
    }

    /// For the control API.
    pub fn to_api(self) -> api::create_volume_request::Source {
        use api::create_volume_request::Source as Wire;
        match self {
            Self::Snapshot(id) => Wire::SourceSnapshotId(id.to_string()),
            Self::Volume(id) => Wire::SourceVolumeId(id.to_string()),
        }
    }

    /// For the answer of CreateVolume, as it was asked for.
    pub fn to_csi(self) -> VolumeContentSource {
        let kind = match self {
            Self::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
            Self::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string() }),
        };
        VolumeContentSource { r#type: Some(kind) }
    }

    /// Looks it up.
    ///
    /// # Errors
    /// NOT_FOUND, or what `client` fails with.
    pub async fn look_up(self, client: &Client) -> Result<Origin, Status> {
        let (size, fs_type) = match self {
            Self::Snapshot(id) => {
                let found = client.get_snapshot(&id.to_string()).await;
                let found = found.map_err(|e| from_client(&e))?;
                (found.size_bytes, found.fs_type)
            }
            Self::Volume(id) => {
                let found = client.get_volume(&id.to_string()).await;
                let found = found.map_err(|e| from_client(&e))?;
                (found.size_bytes, found.fs_type)
            }
        };
        let fs_type = FsType::parse("filesystem of the source", &fs_type)?;
        Ok(Origin { size, fs_type })
    }
}
