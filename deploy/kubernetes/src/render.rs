//! The part of Helm's template language that the chart uses.

use crate::Values;
use thiserror::Error;

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderError {
    /// An expression that this renderer does not know.
    #[error(
        "{{{{ {0} }}}} is not understood; accepted: .Release.Namespace, .Values.NAME, | indent N, | trim"
    )]
    Expression(String),
    /// A value that is not in the values.
    #[error("the value {0} is asked for and not there")]
    Missing(String),
    /// An expression without an end.
    #[error("an expression begins and does not end: {0:?}")]
    Unfinished(String),
}

/// The template with its expressions replaced.
pub fn render(template: &str, namespace: &str, values: &Values) -> Result<String, RenderError> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let unfinished = || RenderError::Unfinished(after.chars().take(40).collect());
        let (expression, after) = after.split_once("}}").ok_or_else(unfinished)?;
        text.push_str(before);
        text.push_str(&evaluate(expression.trim(), namespace, values)?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
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
