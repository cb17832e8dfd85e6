//! The controller services against an in-process Control server.
#![allow(clippy::unwrap_used)]

mod health;
mod snapshots;

use crate::{ControllerService, LeaderReachable};
use client::Client;
use csi_common::fake::{FakeControl, FakeServer};
use csi_common::{Identity, Readiness};
use proto::control::GetCapacityResponse as Room;
use proto::csi::controller_server::Controller;
use proto::csi::identity_server::Identity as _;
use proto::csi::volume_capability::access_mode::Mode;
use proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use proto::csi::*;
use std::collections::HashMap;
use tonic::{Code, Request, Status};

const MIB: i64 = 1 << 20;
const NOBODY: &str = "0b51f6cc-6a3b-4c53-9e0f-2f6f4bd1a3de";

struct Fixture {
    service: ControllerService,
    client: Client,
    fake: FakeServer,
    _directory: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let fake = FakeControl::new(path.clone(), path).serve().await;
        let client = Client::new([&fake.endpoint]).unwrap();
        Self { service: ControllerService::new(&client, true), client, fake, _directory: directory }
    }

    async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let answer = self.service.create_volume(Request::new(request)).await?;
        Ok(answer.into_inner().volume.unwrap())
    }

    async fn expand(&self, id: &str, required: i64, limit: i64) -> Result<i64, Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(CapacityRange { required_bytes: required, limit_bytes: limit }),
            ..ControllerExpandVolumeRequest::default()
        };
        let answer = self.service.controller_expand_volume(Request::new(request)).await?;
        assert!(answer.get_ref().node_expansion_required);
        Ok(answer.into_inner().capacity_bytes)
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.into(), secrets: HashMap::new() };
        self.service.delete_volume(Request::new(request)).await.map(|_| ())
    }
}

fn capability(mode: Mode, access: AccessType) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

fn mount(fs_type: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    capability(Mode::SingleNodeWriter, AccessType::Mount(mount))
}

fn block() -> VolumeCapability {
    capability(Mode::SingleNodeWriter, AccessType::Block(BlockVolume {}))
}

fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

fn text(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A request that is granted; tests change what they are about.
fn wanted(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: range(64 * MIB, 0),
        volume_capabilities: vec![mount("")],
        ..CreateVolumeRequest::default()
    }
}

#[tokio::test]
async fn a_storage_class_reaches_the_cluster() {
    let f = Fixture::new().await;
    let on = |name: &str| Topology { segments: text(&[("holdfast.dev/node", name)]) };
    let request = CreateVolumeRequest {
        parameters: text(&[
            ("repl", "3"),
            ("priority_io", "high"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "data-0"),
        ]),
        capacity_range: range(400 * MIB + 1, 0),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![on("n1"), on("n3")],
            preferred: vec![on("n3")],
        }),
        ..wanted("pvc-1")
    };
    let volume = f.create(request).await.unwrap();
    assert_eq!(volume.capacity_bytes, 401 * MIB);
    assert_eq!(volume.volume_context, text(&[("holdfast.dev/fstype", "xfs")]));
    assert!(volume.accessible_topology.is_empty(), "every node can use it");
    let asked = f.fake.control.state().last_create.clone().unwrap();
    assert_eq!((asked.repl, asked.priority_io.as_str()), (3, "high"));
    assert_eq!((asked.fs_type.as_str(), asked.preferred_nodes), ("xfs", vec![3, 1]));
}

#[tokio::test]
async fn defaults() {
    let f = Fixture::new().await;
    let request = CreateVolumeRequest { capacity_range: None, ..wanted("pvc-1") };
    assert_eq!(f.create(request).await.unwrap().capacity_bytes, 1024 * MIB);
    let asked = f.fake.control.state().last_create.clone().unwrap();
    assert_eq!((asked.repl, asked.fs_type.as_str(), asked.priority_io.as_str()), (2, "ext4", ""));
    let request = CreateVolumeRequest { volume_capabilities: vec![block()], ..wanted("pvc-2") };
    assert!(f.create(request).await.unwrap().volume_context.is_empty());
}

/// A change of a good request.
type Change = fn(&mut CreateVolumeRequest);

