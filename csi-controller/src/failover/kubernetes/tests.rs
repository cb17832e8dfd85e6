//! Every call against a mock of the API server: what is sent, and what each answer is taken for.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::failover::note::Subject;
use crate::failover::views::{Backing, Phase};
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

/// What was asked: method, path with query, content type, body.
type Asked = (String, String, String, Value);

/// Calls `call` and answers its requests with `answers` in turn; what was asked and what came of it.
async fn served<T, F: Future<Output = T>>(
    answers: Vec<(u16, Value)>,
    call: impl FnOnce(Kubernetes) -> F,
) -> (Vec<Asked>, T) {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let server = tokio::spawn(async move {
        let mut asked = Vec::new();
        for (code, answer) in answers {
            let (request, send) = handle.next_request().await.unwrap();
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let kind = parts.headers.get("content-type").map(|kind| kind.to_str().unwrap());
            asked.push((
                parts.method.to_string(),
                parts.uri.to_string(),
                kind.unwrap_or_default().to_owned(),
                serde_json::from_slice(&body).unwrap_or_default(),
            ));
            let body = Body::from(serde_json::to_vec(&answer).unwrap());
            send.send_response(Response::builder().status(code).body(body).unwrap());
        }
        asked
    });
    let outcome = call(Kubernetes::of(Client::new(service, "default"))).await;
    (server.await.unwrap(), outcome)
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": format!("{reason} it is"),
    });
    (code, status)
}

fn node(version: &str, taints: Value) -> (u16, Value) {
    let node = json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": "n1", "uid": "u1", "resourceVersion": version },
        "spec": { "taints": taints },
    });
    (200, node)
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn pod_id() -> PodId {
    PodId { namespace: "db".into(), name: "pg-0".into(), uid: "u-7".into() }
}

#[tokio::test]
async fn pods_of_a_node_are_listed_by_its_name() {
    let list = json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {},
        "items": [{
            "metadata": {
                "namespace": "db", "name": "pg-0", "uid": "u-7",
                "annotations": { "holdfast.dev/failover": "disabled" },
                "deletionTimestamp": "2026-11-21T12:00:00Z",
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Other", "name": "x", "uid": "1" },
                    { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "pg", "uid": "2",
                      "controller": true },
                ],
            },
            "spec": { "containers": [], "volumes": [
                { "name": "data", "persistentVolumeClaim": { "claimName": "data-pg-0" } },
                { "name": "scratch", "ephemeral": {} },
                { "name": "config", "configMap": { "name": "c" } },
            ] },
            "status": { "phase": "Running" },
        }, {
            "metadata": { "namespace": "db", "name": "job", "uid": "u-8" },
            "spec": { "containers": [] },
            "status": { "phase": "Succeeded" },
        }],
    });
    let (asked, pods) = served(vec![(200, list)], async |k| k.pods_on("n1").await).await;
    assert_eq!(asked[0].0, "GET");
    assert_eq!(asked[0].1, "/api/v1/pods?&fieldSelector=spec.nodeName%3Dn1");
    let pods = pods.unwrap();
    let first = PodView {
        id: pod_id(),
        claims: vec!["data-pg-0".into(), "pg-0-scratch".into()],
        controller: Some("StatefulSet".into()),
        opted_out: true,
        terminating: true,
        phase: Phase::Running,
    };
    assert_eq!(pods[0], first);
    assert_eq!((pods[1].controller.clone(), pods[1].phase), (None, Phase::Ended));
}

#[tokio::test]
async fn a_pod_is_deleted_at_once_and_only_with_its_uid() {
    let pod = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "pg-0" } });
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" });
    let table = [
        ((200, pod), Some(Deletion::Deleted)),
        ((200, status), Some(Deletion::Deleted)),
        (refusal(404, "NotFound"), Some(Deletion::Gone)),
        (refusal(409, "Conflict"), Some(Deletion::Gone)),
        (refusal(403, "Forbidden"), None),
        (refusal(500, "InternalError"), None),
    ];
    for (answer, wanted) in table {
        let code = answer.0;
        let (asked, outcome) = served(vec![answer], async |k| k.delete(&pod_id()).await).await;
        assert_eq!(asked[0].0, "DELETE");
        assert_eq!(asked[0].1, "/api/v1/namespaces/db/pods/pg-0?");
        assert_eq!(
            asked[0].3,
            json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": "u-7" } })
        );
        assert_eq!(outcome.ok(), wanted, "{code}");
    }
}

