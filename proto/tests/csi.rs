//! The wire contract of CSI 1.13 as facts: a renumbered or retyped field would still compile and then
//! talk nonsense with kubelet, so the numbers are written down a second time here.
#![allow(clippy::unwrap_used)]

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

fn csi() -> FileDescriptorProto {
    let set = FileDescriptorSet::decode(proto::CSI_DESCRIPTORS).unwrap();
    set.file.into_iter().find(|file| file.package() == "csi.v1").unwrap()
}

/// Message by its dotted path inside the package.
fn message<'a>(file: &'a FileDescriptorProto, path: &str) -> &'a DescriptorProto {
    let mut messages = &file.message_type;
    let mut found = None;
    for part in path.split('.') {
        let next = messages.iter().find(|m| m.name() == part);
        found = Some(next.unwrap_or_else(|| panic!("no message {path}")));
        messages = &found.unwrap().nested_type;
    }
    found.unwrap()
}

/// `string`, `repeated csi.v1.Topology`, `map` …: what the wire needs to know of a field.
fn type_of(owner: &DescriptorProto, field: &prost_types::FieldDescriptorProto) -> String {
    let name = field.type_name().trim_start_matches('.');
    let base = match field.r#type() {
        Type::Message | Type::Enum => name.to_string(),
        other => format!("{other:?}").to_lowercase(),
    };
    let is_map = owner.nested_type.iter().any(|n| {
        n.options.as_ref().is_some_and(|o| o.map_entry())
            && name.ends_with(&format!(".{}", n.name()))
    });
    match (is_map, field.label()) {
        (true, _) => "map".into(),
        (false, Label::Repeated) => format!("repeated {base}"),
        _ => base,
    }
}

