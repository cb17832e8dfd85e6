//! What CreateVolume may ask for, and whether a volume that exists is what was asked for.

use crate::controller::present;
use crate::parameters::{Changes, PLACEMENT, PRIORITY_IO, Parameters, Placement, REPL};
use crate::topology::{self, Place};
use client::api;
use csi_common::{
    Access, Capability, FsType, RequestError, VOLUME_UNIT, capability, non_empty, refuse_content,
    volume_size,
};
use proto::csi::{CreateVolumeRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability};
use tonic::Status;

/// Longest volume name, in bytes.
const MAX_NAME: usize = 128;

/// A checked CreateVolume.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub size: u64,
    pub required: u64,
    pub limit: u64,
    pub parameters: Parameters,
    pub fs_type: Option<FsType>,
    /// Where the first copy is best, or with `placement: local` where it has to be; best first.
    pub near: Vec<Place>,
}

/// ALREADY_EXISTS unless `volume` is what `wanted` asks for. A volume that was expanded since still is.
pub fn compatible(volume: &api::Volume, wanted: &Wanted) -> Result<(), Status> {
    let conflict = |what: &str, has: &dyn core::fmt::Display, asked: &dyn core::fmt::Display| {
        Err(Status::already_exists(format!(
            "volume {:?} exists with {what} {has}, and {asked} was asked for",
            wanted.name
        )))
    };
    let fs_type = wanted.fs_type.map_or("", FsType::name);
    if volume.repl != wanted.parameters.repl {
        return conflict("repl", &volume.repl, &wanted.parameters.repl);
    }
    if volume.placement != wanted.parameters.placement.word() {
        let placement = wanted.parameters.placement;
        return conflict("placement", &Placement::of(&volume.placement), &placement);
    }
    if volume.priority_io != wanted.parameters.priority_io {
        return conflict("priority_io", &volume.priority_io, &wanted.parameters.priority_io);
    }
    if volume.fs_type != fs_type {
        return conflict("filesystem", &volume.fs_type, &fs_type);
    }
    if volume.size_bytes < wanted.required {
        return conflict("bytes", &volume.size_bytes, &wanted.required);
    }
    if wanted.limit != 0 && volume.size_bytes > wanted.limit {
        return conflict("bytes", &volume.size_bytes, &format_args!("at most {}", wanted.limit));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), RequestError> {
    non_empty("name", name)?;
    // Control characters, as the specification bans them, and line breaks, which no log line needs.
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let accepted = "1-128 bytes without control characters";
        return Err(RequestError::invalid("name", name, accepted));
    }
    Ok(())
}

/// The capabilities, of which there has to be at least one.
pub fn check_capabilities(given: &[VolumeCapability]) -> Result<Vec<Capability>, RequestError> {
    if given.is_empty() {
        let accepted = "at least one capability";
        return Err(RequestError::Missing { field: "volume_capabilities", accepted });
    }
    given.iter().map(|one| capability(Some(one))).collect()
}

/// The one filesystem that parameters and capabilities agree on; `None` for a volume of raw use only.
pub fn check_fs_type(
    parameters: &Parameters,
    capabilities: &[Capability],
) -> Result<Option<FsType>, RequestError> {
    let mut chosen = parameters.fs_type;
    let mut mounted = false;
    for capability in capabilities {
        let Access::Mount { fs_type, .. } = &capability.access else { continue };
        mounted = true;
        match (chosen, fs_type) {
            (Some(chosen), Some(other)) if chosen != *other => {
                return Err(RequestError::invalid(
                    "volume_capability.mount.fs_type",
                    other.name(),
                    format!("{chosen}, which was asked for before it in the same request"),
                ));
            }
            _ => chosen = chosen.or(*fs_type),
        }
    }
    Ok(if mounted { Some(chosen.unwrap_or(FsType::Ext4)) } else { chosen })
}

pub fn check_create(request: &CreateVolumeRequest) -> Result<Wanted, RequestError> {
    check_name(&request.name)?;
    let capabilities = check_capabilities(&request.volume_capabilities)?;
    let changes = Changes::parse(&request.mutable_parameters)?;
    let parameters = Parameters::parse(&request.parameters)?.changed_by(&changes);
    refuse_content(request.volume_content_source.as_ref())?;
    let fs_type = check_fs_type(&parameters, &capabilities)?;
    let least = fs_type.map_or(VOLUME_UNIT, FsType::least_volume);
    let size = volume_size(request.capacity_range.as_ref(), least)?;
    let range = request.capacity_range.unwrap_or_default();
    Ok(Wanted {
        name: request.name.clone(),
        size,
        required: range.required_bytes.unsigned_abs(),
        limit: range.limit_bytes.unsigned_abs(),
        parameters,
        fs_type,
        near: topology::places(request.accessibility_requirements.as_ref()),
    })
}

/// Whether `volume` can be used as `request` says; if not, why.
pub fn confirm(
    volume: &api::Volume,
    request: &ValidateVolumeCapabilitiesRequest,
) -> Result<(), String> {
    let capabilities =
        check_capabilities(&request.volume_capabilities).map_err(|e| e.to_string())?;
    let changes = Changes::parse(&request.mutable_parameters).map_err(|e| e.to_string())?;
    let present = present(volume).volume_context;
    if let Some(key) = request.volume_context.keys().filter(|key| !present.contains_key(*key)).min()
        && !key.starts_with("storage.kubernetes.io/")
    {
        return Err(format!("volume_context has no {key:?}"));
    }
    let given = Parameters::parse(&request.parameters).map_err(|e| e.to_string())?;
    let says = |key| request.parameters.contains_key(key) || changes.says(key);
    let mut parameters = given.changed_by(&changes);
    if says(REPL) && parameters.repl != volume.repl {
        return Err(format!("repl is {}, not {}", volume.repl, parameters.repl));
    }
    if says(PRIORITY_IO) && parameters.priority_io != volume.priority_io {
        let (is, asked) = (&volume.priority_io, &parameters.priority_io);
        return Err(format!("priority_io is {is:?}, not {asked:?}"));
    }
    if says(PLACEMENT) && parameters.placement.word() != volume.placement {
        let (is, asked) = (Placement::of(&volume.placement), parameters.placement);
        return Err(format!("placement is {is}, not {asked}"));
    }
    if let Ok(fs_type) = FsType::parse("fs_type", &volume.fs_type) {
        if parameters.fs_type.is_some() && parameters.fs_type != fs_type {
            return Err(format!("the filesystem is {:?}", volume.fs_type));
        }
        parameters.fs_type = fs_type;
    }
    check_fs_type(&parameters, &capabilities).map(|_| ()).map_err(|e| e.to_string())
}