#[tokio::test]
async fn a_taint_is_added_beside_those_of_others() {
    let theirs = json!({ "key": "node.kubernetes.io/unreachable", "effect": "NoExecute" });
    let answers = vec![node("41", json!([theirs])), node("42", json!([]))];
    let (asked, outcome) = served(answers, async |k| k.taint("n1", now()).await).await;
    assert!(outcome.unwrap());
    assert_eq!((asked[0].0.as_str(), asked[0].1.as_str()), ("GET", "/api/v1/nodes/n1"));
    assert_eq!((asked[1].0.as_str(), asked[1].1.as_str()), ("PATCH", "/api/v1/nodes/n1?"));
    assert_eq!(asked[1].2, "application/merge-patch+json");
    let ours = json!({
        "key": "holdfast.dev/fenced", "effect": "NoSchedule", "timeAdded": "2026-11-21T12:00:00Z",
    });
    let patch = json!({
        "metadata": { "resourceVersion": "41" },
        "spec": { "taints": [theirs, ours] },
    });
    assert_eq!(asked[1].3, patch);
}

#[tokio::test]
async fn a_taint_that_is_there_is_not_added() {
    let ours = json!([{ "key": "holdfast.dev/fenced", "effect": "NoSchedule" }]);
    let (asked, outcome) =
        served(vec![node("41", ours)], async |k| k.taint("n1", now()).await).await;
    assert!(!outcome.unwrap());
    assert_eq!(asked.len(), 1);
}

#[tokio::test]
async fn only_our_taint_is_taken_off() {
    let theirs = json!({ "key": "node.kubernetes.io/unreachable", "effect": "NoExecute" });
    let ours = json!({ "key": "holdfast.dev/fenced", "effect": "NoSchedule" });
    let answers = vec![node("41", json!([ours, theirs])), node("42", json!([]))];
    let (asked, outcome) = served(answers, async |k| k.untaint("n1").await).await;
    assert!(outcome.unwrap());
    assert_eq!(asked[1].3["spec"]["taints"], json!([theirs]));
    let (asked, outcome) =
        served(vec![node("41", json!([theirs]))], async |k| k.untaint("n1").await).await;
    assert!(!outcome.unwrap());
    assert_eq!(asked.len(), 1, "nothing to write");
}

#[tokio::test]
async fn a_node_that_others_change_is_read_again() {
    let answers = vec![
        node("41", json!([])),
        refusal(409, "Conflict"),
        node("42", json!([{ "key": "other", "effect": "NoSchedule" }])),
        node("43", json!([])),
    ];
    let (asked, outcome) = served(answers, async |k| k.taint("n1", now()).await).await;
    assert!(outcome.unwrap());
    assert_eq!(asked[3].3["metadata"]["resourceVersion"], "42");
    assert_eq!(asked[3].3["spec"]["taints"].as_array().unwrap().len(), 2);
    let always = core::iter::repeat_n([node("1", json!([])), refusal(409, "Conflict")], PATCHES);
    let (_, outcome) =
        served(always.flatten().collect(), async |k| k.taint("n1", now()).await).await;
    assert!(outcome.is_err(), "not for ever");
}

