//! How much I/O a volume may do: `iops_limit` and `bandwidth_limit` of either class.

use csi_common::RequestError;

/// Requests in a second.
pub const IOPS_LIMIT: &str = "iops_limit";
/// Bytes in a second.
pub const BANDWIDTH_LIMIT: &str = "bandwidth_limit";
const IOPS: &str = "none, 100 to 1000000";
const BANDWIDTH: &str = "none, 1Mi to 64Gi bytes per second (plain, or with Ki, Mi, Gi, k, M, G)";
/// Kubernetes' suffixes of quantities.
const SUFFIXES: [(&str, u64); 6] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

/// What is said of them; `None`: nothing, 0: no limit, as the control API has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In requests.
    pub iops: Option<u64>,
    /// In bytes.
    pub bandwidth: Option<u64>,
}

impl Limits {
    /// Takes in a key and its value; false if it is another's key.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the value and what would be accepted.
    pub fn take(&mut self, key: &str, value: &str) -> Result<bool, RequestError> {
        let refused = |accepted| RequestError::invalid(format!("parameter {key}"), value, accepted);
        match key {
            IOPS_LIMIT => {
                let limit = number(value).filter(|limit| (100..=1_000_000).contains(limit));
                let limit = if value == "none" { Some(0) } else { limit };
                self.iops = Some(limit.ok_or_else(|| refused(IOPS))?);
            }
            BANDWIDTH_LIMIT => {
                let limit = bytes(value).filter(|limit| (1 << 20..=64 << 30).contains(limit));
                let limit = if value == "none" { Some(0) } else { limit };
                self.bandwidth = Some(limit.ok_or_else(|| refused(BANDWIDTH))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// With what `later` says in place of the same here.
    pub fn changed_by(self, later: Self) -> Self {
        Self { iops: later.iops.or(self.iops), bandwidth: later.bandwidth.or(self.bandwidth) }
    }

    /// Whether anything is said.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// A number without a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn bytes(text: &str) -> Option<u64> {
    let suffix = SUFFIXES
        .into_iter()
        .find_map(|(word, factor)| text.strip_suffix(word).map(|digits| (digits, factor)));
    let (digits, factor) = suffix.unwrap_or((text, 1));
    number(digits)?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_are_numbers_with_the_suffixes_of_kubernetes() {
        for (key, value, iops, bandwidth) in [
            (IOPS_LIMIT, "100", Some(100), None),
            (IOPS_LIMIT, "1000000", Some(1_000_000), None),
            (IOPS_LIMIT, "none", Some(0), None),
            (BANDWIDTH_LIMIT, "1048576", None, Some(1 << 20)),
            (BANDWIDTH_LIMIT, "1Mi", None, Some(1 << 20)),
            (BANDWIDTH_LIMIT, "64Gi", None, Some(64 << 30)),
            (BANDWIDTH_LIMIT, "100M", None, Some(100_000_000)),
            (BANDWIDTH_LIMIT, "none", None, Some(0)),
        ] {
            let mut limits = Limits::default();
            assert!(limits.take(key, value).unwrap());
            assert_eq!(limits, Limits { iops, bandwidth }, "{key}={value}");
        }
        assert!(!Limits::default().take("repl", "2").unwrap());
        for (key, value) in [
            (IOPS_LIMIT, "0"),
            (IOPS_LIMIT, "99"),
            (IOPS_LIMIT, "1000001"),
            (IOPS_LIMIT, "1k"),
            (IOPS_LIMIT, "+500"),
            (IOPS_LIMIT, ""),
            (BANDWIDTH_LIMIT, "0"),
            (BANDWIDTH_LIMIT, "1023Ki"),
            (BANDWIDTH_LIMIT, "65Gi"),
            (BANDWIDTH_LIMIT, "1.5Gi"),
            (BANDWIDTH_LIMIT, "1Ti"),
            (BANDWIDTH_LIMIT, "99999999999999999999Gi"),
            (BANDWIDTH_LIMIT, "Mi"),
        ] {
            let error = Limits::default().take(key, value).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("accepted: none"), "{error}");
        }
    }
}
