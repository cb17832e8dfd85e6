//! `holdfast uninstall`: takes Holdfast off a Kubernetes cluster, in the order in which nothing is stuck.
//!
//! ```text
//! refuse while a pod uses a volume, or a node cannot be reached; wait until none is attached
//! --wipe: delete snapshots and claims while the driver is there to delete what they stand for
//! controllers away ──► volumes that stay lose the finalizer that only the driver would take off
//! daemons away ──► one pod a node cleans it (holdfast-leave) ──► labels and taints off the nodes
//! objects of the whole cluster, the namespace
//! ```
//!
//! Every step may be repeated; a run that was cut short is finished by another one.

mod inventory;
mod kubectl;

use crate::output::Output;
use anyhow::{Context as _, Result, bail, ensure};
use inventory::{Claim, Content, Volume};
use kubectl::Kubectl;
use manifests::{NAMESPACE, Values};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long volumes, pods and nodes may take to be rid of what they are to be rid of.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Everything that Holdfast was installed with carries this label.
const LABEL: &str = "app.kubernetes.io/name=holdfast";
/// Kinds of objects of the whole cluster that an installation has.
const CLUSTER_KINDS: &str =
    "csidrivers,storageclasses,priorityclasses,clusterrolebindings,clusterroles";
/// The same, of kinds that not every cluster has: `kubectl api-resources -o name`.
const MORE_KINDS: [&str; 2] =
    ["volumeattributesclasses.storage.k8s.io", "volumesnapshotclasses.snapshot.storage.k8s.io"];
/// Snapshots as the cluster knows them.
const CONTENTS: &str = "volumesnapshotcontents.snapshot.storage.k8s.io";

/// How to remove.
#[derive(Clone, Debug, clap::Args)]
pub struct UninstallArguments {
    /// Namespace of Holdfast's own pods.
    #[arg(long, default_value = NAMESPACE)]
    namespace: String,
    /// Delete all volumes with their claims, and wipe the pools. Without it data stay on the nodes, and a
    /// later installation finds them.
    #[arg(long)]
    wipe: bool,
    /// The program that reaches the cluster.
    #[arg(long, value_name = "PROGRAM", default_value = "kubectl")]
    kubectl: PathBuf,
    /// Go on although nodes are not ready: they keep what is on them.
    #[arg(long)]
    skip_unready: bool,
    /// Any value of the Helm chart, where the installation does not say it any more: image, directory,
    /// kubeletDirectory, imagePullPolicy. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

/// Removes Holdfast.
///
/// # Errors
/// What stands in the way, by its name; kubectl's.
pub fn uninstall(arguments: &UninstallArguments, output: Output) -> Result<()> {
    let kubectl = Kubectl(arguments.kubectl.clone());
    let kinds = kubectl.run(&["api-resources", "-o", "name"])?;
    let cluster = Cluster {
        kinds: kinds.lines().map(|line| line.trim().to_owned()).collect(),
        kubectl,
        namespace: &arguments.namespace,
        wipe: arguments.wipe,
        output,
    };
    let values = cluster.values(&arguments.set)?;
    cluster.check(arguments.skip_unready)?;
    if arguments.wipe {
        cluster.delete_snapshots()?;
        cluster.delete_claims()?;
    }
    cluster.detached(&values)?;
    cluster.delete(&["deployment", "holdfast-controller"])?;
    cluster.gone("app.kubernetes.io/component=controller")?;
    cluster.release_volumes()?;
    cluster.delete(&["daemonset", "holdfast-node", "holdfast-devices"])?;
    cluster.gone("app.kubernetes.io/component in (node,devices)")?;
    cluster.clean_nodes(&values, arguments.skip_unready)?;
    cluster.unmark_nodes()?;
    cluster.delete_objects()?;
    output.line(if arguments.wipe {
        "Holdfast is removed, and its data with it"
    } else {
        "Holdfast is removed; the data are still on the nodes"
    })
}

struct Cluster<'a> {
    kubectl: Kubectl,
    /// Kinds of objects that the cluster has, by their full names.
    kinds: BTreeSet<String>,
    namespace: &'a str,
    wipe: bool,
    output: Output,
}