#[tokio::test]
async fn events_are_about_pods_claims_and_nodes() {
    let note = |subject, text: &str| Note {
        subject,
        reason: "FailedOver",
        text: text.into(),
        warning: true,
    };
    let claim = Subject::Claim("db".into(), "data".into(), "u-c".into());
    let table = [
        (
            Subject::Pod(pod_id()),
            "db",
            json!({ "kind": "Pod", "apiVersion": "v1",
            "namespace": "db", "name": "pg-0", "uid": "u-7" }),
        ),
        (
            claim,
            "db",
            json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1",
            "namespace": "db", "name": "data", "uid": "u-c" }),
        ),
        (
            Subject::Node("n1".into(), "u1".into()),
            "default",
            json!({ "kind": "Node",
            "apiVersion": "v1", "name": "n1", "uid": "u1" }),
        ),
    ];
    for (subject, namespace, regarding) in table {
        let note = note(subject, "moved");
        let event = json!({ "kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {} });
        let (asked, outcome) =
            served(vec![(201, event)], async |k| k.say(&note, "n2", now()).await).await;
        outcome.unwrap();
        assert_eq!(asked[0].0, "POST");
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?");
        assert_eq!(asked[0].1, path);
        let sent = &asked[0].3;
        assert_eq!(sent["regarding"], regarding);
        assert_eq!(sent["metadata"]["namespace"], namespace);
        for (field, wanted) in [
            ("reason", "FailedOver"),
            ("action", "Failover"),
            ("note", "moved"),
            ("type", "Warning"),
            ("eventTime", "2026-11-21T12:00:00.000000Z"),
            ("reportingController", "holdfast.dev/failover"),
            ("reportingInstance", "n2"),
        ] {
            assert_eq!(sent[field], wanted, "{field}");
        }
    }
    let long = note(Subject::Pod(pod_id()), &"ä".repeat(2000));
    assert_eq!(long.event("n2", now()).note.unwrap().len(), 1024);
    let (_, outcome) =
        served(vec![refusal(409, "AlreadyExists")], async |k| k.say(&long, "n2", now()).await)
            .await;
    outcome.unwrap();
}

#[test]
fn the_same_words_of_two_instances_are_one_event() {
    let note = |text: &str| Note {
        subject: Subject::Pod(pod_id()),
        reason: "FailoverHeld",
        text: text.into(),
        warning: true,
    };
    let name = |note: Note, instance, seconds| {
        note.event(instance, now() + k8s_openapi::jiff::SignedDuration::from_secs(seconds))
            .metadata
            .name
            .unwrap()
    };
    assert_eq!(name(note("a"), "n2", 0), name(note("a"), "n3", 2));
    assert_ne!(name(note("a"), "n2", 0), name(note("b"), "n2", 0));
    assert_ne!(name(note("a"), "n2", 0), name(note("a"), "n2", 3600), "later it is news again");
}

#[tokio::test(start_paused = true)]
async fn a_silent_api_server_is_not_waited_for() {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let kubernetes = Kubernetes::of(Client::new(service, "default"));
    let error = kubernetes.delete(&pod_id()).await.unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error}");
    assert!(!error.answered());
    let error = kubernetes.pods_on("n1").await.unwrap_err();
    assert!(error.to_string().contains("within 5 s"), "{error}");
    drop(handle);
}

#[tokio::test]
async fn nodes_and_volumes_are_watched() {
    let taints = json!([
        { "key": "holdfast.dev/fenced", "effect": "NoSchedule" },
        { "key": "node.kubernetes.io/out-of-service", "effect": "NoExecute" },
    ]);
    let (_, one) = node("41", taints);
    let nodes = json!({
        "kind": "NodeList", "apiVersion": "v1",
        "metadata": { "resourceVersion": "50" }, "items": [one],
    });
    let cache = Cache::default();
    let (asked, ()) = served(vec![(200, nodes)], async |k| {
        let watching = k.watch_nodes(cache.clone());
        let known = async {
            while cache.all().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = watching => {}, () = known => {} }
    })
    .await;
    assert!(asked[0].1.starts_with("/api/v1/nodes?"), "{}", asked[0].1);
    let view = NodeView { uid: "u1".into(), fenced: true, out_of_service: true };
    assert_eq!(cache.all().unwrap(), [("n1".to_owned(), view)].into());

    let volume = |name: &str, phase: &str, source: Value| {
        let mut spec = json!({
            "claimRef": { "namespace": "db", "name": format!("claim-{name}"), "uid": "u-c" },
        });
        spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!({ "metadata": { "name": name }, "spec": spec, "status": { "phase": phase } })
    };
    let csi = |driver: &str| json!({ "csi": { "driver": driver, "volumeHandle": "v-1" } });
    let list = json!({
        "kind": "PersistentVolumeList", "apiVersion": "v1",
        "metadata": { "resourceVersion": "50" },
        "items": [
            volume("ours", "Bound", csi("csi.holdfast.dev")),
            volume("theirs", "Bound", csi("ebs.csi.aws.com")),
            volume("local", "Bound", json!({ "hostPath": { "path": "/data" } })),
            volume("past", "Released", csi("csi.holdfast.dev")),
        ],
    });
    let cache = Cache::default();
    let (asked, ()) = served(vec![(200, list)], async |k| {
        let watching = k.watch_claims(cache.clone());
        let known = async {
            while cache.all().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = watching => {}, () = known => {} }
    })
    .await;
    assert!(asked[0].1.starts_with("/api/v1/persistentvolumes?"), "{}", asked[0].1);
    let found = cache.all().unwrap();
    let backing = |name: &str| found.get(name).map(|claim: &ClaimView| claim.backing.clone());
    assert_eq!(backing("ours"), Some(Backing::Holdfast("v-1".into())));
    assert_eq!(backing("theirs"), Some(Backing::Other));
    assert_eq!(backing("local"), Some(Backing::Other));
    assert_eq!(backing("past"), None);
    assert_eq!(found["ours"].name, "claim-ours");
}
