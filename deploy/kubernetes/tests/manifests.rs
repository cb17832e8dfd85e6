//! What is applied to clusters: every object is one that Kubernetes knows, field by field; the rights
//! are these and no others; the file that is checked in is what the chart says.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PodSpec, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttributesClass};
use manifests::{Feature, NAMESPACE, Values, install, uninstall};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that there can be.
fn documents() -> Vec<Value> {
    documents_with(&[Feature::Snapshots, Feature::AttributesClasses])
}

fn documents_with(features: &[Feature]) -> Vec<Value> {
    let text = install(NAMESPACE, &Values::default().with(features)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

/// As in the CSI project's CRD, which is not part of Kubernetes.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeSnapshotClass {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    driver: String,
    deletion_policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BTreeMap<String, String>>,
}

fn kind(document: &Value) -> &str {
    document["kind"].as_str().unwrap()
}

/// `document` as Kubernetes reads it: what it does not know is lost on the way.
fn known<T: DeserializeOwned + Serialize>(document: &Value) -> Value {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| {
        panic!("{} {}: {error}", kind(document), document["metadata"]["name"])
    });
    serde_json::to_value(typed).unwrap()
}

/// What `given` says and `known` does not.
fn lost(path: &str, given: &Value, known: &Value, found: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                match known.get(key) {
                    Some(known) => lost(&format!("{path}.{key}"), value, known, found),
                    None if *value == Value::Object(Default::default()) => {}
                    None => found.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) if given.len() == known.len() => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                lost(&format!("{path}[{index}]"), given, known, found);
            }
        }
        _ if given == known => {}
        _ => found.push(format!("{path}: {given} became {known}")),
    }
}