/// A change, the code and a part of the message that it must lead to.
type Refusal = (Change, Code, &'static str);

type Pairs = &'static [(&'static str, &'static str)];

#[tokio::test]
async fn what_cannot_be_created_is_refused_and_nothing_is_asked() {
    let table: &[Refusal] = &[
        (|r| r.name.clear(), Code::InvalidArgument, "name is missing"),
        (|r| r.name = "a".repeat(129), Code::InvalidArgument, "1-128 bytes"),
        (|r| r.name = "a\u{7}b".into(), Code::InvalidArgument, "without control characters"),
        (|r| r.volume_capabilities.clear(), Code::InvalidArgument, "volume_capabilities"),
        (|r| r.volume_capabilities.push(mount("btrfs")), Code::InvalidArgument, "ext4, xfs"),
        (
            |r| {
                let shared = AccessType::Mount(MountVolume::default());
                r.volume_capabilities.push(capability(Mode::MultiNodeMultiWriter, shared));
            },
            Code::InvalidArgument,
            "MULTI_NODE_MULTI_WRITER",
        ),
        (
            |r| r.volume_capabilities = vec![mount("xfs"), mount("ext4")],
            Code::InvalidArgument,
            "accepted: xfs",
        ),
        (
            |r| {
                r.parameters = text(&[("csi.storage.k8s.io/fstype", "xfs")]);
                r.volume_capabilities = vec![mount("ext4")];
            },
            Code::InvalidArgument,
            "accepted: xfs",
        ),
        (|r| r.parameters = text(&[("repl", "5")]), Code::InvalidArgument, "accepted: 1, 2, 3"),
        (|r| r.parameters = text(&[("cow", "1")]), Code::InvalidArgument, "\"cow\""),
        (|r| r.mutable_parameters = text(&[("iops", "1")]), Code::InvalidArgument, "iops"),
        (
            |r| r.volume_content_source = Some(VolumeContentSource::default()),
            Code::InvalidArgument,
            "volume_content_source",
        ),
        (|r| r.capacity_range = range(2 * MIB, MIB), Code::OutOfRange, "required_bytes"),
        (|r| r.capacity_range = range(MIB, 2 * MIB), Code::OutOfRange, "limit_bytes"),
        (
            |r| {
                r.capacity_range = range(0, 100 * MIB);
                r.volume_capabilities = vec![mount("xfs")];
            },
            Code::OutOfRange,
            "at least 314572800",
        ),
    ];
    let f = Fixture::new().await;
    for (change, code, part) in table {
        let mut request = wanted("pvc-1");
        change(&mut request);
        let error = f.create(request).await.unwrap_err();
        assert_eq!(error.code(), *code, "{error}");
        assert!(error.message().contains(part), "{error}, wanted {part:?}");
    }
    assert!(f.fake.control.state().calls.is_empty());
}

#[tokio::test]
async fn create_is_idempotent_and_tells_conflicts() {
    let f = Fixture::new().await;
    let first = f.create(wanted("pvc-1")).await.unwrap();
    assert_eq!(f.create(wanted("pvc-1")).await.unwrap(), first);
    // The range of a second request need not be the same, only fit.
    let fits = CreateVolumeRequest { capacity_range: range(MIB, 100 * MIB), ..wanted("pvc-1") };
    assert_eq!(f.create(fits).await.unwrap(), first);
    // Nor does growing it make it another volume.
    f.expand(&first.volume_id, 128 * MIB, 0).await.unwrap();
    assert_eq!(f.create(wanted("pvc-1")).await.unwrap().volume_id, first.volume_id);

    let conflicts: [(Change, &str); 5] = [
        (|r| r.capacity_range = range(129 * MIB, 0), "bytes 134217728"),
        (|r| r.capacity_range = range(MIB, 127 * MIB), "at most"),
        (|r| r.parameters = text(&[("repl", "1")]), "repl 2, and 1"),
        (|r| r.parameters = text(&[("priority_io", "low")]), "priority_io"),
        (
            |r| {
                r.volume_capabilities = vec![mount("xfs")];
                r.capacity_range = None;
            },
            "filesystem ext4, and xfs",
        ),
    ];
    for (change, part) in conflicts {
        let mut request = wanted("pvc-1");
        change(&mut request);
        let error = f.create(request).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        assert!(error.message().contains(part), "{error}, wanted {part:?}");
    }
    assert_eq!(f.fake.control.state().volumes.len(), 1);
}

#[tokio::test]
async fn a_volume_that_is_being_created_is_waited_for() {
    let f = Fixture::new().await;
    let first = f.create(wanted("pvc-1")).await.unwrap();
    {
        let mut state = f.fake.control.state();
        state.volumes.get_mut(&first.volume_id).unwrap().state =
            proto::control::VolumeState::Creating.into();
        state.last_create = None;
    }
    assert_eq!(f.create(wanted("pvc-1")).await.unwrap(), first);
    let asked = f.fake.control.state().last_create.clone().unwrap();
    assert_eq!(asked.size_bytes, 64 << 20, "asked again, with the size that it has");
}

#[tokio::test]
async fn delete_is_idempotent_and_passes_refusals_on() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap();
    let held = (Code::FailedPrecondition, "attached to n2".to_owned());
    f.fake.control.state().refuse.insert("DeleteVolume", held);
    let error = f.delete(&volume.volume_id).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "attached to n2"));
    f.fake.control.state().refuse.clear();
    for id in [volume.volume_id.as_str(), volume.volume_id.as_str(), NOBODY, "reallyfakeid"] {
        f.delete(id).await.unwrap();
    }
    assert!(f.fake.control.state().volumes.is_empty());
    assert_eq!(f.delete("").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn expand_grows_and_never_shrinks() {
    let f = Fixture::new().await;
    let id = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    // required, limit -> size in MiB, or a code
    let table: &[(i64, i64, Result<i64, Code>)] = &[
        (100 * MIB, 0, Ok(100)),
        (100 * MIB, 0, Ok(100)),
        (100 * MIB + 1, 0, Ok(101)),
        (64 * MIB, 0, Ok(101)),
        (0, 200 * MIB, Ok(101)),
        (0, 100 * MIB, Err(Code::OutOfRange)),
        (64 * MIB, 100 * MIB, Err(Code::OutOfRange)),
        (300 * MIB, 200 * MIB, Err(Code::OutOfRange)),
        (-1, 0, Err(Code::InvalidArgument)),
        (i64::MAX, 0, Err(Code::OutOfRange)),
    ];
    for (required, limit, wanted) in table {
        let found = f.expand(&id, *required, *limit).await.map(|b| b / MIB).map_err(|e| e.code());
        assert_eq!(found, *wanted, "{required} {limit}");
    }
    for (id, code) in
        [("", Code::InvalidArgument), ("no-uuid", Code::NotFound), (NOBODY, Code::NotFound)]
    {
        assert_eq!(f.expand(id, MIB, 0).await.unwrap_err().code(), code, "{id:?}");
    }
    let request = ControllerExpandVolumeRequest { volume_id: id, ..Default::default() };
    let error = f.service.controller_expand_volume(Request::new(request)).await.unwrap_err();
    assert!(error.message().starts_with("capacity_range is missing"), "{error}");
}

#[tokio::test]
async fn listing_by_pages_shows_every_volume_once() {
    let f = Fixture::new().await;
    for number in 0..7 {
        f.create(wanted(&format!("pvc-{number}"))).await.unwrap();
    }
    let service = &f.service;
    let list = |max_entries, starting_token: String| async move {
        let request = ListVolumesRequest { max_entries, starting_token };
        service.list_volumes(Request::new(request)).await.map(tonic::Response::into_inner)
    };
    for page in [0, 1, 3, 7, 100] {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let answer = list(page, token).await.unwrap();
            seen.extend(answer.entries.into_iter().map(|e| e.volume.unwrap().volume_id));
            token = answer.next_token;
            if token.is_empty() {
                break;
            }
        }
        let mut all: Vec<String> = f.fake.control.state().volumes.keys().cloned().collect();
        all.sort();
        assert_eq!(seen, all, "pages of {page}");
    }
    // A token stays good when its volume is deleted.
    let token = list(3, String::new()).await.unwrap().next_token;
    f.delete(&token).await.unwrap();
    assert_eq!(list(0, token).await.unwrap().entries.len(), 4);
    assert_eq!(list(0, "no token of ours".into()).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(list(-1, String::new()).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn capacity_is_the_clusters_for_its_nodes_and_none_for_others() {
    let f = Fixture::new().await;
    f.fake.control.state().capacity =
        Room { available_bytes: 10 << 30, maximum_volume_bytes: 7 << 30 };
    let ask = |node: Option<&str>, parameters: &[(&str, &str)]| {
        let on = |name| Topology { segments: text(&[("holdfast.dev/node", name)]) };
        let request = GetCapacityRequest {
            volume_capabilities: vec![mount("xfs")],
            parameters: text(parameters),
            accessible_topology: node.map(on),
        };
        f.service.get_capacity(Request::new(request))
    };
    for node in [None, Some("n2")] {
        let room = ask(node, &[("repl", "3"), ("priority_io", "low")]).await.unwrap().into_inner();
        assert_eq!(room.available_capacity, 10 << 30);
        assert_eq!(room.maximum_volume_size, Some(7 << 30));
        assert_eq!(room.minimum_volume_size, Some(300 * MIB));
        let asked = f.fake.control.state().last_capacity.take().unwrap();
        assert_eq!((asked.repl, asked.priority_io.as_str()), (3, "low"));
    }
    assert_eq!(ask(Some("stranger"), &[]).await.unwrap().into_inner().available_capacity, 0);
    let error = ask(None, &[("repl", "9")]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn validation_confirms_what_can_be_had_and_says_why_not() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap();
    let ask = |id: &str, capabilities: Vec<VolumeCapability>, parameters: &[(&str, &str)]| {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_context: volume.volume_context.clone(),
            volume_capabilities: capabilities,
            parameters: text(parameters),
            ..Default::default()
        };
        f.service.validate_volume_capabilities(Request::new(request))
    };
    let id = volume.volume_id.as_str();
    let yes = ask(id, vec![mount("ext4"), block()], &[("repl", "2")]).await.unwrap().into_inner();
    let confirmed = yes.confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, [mount("ext4"), block()]);
    assert_eq!(confirmed.volume_context, volume.volume_context);

    let shared = capability(Mode::MultiNodeReaderOnly, AccessType::Block(BlockVolume {}));
    let cases: [(VolumeCapability, Pairs, &str); 5] = [
        (shared, &[], "MULTI_NODE_READER_ONLY"),
        (mount("xfs"), &[], "xfs"),
        (mount(""), &[("repl", "3")], "repl is 2, not 3"),
        (mount(""), &[("priority_io", "high")], "priority_io"),
        (mount(""), &[("colour", "red")], "colour"),
    ];
    for (capability, parameters, part) in cases {
        let no = ask(id, vec![capability], parameters).await.unwrap().into_inner();
        assert!(no.confirmed.is_none());
        assert!(no.message.contains(part), "{}, wanted {part:?}", no.message);
    }
    for (id, capabilities, code) in [
        ("", vec![block()], Code::InvalidArgument),
        (id, vec![], Code::InvalidArgument),
        (NOBODY, vec![block()], Code::NotFound),
        ("fake", vec![block()], Code::NotFound),
    ] {
        assert_eq!(ask(id, capabilities, &[]).await.unwrap_err().code(), code, "{id:?}");
    }
}

#[tokio::test]
async fn one_create_in_flight_per_name() {
    let f = Fixture::new().await;
    f.fake.control.hold().await;
    // The first caller gives up; its operation goes on.
    tokio::select! {
        _ = f.create(wanted("pvc-1")) => panic!("the replicator does not answer yet"),
        () = f.fake.control.arrived("GetVolume", 1) => {}
    }
    let error = f.create(wanted("pvc-1")).await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    f.fake.control.release();
    loop {
        match f.create(wanted("pvc-1")).await {
            Ok(_) => break,
            Err(status) => assert_eq!(status.code(), Code::Aborted),
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(f.fake.control.state().volumes.len(), 1);
}

#[tokio::test]
async fn ready_means_that_the_leader_answers() {
    let f = Fixture::new().await;
    let identity = Identity(LeaderReachable(f.client.clone()));
    let probe = || async {
        identity.probe(Request::new(ProbeRequest {})).await.unwrap().into_inner().ready
    };
    assert_eq!(probe().await, Some(true));
    f.fake.control.state().leader = 0;
    assert_eq!(probe().await, Some(false));
    let nobody = Client::new(["unix:///nonexistent/control.sock"]).unwrap();
    let error = LeaderReachable(nobody).ready().await.unwrap_err();
    assert!(error.contains("no answer within"), "{error}");
    let info = identity.get_plugin_info(Request::new(GetPluginInfoRequest {})).await.unwrap();
    assert_eq!(info.get_ref().name, "csi.holdfast.dev");
    assert!(!info.get_ref().vendor_version.is_empty());
}

#[tokio::test]
async fn what_is_not_advertised_is_not_implemented() {
    let f = Fixture::new().await;
    let request = Request::new(ControllerGetCapabilitiesRequest {});
    let answer = f.service.controller_get_capabilities(request).await.unwrap().into_inner();
    let kinds: Vec<i32> = answer
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type {
            Some(controller_service_capability::Type::Rpc(rpc)) => rpc.r#type,
            None => -1,
        })
        .collect();
    // CREATE_DELETE_VOLUME, LIST_VOLUMES, GET_CAPACITY, CREATE_DELETE_SNAPSHOT, LIST_SNAPSHOTS,
    // CLONE_VOLUME, EXPAND_VOLUME, SINGLE_NODE_MULTI_WRITER, MODIFY_VOLUME; and alpha: GET_VOLUME,
    // GET_SNAPSHOT, GET_VOLUME_HEALTH, LIST_VOLUME_HEALTH.
    assert_eq!(kinds, [1, 3, 4, 5, 6, 7, 9, 13, 14, 12, 15, 16, 17]);
    let publish = f.service.controller_publish_volume(Request::new(Default::default())).await;
    assert_eq!(publish.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_pinned_volume_is_placed_where_it_has_to_be_and_shown_there() {
    let f = Fixture::new().await;
    f.fake.control.state().nodes[2].zone = "b".into();
    let on = |key: &str, name: &str| Topology { segments: text(&[(key, name)]) };
    let request = |requisite| CreateVolumeRequest {
        parameters: text(&[("placement", "local")]),
        accessibility_requirements: Some(TopologyRequirement { requisite, preferred: vec![] }),
        ..wanted("pvc-1")
    };
    let volume = f.create(request(vec![on("holdfast.dev/zone", "b")])).await.unwrap();
    let asked = f.fake.control.state().last_create.clone().unwrap();
    assert_eq!((asked.placement.as_str(), asked.preferred_nodes), ("local", vec![3]));
    let replica = |node_name: &str, leaving| proto::control::Replica {
        node_name: node_name.into(),
        leaving,
        ..proto::control::Replica::default()
    };
    let copies = vec![replica("n3", false), replica("n1", false), replica("n2", true)];
    f.fake.control.state().volumes.get_mut(&volume.volume_id).unwrap().replicas = copies;
    let shown = f.create(request(vec![])).await.unwrap();
    let (n3, n1) = (on("holdfast.dev/node", "n3"), on("holdfast.dev/node", "n1"));
    assert_eq!(shown.accessible_topology, [n3, n1]);
    let error = f.create(wanted("pvc-1")).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(error.message().contains("placement local, and anywhere"), "{error}");
}

#[tokio::test]
async fn capacity_for_pinned_volumes_is_that_of_the_segment() {
    let f = Fixture::new().await;
    {
        let mut state = f.fake.control.state();
        state.nodes[1].zone = "b".into();
        state.nodes[2].zone = "b".into();
        state.capacity = Room { available_bytes: 10 << 30, maximum_volume_bytes: 7 << 30 };
    }
    let ask = async |key: &str, name: &str, placement: &str| {
        f.fake.control.state().calls.clear();
        let request = GetCapacityRequest {
            parameters: text(&[("placement", placement)]),
            accessible_topology: Some(Topology { segments: text(&[(key, name)]) }),
            ..GetCapacityRequest::default()
        };
        let room = f.service.get_capacity(Request::new(request)).await.unwrap().into_inner();
        let state = f.fake.control.state();
        let calls = state.calls.iter().filter(|call| **call == "GetCapacity").count();
        (room.available_capacity >> 30, calls, state.last_capacity.clone().unwrap_or_default().node)
    };
    assert_eq!(ask("holdfast.dev/node", "n2", "local").await, (10, 1, 2));
    assert_eq!(ask("holdfast.dev/zone", "b", "local").await, (10, 2, 3));
    assert_eq!(ask("holdfast.dev/zone", "b", "anywhere").await, (10, 1, 0));
    assert_eq!(ask("holdfast.dev/zone", "z", "local").await.0, 0);
}

/// Also where the first call made the volume and died before it set them.
#[tokio::test]
async fn limits_of_either_class_are_set_before_the_first_attach() {
    let f = Fixture::new().await;
    let request = |name: &str| CreateVolumeRequest {
        parameters: text(&[("iops_limit", "200"), ("bandwidth_limit", "1Gi")]),
        mutable_parameters: text(&[("iops_limit", "300")]),
        ..wanted(name)
    };
    let id = f.create(request("pvc-1")).await.unwrap().volume_id;
    let limits = |id: &str| {
        let state = f.fake.control.state();
        (state.volumes[id].iops_limit, state.volumes[id].bandwidth_limit)
    };
    assert_eq!(limits(&id), (300, 1 << 30));
    f.fake.control.state().refuse.insert("ModifyVolume", (Code::Unavailable, "gone".to_owned()));
    assert_eq!(f.create(request("pvc-2")).await.unwrap_err().code(), Code::Unavailable);
    f.fake.control.state().refuse.clear();
    let id = f.create(request("pvc-2")).await.unwrap().volume_id;
    assert_eq!(limits(&id), (300, 1 << 30));
    {
        let mut state = f.fake.control.state();
        let volume = state.volumes.get_mut(&id).unwrap();
        (volume.epoch, volume.iops_limit) = (1, 100);
    }
    f.create(request("pvc-2")).await.unwrap();
    assert_eq!(limits(&id).0, 100, "changed since");
}

#[tokio::test]
async fn what_a_volume_attributes_class_says_is_applied_and_goes_before_the_storage_class() {
    let f = Fixture::new().await;
    let request = CreateVolumeRequest {
        parameters: text(&[("repl", "1"), ("priority_io", "low")]),
        mutable_parameters: text(&[("repl", "3")]),
        ..wanted("pvc-1")
    };
    let id = f.create(request).await.unwrap().volume_id;
    let asked = f.fake.control.state().last_create.clone().unwrap();
    assert_eq!((asked.repl, asked.priority_io.as_str()), (3, "low"));
    let modify = |id: &str, pairs: &[(&str, &str)]| {
        let request = ControllerModifyVolumeRequest {
            volume_id: id.into(),
            secrets: HashMap::new(),
            mutable_parameters: text(pairs),
        };
        f.service.controller_modify_volume(Request::new(request))
    };
    for _ in 0..2 {
        modify(&id, &[("repl", "2"), ("priority_io", "any")]).await.unwrap();
        let state = f.fake.control.state();
        let volume = &state.volumes[&id];
        assert_eq!((volume.repl, volume.priority_io.as_str()), (2, ""));
    }
    modify(&id, &[("iops_limit", "500"), ("bandwidth_limit", "10Mi")]).await.unwrap();
    modify(&id, &[]).await.unwrap();
    modify(&id, &[("iops_limit", "none")]).await.unwrap();
    {
        let state = f.fake.control.state();
        let volume = &state.volumes[&id];
        assert_eq!((volume.iops_limit, volume.bandwidth_limit), (0, 10 << 20));
    }
    for (id, pairs, code) in [
        ("", &[("repl", "2")] as Pairs, Code::InvalidArgument),
        (id.as_str(), &[("repl", "4")], Code::InvalidArgument),
        (id.as_str(), &[("iops_limit", "99")], Code::InvalidArgument),
        (id.as_str(), &[("placement", "local")], Code::InvalidArgument),
        ("foobar", &[("repl", "2")], Code::NotFound),
        (NOBODY, &[("repl", "2")], Code::NotFound),
    ] {
        assert_eq!(modify(id, pairs).await.unwrap_err().code(), code, "{id:?} {pairs:?}");
    }
    let full = (Code::ResourceExhausted, "no room".to_owned());
    f.fake.control.state().refuse.insert("ModifyVolume", full);
    assert_eq!(modify(&id, &[("repl", "3")]).await.unwrap_err().code(), Code::ResourceExhausted);
}
