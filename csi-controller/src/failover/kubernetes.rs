//! Every call to the Kubernetes API, each with a bound on its time and its repetition harmless.

use super::FENCED_TAINT;
use super::cache::Cache;
use super::note::Note;
use super::views::{ClaimView, NodeView, PodId, PodView};
use core::time::Duration;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod, Taint};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use std::path::Path;
use thiserror::Error;
use tokio::time::timeout;

#[cfg(test)]
mod tests;

/// How long one call may take.
pub const CALL: Duration = Duration::from_secs(5);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);
/// A watch is made anew this often, in seconds: a connection that died in silence is noticed then.
const WATCH: u32 = 30;
/// How often a patch is tried when somebody else changes the same node meanwhile.
const PATCHES: usize = 5;

/// Why there is no way to Kubernetes.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a pod's environment.
    #[error("not in a pod, and --kubeconfig is missing")]
    NotInPod(#[source] kube::config::InClusterError),
    /// The file is of no use.
    #[error("--kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The configuration is of no use.
    #[error("client of the Kubernetes API")]
    Client(#[source] kube::Error),
}

/// Why a call did not do what it should.
#[derive(Debug, Error)]
pub enum CallError {
    /// No answer in time.
    #[error("{call}: no answer from the Kubernetes API within {} s", CALL.as_secs())]
    Timeout {
        /// Which call.
        call: &'static str,
    },
    /// Refused, or the connection broke.
    #[error("{call}")]
    Api {
        /// Which call.
        call: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

impl CallError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }

    /// Whether the API server answered at all.
    pub fn answered(&self) -> bool {
        self.code().is_some()
    }
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// This call deleted the pod.
    Deleted,
    /// It was gone, or another pod has its name now.
    Gone,
}

/// The way to one Kubernetes cluster.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    /// `None` in tests: cannot be made anew.
    config: Option<Config>,
}

async fn bounded<T>(
    call: &'static str,
    work: impl Future<Output = kube::Result<T>>,
) -> Result<T, CallError> {
    match timeout(CALL, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(CallError::Api { call, source: Box::new(source) }),
        Err(_) => Err(CallError::Timeout { call }),
    }
}

impl Kubernetes {
    /// By the kubeconfig at `path`, else by the environment of a pod. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn new(path: Option<&Path>) -> Result<Self, ConnectError> {
        let mut config = match path {
            None => Config::incluster().map_err(ConnectError::NotInPod)?,
            Some(path) => {
                let explain =
                    |source| ConnectError::Kubeconfig { path: path.display().to_string(), source };
                let file = Kubeconfig::read_from(path).map_err(explain)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(explain)?
            }
        };
        config.connect_timeout = Some(CONNECT);
        let client = Client::try_from(config.clone()).map_err(ConnectError::Client)?;
        Ok(Self { client, config: Some(config) })
    }

    #[cfg(test)]
    pub fn of(client: Client) -> Self {
        Self { client, config: None }
    }

    /// The same with connections of its own: those of `self` may lead to a server that is gone.
    pub fn renewed(&self) -> Self {
        let client = self.config.clone().and_then(|config| Client::try_from(config).ok());
        let client = client.unwrap_or_else(|| self.client.clone());
        Self { client, config: self.config.clone() }
    }

    /// Keeps `nodes` up to date, for ever.
    pub async fn watch_nodes(self, nodes: Cache<NodeView>) {
        let config = watcher::Config::default().timeout(WATCH);
        let events = watcher(Api::<Node>::all(self.client), config).default_backoff().boxed();
        nodes.follow(events, |node| Some(NodeView::from(node))).await;
    }

    /// Keeps `claims` up to date by the name of their PersistentVolume, for ever.
    pub async fn watch_claims(self, claims: Cache<ClaimView>) {
        let config = watcher::Config::default().timeout(WATCH);
        let volumes = Api::<PersistentVolume>::all(self.client);
        let events = watcher(volumes, config).default_backoff().boxed();
        claims.follow(events, ClaimView::of).await;
    }

    /// The pods bound to a node, as of now.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn pods_on(&self, node: &str) -> Result<Vec<PodView>, CallError> {
        let which = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = Api::<Pod>::all(self.client.clone());
        let pods = bounded("list pods", pods.list(&which)).await?;
        Ok(pods.items.iter().map(PodView::from).collect())
    }

    /// Deletes a pod at once, without asking its node, if it is still the one with this uid.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete(&self, pod: &PodId) -> Result<Deletion, CallError> {
        let how = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        match bounded("delete pod", pods.delete(&pod.name, &how)).await {
            Ok(_) => Ok(Deletion::Deleted),
            // No such pod, or the uid is another one's.
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Deletion::Gone),
            Err(error) => Err(error),
        }
    }

    /// Puts our taint on a node. Whether it was not there before.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn taint(&self, node: &str, now: Timestamp) -> Result<bool, CallError> {
        self.change_taints(node, |taints| {
            if taints.iter().any(|taint| taint.key == FENCED_TAINT) {
                return false;
            }
            taints.push(Taint {
                key: FENCED_TAINT.to_owned(),
                effect: "NoSchedule".to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
            true
        })
        .await
    }

    /// Takes our taint off a node. Whether it was there.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn untaint(&self, node: &str) -> Result<bool, CallError> {
        self.change_taints(node, |taints| {
            let before = taints.len();
            taints.retain(|taint| taint.key != FENCED_TAINT);
            taints.len() != before
        })
        .await
    }

    /// Reads a node's taints, changes them, writes them back if nobody else wrote meanwhile: the list is
    /// one field to the API server, and others have taints in it too.
    async fn change_taints(
        &self,
        name: &str,
        change: impl Fn(&mut Vec<Taint>) -> bool,
    ) -> Result<bool, CallError> {
        let nodes = Api::<Node>::all(self.client.clone());
        let mut tries = 0;
        loop {
            tries += 1;
            let node = bounded("get node", nodes.get(name)).await?;
            let mut taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            if !change(&mut taints) {
                return Ok(false);
            }
            let patch = Patch::Merge(serde_json::json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            }));
            let how = PatchParams::default();
            match bounded("patch node", nodes.patch(name, &how, &patch)).await {
                Ok(_) => return Ok(true),
                Err(error) if error.code() == Some(409) && tries < PATCHES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells people. Saying it twice is saying it once.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn say(&self, note: &Note, instance: &str, now: Timestamp) -> Result<(), CallError> {
        let events = Api::<Event>::namespaced(self.client.clone(), note.subject.namespace());
        let event = note.event(instance, now);
        match bounded("create event", events.create(&PostParams::default(), &event)).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
