//! `holdfast install`: what is applied to a Kubernetes cluster.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use manifests::{Feature, NAMESPACE, Values};
use std::path::PathBuf;

/// What to print.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArguments {
    /// Print the objects for `kubectl apply -f -`; nothing is changed anywhere.
    #[arg(long, required = true)]
    generate: bool,
    /// Namespace of Holdfast's own pods.
    #[arg(long, default_value = NAMESPACE)]
    namespace: String,
    /// The image with Holdfast's programs.
    #[arg(long, value_name = "NAME:TAG")]
    image: Option<String>,
    /// How many nodes found the cluster: 1, 3 or 5.
    #[arg(long, value_name = "N")]
    founders: Option<String>,
    /// File with the table that says which device or file each node's pool is (TOML).
    #[arg(long, value_name = "FILE")]
    pools: Option<PathBuf>,
    /// What the cluster has; Helm finds this out by itself.
    #[arg(long, value_name = "FEATURE,…", value_delimiter = ',')]
    with: Vec<With>,
    /// Any value of the Helm chart; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

/// What some clusters have.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum With {
    /// The snapshot CRDs and the snapshot controller: brings csi-snapshotter and a VolumeSnapshotClass.
    Snapshots,
    /// Kubernetes 1.34 or newer: brings VolumeAttributesClasses.
    AttributesClasses,
}

impl From<With> for Feature {
    fn from(with: With) -> Self {
        match with {
            With::Snapshots => Self::Snapshots,
            With::AttributesClasses => Self::AttributesClasses,
        }
    }
}

/// The text of all objects.
///
/// # Errors
/// A value that is not accepted, a table that cannot be read.
pub fn install(arguments: &InstallArguments) -> Result<String> {
    let features: Vec<Feature> = arguments.with.iter().map(|&with| with.into()).collect();
    let mut values = Values::default().with(&features);
    let named = [("image", &arguments.image), ("founders", &arguments.founders)];
    for (name, value) in named {
        if let Some(value) = value {
            values.set(&format!("{name}={value}"))?;
        }
    }
    if let Some(path) = &arguments.pools {
        let table = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        values.set(&format!("pools={table}"))?;
    }
    for assignment in &arguments.set {
        values.set(assignment)?;
    }
    Ok(manifests::install(&arguments.namespace, &values)?)
}
