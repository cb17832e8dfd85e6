//! What of Kubernetes' objects stands in the way of a removal, and what has to be changed for it.

use serde_json::Value;
use std::collections::BTreeSet;

/// The driver.
const DRIVER: &str = "csi.holdfast.dev";
/// Labels that kubelet gave to nodes for it, and the taint of the failover controller.
const PREFIX: &str = "holdfast.dev/";

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// Namespace and name.
pub type Claim = (String, String);

/// A PersistentVolume of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The claim that it is bound to.
    pub claim: Option<Claim>,
    /// What holds it back from deletion once the driver is gone.
    pub finalizers: Vec<String>,
}

/// The driver's volumes among all PersistentVolumes.
pub fn volumes(all: &[Value]) -> Vec<Volume> {
    let ours = all.iter().filter(|volume| text(volume, "/spec/csi/driver") == DRIVER);
    ours.map(|volume| {
        let name = text(volume, "/spec/claimRef/name");
        let claim = (text(volume, "/spec/claimRef/namespace").to_owned(), name.to_owned());
        let bound = text(volume, "/status/phase") == "Bound";
        let finalizers = volume.pointer("/metadata/finalizers").and_then(Value::as_array);
        let finalizers = finalizers.into_iter().flatten().filter_map(Value::as_str);
        Volume {
            name: text(volume, "/metadata/name").to_owned(),
            claim: bound.then_some(claim),
            finalizers: finalizers.map(str::to_owned).collect(),
        }
    })
    .collect()
}

impl Volume {
    /// The finalizers that stay when nobody is left to take off the others.
    pub fn kept_finalizers(&self) -> Vec<&str> {
        let others = |name: &&str| !name.starts_with("external-provisioner.");
        self.finalizers.iter().map(String::as_str).filter(others).collect()
    }
}

/// A VolumeSnapshotContent of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// Namespace and name of the VolumeSnapshot that it is bound to.
    pub snapshot: (String, String),
}

/// The driver's snapshots among all VolumeSnapshotContents.
pub fn contents(all: &[Value]) -> Vec<Content> {
    let ours = all.iter().filter(|content| text(content, "/spec/driver") == DRIVER);
    ours.map(|content| {
        let part =
            |name: &str| text(content, &format!("/spec/volumeSnapshotRef/{name}")).to_owned();
        let name = text(content, "/metadata/name").to_owned();
        Content { name, snapshot: (part("namespace"), part("name")) }
    })
    .collect()
}

/// Pods that use one of the claims, as NAMESPACE/NAME; those that ended use nothing.
pub fn users(pods: &[Value], claims: &BTreeSet<Claim>) -> Vec<String> {
    let uses = |pod: &&Value| {
        let namespace = text(pod, "/metadata/namespace");
        let name = text(pod, "/metadata/name");
        let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
        let one_of = |volume: &Value| {
            let claim = match text(volume, "/persistentVolumeClaim/claimName") {
                // The claim of a generic ephemeral volume is named after its pod (KEP-1698).
                "" if volume.get("ephemeral").is_some() => {
                    format!("{name}-{}", text(volume, "/name"))
                }
                claim => claim.to_owned(),
            };
            claims.contains(&(namespace.to_owned(), claim))
        };
        let ended = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
        !ended && volumes.into_iter().flatten().any(one_of)
    };
    let name = |pod: &Value| {
        format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"))
    };
    pods.iter().filter(uses).map(name).collect()
}

/// What is to be taken off a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Its name.
    pub node: String,
    /// Keys of labels.
    pub labels: Vec<String>,
    /// Keys of taints.
    pub taints: Vec<String>,
}

/// Nodes with marks of ours.
pub fn marked(nodes: &[Value]) -> Vec<Marks> {
    let marks = nodes.iter().map(|node| {
        let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
        let taints = node.pointer("/spec/taints").and_then(Value::as_array);
        let ours = |key: &&str| key.starts_with(PREFIX);
        let labels = labels.into_iter().flatten().map(|(key, _)| key.as_str()).filter(ours);
        let taints = taints.into_iter().flatten().map(|taint| text(taint, "/key")).filter(ours);
        Marks {
            node: text(node, "/metadata/name").to_owned(),
            labels: labels.map(str::to_owned).collect(),
            taints: taints.map(str::to_owned).collect(),
        }
    });
    marks.filter(|marks| !(marks.labels.is_empty() && marks.taints.is_empty())).collect()
}

/// Names of nodes that are not ready: nothing can be removed from them.
pub fn unready(nodes: &[Value]) -> Vec<String> {
    let ready = |node: &&Value| {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        let is = |c: &Value| text(c, "/type") == "Ready" && text(c, "/status") == "True";
        conditions.into_iter().flatten().any(is)
    };
    let name = |node: &Value| text(node, "/metadata/name").to_owned();
    nodes.iter().filter(|node| !ready(node)).map(name).collect()
}

