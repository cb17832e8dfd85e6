//! Snapshots, restores and clones.

use super::*;
use proto::control::VolumeState;
use proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};

impl Fixture {
    async fn snapshot(&self, name: &str, volume: &str) -> Result<Snapshot, Status> {
        let (name, source_volume_id) = (name.to_owned(), volume.to_owned());
        let request = CreateSnapshotRequest { name, source_volume_id, ..Default::default() };
        let answer = self.service.create_snapshot(Request::new(request)).await?;
        Ok(answer.into_inner().snapshot.unwrap())
    }

    async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.into(), secrets: HashMap::new() };
        self.service.delete_snapshot(Request::new(request)).await.map(|_| ())
    }

    async fn list(&self, request: ListSnapshotsRequest) -> Result<(Vec<String>, String), Status> {
        let answer = self.service.list_snapshots(Request::new(request)).await?.into_inner();
        let id = |entry: list_snapshots_response::Entry| entry.snapshot.unwrap().snapshot_id;
        Ok((answer.entries.into_iter().map(id).collect(), answer.next_token))
    }
}

fn of_snapshot(id: &str) -> Option<VolumeContentSource> {
    let source = SnapshotSource { snapshot_id: id.into() };
    Some(VolumeContentSource { r#type: Some(Type::Snapshot(source)) })
}

fn of_volume(id: &str) -> Option<VolumeContentSource> {
    let source = VolumeSource { volume_id: id.into() };
    Some(VolumeContentSource { r#type: Some(Type::Volume(source)) })
}

/// A request for a copy, of the size of its source.
fn copy(name: &str, source: Option<VolumeContentSource>) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_content_source: source, capacity_range: None, ..wanted(name) }
}

#[tokio::test]
async fn a_snapshot_says_what_it_is_of_and_is_idempotent_by_name() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    let other = f.create(wanted("pvc-2")).await.unwrap().volume_id;
    let taken = f.snapshot("snapshot-1", &volume).await.unwrap();
    let record = f.fake.control.state().snapshots[&taken.snapshot_id].clone();
    assert_eq!(taken.source_volume_id, volume);
    assert_eq!(taken.size_bytes, 64 * MIB);
    assert!(taken.ready_to_use);
    assert!(taken.accessible_topology.is_empty(), "it can be restored for every node");
    let time = taken.creation_time.unwrap();
    let ms = time.seconds * 1000 + i64::from(time.nanos) / 1_000_000;
    assert_eq!(ms, record.created_unix_ms as i64);
    assert_ne!(time.nanos, 0, "not only whole seconds");

    assert_eq!(f.snapshot("snapshot-1", &volume).await.unwrap(), taken);
    let error = f.snapshot("snapshot-1", &other).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    // Volumes and snapshots have names of their own.
    f.snapshot("pvc-2", &volume).await.unwrap();
    // One that is still being taken is shown as such.
    f.fake.control.state().snapshots.get_mut(&taken.snapshot_id).unwrap().ready = false;
    assert!(!f.snapshot("snapshot-1", &volume).await.unwrap().ready_to_use);
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_and_nothing_is_asked() {
    type Change = fn(&mut CreateSnapshotRequest);
    let table: &[(Change, Code, &str)] = &[
        (|r| r.name.clear(), Code::InvalidArgument, "name is missing"),
        (|r| r.name = "a".repeat(129), Code::InvalidArgument, "1-128 bytes"),
        (|r| r.name = "a\nb".into(), Code::InvalidArgument, "without control characters"),
        (|r| r.source_volume_id.clear(), Code::InvalidArgument, "source_volume_id is missing"),
        (|r| r.source_volume_id = "../x".into(), Code::NotFound, "source_volume_id \"../x\""),
        (
            |r| r.parameters = text(&[("zeal", "1"), ("incremental", "true")]),
            Code::InvalidArgument,
            "parameter \"incremental\" is not accepted; accepted: none",
        ),
        (
            |r| r.accessibility_requirements = Some(TopologyRequirement::default()),
            Code::InvalidArgument,
            "accessibility_requirements",
        ),
    ];
    let f = Fixture::new().await;
    let good = CreateSnapshotRequest {
        name: "snapshot-1".into(),
        source_volume_id: NOBODY.into(),
        // What csi-snapshotter adds with --extra-create-metadata.
        parameters: text(&[("csi.storage.k8s.io/volumesnapshot/name", "daily")]),
        ..Default::default()
    };
    for (change, code, part) in table {
        let mut request = good.clone();
        change(&mut request);
        let error = f.service.create_snapshot(Request::new(request)).await.unwrap_err();
        assert_eq!(error.code(), *code, "{error}");
        assert!(error.message().contains(part), "{error}, wanted {part:?}");
    }
    assert!(f.fake.control.state().calls.is_empty());
    let error = f.service.create_snapshot(Request::new(good)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[tokio::test]
async fn snapshots_are_listed_by_pages_and_by_what_they_are() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    let other = f.create(wanted("pvc-2")).await.unwrap().volume_id;
    let mut of_volume = Vec::new();
    for number in 0..7 {
        let of = if number % 2 == 0 { &volume } else { &other };
        let taken = f.snapshot(&format!("snapshot-{number}"), of).await.unwrap();
        of_volume.extend(Some(taken.snapshot_id).filter(|_| number % 2 == 0));
    }
    let all: Vec<String> = f.fake.control.state().snapshots.keys().cloned().collect();
    let page = |max_entries, token: &str, of: &str, one: &str| {
        f.list(ListSnapshotsRequest {
            max_entries,
            starting_token: token.into(),
            source_volume_id: of.into(),
            snapshot_id: one.into(),
            secrets: HashMap::new(),
        })
    };
    for (of, wanted) in [("", &all), (volume.as_str(), &of_volume)] {
        for size in [0, 1, 3, 4, 7, 100] {
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let (found, next) = page(size, &token, of, "").await.unwrap();
                assert!(size == 0 || found.len() <= size as usize);
                seen.extend(found);
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(&seen, wanted, "pages of {size}");
        }
    }
    // Token, volume, snapshot: how many are found.
    let (first, second) = (all[0].as_str(), all[1].as_str());
    let filters = [
        ("", "", second, 1),
        ("", &other, second, 1),
        ("", &volume, second, 0),
        (first, "", second, 1),
        (second, "", second, 0),
        ("", "", NOBODY, 0),
        ("", NOBODY, "", 0),
        ("", "", "none-exist-id", 0),
        ("", "none-exist-id", "", 0),
        ("", "none-exist-id", second, 0),
    ];
    for (token, of, one, count) in filters {
        let (found, next) = page(0, token, of, one).await.unwrap();
        assert_eq!((found.len(), next.as_str()), (count, ""), "{token:?} {of:?} {one:?}");
        assert!(found.iter().all(|id| id == one));
    }
    // A token stays good when its snapshot is deleted.
    let (_, token) = page(3, "", "", "").await.unwrap();
    f.delete_snapshot(&token).await.unwrap();
    assert_eq!(page(0, &token, "", "").await.unwrap().0, all[3..]);
    let error = page(0, "no token of ours", "", "").await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert_eq!(page(-1, "", "", "").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn one_snapshot_is_shown_by_its_id() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    let taken = f.snapshot("snapshot-1", &volume).await.unwrap();
    let get = |id: &str| {
        let request = GetSnapshotRequest { snapshot_id: id.into(), secrets: HashMap::new() };
        f.service.get_snapshot(Request::new(request))
    };
    let shown = get(&taken.snapshot_id).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(shown, taken);
    for (id, code) in [("", Code::InvalidArgument), ("x", Code::NotFound), (NOBODY, Code::NotFound)]
    {
        assert_eq!(get(id).await.unwrap_err().code(), code, "{id:?}");
    }
}

#[tokio::test]
async fn a_volume_may_go_before_its_snapshots_and_a_restore_holds_its_snapshot() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    let taken = f.snapshot("snapshot-1", &volume).await.unwrap();
    f.delete(&volume).await.unwrap();
    let id = taken.snapshot_id.as_str();
    let restored = f.create(copy("pvc-2", of_snapshot(id))).await.unwrap();
    f.fake.control.state().volumes.get_mut(&restored.volume_id).unwrap().state =
        VolumeState::Filling.into();
    let error = f.delete_snapshot(id).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("pvc-2"), "{error}");
    // Asking again waits until it is filled.
    assert_eq!(f.create(copy("pvc-2", of_snapshot(id))).await.unwrap(), restored);
    for id in [id, id, NOBODY, "reallyfakesnapshotid"] {
        f.delete_snapshot(id).await.unwrap();
    }
    assert!(f.fake.control.state().snapshots.is_empty());
    assert_eq!(f.delete_snapshot("").await.unwrap_err().code(), Code::InvalidArgument);
    // What was made of it stays, and is still what was asked for.
    assert_eq!(f.create(copy("pvc-2", of_snapshot(id))).await.unwrap(), restored);
}

#[tokio::test]
async fn a_copy_names_its_source_and_is_at_least_as_large() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    let snapshot = f.snapshot("snapshot-1", &volume).await.unwrap().snapshot_id;
    // The source may grow after the snapshot.
    f.expand(&volume, 100 * MIB, 0).await.unwrap();
    // Capacity range -> size in MiB of a restore, of a clone, or a code.
    let small = Err(Code::OutOfRange);
    let table = [
        (None, Ok(64), Ok(100)),
        (range(0, 0), Ok(64), Ok(100)),
        (range(0, 80 * MIB), Ok(64), small),
        (range(0, 63 * MIB), small, small),
        (range(64 * MIB, 64 * MIB), Ok(64), small),
        (range(63 * MIB, 0), small, small),
        (range(63 * MIB + 1, 0), Ok(64), small),
        (range(200 * MIB, 0), Ok(200), Ok(200)),
    ];
    for (number, (capacity_range, restore, clone)) in table.into_iter().enumerate() {
        let sources = [(of_snapshot(&snapshot), restore), (of_volume(&volume), clone)];
        for (kind, (source, wanted)) in sources.into_iter().enumerate() {
            let name = format!("copy-{kind}-{number}");
            let request = CreateVolumeRequest { capacity_range, ..copy(&name, source.clone()) };
            let made = f.create(request).await;
            let size = made.as_ref().map(|v| v.capacity_bytes / MIB).map_err(Status::code);
            assert_eq!(size, wanted, "{capacity_range:?} of {source:?}");
            assert!(made.is_err() || made.unwrap().content_source == source);
        }
    }
    let list = f.service.list_volumes(Request::new(ListVolumesRequest::default())).await.unwrap();
    let of = |entry: list_volumes_response::Entry| entry.volume.unwrap().content_source;
    let sources: Vec<_> = list.into_inner().entries.into_iter().map(of).collect();
    assert_eq!(sources.iter().filter(|source| source.is_none()).count(), 1);
    assert!(sources.contains(&of_snapshot(&snapshot)) && sources.contains(&of_volume(&volume)));
}

#[tokio::test]
async fn a_source_that_is_not_there_is_named() {
    let f = Fixture::new().await;
    let nothing = Some(VolumeContentSource { r#type: None });
    let table = [
        (nothing, Code::InvalidArgument, "volume_content_source.type is missing"),
        (of_snapshot(""), Code::InvalidArgument, "volume_content_source.snapshot.snapshot_id"),
        (of_volume(""), Code::InvalidArgument, "volume_content_source.volume.volume_id"),
        (of_snapshot("no-uuid"), Code::NotFound, "\"no-uuid\" names no snapshot"),
        (of_volume("no-uuid"), Code::NotFound, "\"no-uuid\" names no volume"),
        (of_snapshot(NOBODY), Code::NotFound, "snapshot"),
        (of_volume(NOBODY), Code::NotFound, "volume"),
    ];
    for (source, code, part) in table {
        let error = f.create(copy("pvc-1", source)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(part), "{error}, wanted {part:?}");
    }
    assert!(f.fake.control.state().volumes.is_empty());
}

#[tokio::test]
async fn another_source_under_the_same_name_is_a_conflict() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    let snapshot = f.snapshot("snapshot-1", &volume).await.unwrap().snapshot_id;
    let other = f.snapshot("snapshot-2", &volume).await.unwrap().snapshot_id;
    let sources = [None, of_snapshot(&snapshot), of_snapshot(&other), of_volume(&volume)];
    for (number, source) in sources.iter().enumerate() {
        let name = format!("copy-{number}");
        let request = |source: &Option<_>| CreateVolumeRequest {
            capacity_range: range(64 * MIB, 0),
            ..copy(&name, source.clone())
        };
        let made = f.create(request(source)).await.unwrap();
        for other in &sources {
            match f.create(request(other)).await {
                Ok(again) => assert!(again == made && other == source),
                Err(error) => {
                    assert_eq!(error.code(), Code::AlreadyExists);
                    assert!(error.message().contains("exists with a content of"), "{error}");
                    assert_ne!(other, source);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_copy_has_the_filesystem_of_its_source() {
    let f = Fixture::new().await;
    let make = |name: &str, capability| CreateVolumeRequest {
        capacity_range: range(300 * MIB, 0),
        volume_capabilities: vec![capability],
        ..wanted(name)
    };
    let xfs = f.create(make("pvc-1", mount("xfs"))).await.unwrap().volume_id;
    let raw = f.create(make("pvc-2", block())).await.unwrap().volume_id;
    // Source, wanted use -> filesystem of the copy, or none for a refusal.
    let table = [
        (&xfs, mount(""), Some("xfs")),
        (&xfs, mount("xfs"), Some("xfs")),
        (&xfs, mount("ext4"), None),
        (&xfs, block(), Some("")),
        (&raw, block(), Some("")),
        (&raw, mount(""), Some("ext4")),
        (&raw, mount("xfs"), Some("xfs")),
    ];
    for (number, (source, capability, wanted)) in table.into_iter().enumerate() {
        let snapshot = f.snapshot(&format!("snapshot-{number}"), source).await.unwrap().snapshot_id;
        let sources = [of_snapshot(&snapshot), of_volume(source)];
        for (kind, content) in sources.into_iter().enumerate() {
            let request = CreateVolumeRequest {
                volume_content_source: content,
                ..make(&format!("copy-{kind}-{number}"), capability.clone())
            };
            match (f.create(request.clone()).await, wanted) {
                (Ok(made), Some(wanted)) => {
                    let record = f.fake.control.state().volumes[&made.volume_id].clone();
                    assert_eq!(record.fs_type, wanted);
                    assert_eq!(f.create(request).await.unwrap(), made, "idempotent");
                }
                (Err(error), None) => {
                    assert_eq!(error.code(), Code::InvalidArgument);
                    assert!(error.message().contains("\"ext4\" is not accepted"), "{error}");
                    assert!(error.message().contains("accepted: xfs"), "{error}");
                }
                (found, wanted) => panic!("{number}: {found:?}, wanted {wanted:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_cluster_is_passed_on() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap().volume_id;
    for code in [Code::Aborted, Code::FailedPrecondition, Code::ResourceExhausted] {
        let refusal = (code, "a copy was lost on the way".to_owned());
        f.fake.control.state().refuse.insert("CreateSnapshot", refusal);
        let error = f.snapshot("snapshot-1", &volume).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, "a copy was lost on the way"));
    }
    assert!(f.fake.control.state().snapshots.is_empty());
}
