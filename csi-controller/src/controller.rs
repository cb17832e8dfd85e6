//! The Controller service.

use crate::parameters::Parameters;
use crate::topology;
use client::{Client, api};
use core::time::Duration;
use csi_common::{
    Access, CONTEXT_FS_TYPE, Capability, FsType, InFlight, RequestError, VOLUME_UNIT, capability,
    from_client, non_empty, refuse_content, volume_id, volume_size,
};
use proto::csi::controller_service_capability::{Rpc, Type, rpc};
use proto::csi::list_volumes_response::Entry;
use proto::csi::validate_volume_capabilities_response::Confirmed;
use proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerServiceCapability, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest,
    ListVolumesResponse, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
    Volume, VolumeCapability, controller_server::Controller,
};
use std::collections::HashMap;
use tonic::{Code, Request, Response, Status};
use types::VolumeId;

/// Longest volume name, in bytes.
const MAX_NAME: usize = 128;

/// Deadline of the calls behind one CSI call; the sidecars' own is longer and they call again.
const DEADLINE: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;

/// The Controller service over a client of the cluster.
#[derive(Clone)]
pub struct ControllerService {
    client: Client,
    in_flight: InFlight,
}

/// A checked CreateVolume.
#[derive(Clone, Debug)]
struct Wanted {
    name: String,
    size: u64,
    required: u64,
    limit: u64,
    parameters: Parameters,
    fs_type: Option<FsType>,
    preferred: Vec<String>,
}

impl ControllerService {
    /// A service that asks `client`.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self { client: client.with_deadline(DEADLINE), in_flight: InFlight::default() }
    }

    async fn alone<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Answer<T> {
        self.in_flight.run(operation, key, work).await.map(Response::new)
    }

    async fn create(&self, wanted: Wanted) -> Result<Volume, Status> {
        match self.client.get_volume_by_name(&wanted.name).await {
            Ok(volume) => {
                compatible(&volume, &wanted)?;
                if volume.state() != api::VolumeState::Creating {
                    return Ok(present(&volume));
                }
                // Some replica is not there yet: asking again waits for it.
                self.ask(&wanted, volume.size_bytes).await
            }
            Err(error) if error.code() == Code::NotFound => self.ask(&wanted, wanted.size).await,
            Err(error) => Err(from_client(&error)),
        }
    }

    async fn ask(&self, wanted: &Wanted, size_bytes: u64) -> Result<Volume, Status> {
        let preferred_nodes = if wanted.preferred.is_empty() {
            Vec::new()
        } else {
            let cluster = self.client.get_cluster().await.map_err(|e| from_client(&e))?;
            let names: Vec<&str> = wanted.preferred.iter().map(String::as_str).collect();
            topology::ids(&names, &cluster.nodes)
        };
        let request = api::CreateVolumeRequest {
            name: wanted.name.clone(),
            size_bytes,
            repl: wanted.parameters.repl,
            priority_io: wanted.parameters.priority_io.clone(),
            fs_type: wanted.fs_type.map_or("", FsType::name).to_owned(),
            preferred_nodes,
        };
        let volume = self.client.create_volume(request).await.map_err(|e| from_client(&e))?;
        Ok(present(&volume))
    }

    async fn delete(&self, volume: VolumeId) -> Result<DeleteVolumeResponse, Status> {
        match self.client.delete_volume(&volume.to_string()).await {
            Ok(()) => Ok(DeleteVolumeResponse {}),
            Err(error) if error.code() == Code::NotFound => Ok(DeleteVolumeResponse {}),
            Err(error) => Err(from_client(&error)),
        }
    }

    async fn expand(
        &self,
        volume: VolumeId,
        size: u64,
        limit: u64,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        let id = volume.to_string();
        let now = self.client.get_volume(&id).await.map_err(|e| from_client(&e))?.size_bytes;
        if limit != 0 && now > limit {
            let reason = format!("the volume has {now} bytes already, above limit_bytes {limit}");
            return Err(RequestError::OutOfRange { reason }.into());
        }
        let size = if now >= size {
            now
        } else {
            self.client.expand_volume(&id, size).await.map_err(|e| from_client(&e))?.size_bytes
        };
        let capacity_bytes = to_wire(size);
        // The device always has to follow; a filesystem on it too.
        Ok(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true })
    }
}

