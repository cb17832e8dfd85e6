//! The Controller service.

use crate::create::{Wanted, check_capabilities, check_create, check_use, compatible, confirm};
use crate::health::health;
use crate::limits::Limits;
use crate::parameters::{Changes, Parameters, Placement};
use crate::source::Source;
use crate::{snapshots, topology};
use client::{Client, api};
use core::str::FromStr;
use core::time::Duration;
use csi_common::{
    CONTEXT_FS_TYPE, Capability, FsType, InFlight, RequestError, VOLUME_UNIT, capability,
    from_client, non_empty, volume_id, volume_size,
};
use proto::csi::controller_get_volume_response::VolumeStatus;
use proto::csi::controller_service_capability::{Rpc, Type, rpc};
use proto::csi::list_volumes_response::Entry;
use proto::csi::validate_volume_capabilities_response::Confirmed;
use proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerListVolumeHealthRequest,
    ControllerListVolumeHealthResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ControllerServiceCapability, CreateSnapshotRequest,
    CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest,
    DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest,
    GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeHealth,
    controller_server::Controller,
};
use std::collections::HashMap;
use tonic::{Code, Request, Response, Status};
use types::VolumeId;

/// Deadline of the calls behind one CSI call; the sidecars' own is longer and they call again.
const DEADLINE: Duration = Duration::from_secs(30);

/// Longest name of a volume or snapshot, in bytes.
const MAX_NAME: usize = 128;

type Answer<T> = Result<Response<T>, Status>;

/// The Controller service over a client of the cluster.
#[derive(Clone)]
pub struct ControllerService {
    client: Client,
    /// By volume id, or by name until there is one.
    in_flight: InFlight,
    /// By snapshot id, or by name until there is one, which a volume may have as well.
    snapshots_in_flight: InFlight,
    alpha: bool,
}

impl ControllerService {
    /// A service that asks `client`; with the calls that CSI calls alpha if `alpha`.
    #[must_use]
    pub fn new(client: &Client, alpha: bool) -> Self {
        Self {
            client: client.with_deadline(DEADLINE),
            in_flight: InFlight::default(),
            snapshots_in_flight: InFlight::default(),
            alpha,
        }
    }

    fn check_alpha(&self, call: &str) -> Result<(), Status> {
        if self.alpha {
            return Ok(());
        }
        Err(Status::unimplemented(format!("{call} is alpha: start csi-controller with --alpha")))
    }

    async fn volume(&self, id: &str) -> Result<api::Volume, Status> {
        let id = volume_id(id)?.to_string();
        self.client.get_volume(&id).await.map_err(|e| from_client(&e))
    }