#[test]
fn kubernetes_knows_every_field() {
    let mut found = Vec::new();
    for document in documents() {
        let typed = match kind(&document) {
            "Namespace" => known::<Namespace>(&document),
            "CSIDriver" => known::<CSIDriver>(&document),
            "StorageClass" => known::<StorageClass>(&document),
            "VolumeAttributesClass" => known::<VolumeAttributesClass>(&document),
            "VolumeSnapshotClass" => known::<VolumeSnapshotClass>(&document),
            "PriorityClass" => known::<PriorityClass>(&document),
            "ServiceAccount" => known::<ServiceAccount>(&document),
            "Role" => known::<Role>(&document),
            "RoleBinding" => known::<RoleBinding>(&document),
            "ClusterRole" => known::<ClusterRole>(&document),
            "ClusterRoleBinding" => known::<ClusterRoleBinding>(&document),
            "ConfigMap" => known::<ConfigMap>(&document),
            "DaemonSet" => known::<DaemonSet>(&document),
            "Deployment" => known::<Deployment>(&document),
            "PodDisruptionBudget" => known::<PodDisruptionBudget>(&document),
            other => panic!("{other} has no place in this test"),
        };
        let name = format!("{} {}", kind(&document), document["metadata"]["name"]);
        lost(&name, &document, &typed, &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn kubernetes_knows_what_cleans_the_nodes() {
    for (wipe, argument) in [(false, "--wipe=false"), (true, "--wipe=true")] {
        let text = uninstall("elsewhere", &Values::default(), wipe).unwrap();
        let document: Value = serde_saphyr::from_str(&text).unwrap();
        let mut found = Vec::new();
        lost("DaemonSet", &document, &known::<DaemonSet>(&document), &mut found);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(document["metadata"]["namespace"], "elsewhere");
        let pod = &document["spec"]["template"]["spec"];
        assert!(texts(&pod["initContainers"][0]["command"]).contains(&argument.to_owned()));
        assert_eq!(pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"], false);
    }
}

/// Who may do what, in all: a right more is a decision, and belongs here.
const RIGHTS: &[(&str, &str, &str)] = &[
    ("holdfast-node", "configmaps", "create"),
    ("holdfast-node", "configmaps", "get update"),
    ("holdfast-failover", "nodes", "get list patch watch"),
    ("holdfast-failover", "pods", "delete list"),
    ("holdfast-failover", "persistentvolumes", "list watch"),
    ("holdfast-failover", "events", "create"),
    ("holdfast-provisioner", "persistentvolumes", "create delete get list patch watch"),
    ("holdfast-provisioner", "persistentvolumeclaims", "get list patch update watch"),
    ("holdfast-provisioner", "persistentvolumeclaims/status", "patch update"),
    ("holdfast-provisioner", "pods", "get list watch"),
    ("holdfast-provisioner", "nodes", "get list watch"),
    ("holdfast-provisioner", "events", "create list patch update watch"),
    ("holdfast-provisioner", "storageclasses", "get list watch"),
    ("holdfast-provisioner", "csinodes", "get list watch"),
    ("holdfast-provisioner", "volumeattributesclasses", "get list watch"),
    ("holdfast-snapshotter", "volumesnapshots", "get list update watch"),
    ("holdfast-snapshotter", "volumesnapshotclasses", "get list watch"),
    ("holdfast-snapshotter", "volumesnapshotcontents", "get list patch update watch"),
    ("holdfast-snapshotter", "volumesnapshotcontents/status", "patch update"),
    ("holdfast-controller", "leases", "create delete get list patch update watch"),
    ("holdfast-controller", "csistoragecapacities", "create delete get list patch update watch"),
    ("holdfast-controller", "pods", "get"),
    ("holdfast-controller", "replicasets", "get"),
];

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn rights_are_these_and_no_others() {
    let mut rights = BTreeSet::new();
    for document in documents() {
        if !["Role", "ClusterRole"].contains(&kind(&document)) {
            continue;
        }
        let name = document["metadata"]["name"].as_str().unwrap().to_owned();
        for rule in document["rules"].as_array().unwrap() {
            let mut verbs = texts(&rule["verbs"]);
            verbs.sort();
            for resource in texts(&rule["resources"]) {
                rights.insert((name.clone(), resource, verbs.join(" ")));
            }
        }
    }
    let owned = |(name, resource, verbs): &(&str, &str, &str)| {
        (name.to_string(), resource.to_string(), verbs.to_string())
    };
    assert_eq!(rights, RIGHTS.iter().map(owned).collect());
}

fn pods() -> Vec<(String, PodSpec)> {
    let with_pods =
        documents().into_iter().filter(|d| ["DaemonSet", "Deployment"].contains(&kind(d)));
    with_pods
        .map(|document| {
            let name = document["metadata"]["name"].as_str().unwrap().to_owned();
            (name, serde_json::from_value(document["spec"]["template"]["spec"].clone()).unwrap())
        })
        .collect()
}

#[test]
fn containers_have_the_least_rights_that_work() {
    // Devices, FUSE, loop devices and mounts that other pods see.
    let privileged = BTreeSet::from(["device-holder", "join", "replicator", "csi-node"]);
    for (pod, spec) in pods() {
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for container in all {
            let security = container.security_context.as_ref().unwrap();
            let what = format!("{pod}: {}", container.name);
            assert_eq!(security.read_only_root_filesystem, Some(true), "{what}");
            assert!(container.resources.as_ref().unwrap().requests.is_some(), "{what}");
            if privileged.contains(container.name.as_str()) {
                continue;
            }
            assert_eq!(security.privileged, None, "{what}");
            assert_eq!(security.allow_privilege_escalation, Some(false), "{what}");
            let dropped = security.capabilities.as_ref().unwrap().drop.clone();
            assert_eq!(dropped, Some(vec!["ALL".to_owned()]), "{what}");
        }
        if pod == "holdfast-controller" {
            let security = spec.security_context.unwrap();
            assert_eq!(security.run_as_non_root, Some(true));
            assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
        } else {
            let tolerations = spec.tolerations.unwrap();
            assert!(
                tolerations
                    .iter()
                    .any(|t| t.operator.as_deref() == Some("Exists") && t.key.is_none())
            );
        }
        let secret = |volume: &k8s_openapi::api::core::v1::Volume| volume.secret.is_some();
        assert!(!spec.volumes.unwrap_or_default().iter().any(secret), "{pod} mounts a secret");
    }
}

#[test]
fn every_object_carries_the_label_that_finds_it() {
    let mut names = BTreeMap::new();
    for document in documents() {
        let key = (kind(&document).to_owned(), document["metadata"]["name"].to_string());
        let label = &document["metadata"]["labels"]["app.kubernetes.io/name"];
        assert_eq!(label, "holdfast", "{key:?}");
        assert_eq!(names.insert(key.clone(), ()), None, "{key:?} is there twice");
    }
}

#[test]
fn what_a_cluster_does_not_have_is_not_applied_to_it() {
    let sidecars = |documents: &[Value]| {
        let controller = documents.iter().find(|d| kind(d) == "Deployment").unwrap();
        let containers = controller["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        containers.iter().filter(|c| c["name"] == "snapshotter").count()
    };
    let count = |documents: &[Value], api: &str| {
        documents.iter().filter(|d| d["apiVersion"] == api || kind(d) == api).count()
    };
    let rights = |documents: &[Value]| {
        let text = serde_json::to_string(documents).unwrap();
        text.matches("volumesnapshotcontents").count()
    };
    // Features; snapshotters, snapshot classes, mentions of their objects in rights, attributes classes.
    let rows: [(&[Feature], [usize; 4]); 3] = [
        (&[], [0, 0, 0, 0]),
        (&[Feature::Snapshots], [1, 1, 2, 0]),
        (&[Feature::AttributesClasses], [0, 0, 0, 5]),
    ];
    for (features, wanted) in rows {
        let all = documents_with(features);
        let found = [
            sidecars(&all),
            count(&all, "snapshot.storage.k8s.io/v1"),
            rights(&all),
            count(&all, "VolumeAttributesClass"),
        ];
        assert_eq!(found, wanted, "{features:?}");
    }
}

#[test]
fn values_reach_the_objects() {
    let mut values = Values::default();
    values.set("pools=[default]\ndevice = \"/dev/sdb\"").unwrap();
    values.set("image=mirror.example/holdfast:2").unwrap();
    let text = install("elsewhere", &values).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let table = documents.iter().find(|d| kind(d) == "ConfigMap").unwrap();
    let pools = table["data"]["pools.toml"].as_str().unwrap();
    assert_eq!(pools.trim_end(), "[default]\ndevice = \"/dev/sdb\"");
    assert!(text.contains("mirror.example/holdfast:2") && !text.contains("localhost/holdfast"));
    assert!(!text.contains(NAMESPACE));
}

#[test]
fn the_file_in_the_repository_is_what_the_chart_says() {
    let file = include_str!("../holdfast.yaml");
    let rendered = install(NAMESPACE, &Values::default()).unwrap();
    assert!(
        file == rendered,
        "make it again: holdfast install --generate > deploy/kubernetes/holdfast.yaml"
    );
}
