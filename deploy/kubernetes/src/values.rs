//! The chart's values: defaults from `values.yaml`, changed by name.

use serde_json::Value;
use thiserror::Error;

/// Why a value cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValuesError {
    /// Not `NAME=VALUE`.
    #[error("{0:?} is not accepted; accepted: NAME=VALUE")]
    Form(String),
    /// No such value.
    #[error("there is no value {name:?}; there are: {known}")]
    Unknown {
        /// What was given.
        name: String,
        /// What would be accepted.
        known: String,
    },
    /// A value that the chart cannot work with.
    #[error("{name} = {value:?} is not accepted; accepted: {accepted}")]
    Refused {
        /// Which.
        name: String,
        /// What was given.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
}

/// What some Kubernetes clusters have and others have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The CRDs of the CSI project's external-snapshotter, and its snapshot controller.
    Snapshots,
    /// VolumeAttributesClasses: Kubernetes 1.34 or newer.
    AttributesClasses,
}

impl Feature {
    /// The API that shows it, as Helm names it.
    #[must_use]
    pub const fn api(self) -> &'static str {
        match self {
            Self::Snapshots => "snapshot.storage.k8s.io/v1",
            Self::AttributesClasses => "storage.k8s.io/v1/VolumeAttributesClass",
        }
    }
}

/// The values of one installation.
#[derive(Clone, Debug)]
pub struct Values {
    values: Value,
    /// What the cluster has.
    features: Vec<Feature>,
}

impl Default for Values {
    /// Those of `values.yaml`.
    fn default() -> Self {
        let values = serde_saphyr::from_str(include_str!("../chart/values.yaml"));
        let values =
            values.unwrap_or_else(|error| unreachable!("values.yaml is not YAML: {error}"));
        Self { values, features: Vec::new() }
    }
}

impl Values {
    /// For a cluster that has `features`.
    #[must_use]
    pub fn with(mut self, features: &[Feature]) -> Self {
        self.features.extend(features);
        self
    }

    /// Whether the cluster has what shows itself as `api`; `None` for an API that no [`Feature`] stands for.
    pub(crate) fn has(&self, api: &str) -> Option<bool> {
        let all = [Feature::Snapshots, Feature::AttributesClasses];
        let feature = all.into_iter().find(|feature| feature.api() == api)?;
        Some(self.features.contains(&feature))
    }

    /// Sets a value that exists, given as `NAME=VALUE` (`sidecars.resizer=…`).
    ///
    /// # Errors
    /// [`ValuesError`].
    pub fn set(&mut self, assignment: &str) -> Result<(), ValuesError> {
        let form = || ValuesError::Form(assignment.to_owned());
        let (name, value) = assignment.split_once('=').ok_or_else(form)?;
        check(name, value)?;
        let known = self.names().join(", ");
        let place = name.split('.').try_fold(&mut self.values, |at, key| at.get_mut(key));
        match place {
            Some(place) if !place.is_object() => *place = Value::String(value.to_owned()),
            _ => return Err(ValuesError::Unknown { name: name.to_owned(), known }),
        }
        Ok(())
    }

    /// The value called `path` (dots between), as text.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<String> {
        match path.split('.').try_fold(&self.values, |at, key| at.get(key))? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => None,
        }
    }

    /// The names of all values.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, value) in self.values.as_object().into_iter().flatten() {
            match value.as_object() {
                Some(inner) => names.extend(inner.keys().map(|key| format!("{name}.{key}"))),
                None => names.push(name.clone()),
            }
        }
        names
    }
}

fn check(name: &str, value: &str) -> Result<(), ValuesError> {
    let accepted = match name {
        "founders" if !["1", "3", "5"].contains(&value) => "1, 3 or 5",
        "controllers" if !value.parse::<u32>().is_ok_and(|count| (1..=9).contains(&count)) => {
            "1 to 9"
        }
        "imagePullPolicy" if !["Always", "IfNotPresent", "Never"].contains(&value) => {
            "Always, IfNotPresent or Never"
        }
        "directory" | "kubeletDirectory" if !value.starts_with('/') => "an absolute path",
        _ if name != "pools" && value.contains(['\n', '"', '{', '}', '#']) => {
            "one line without quotes, braces and #"
        }
        _ => return Ok(()),
    };
    Err(ValuesError::Refused { name: name.to_owned(), value: value.to_owned(), accepted })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_value_is_set_by_its_name_or_refused_in_words() {
        let mut values = Values::default();
        values.set("sidecars.resizer=mirror.example/resizer:1").unwrap();
        assert_eq!(values.get("sidecars.resizer").unwrap(), "mirror.example/resizer:1");
        values.set("founders=5").unwrap();
        assert_eq!(values.get("founders").unwrap(), "5");
        for (assignment, wanted) in [
            ("founders=2", "1, 3 or 5"),
            ("controllers=0", "1 to 9"),
            ("imagePullPolicy=Sometimes", "IfNotPresent"),
            ("directory=holdfast", "absolute path"),
            ("image=a\nb", "one line"),
            ("sidecars=x", "there are: "),
            ("nodes=3", "founders"),
            ("founders", "NAME=VALUE"),
        ] {
            let error = values.set(assignment).unwrap_err().to_string();
            assert!(error.contains(wanted), "{assignment}: {error}");
        }
    }
}