    /// Volumes after `token` that something is wrong with, at most `limit` (0: all), and the token for
    /// the rest.
    async fn unwell(
        &self,
        limit: usize,
        token: String,
    ) -> Result<(Vec<VolumeHealth>, String), Status> {
        let mut found: Vec<VolumeHealth> = Vec::new();
        let mut after = token;
        loop {
            let page = self.client.list_volumes(0, &after).await.map_err(|e| from_client(&e))?;
            let unwell = page.volumes.iter().map(health);
            found.extend(unwell.filter(|volume| !volume.health_statuses.is_empty()));
            if limit != 0 && found.len() > limit {
                found.truncate(limit);
                let next = found.last().map(|last| last.volume_id.clone());
                return Ok((found, next.unwrap_or_default()));
            }
            if page.next.is_empty() {
                return Ok((found, String::new()));
            }
            after = page.next;
        }
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
                match volume.state() {
                    // Some replica is not there yet, or not filled: asking again waits for it.
                    api::VolumeState::Creating | api::VolumeState::Filling => {
                        self.ask(&wanted, volume.size_bytes, volume.fs_type).await
                    }
                    _ => {
                        self.limit(&volume, wanted.parameters.limits).await?;
                        Ok(present(&volume))
                    }
                }
            }
            Err(error) if error.code() == Code::NotFound => {
                let origin = match wanted.source {
                    Some(source) => Some(source.look_up(&self.client).await?),
                    None => None,
                };
                let (size, fs_type) = wanted.shape(origin)?;
                let fs_type = fs_type.map_or("", FsType::name);
                self.ask(&wanted, size, fs_type.to_owned()).await
            }
            Err(error) => Err(from_client(&error)),
        }
    }

    async fn ask(
        &self,
        wanted: &Wanted,
        size_bytes: u64,
        fs_type: String,
    ) -> Result<Volume, Status> {
        let preferred_nodes = if wanted.near.is_empty() {
            Vec::new()
        } else {
            let cluster = self.client.get_cluster().await.map_err(|e| from_client(&e))?;
            topology::nodes(&wanted.near, &cluster.nodes)
        };
        let request = api::CreateVolumeRequest {
            name: wanted.name.clone(),
            size_bytes,
            repl: wanted.parameters.repl,
            priority_io: wanted.parameters.priority_io.clone(),
            fs_type,
            preferred_nodes,
            placement: wanted.parameters.placement.word().to_owned(),
            source: wanted.source.map(Source::to_api),
        };
        let volume = self.client.create_volume(request).await.map_err(|e| from_client(&e))?;
        self.limit(&volume, wanted.parameters.limits).await?;
        Ok(present(&volume))
    }

    /// The limits of a new volume. One that was attached is not new any more: they may have been
    /// changed since.
    async fn limit(&self, volume: &api::Volume, limits: Limits) -> Result<(), Status> {
        if volume.epoch == 0 && limits.any() {
            let volume_id = volume.volume_id.clone();
            self.change(volume_id, Changes { limits, ..Changes::default() }).await?;
        }
        Ok(())
    }

    async fn change(&self, volume_id: String, changes: Changes) -> Result<(), Status> {
        let Changes { repl, priority_io, limits } = changes;
        let Limits { iops: iops_limit, bandwidth: bandwidth_limit } = limits;
        let request =
            api::ModifyVolumeRequest { volume_id, repl, priority_io, iops_limit, bandwidth_limit };
        self.client.modify_volume(request).await.map(drop).map_err(|e| from_client(&e))
    }

    async fn delete(&self, volume: VolumeId) -> Result<DeleteVolumeResponse, Status> {
        match self.client.delete_volume(&volume.to_string()).await {
            Ok(()) => Ok(DeleteVolumeResponse {}),
            Err(error) if error.code() == Code::NotFound => Ok(DeleteVolumeResponse {}),
            Err(error) => Err(from_client(&error)),
        }
    }

    /// The wish is committed when this returns; the copies follow it.
    async fn modify(
        &self,
        volume: VolumeId,
        changes: Changes,
    ) -> Result<ControllerModifyVolumeResponse, Status> {
        self.change(volume.to_string(), changes).await?;
        Ok(ControllerModifyVolumeResponse {})
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
pub(crate) fn to_wire(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A volume as CSI sees it. No topology, because every node can use it; but with `placement: local` the
/// nodes that hold its copies.
pub(crate) fn present(volume: &api::Volume) -> Volume {
    let mut volume_context = HashMap::new();
    if !volume.fs_type.is_empty() {
        volume_context.insert(CONTEXT_FS_TYPE.to_owned(), volume.fs_type.clone());
    }
    Volume {
        capacity_bytes: to_wire(volume.size_bytes),
        volume_id: volume.volume_id.clone(),
        volume_context,
        content_source: Source::of(volume).map(Source::to_csi),
        accessible_topology: match Placement::of(&volume.placement) {
            Placement::Anywhere => Vec::new(),
            Placement::Local => {
                let copies = volume.replicas.iter().filter(|replica| !replica.leaving);
                copies.map(|replica| topology::node(&replica.node_name)).collect()
            }
        },
    }
}

/// Checks the name of a volume or snapshot.
pub(crate) fn check_name(name: &str) -> Result<(), RequestError> {
    non_empty("name", name)?;
    // Control characters, as the specification bans them, and line breaks, which no log line needs.
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let accepted = "1-128 bytes without control characters";
        return Err(RequestError::invalid("name", name, accepted));
    }
    Ok(())
}

/// Checks what asks for a page of things whose ids are `Id`; returns how many entries it may have, 0 for
/// all.
pub(crate) fn check_page<Id: FromStr>(
    max_entries: i32,
    starting_token: &str,
) -> Result<u32, Status> {
    let entries = u32::try_from(max_entries).map_err(|_| {
        RequestError::invalid("max_entries", &max_entries.to_string(), "0 (all) or more")
    })?;
    // A token is the last id of the page before: it stays good when volumes and snapshots come and go.
    if !starting_token.is_empty() && starting_token.parse::<Id>().is_err() {
        return Err(Status::aborted(
            "starting_token is not accepted; accepted: empty, or next_token of an earlier answer",
        ));
    }
    Ok(entries)
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
        let volume = self.volume(&request.volume_id).await?;
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
        let max_entries = check_page::<VolumeId>(max_entries, &starting_token)?;
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
        let fs_type = check_use(&parameters, &capabilities)?.fs_type(None);
        let least = to_wire(fs_type.map_or(VOLUME_UNIT, FsType::least_volume));
        let mut answer = GetCapacityResponse {
            available_capacity: 0,
            maximum_volume_size: Some(0),
            minimum_volume_size: Some(least),
        };
        let segment = match topology::place(request.accessible_topology.as_ref()) {
            None => None,
            Some(place) => {
                let cluster = self.client.get_cluster().await.map_err(|e| from_client(&e))?;
                let nodes = topology::nodes(&[place], &cluster.nodes);
                // Outside of the cluster a volume cannot be used.
                if nodes.is_empty() {
                    return Ok(Response::new(answer));
                }
                Some(nodes)
            }
        };
        // A volume can be used from every node whichever pools hold it, so each segment offers all that
        // there is; unless the first copy has to be there.
        let pinned = segment.filter(|_| parameters.placement == Placement::Local);
        for node in pinned.unwrap_or_else(|| vec![0]) {
            let priority_io = parameters.priority_io.clone();
            let room = api::GetCapacityRequest { priority_io, repl: parameters.repl, node };
            let room = self.client.get_capacity(room).await.map_err(|e| from_client(&e))?;
            // Of several nodes the best one: what two have together depends on where the rest goes.
            let largest = to_wire(room.maximum_volume_bytes.min(types::MAX_VOLUME));
            answer.available_capacity =
                answer.available_capacity.max(to_wire(room.available_bytes));
            answer.maximum_volume_size = answer.maximum_volume_size.max(Some(largest));
        }
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

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Answer<ControllerModifyVolumeResponse> {
        let request = request.into_inner();
        non_empty("volume_id", &request.volume_id)?;
        let changes = Changes::parse(&request.mutable_parameters)?;
        let volume = volume_id(&request.volume_id)?;
        let this = self.clone();
        let work = async move { this.modify(volume, changes).await };
        self.alone("ControllerModifyVolume", &volume.to_string(), work).await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Answer<CreateSnapshotResponse> {
        let wanted = snapshots::check_create(request.get_ref())?;
        let (client, key) = (self.client.clone(), wanted.name.clone());
        let work = async move { snapshots::create(&client, &wanted).await };
        let snapshot = Some(self.snapshots_in_flight.run("CreateSnapshot", &key, work).await?);
        Ok(Response::new(CreateSnapshotResponse { snapshot }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        if let Some(snapshot) = snapshots::check_delete(request.get_ref())? {
            let client = self.client.clone();
            let work = async move { snapshots::delete(&client, snapshot).await };
            let key = snapshot.to_string();
            self.snapshots_in_flight.run("DeleteSnapshot", &key, work).await?;
        }
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        snapshots::list(&self.client, request.into_inner()).await.map(Response::new)
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Answer<GetSnapshotResponse> {
        self.check_alpha("GetSnapshot")?;
        let snapshot = Some(snapshots::get(&self.client, request.get_ref()).await?);
        Ok(Response::new(GetSnapshotResponse { snapshot }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        let mut kinds = vec![
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::CloneVolume,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::ModifyVolume,
        ];
        if self.alpha {
            kinds.extend([
                rpc::Type::GetVolume,
                rpc::Type::GetSnapshot,
                rpc::Type::GetVolumeHealth,
                rpc::Type::ListVolumeHealth,
            ]);
        }
        let capabilities = kinds
            .into_iter()
            .map(|kind| ControllerServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
            })
            .collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Answer<ControllerGetVolumeResponse> {
        self.check_alpha("ControllerGetVolume")?;
        let volume = self.volume(&request.get_ref().volume_id).await?;
        let node = Some(volume.attached_node_name.clone()).filter(|name| !name.is_empty());
        let status = VolumeStatus { published_node_ids: node.into_iter().collect() };
        let volume = Some(present(&volume));
        Ok(Response::new(ControllerGetVolumeResponse { volume, status: Some(status) }))
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Answer<ControllerGetVolumeHealthResponse> {
        self.check_alpha("ControllerGetVolumeHealth")?;
        let volume = self.volume(&request.get_ref().volume_id).await?;
        let volume_health = Some(health(&volume));
        Ok(Response::new(ControllerGetVolumeHealthResponse { volume_health }))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Answer<ControllerListVolumeHealthResponse> {
        self.check_alpha("ControllerListVolumeHealth")?;
        let request = request.into_inner();
        let limit = check_page::<VolumeId>(request.max_entries, &request.starting_token)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (entries, next_token) = self.unwell(limit, request.starting_token).await?;
        Ok(Response::new(ControllerListVolumeHealthResponse { entries, next_token }))
    }
}
