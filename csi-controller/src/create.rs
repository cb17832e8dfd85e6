//! What CreateVolume may ask for, and whether a volume that exists is what was asked for.

use crate::controller::{check_name, present};
use crate::limits::{BANDWIDTH_LIMIT, IOPS_LIMIT};
use crate::parameters::{Changes, PLACEMENT, PRIORITY_IO, Parameters, Placement, REPL};
use crate::source::{Origin, Source};
use crate::topology::{self, Place};
use client::api;
use csi_common::{Access, Capability, FsType, RequestError, VOLUME_UNIT, capability, volume_size};
use proto::csi::{CreateVolumeRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability};
use tonic::Status;

/// A checked CreateVolume.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    /// In bytes; a copy without a required size is as large as its source instead.
    pub size: u64,
    pub required: u64,
    pub limit: u64,
    pub parameters: Parameters,
    pub use_as: Use,
    pub source: Option<Source>,
    /// Where the first copy is best, or with `placement: local` where it has to be; best first.
    pub near: Vec<Place>,
}

/// What the volume is for, as far as a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The filesystem that was asked for.
    pub fs_type: Option<FsType>,
    /// Whether it is to be mounted.
    pub mounted: bool,
}

impl Use {
    /// The filesystem of a volume that is a copy of `origin`, or that begins with zeros; `None`: raw use.
    pub fn fs_type(self, origin: Option<Origin>) -> Option<FsType> {
        let default = || origin.and_then(|origin| origin.fs_type).unwrap_or(FsType::Ext4);
        self.fs_type.or_else(|| self.mounted.then(default))
    }
}

impl Wanted {
    /// Size in bytes and filesystem of what is to be made.
    ///
    /// # Errors
    /// OUT_OF_RANGE if a copy of `origin` does not fit in, INVALID_ARGUMENT if it has another filesystem
    /// than was asked for.
    pub fn shape(&self, origin: Option<Origin>) -> Result<(u64, Option<FsType>), RequestError> {
        let fs_type = self.use_as.fs_type(origin);
        let Some(origin) = origin else { return Ok((self.size, fs_type)) };
        if let (Some(wanted), Some(is)) = (fs_type, origin.fs_type)
            && wanted != is
        {
            let accepted = format!("{is}, which is what is on the source");
            return Err(RequestError::invalid("filesystem", wanted.name(), accepted));
        }
        let out_of_range = |reason| Err(RequestError::OutOfRange { reason });
        let Origin { size: least, .. } = origin;
        if self.required != 0 && self.size < least {
            let required = self.required;
            return out_of_range(format!(
                "required_bytes {required} is less than the {least} bytes of the source"
            ));
        }
        // Without a required size it is a copy as large as the source.
        let size = if self.required == 0 { least } else { self.size };
        if self.limit != 0 && size > self.limit {
            let limit = self.limit;
            return out_of_range(format!(
                "limit_bytes {limit} is less than the {least} bytes of the source"
            ));
        }
        Ok((size, fs_type))
    }
}

/// ALREADY_EXISTS unless `volume` is what `wanted` asks for. A volume that was expanded since still is.
pub fn compatible(volume: &api::Volume, wanted: &Wanted) -> Result<(), Status> {
    let conflict = |what: &str, has: &dyn core::fmt::Display, asked: &dyn core::fmt::Display| {
        Err(Status::already_exists(format!(
            "volume {:?} exists with {what} {has}, and {asked} was asked for",
            wanted.name
        )))
    };
    let words = |source: Option<Source>| source.map_or("zeros".to_owned(), |s| s.to_string());
    let source = Source::of(volume);
    if source != wanted.source {
        return conflict("a content of", &words(source), &words(wanted.source));
    }
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
    let fs_type = match source {
        // It got its source's, which may be gone; nothing else was asked for.
        Some(_) if wanted.use_as == (Use { fs_type: None, mounted: true }) => &volume.fs_type,
        _ => wanted.use_as.fs_type(None).map_or("", FsType::name),
    };
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

/// The capabilities, of which there has to be at least one.
pub fn check_capabilities(given: &[VolumeCapability]) -> Result<Vec<Capability>, RequestError> {
    if given.is_empty() {
        let accepted = "at least one capability";
        return Err(RequestError::Missing { field: "volume_capabilities", accepted });
    }
    given.iter().map(|one| capability(Some(one))).collect()
}

/// The one use that parameters and capabilities agree on.
pub fn check_use(
    parameters: &Parameters,
    capabilities: &[Capability],
) -> Result<Use, RequestError> {
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
    Ok(Use { fs_type: chosen, mounted })
}

pub fn check_create(request: &CreateVolumeRequest) -> Result<Wanted, RequestError> {
    check_name(&request.name)?;
    let capabilities = check_capabilities(&request.volume_capabilities)?;
    let changes = Changes::parse(&request.mutable_parameters)?;
    let parameters = Parameters::parse(&request.parameters)?.changed_by(&changes);
    let use_as = check_use(&parameters, &capabilities)?;
    let least = use_as.fs_type(None).map_or(VOLUME_UNIT, FsType::least_volume);
    let size = volume_size(request.capacity_range.as_ref(), least)?;
    let range = request.capacity_range.unwrap_or_default();
    Ok(Wanted {
        name: request.name.clone(),
        size,
        required: range.required_bytes.unsigned_abs(),
        limit: range.limit_bytes.unsigned_abs(),
        parameters,
        use_as,
        source: Source::parse(request.volume_content_source.as_ref())?,
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
    for (key, limit, is) in [
        (IOPS_LIMIT, parameters.limits.iops, volume.iops_limit),
        (BANDWIDTH_LIMIT, parameters.limits.bandwidth, volume.bandwidth_limit),
    ] {
        if let Some(asked) = limit.filter(|asked| *asked != is) {
            return Err(format!("{key} is {is}, not {asked} (0: none)"));
        }
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
    check_use(&parameters, &capabilities).map(|_| ()).map_err(|e| e.to_string())
}