/// Bytes as csi.proto counts them; no volume comes near the limit.
fn to_wire(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A volume as CSI sees it. Always the same for the same volume; no topology, because every node can use it.
fn present(volume: &api::Volume) -> Volume {
    let mut volume_context = HashMap::new();
    if !volume.fs_type.is_empty() {
        volume_context.insert(CONTEXT_FS_TYPE.to_owned(), volume.fs_type.clone());
    }
    Volume {
        capacity_bytes: to_wire(volume.size_bytes),
        volume_id: volume.volume_id.clone(),
        volume_context,
        content_source: None,
        accessible_topology: Vec::new(),
    }
}

/// ALREADY_EXISTS unless `volume` is what `wanted` asks for. A volume that was expanded since still is.
fn compatible(volume: &api::Volume, wanted: &Wanted) -> Result<(), Status> {
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
fn check_capabilities(given: &[VolumeCapability]) -> Result<Vec<Capability>, RequestError> {
    if given.is_empty() {
        let accepted = "at least one capability";
        return Err(RequestError::Missing { field: "volume_capabilities", accepted });
    }
    given.iter().map(|one| capability(Some(one))).collect()
}

/// The one filesystem that parameters and capabilities agree on; `None` for a volume of raw use only.
fn check_fs_type(
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

fn check_mutable(given: &HashMap<String, String>) -> Result<(), RequestError> {
    match given.keys().min() {
        None => Ok(()),
        Some(key) => Err(RequestError::Unsupported {
            what: format!("mutable parameter {key:?}"),
            instead: "no parameter of a volume can be changed later: use a StorageClass",
        }),
    }
}

fn check_create(request: &CreateVolumeRequest) -> Result<Wanted, RequestError> {
    check_name(&request.name)?;
    let capabilities = check_capabilities(&request.volume_capabilities)?;
    let parameters = Parameters::parse(&request.parameters)?;
    check_mutable(&request.mutable_parameters)?;
    refuse_content(request.volume_content_source.as_ref())?;
    let fs_type = check_fs_type(&parameters, &capabilities)?;
    let least = fs_type.map_or(VOLUME_UNIT, FsType::least_volume);
    let size = volume_size(request.capacity_range.as_ref(), least)?;
    let range = request.capacity_range.unwrap_or_default();
    let preferred = topology::preferred(request.accessibility_requirements.as_ref());
    Ok(Wanted {
        name: request.name.clone(),
        size,
        required: range.required_bytes.unsigned_abs(),
        limit: range.limit_bytes.unsigned_abs(),
        parameters,
        fs_type,
        preferred: preferred.into_iter().map(str::to_owned).collect(),
    })
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Answer<CreateVolumeResponse> {
        let wanted = check_create(request.get_ref())?;
        let this = self.clone();
        let key = wanted.name.clone();
        let work = async move { this.create(wanted).await };
        let volume = self.alone("CreateVolume", &key, work).await?.into_inner();
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Answer<DeleteVolumeResponse> {
        let volume = match volume_id(&request.get_ref().volume_id) {
            Ok(volume) => volume,
            // What cannot exist is as good as deleted.
            Err(RequestError::NoVolume { .. }) => {
                return Ok(Response::new(DeleteVolumeResponse {}));
            }
            Err(error) => return Err(error.into()),
        };
        let this = self.clone();
        let work = async move { this.delete(volume).await };
        self.alone("DeleteVolume", &volume.to_string(), work).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            check_capabilities(&[])?;
        }
        let id = volume_id(&request.volume_id)?.to_string();
        let volume = self.client.get_volume(&id).await.map_err(|e| from_client(&e))?;
        let answer = match confirm(&volume, &request) {
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(message) => ValidateVolumeCapabilitiesResponse { confirmed: None, message },
        };
        Ok(Response::new(answer))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        let ListVolumesRequest { max_entries, starting_token } = request.into_inner();
        let max_entries = u32::try_from(max_entries).map_err(|_| {
            let accepted = "0 (all) or more";
            RequestError::invalid("max_entries", &max_entries.to_string(), accepted)
        })?;
        // A token is the last volume id of the page before: it stays good when volumes come and go.
        if !starting_token.is_empty() && starting_token.parse::<VolumeId>().is_err() {
            return Err(Status::aborted(
                "starting_token is not accepted; accepted: empty, or next_token of an earlier answer",
            ));
        }
        let page = self.client.list_volumes(max_entries, &starting_token).await;
        let page = page.map_err(|e| from_client(&e))?;
        let entry = |volume: &api::Volume| Entry { volume: Some(present(volume)), status: None };
        Ok(Response::new(ListVolumesResponse {
            entries: page.volumes.iter().map(entry).collect(),
            next_token: page.next,
        }))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Answer<GetCapacityResponse> {
        let request = request.into_inner();
        let parameters = Parameters::parse(&request.parameters)?;
        let capabilities: Vec<Capability> = request
            .volume_capabilities
            .iter()
            .map(|one| capability(Some(one)))
            .collect::<Result<_, _>>()?;
        let fs_type = check_fs_type(&parameters, &capabilities)?;
        let least = to_wire(fs_type.map_or(VOLUME_UNIT, FsType::least_volume));
        let mut answer = GetCapacityResponse {
            available_capacity: 0,
            maximum_volume_size: Some(0),
            minimum_volume_size: Some(least),
        };
        // A volume can be used from every node of the cluster whichever pools hold it, so each of
        // them offers all there is; a node outside of the cluster can use none.
        if let Some(name) = topology::segment(request.accessible_topology.as_ref()) {
            let cluster = self.client.get_cluster().await.map_err(|e| from_client(&e))?;
            if !cluster.nodes.iter().any(|node| node.name == name) {
                return Ok(Response::new(answer));
            }
        }
        let Parameters { repl, priority_io, .. } = parameters;
        let room = api::GetCapacityRequest { priority_io, repl, node: 0 };
        let room = self.client.get_capacity(room).await.map_err(|e| from_client(&e))?;
        answer.available_capacity = to_wire(room.available_bytes);
        answer.maximum_volume_size =
            Some(to_wire(room.maximum_volume_bytes.min(types::MAX_VOLUME)));
        Ok(Response::new(answer))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        let Some(range) = request.capacity_range else {
            let (field, accepted) = ("capacity_range", "required_bytes, limit_bytes or both");
            return Err(RequestError::Missing { field, accepted }.into());
        };
        if request.volume_capability.is_some() {
            capability(request.volume_capability.as_ref())?;
        }
        // Without a required size there is nothing to grow to: the volume stays as it is.
        let checked = volume_size(Some(&range), VOLUME_UNIT)?;
        let size = if range.required_bytes == 0 { 0 } else { checked };
        let volume = volume_id(&request.volume_id)?;
        let this = self.clone();
        let limit = range.limit_bytes.unsigned_abs();
        let work = async move { this.expand(volume, size, limit).await };
        self.alone("ControllerExpandVolume", &volume.to_string(), work).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        let kinds = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capabilities = kinds
            .into_iter()
            .map(|kind| ControllerServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
            })
            .collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }
}

/// Whether `volume` can be used as `request` says; if not, why.
fn confirm(
    volume: &api::Volume,
    request: &ValidateVolumeCapabilitiesRequest,
) -> Result<(), String> {
    let capabilities =
        check_capabilities(&request.volume_capabilities).map_err(|e| e.to_string())?;
    check_mutable(&request.mutable_parameters).map_err(|e| e.to_string())?;
    let present = present(volume).volume_context;
    if let Some(key) = request.volume_context.keys().filter(|key| !present.contains_key(*key)).min()
        && !key.starts_with("storage.kubernetes.io/")
    {
        return Err(format!("volume_context has no {key:?}"));
    }
    let mut parameters = Parameters::parse(&request.parameters).map_err(|e| e.to_string())?;
    if request.parameters.contains_key("repl") && parameters.repl != volume.repl {
        return Err(format!("repl is {}, not {}", volume.repl, parameters.repl));
    }
    if !parameters.priority_io.is_empty() && parameters.priority_io != volume.priority_io {
        let (is, asked) = (&volume.priority_io, &parameters.priority_io);
        return Err(format!("priority_io is {is:?}, not {asked:?}"));
    }
    if let Ok(fs_type) = FsType::parse("fs_type", &volume.fs_type) {
        if parameters.fs_type.is_some() && parameters.fs_type != fs_type {
            return Err(format!("the filesystem is {:?}", volume.fs_type));
        }
        parameters.fs_type = fs_type;
    }
    check_fs_type(&parameters, &capabilities).map(|_| ()).map_err(|e| e.to_string())
}