/// message | field=number:type ...
const MESSAGES: &str = "
GetPluginInfoResponse | name=1:string vendor_version=2:string manifest=3:map
GetPluginCapabilitiesResponse | capabilities=1:[PluginCapability
PluginCapability | service=1:PluginCapability.Service volume_expansion=2:PluginCapability.VolumeExpansion
PluginCapability.Service | type=1:PluginCapability.Service.Type
PluginCapability.VolumeExpansion | type=1:PluginCapability.VolumeExpansion.Type
ProbeResponse | ready=1:google.protobuf.BoolValue
CreateVolumeRequest | name=1:string capacity_range=2:CapacityRange volume_capabilities=3:[VolumeCapability parameters=4:map secrets=5:map volume_content_source=6:VolumeContentSource accessibility_requirements=7:TopologyRequirement mutable_parameters=8:map
CreateVolumeResponse | volume=1:Volume
Volume | capacity_bytes=1:int64 volume_id=2:string volume_context=3:map content_source=4:VolumeContentSource accessible_topology=5:[Topology
VolumeContentSource | snapshot=1:VolumeContentSource.SnapshotSource volume=2:VolumeContentSource.VolumeSource
VolumeCapability | block=1:VolumeCapability.BlockVolume mount=2:VolumeCapability.MountVolume access_mode=3:VolumeCapability.AccessMode
VolumeCapability.BlockVolume |
VolumeCapability.MountVolume | fs_type=1:string mount_flags=2:[string volume_mount_group=3:string
VolumeCapability.AccessMode | mode=1:VolumeCapability.AccessMode.Mode
CapacityRange | required_bytes=1:int64 limit_bytes=2:int64
TopologyRequirement | requisite=1:[Topology preferred=2:[Topology
Topology | segments=1:map
DeleteVolumeRequest | volume_id=1:string secrets=2:map
ControllerPublishVolumeRequest | volume_id=1:string node_id=2:string volume_capability=3:VolumeCapability readonly=4:bool secrets=5:map volume_context=6:map
ValidateVolumeCapabilitiesRequest | volume_id=1:string volume_context=2:map volume_capabilities=3:[VolumeCapability parameters=4:map secrets=5:map mutable_parameters=6:map
ValidateVolumeCapabilitiesResponse | confirmed=1:ValidateVolumeCapabilitiesResponse.Confirmed message=2:string
ValidateVolumeCapabilitiesResponse.Confirmed | volume_context=1:map volume_capabilities=2:[VolumeCapability parameters=3:map mutable_parameters=4:map
ListVolumesRequest | max_entries=1:int32 starting_token=2:string
ListVolumesResponse | entries=1:[ListVolumesResponse.Entry next_token=2:string
ListVolumesResponse.Entry | volume=1:Volume status=2:ListVolumesResponse.VolumeStatus
ListVolumesResponse.VolumeStatus | published_node_ids=1:[string
GetCapacityRequest | volume_capabilities=1:[VolumeCapability parameters=2:map accessible_topology=3:Topology
GetCapacityResponse | available_capacity=1:int64 maximum_volume_size=2:google.protobuf.Int64Value minimum_volume_size=3:google.protobuf.Int64Value
ControllerGetCapabilitiesResponse | capabilities=1:[ControllerServiceCapability
ControllerServiceCapability | rpc=1:ControllerServiceCapability.RPC
ControllerExpandVolumeRequest | volume_id=1:string capacity_range=2:CapacityRange secrets=3:map volume_capability=4:VolumeCapability
ControllerExpandVolumeResponse | capacity_bytes=1:int64 node_expansion_required=2:bool
ControllerModifyVolumeRequest | volume_id=1:string secrets=2:map mutable_parameters=3:map
Snapshot | size_bytes=1:int64 snapshot_id=2:string source_volume_id=3:string creation_time=4:google.protobuf.Timestamp ready_to_use=5:bool group_snapshot_id=6:string accessible_topology=7:[Topology
CreateSnapshotRequest | source_volume_id=1:string name=2:string secrets=3:map parameters=4:map accessibility_requirements=5:TopologyRequirement
ListSnapshotsRequest | max_entries=1:int32 starting_token=2:string source_volume_id=3:string snapshot_id=4:string secrets=5:map
GetSnapshotRequest | snapshot_id=1:string secrets=2:map
NodeStageVolumeRequest | volume_id=1:string publish_context=2:map staging_target_path=3:string volume_capability=4:VolumeCapability secrets=5:map volume_context=6:map
NodeUnstageVolumeRequest | volume_id=1:string staging_target_path=2:string
NodePublishVolumeRequest | volume_id=1:string publish_context=2:map staging_target_path=3:string target_path=4:string volume_capability=5:VolumeCapability readonly=6:bool secrets=7:map volume_context=8:map
NodeUnpublishVolumeRequest | volume_id=1:string target_path=2:string
NodeGetVolumeStatsRequest | volume_id=1:string volume_path=2:string staging_target_path=3:string
NodeGetVolumeStatsResponse | usage=1:[VolumeUsage
VolumeUsage | available=1:int64 total=2:int64 used=3:int64 unit=4:VolumeUsage.Unit
VolumeHealth | volume_id=1:string health_statuses=2:[VolumeHealth.VolumeHealthEntry
VolumeHealth.VolumeHealthEntry | status=1:VolumeHealthErrorType reason=2:string message=3:string
ControllerListVolumeHealthRequest | max_entries=1:int32 starting_token=2:string secrets=3:map
ControllerListVolumeHealthResponse | entries=1:[VolumeHealth next_token=2:string
ControllerGetVolumeHealthRequest | volume_id=1:string secrets=2:map
NodeGetVolumeHealthRequest | volume_id=1:string volume_publish_path=2:string staging_target_path=3:string
NodeGetStorageHealthResponse | backend_health=1:[NodeGetStorageHealthResponse.StorageBackendHealth
NodeGetStorageHealthResponse.StorageBackendHealth | status=1:StorageHealthErrorType reason=2:string message=3:string volume_capability=4:VolumeCapability
NodeExpandVolumeRequest | volume_id=1:string volume_path=2:string capacity_range=3:CapacityRange staging_target_path=4:string volume_capability=5:VolumeCapability secrets=6:map
NodeExpandVolumeResponse | capacity_bytes=1:int64
NodeGetInfoResponse | node_id=1:string max_volumes_per_node=2:int64 accessible_topology=3:Topology
NodeServiceCapability | rpc=1:NodeServiceCapability.RPC
VolumeGroupSnapshot | group_snapshot_id=1:string snapshots=2:[Snapshot creation_time=3:google.protobuf.Timestamp ready_to_use=4:bool
CreateVolumeGroupSnapshotRequest | name=1:string source_volume_ids=2:[string secrets=3:map parameters=4:map
BlockMetadata | byte_offset=1:int64 size_bytes=2:int64
GetMetadataAllocatedRequest | snapshot_id=1:string starting_offset=2:int64 max_results=3:int32 secrets=4:map
GetMetadataDeltaRequest | base_snapshot_id=1:string target_snapshot_id=2:string starting_offset=3:int64 max_results=4:int32 secrets=5:map
GetMetadataDeltaResponse | block_metadata_type=1:BlockMetadataType volume_capacity_bytes=2:int64 block_metadata=3:[BlockMetadata
";

#[test]
fn fields_have_the_numbers_and_types_of_the_release() {
    let file = csi();
    for line in MESSAGES.trim().lines() {
        let (path, wanted) = line.split_once(" |").unwrap();
        let owner = message(&file, path);
        let found: Vec<String> = owner
            .field
            .iter()
            .map(|f| {
                let kind = type_of(owner, f).replace("csi.v1.", "").replace("repeated ", "[");
                format!("{}={}:{kind}", f.name(), f.number())
            })
            .collect();
        assert_eq!(found.join(" "), wanted.trim(), "message {path}");
    }
}

/// enum | value=number ...
const ENUMS: &str = "
PluginCapability.Service.Type | UNKNOWN=0 CONTROLLER_SERVICE=1 VOLUME_ACCESSIBILITY_CONSTRAINTS=2 GROUP_CONTROLLER_SERVICE=3 SNAPSHOT_METADATA_SERVICE=4 SNAPSHOT_ACCESSIBILITY_CONSTRAINTS=5
PluginCapability.VolumeExpansion.Type | UNKNOWN=0 ONLINE=1 OFFLINE=2
VolumeCapability.AccessMode.Mode | UNKNOWN=0 SINGLE_NODE_WRITER=1 SINGLE_NODE_READER_ONLY=2 MULTI_NODE_READER_ONLY=3 MULTI_NODE_SINGLE_WRITER=4 MULTI_NODE_MULTI_WRITER=5 SINGLE_NODE_SINGLE_WRITER=6 SINGLE_NODE_MULTI_WRITER=7
ControllerServiceCapability.RPC.Type | UNKNOWN=0 CREATE_DELETE_VOLUME=1 PUBLISH_UNPUBLISH_VOLUME=2 LIST_VOLUMES=3 GET_CAPACITY=4 CREATE_DELETE_SNAPSHOT=5 LIST_SNAPSHOTS=6 CLONE_VOLUME=7 PUBLISH_READONLY=8 EXPAND_VOLUME=9 LIST_VOLUMES_PUBLISHED_NODES=10 GET_VOLUME=12 SINGLE_NODE_MULTI_WRITER=13 MODIFY_VOLUME=14 GET_SNAPSHOT=15 GET_VOLUME_HEALTH=16 LIST_VOLUME_HEALTH=17
NodeServiceCapability.RPC.Type | UNKNOWN=0 STAGE_UNSTAGE_VOLUME=1 GET_VOLUME_STATS=2 EXPAND_VOLUME=3 SINGLE_NODE_MULTI_WRITER=5 VOLUME_MOUNT_GROUP=6 GET_VOLUME_HEALTH=7 GET_STORAGE_HEALTH=8
VolumeUsage.Unit | UNKNOWN=0 BYTES=1 INODES=2
VolumeHealthErrorType | UNKNOWN_VOLUME_HEALTH_TYPE=0 DEGRADED=1 INACCESSIBLE=2 DATA_LOSS=3
StorageHealthErrorType | UNKNOWN_STORAGE_HEALTH_ERROR_TYPE=0 STORAGE_DEGRADED=1 STORAGE_UNREACHABLE=2
GroupControllerServiceCapability.RPC.Type | UNKNOWN=0 CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT=1
";

#[test]
fn enums_have_the_numbers_of_the_release() {
    let file = csi();
    for line in ENUMS.trim().lines() {
        let (path, wanted) = line.split_once(" |").unwrap();
        let (enums, name) = match path.rsplit_once('.') {
            Some((owner, name)) => (&message(&file, owner).enum_type, name),
            None => (&file.enum_type, path),
        };
        let found = enums.iter().find(|e| e.name() == name).unwrap();
        let found: Vec<String> =
            found.value.iter().map(|v| format!("{}={}", v.name(), v.number())).collect();
        assert_eq!(found.join(" "), wanted.trim(), "enum {path}");
    }
}

#[test]
fn services_have_the_methods_of_the_release() {
    // Methods in this order; the types follow the names, and only SnapshotMetadata streams.
    let wanted = [
        ("Identity", "GetPluginInfo GetPluginCapabilities Probe"),
        (
            "Controller",
            "CreateVolume DeleteVolume ControllerPublishVolume ControllerUnpublishVolume \
             ValidateVolumeCapabilities ListVolumes ControllerListVolumeHealth \
             ControllerGetVolumeHealth GetCapacity ControllerGetCapabilities \
             CreateSnapshot DeleteSnapshot ListSnapshots GetSnapshot ControllerExpandVolume \
             ControllerGetVolume ControllerModifyVolume",
        ),
        (
            "GroupController",
            "GroupControllerGetCapabilities CreateVolumeGroupSnapshot DeleteVolumeGroupSnapshot \
             GetVolumeGroupSnapshot",
        ),
        ("SnapshotMetadata", "GetMetadataAllocated GetMetadataDelta"),
        (
            "Node",
            "NodeStageVolume NodeUnstageVolume NodePublishVolume NodeUnpublishVolume \
             NodeGetVolumeStats NodeGetVolumeHealth NodeGetStorageHealth NodeExpandVolume \
             NodeGetCapabilities NodeGetInfo",
        ),
    ];
    let file = csi();
    assert_eq!(file.service.len(), wanted.len());
    for (service, (name, methods)) in file.service.iter().zip(wanted) {
        assert_eq!(service.name(), name);
        let found: Vec<&str> = service.method.iter().map(|m| m.name()).collect();
        assert_eq!(found.join(" "), methods, "service {name}");
        for method in &service.method {
            assert_eq!(method.input_type(), format!(".csi.v1.{}Request", method.name()));
            assert_eq!(method.output_type(), format!(".csi.v1.{}Response", method.name()));
            assert_eq!(method.server_streaming(), name == "SnapshotMetadata", "{}", method.name());
            assert!(!method.client_streaming(), "{}", method.name());
        }
    }
}

#[test]
fn nothing_was_added_or_left_out() {
    fn count(message: &DescriptorProto) -> usize {
        message.field.len() + message.nested_type.iter().map(count).sum::<usize>()
    }
    let file = csi();
    assert_eq!(file.message_type.len(), 87);
    assert_eq!(file.message_type.iter().map(count).sum::<usize>(), 302);
}