impl Cluster<'_> {
    fn values(&self, set: &[String]) -> Result<Values> {
        let mut values = Values::default();
        let object = ["daemonset", "holdfast-node", "-n", self.namespace];
        match self.kubectl.find(&object)?.as_ref().and_then(inventory::settings) {
            Some(found) => {
                for (name, value) in found {
                    values.set(&format!("{name}={value}"))?;
                }
            }
            None => ensure!(
                set.iter().any(|value| value.starts_with("image=")),
                "there is no DaemonSet holdfast-node in namespace {}: name the namespace, or finish an earlier \
                 removal with --set image=… (and directory=, kubeletDirectory=, imagePullPolicy= where they \
                 are not the defaults)",
                self.namespace
            ),
        }
        for assignment in set {
            values.set(assignment)?;
        }
        Ok(values)
    }

    fn volumes(&self) -> Result<Vec<Volume>> {
        Ok(inventory::volumes(&self.kubectl.list(&["persistentvolumes"])?))
    }

    fn claims(&self) -> Result<BTreeSet<Claim>> {
        Ok(self.volumes()?.into_iter().filter_map(|volume| volume.claim).collect())
    }

    /// Nobody uses a volume, and every node can be cleaned.
    fn check(&self, skip_unready: bool) -> Result<()> {
        let unready = inventory::unready(&self.kubectl.list(&["nodes"])?);
        ensure!(
            unready.is_empty() || skip_unready,
            "nodes that are not ready cannot be cleaned: {}. Bring them back, delete them from the cluster, or \
             leave them as they are with --skip-unready",
            unready.join(", ")
        );
        let users = self.users()?;
        ensure!(
            users.is_empty(),
            "pods still use Holdfast's volumes: {}. Delete them, or scale their controllers to 0",
            users.join(", ")
        );
        Ok(())
    }

    fn users(&self) -> Result<Vec<String>> {
        let claims = self.claims()?;
        Ok(inventory::users(&self.kubectl.list(&["pods", "--all-namespaces"])?, &claims))
    }

    /// Looks until nothing is left; fails with what is.
    fn wait<T>(
        &self,
        left: impl Fn() -> Result<Vec<T>>,
        what: impl Fn(&[T]) -> String,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            let found = left()?;
            if found.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{} after {PATIENCE:?}", what(&found));
            sleep(PAUSE);
        }
    }

    /// Waits until kubelets have given all volumes back: only csi-node can unmount them in order.
    fn detached(&self, values: &Values) -> Result<()> {
        let daemons = ["daemonset", "holdfast-node", "-n", self.namespace];
        if self.kubectl.find(&daemons)?.is_none() {
            return Ok(());
        }
        let socket = values.get("directory").context("directory")? + "/control.sock";
        let endpoint = format!("unix://{socket}");
        let ask = [
            "exec",
            "-n",
            self.namespace,
            "daemonset/holdfast-node",
            "-c",
            "replicator",
            "--",
            "holdfast",
            "--json",
            "--endpoints",
            &endpoint,
            "volume",
            "list",
        ];
        self.wait(
            || {
                let volumes: Vec<Value> = serde_json::from_str(&self.kubectl.run(&ask)?)?;
                let attached = |volume: &Value| volume["attached_node"] != 0;
                Ok(volumes.into_iter().filter(attached).collect())
            },
            |left| {
                let named = |volume: &Value| {
                    format!("{} on {}", volume["name"], volume["attached_node_name"])
                };
                let left: Vec<_> = left.iter().map(named).collect();
                format!("volumes are still attached: {}", left.join(", "))
            },
        )
    }

    fn contents(&self) -> Result<Vec<Content>> {
        if !self.kinds.contains(CONTENTS) {
            return Ok(Vec::new());
        }
        Ok(inventory::contents(&self.kubectl.list(&[CONTENTS])?))
    }

    fn delete_snapshots(&self) -> Result<()> {
        for Content { name, snapshot: (namespace, snapshot) } in self.contents()? {
            self.output.line(&format!("deleting snapshot {namespace}/{snapshot}"))?;
            self.delete_in(
                &namespace,
                &["volumesnapshots.snapshot.storage.k8s.io", &snapshot, "--wait=false"],
            )?;
            // One whose snapshot is gone, or that is to be retained without it.
            self.delete(&[CONTENTS, &name, "--wait=false"])?;
        }
        self.wait(
            || self.contents(),
            |left| {
                let names: Vec<_> = left.iter().map(|content| content.name.as_str()).collect();
                format!("snapshots are not deleted: {}", names.join(", "))
            },
        )
    }

    fn delete_claims(&self) -> Result<()> {
        for (namespace, name) in self.claims()? {
            self.output.line(&format!("deleting claim {namespace}/{name} and its volume"))?;
            self.delete_in(&namespace, &["persistentvolumeclaim", &name, "--wait=false"])?;
        }
        self.wait(
            || {
                let bound = |volume: &Volume| volume.claim.is_some();
                let retained = self.volumes()?.into_iter().filter(|volume| !bound(volume));
                for volume in retained {
                    // Released and to be retained, but wiped with everything else: nobody else deletes
                    // the object.
                    self.kubectl.run(&[
                        "delete",
                        "persistentvolume",
                        &volume.name,
                        "--ignore-not-found",
                        "--wait=false",
                    ])?;
                }
                self.volumes()
            },
            |left| {
                let names: Vec<_> = left.iter().map(|volume| volume.name.as_str()).collect();
                format!("volumes are not deleted: {}", names.join(", "))
            },
        )
    }

    fn delete(&self, what: &[&str]) -> Result<()> {
        self.delete_in(self.namespace, what)
    }

    fn delete_in(&self, namespace: &str, what: &[&str]) -> Result<()> {
        let delete = ["delete", "-n", namespace, "--ignore-not-found"];
        self.kubectl.run(&[&delete[..], what].concat()).map(drop)
    }

    /// Waits until no pod of ours with this label is left.
    fn gone(&self, selector: &str) -> Result<()> {
        let selector = format!("{LABEL},{selector}");
        self.output.line(&format!("waiting for the end of pods with {selector}"))?;
        self.wait(
            || self.kubectl.list(&["pods", "-n", self.namespace, "-l", &selector]),
            |left| format!("{} pods with {selector} are still there", left.len()),
        )
    }

    /// Volumes that stay can be deleted by their administrator without the driver, and are not deleted by
    /// the next one because a claim was deleted meanwhile.
    fn release_volumes(&self) -> Result<()> {
        for volume in self.volumes()? {
            let patch = json!({
                "metadata": {"finalizers": volume.kept_finalizers()},
                "spec": {"persistentVolumeReclaimPolicy": "Retain"},
            });
            let patch = patch.to_string();
            self.kubectl.run(&[
                "patch",
                "persistentvolume",
                &volume.name,
                "--type=merge",
                "-p",
                &patch,
            ])?;
            self.output.line(&format!("volume {} stays, to be retained", volume.name))?;
        }
        for content in self.contents()? {
            // Its finalizer is the snapshot controller's, which would put it on again.
            let text = format!("snapshot {} stays, for a later installation", content.name);
            self.output.line(&text)?;
        }
        Ok(())
    }

    fn clean_nodes(&self, values: &Values, skip_unready: bool) -> Result<()> {
        self.output.line("cleaning the nodes")?;
        let objects = manifests::uninstall(self.namespace, values, self.wipe)?;
        self.kubectl.run_with(&["apply", "-f", "-"], &objects)?;
        let name = ["daemonset", "holdfast-uninstall", "-n", self.namespace];
        let begun = Instant::now();
        loop {
            let unready = inventory::unready(&self.kubectl.list(&["nodes"])?).len() as u64;
            let daemons = self.kubectl.find(&name)?.context("the DaemonSet that cleans is gone")?;
            let number = |field: &str| daemons["status"][field].as_u64();
            let observed =
                number("observedGeneration") == daemons["metadata"]["generation"].as_u64();
            let (wanted, ready) = (number("desiredNumberScheduled"), number("numberReady"));
            let excused = if skip_unready { unready } else { 0 };
            if observed
                && let (Some(wanted), Some(ready)) = (wanted, ready)
                && ready + excused >= wanted
            {
                break;
            }
            if begun.elapsed() > PATIENCE {
                let logs = self.kubectl.run(&[
                    "logs",
                    "-n",
                    self.namespace,
                    "-l",
                    "app.kubernetes.io/component=uninstall",
                    "-c",
                    "leave",
                    "--tail=5",
                    "--prefix",
                ]);
                bail!(
                    "{} of {} nodes are clean after {PATIENCE:?}: {}",
                    ready.unwrap_or(0),
                    wanted.unwrap_or(0),
                    logs.unwrap_or_else(|error| error.to_string()).trim()
                );
            }
            sleep(PAUSE);
        }
        self.delete(&["daemonset", "holdfast-uninstall"])?;
        self.gone("app.kubernetes.io/component=uninstall")
    }

    fn unmark_nodes(&self) -> Result<()> {
        for marks in inventory::marked(&self.kubectl.list(&["nodes"])?) {
            let without = |keys: &[String]| keys.iter().map(|key| format!("{key}-")).collect();
            let (labels, taints): (Vec<_>, Vec<_>) =
                (without(&marks.labels), without(&marks.taints));
            for (verb, kind, keys) in [("label", "node", labels), ("taint", "nodes", taints)] {
                if !keys.is_empty() {
                    let keys = keys.iter().map(String::as_str).collect::<Vec<_>>();
                    self.kubectl
                        .run(&[&[verb, kind, marks.node.as_str()][..], &keys[..]].concat())?;
                }
            }
        }
        Ok(())
    }

    fn delete_objects(&self) -> Result<()> {
        self.output.line("deleting what belongs to the whole cluster, and the namespace")?;
        let more = MORE_KINDS.into_iter().filter(|kind| self.kinds.contains(*kind));
        let kinds: Vec<&str> = std::iter::once(CLUSTER_KINDS).chain(more).collect();
        self.kubectl.run(&["delete", &kinds.join(","), "-l", LABEL, "--ignore-not-found"])?;
        let namespace = self.kubectl.find(&["namespace", self.namespace])?;
        // One that somebody else made (Helm's --create-namespace, too) may hold other things.
        let ours = namespace
            .is_some_and(|ns| ns["metadata"]["labels"]["app.kubernetes.io/name"] == "holdfast");
        if ours {
            return self.kubectl.run(&["delete", "namespace", self.namespace]).map(drop);
        }
        let kinds = "poddisruptionbudgets,rolebindings,roles,serviceaccounts,configmaps";
        self.delete(&[kinds, "-l", LABEL])?;
        self.delete(&["configmap", "holdfast-registry"])
    }
}