/// How Holdfast was installed, as its DaemonSet `holdfast-node` says; `None` if that is no such object.
pub fn settings(daemons: &Value) -> Option<[(&'static str, String); 4]> {
    let pod = daemons.pointer("/spec/template/spec")?;
    let containers = pod.pointer("/containers")?.as_array()?;
    let container = containers.iter().find(|c| text(c, "/name") == "replicator")?;
    let volumes = pod.pointer("/volumes")?.as_array()?;
    let path = |name: &str| {
        let volume = volumes.iter().find(|volume| text(volume, "/name") == name)?;
        Some(text(volume, "/hostPath/path").to_owned())
    };
    Some([
        ("image", text(container, "/image").to_owned()),
        ("imagePullPolicy", text(container, "/imagePullPolicy").to_owned()),
        ("directory", path("directory")?),
        ("kubeletDirectory", path("kubelet")?),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_drivers_volumes_count_and_only_their_bound_claims() {
        let claim = json!({"namespace": "db", "name": "data"});
        let volume = |name: &str, driver: &str, phase: &str| {
            json!({
                "metadata": {"name": name, "finalizers": [
                    "kubernetes.io/pv-protection",
                    "external-provisioner.volume.kubernetes.io/finalizer",
                ]},
                "spec": {"csi": {"driver": driver}, "claimRef": claim},
                "status": {"phase": phase},
            })
        };
        let found = volumes(&[
            volume("a", "csi.holdfast.dev", "Bound"),
            volume("b", "csi.holdfast.dev", "Released"),
            volume("c", "other.example", "Bound"),
            json!({"metadata": {"name": "d"}, "spec": {"hostPath": {}}}),
        ]);
        let names: Vec<_> = found.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(found[0].claim, Some(("db".into(), "data".into())));
        assert_eq!(found[1].claim, None);
        assert_eq!(found[0].kept_finalizers(), ["kubernetes.io/pv-protection"]);
    }

    #[test]
    fn only_the_drivers_snapshots_count() {
        let content = |name: &str, driver: &str| {
            let of = json!({"namespace": "db", "name": format!("of-{name}")});
            json!({"metadata": {"name": name}, "spec": {"driver": driver, "volumeSnapshotRef": of}})
        };
        let found = contents(&[content("a", DRIVER), content("b", "other.example")]);
        let snapshot = ("db".to_owned(), "of-a".to_owned());
        assert_eq!(found, [Content { name: "a".into(), snapshot }]);
    }

    #[test]
    fn pods_that_use_a_claim_stand_in_the_way_until_they_end() {
        let pod = |name: &str, phase: &str, volume: Value| {
            json!({
                "metadata": {"namespace": "db", "name": name},
                "spec": {"volumes": [volume]},
                "status": {"phase": phase},
            })
        };
        let data = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        let pods = [
            pod("pg", "Running", data.clone()),
            pod("done", "Succeeded", data.clone()),
            pod("other", "Running", json!({"name": "v", "emptyDir": {}})),
            pod("scratch", "Running", json!({"name": "v", "ephemeral": {}})),
        ];
        let claims = ["data", "scratch-v"].map(|name| ("db".to_owned(), name.to_owned()));
        assert_eq!(users(&pods, &claims.into()), ["db/pg", "db/scratch"]);
        let elsewhere = BTreeSet::from([("web".to_owned(), "data".to_owned())]);
        assert_eq!(users(&pods, &elsewhere), Vec::<String>::new());
    }

    #[test]
    fn nodes_are_told_by_what_they_carry() {
        let node = |name: &str, ready: &str, labels: Value, taints: Value| {
            json!({
                "metadata": {"name": name, "labels": labels},
                "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let nodes = [
            node("a", "True", json!({"holdfast.dev/node": "a", "x": "y"}), Value::Null),
            node("b", "False", json!({}), json!([{"key": "holdfast.dev/fenced"}, {"key": "z"}])),
            node("c", "True", json!({"x": "y"}), json!([])),
        ];
        let marks = marked(&nodes);
        assert_eq!(marks.len(), 2);
        assert_eq!(
            (marks[0].node.as_str(), &marks[0].labels[..]),
            ("a", &["holdfast.dev/node".to_owned()][..])
        );
        assert_eq!(marks[1].taints, ["holdfast.dev/fenced"]);
        assert_eq!(unready(&nodes), ["b"]);
    }

    #[test]
    fn settings_are_read_from_what_runs() {
        let mut values = manifests::Values::default();
        values.set("directory=/srv/holdfast").unwrap();
        let text = manifests::install("ns", &values).unwrap();
        let daemons = text
            .split("\n---\n")
            .find(|d| d.contains("name: holdfast-node\n") && d.contains("kind: DaemonSet"));
        assert!(daemons.is_some());
        let pod = json!({
            "containers": [{"name": "replicator", "image": "i:1", "imagePullPolicy": "Never"}],
            "volumes": [
                {"name": "directory", "hostPath": {"path": "/srv/holdfast"}},
                {"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet"}},
            ],
        });
        let found = settings(&json!({"spec": {"template": {"spec": pod}}})).unwrap();
        assert_eq!(found[0].1, "i:1");
        assert_eq!(found[2], ("directory", "/srv/holdfast".to_owned()));
        for (name, value) in found {
            values.set(&format!("{name}={value}")).unwrap();
        }
        assert_eq!(settings(&json!({})), None);
    }
}
