//! What is applied to a Kubernetes cluster to install Holdfast: one source, the Helm chart beside this
//! file, rendered here as `helm template` renders it.
//!
//! The templates use only `{{ .Release.Namespace }}`, `{{ .Values.… }}`, the functions `indent` and `trim`,
//! and `{{- if .Capabilities.APIVersions.Has "…" }}`, so that this renderer can be complete. What it does not know is an error, never left in
//! the text.
#![forbid(unsafe_code)]

mod render;
mod values;

pub use render::RenderError;
pub use values::{Feature, Values, ValuesError};

/// The chart's templates, in the order in which they have to be applied.
const TEMPLATES: [&str; 6] = [
    include_str!("../chart/templates/10-driver.yaml"),
    include_str!("../chart/templates/20-rights.yaml"),
    include_str!("../chart/templates/30-node.yaml"),
    include_str!("../chart/templates/40-controller.yaml"),
    include_str!("../chart/templates/50-snapshots.yaml"),
    include_str!("../chart/templates/60-attributes.yaml"),
];

/// Not part of the chart: what takes an installation's traces off the nodes.
const UNINSTALL: &str = include_str!("../uninstall/node.yaml");

/// Namespace unless told otherwise.
pub const NAMESPACE: &str = "holdfast-system";

/// Everything for `kubectl apply -f -`: the namespace, which Helm makes itself, and the chart.
///
/// # Errors
/// A value that a template asks for and that is not there.
pub fn install(namespace: &str, values: &Values) -> Result<String, RenderError> {
    let mut all = format!(
        "# Holdfast, as `holdfast install --generate` prints it. Apply with `kubectl apply -f`.\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels:\n    \
         app.kubernetes.io/name: holdfast\n    \
         # Storage needs devices and mounts; see the comments at each securityContext.\n    \
         pod-security.kubernetes.io/enforce: privileged\n"
    );
    for template in TEMPLATES {
        let text = render::render(template, namespace, values)?;
        // A template that is one condition begins with an empty line, or is nothing.
        let text = text.trim_start();
        if !text.is_empty() {
            all.push_str("---\n");
            all.push_str(text);
        }
    }
    Ok(all)
}

/// The DaemonSet that cleans the nodes of an installation with these values; `wipe`: of its data, too.
///
/// # Errors
/// A value that is asked for and not there.
pub fn uninstall(namespace: &str, values: &Values, wipe: bool) -> Result<String, RenderError> {
    let wipe = if wipe { "true" } else { "false" };
    render::render(&UNINSTALL.replace("{{ .Values.wipe }}", wipe), namespace, values)
}
