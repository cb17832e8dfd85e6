//! What the controller looks at in Kubernetes' objects, and nothing else of them.

use super::{FAILOVER_ANNOTATION, FAILOVER_DISABLED, FENCED_TAINT, OUT_OF_SERVICE_TAINT};
use csi_common::PLUGIN_NAME;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use std::collections::BTreeMap;

/// A node of Kubernetes; Holdfast knows it by the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// For events.
    pub uid: String,
    /// It carries our taint.
    pub fenced: bool,
    /// An administrator says that it is down.
    pub out_of_service: bool,
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let has = |key: &str| taints.iter().any(|taint| taint.key == key);
        Self {
            uid: node.metadata.uid.clone().unwrap_or_default(),
            fenced: has(FENCED_TAINT),
            out_of_service: has(OUT_OF_SERVICE_TAINT),
        }
    }
}

/// How far a pod's life is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Bound to a node; not everything of it has started.
    #[default]
    Pending,
    /// Its volumes were staged and its containers started.
    Running,
    /// Succeeded or failed: it uses nothing any more.
    Ended,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its life: a later pod of that name has another.
    pub uid: String,
}

/// A pod, as far as failover is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodView {
    /// Which one.
    pub id: PodId,
    /// Names of the claims that it mounts.
    pub claims: Vec<String>,
    /// Kind of the controller that will make another one, like `StatefulSet`.
    pub controller: Option<String>,
    /// Its owner does not want it moved.
    pub opted_out: bool,
    /// Somebody has asked for its deletion.
    pub terminating: bool,
    /// How far it is.
    pub phase: Phase,
}

impl From<&Pod> for PodView {
    fn from(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let volumes =
            pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
            let named =
                volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
            // The claim of a generic ephemeral volume is named after its pod (KEP-1698).
            named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)))
        };
        let claims = volumes.iter().filter_map(claim).collect();
        let owners = meta.owner_references.as_deref().unwrap_or_default();
        let annotations = meta.annotations.as_ref();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Self {
            claims,
            controller: owners
                .iter()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.kind.clone()),
            opted_out: annotations
                .and_then(|all| all.get(FAILOVER_ANNOTATION))
                .is_some_and(|value| value == FAILOVER_DISABLED),
            terminating: meta.deletion_timestamp.is_some(),
            phase: match phase {
                Some("Succeeded" | "Failed") => Phase::Ended,
                Some("Running") => Phase::Running,
                _ => Phase::Pending,
            },
            id: PodId {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name,
                uid: meta.uid.clone().unwrap_or_default(),
            },
        }
    }
}

/// What stands behind a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The volume of ours with this id.
    Holdfast(String),
    /// Somebody else's.
    Other,
}

/// A bound PersistentVolume and its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimView {
    /// Namespace of the claim.
    pub namespace: String,
    /// The claim.
    pub name: String,
    /// For events.
    pub uid: String,
    /// What it holds.
    pub backing: Backing,
}

impl ClaimView {
    /// `None` unless the volume is bound: a released one may name a claim of the past.
    pub fn of(volume: &PersistentVolume) -> Option<Self> {
        let bound = volume.status.as_ref()?.phase.as_deref() == Some("Bound");
        let spec = volume.spec.as_ref().filter(|_| bound)?;
        let claim = spec.claim_ref.as_ref()?;
        let ours = spec.csi.as_ref().filter(|csi| csi.driver == PLUGIN_NAME);
        Some(Self {
            namespace: claim.namespace.clone()?,
            name: claim.name.clone()?,
            uid: claim.uid.clone().unwrap_or_default(),
            backing: ours
                .map_or(Backing::Other, |csi| Backing::Holdfast(csi.volume_handle.clone())),
        })
    }
}

/// Claims by namespace and name.
pub type Claims = BTreeMap<(String, String), ClaimView>;
