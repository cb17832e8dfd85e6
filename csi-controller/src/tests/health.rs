//! What CSI calls alpha: volumes with their state, their health.

use super::*;

#[tokio::test]
async fn what_is_alpha_is_there_only_if_asked_for() {
    let f = Fixture::new().await;
    let stable = ControllerService::new(&f.client, false);
    let request = Request::new(ControllerGetCapabilitiesRequest {});
    let answer = stable.controller_get_capabilities(request).await.unwrap().into_inner();
    assert_eq!(answer.capabilities.len(), 9);
    let get = ControllerGetVolumeRequest { volume_id: NOBODY.into() };
    let error = stable.controller_get_volume(Request::new(get)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("--alpha"), "{error}");
    let get = GetSnapshotRequest { snapshot_id: NOBODY.into(), secrets: HashMap::new() };
    let error = stable.get_snapshot(Request::new(get)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_volume_is_shown_with_its_node_and_its_health() {
    let f = Fixture::new().await;
    let volume = f.create(wanted("pvc-1")).await.unwrap();
    let replica = |node_name: &str, standing: &str| proto::control::Replica {
        node_name: node_name.into(),
        in_sync: true,
        state: "ready".into(),
        standing: standing.into(),
        ..proto::control::Replica::default()
    };
    {
        let mut state = f.fake.control.state();
        let record = state.volumes.get_mut(&volume.volume_id).unwrap();
        record.attached_node_name = "n2".into();
        record.degraded = true;
        record.replicas = vec![replica("n1", "lost"), replica("n2", "in sync")];
    }
    let get = ControllerGetVolumeRequest { volume_id: volume.volume_id.clone() };
    let shown = f.service.controller_get_volume(Request::new(get)).await.unwrap().into_inner();
    assert_eq!(shown.status.unwrap().published_node_ids, ["n2"]);
    assert_eq!(shown.volume.unwrap(), volume);
    let ask = |id: &str| {
        let request =
            ControllerGetVolumeHealthRequest { volume_id: id.into(), secrets: HashMap::new() };
        f.service.controller_get_volume_health(Request::new(request))
    };
    let health = ask(&volume.volume_id).await.unwrap().into_inner().volume_health.unwrap();
    assert_eq!(health.volume_id, volume.volume_id);
    assert_eq!(health.health_statuses[0].status(), VolumeHealthErrorType::Degraded);
    assert_eq!(health.health_statuses[0].message, "1 of 2 copies in sync; n1: lost");
    for (id, code) in [("", Code::InvalidArgument), ("x", Code::NotFound), (NOBODY, Code::NotFound)]
    {
        assert_eq!(ask(id).await.unwrap_err().code(), code, "{id:?}");
    }
}

#[tokio::test]
async fn the_list_of_health_names_each_unwell_volume_once() {
    let f = Fixture::new().await;
    for number in 0..7 {
        f.create(wanted(&format!("pvc-{number}"))).await.unwrap();
    }
    let unwell: Vec<String> = {
        let mut state = f.fake.control.state();
        let lost = proto::control::Replica { in_sync: true, ..Default::default() };
        let odd = state.volumes.values_mut().step_by(2);
        odd.map(|volume| {
            volume.replicas = vec![lost.clone()];
            volume.volume_id.clone()
        })
        .collect()
    };
    assert_eq!(unwell.len(), 4);
    let service = &f.service;
    let list = |max_entries, starting_token: String| async move {
        let secrets = HashMap::new();
        let request = ControllerListVolumeHealthRequest { max_entries, starting_token, secrets };
        let answer = service.controller_list_volume_health(Request::new(request)).await;
        answer.map(tonic::Response::into_inner)
    };
    for page in [0, 1, 2, 3, 4, 5] {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let answer = list(page, token).await.unwrap();
            assert!(page == 0 || answer.entries.len() <= page as usize);
            seen.extend(answer.entries.into_iter().map(|entry| entry.volume_id));
            token = answer.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, unwell, "pages of {page}");
    }
    assert_eq!(list(0, "no token of ours".into()).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(list(-1, String::new()).await.unwrap_err().code(), Code::InvalidArgument);
}
