//! The registry as one Kubernetes ConfigMap: created by whoever comes first, changed by
//! compare-and-set on its resourceVersion, so that nodes agree without knowing each other.

use crate::registry::Registry;
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;

/// Name of the ConfigMap.
pub const OBJECT: &str = "holdfast-registry";
/// Its key.
const KEY: &str = "registry.json";
/// How often a lost race is repeated before something else must be wrong.
const ATTEMPTS: u32 = 50;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// The registry's object.
#[derive(Clone)]
pub struct Object {
    api: Api<ConfigMap>,
}

impl Object {
    /// In `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    /// The registry and its version; `None` if it does not exist yet.
    ///
    /// # Errors
    /// The API server's, or a registry that cannot be read.
    pub async fn read(&self) -> Result<Option<(Registry, String)>> {
        let found = self.api.get_opt(OBJECT).await.context("reading the registry")?;
        found.map(|object| parse(&object)).transpose()
    }

    /// Changes the registry by `change`, which gets `None` as long as there is no registry and may
    /// be called again with a newer one. Returns what was written.
    ///
    /// # Errors
    /// Those of `change`, and the API server's.
    pub async fn update(
        &self,
        change: impl Fn(Option<Registry>) -> Result<Registry>,
    ) -> Result<Registry> {
        for _ in 0..ATTEMPTS {
            let found = self.read().await?;
            let version = found.as_ref().map(|(_, version)| version.clone());
            let before = found.map(|(registry, _)| registry);
            let after = change(before.clone())?;
            if before.as_ref() == Some(&after) {
                return Ok(after);
            }
            let object = object(&after, version.clone())?;
            let parameters = PostParams::default();
            let written = match version {
                None => self.api.create(&parameters, &object).await,
                Some(_) => self.api.replace(OBJECT, &parameters, &object).await,
            };
            match written {
                Ok(_) => return Ok(after),
                // Somebody was faster: look again.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).context("writing the registry"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::bail!("the registry changed {ATTEMPTS} times while it was being written")
    }
}

fn parse(object: &ConfigMap) -> Result<(Registry, String)> {
    let text = object.data.as_ref().and_then(|data| data.get(KEY));
    let text = text.with_context(|| format!("ConfigMap {OBJECT} has no key {KEY}"))?;
    let registry: Registry =
        serde_json::from_str(text).with_context(|| format!("ConfigMap {OBJECT}, key {KEY}"))?;
    let version = object.metadata.resource_version.clone().unwrap_or_default();
    ensure!(!version.is_empty(), "ConfigMap {OBJECT} has no resourceVersion");
    Ok((registry, version))
}

fn object(registry: &Registry, resource_version: Option<String>) -> Result<ConfigMap> {
    let text = serde_json::to_string_pretty(registry)?;
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(OBJECT.into()),
            resource_version,
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), text)])),
        ..ConfigMap::default()
    })
}
