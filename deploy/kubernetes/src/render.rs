//! The part of Helm's template language that the chart uses.

use crate::Values;
use thiserror::Error;

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderError {
    /// An expression that this renderer does not know.
    #[error(
        "{{{{ {0} }}}} is not understood; accepted: .Release.Namespace, .Values.NAME, | indent N, | trim, \
         if .Capabilities.APIVersions.Has \"API\", end"
    )]
    Expression(String),
    /// A value that is not in the values.
    #[error("the value {0} is asked for and not there")]
    Missing(String),
    /// An expression without an end.
    #[error("an expression or condition begins and does not end: {0:?}")]
    Unfinished(String),
}

/// The template with its expressions replaced.
pub fn render(template: &str, namespace: &str, values: &Values) -> Result<String, RenderError> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    // Of each open condition whether it holds, and how it begins.
    let mut open: Vec<(bool, &str)> = Vec::new();
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, remains) = after.split_once("}}").ok_or_else(|| unfinished(after))?;
        // "{{-": without the white space before it.
        let (expression, before) = match expression.strip_prefix('-') {
            Some(expression) => (expression.trim(), before.trim_end()),
            None => (expression.trim(), before),
        };
        let shown = open.iter().all(|(holds, _)| *holds);
        if shown {
            text.push_str(before);
        }
        if let Some(condition) = expression.strip_prefix("if ") {
            open.push((holds(condition, values)?, after));
        } else if expression == "end" {
            open.pop().ok_or_else(|| RenderError::Expression(expression.to_owned()))?;
        } else {
            let value = evaluate(expression, namespace, values)?;
            text.push_str(if shown { &value } else { "" });
        }
        rest = remains;
    }
    if let Some((_, begin)) = open.last() {
        return Err(unfinished(begin));
    }
    text.push_str(rest);
    Ok(text)
}

fn unfinished(text: &str) -> RenderError {
    RenderError::Unfinished(text.chars().take(40).collect())
}

/// Whether the condition holds: `.Capabilities.APIVersions.Has "…"`.
fn holds(condition: &str, values: &Values) -> Result<bool, RenderError> {
    let api = condition.trim().strip_prefix(".Capabilities.APIVersions.Has \"");
    let api = api.and_then(|api| api.strip_suffix('"'));
    api.and_then(|api| values.has(api))
        .ok_or_else(|| RenderError::Expression(format!("if {condition}")))
}

fn evaluate(expression: &str, namespace: &str, values: &Values) -> Result<String, RenderError> {
    let unknown = || RenderError::Expression(expression.to_owned());
    let mut parts = expression.split('|').map(str::trim);
    let source = parts.next().unwrap_or_default();
    let mut text = match source.strip_prefix(".Values.") {
        Some(path) => values.get(path).ok_or_else(|| RenderError::Missing(path.to_owned()))?,
        None if source == ".Release.Namespace" => namespace.to_owned(),
        None => return Err(unknown()),
    };
    for function in parts {
        text = match function.split_once(' ') {
            None if function == "trim" => text.trim().to_owned(),
            Some(("indent", count)) => {
                let margin = " ".repeat(count.parse().map_err(|_| unknown())?);
                let lines: Vec<String> = text.split('\n').map(|l| format!("{margin}{l}")).collect();
                lines.join("\n")
            }
            _ => return Err(unknown()),
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Feature;

    #[test]
    fn a_condition_is_whether_the_cluster_has_an_api() {
        let has = |api: &str| format!("{{{{- if .Capabilities.APIVersions.Has \"{api}\" }}}}");
        let (snapshots, classes) =
            (has(Feature::Snapshots.api()), has(Feature::AttributesClasses.api()));
        let template =
            format!("a\n  {snapshots}\nb{classes} c\n  {{{{- end }}}}\n{{{{- end }}}}\nd\n");
        let rows: [(&[Feature], &str); 4] = [
            (&[], "a\nd\n"),
            (&[Feature::Snapshots], "a\nb\nd\n"),
            (&[Feature::AttributesClasses], "a\nd\n"),
            (&[Feature::Snapshots, Feature::AttributesClasses], "a\nb c\nd\n"),
        ];
        for (features, wanted) in rows {
            let values = Values::default().with(features);
            assert_eq!(render(&template, "here", &values).as_deref(), Ok(wanted), "{features:?}");
        }
        let values = Values::default();
        for (template, wanted) in [
            (
                snapshots,
                RenderError::Unfinished("- if .Capabilities.APIVersions.Has \"snap".into()),
            ),
            ("{{ end }}".into(), RenderError::Expression("end".into())),
            (has("apps/v1"), {
                RenderError::Expression("if .Capabilities.APIVersions.Has \"apps/v1\"".into())
            }),
        ] {
            assert_eq!(render(&template, "here", &values), Err(wanted), "{template}");
        }
    }

    #[test]
    fn what_is_known_is_replaced_and_everything_else_refused() {
        let mut values = Values::default();
        values.set("pools=a = 1\nb = 2\n").unwrap();
        let rows = [
            ("no expression", Ok("no expression".to_owned())),
            ("ns: {{ .Release.Namespace }}", Ok("ns: here".to_owned())),
            ("|\n  {{ .Values.pools | indent 2 | trim }}", Ok("|\n  a = 1\n  b = 2".to_owned())),
            ("{{ .Values.nothing }}", Err(RenderError::Missing("nothing".into()))),
            ("{{ if .Values.pools }}", Err(RenderError::Expression("if .Values.pools".into()))),
            (
                "{{ .Values.pools | quote }}",
                Err(RenderError::Expression(".Values.pools | quote".into())),
            ),
            ("{{ .Values.pools", Err(RenderError::Unfinished(" .Values.pools".into()))),
        ];
        for (template, wanted) in rows {
            assert_eq!(render(template, "here", &values), wanted, "{template}");
        }
    }
}
