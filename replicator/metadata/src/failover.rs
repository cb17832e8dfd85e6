//! The steps of a failover, and when each was: kept among the events, so that every node tells the same
//! record whoever of them saw what. Nothing is ever decided on it.

use core::fmt;
use serde::{Deserialize, Serialize};

/// A step on a volume's way from a lost node to another one, in the order in which they happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailoverStep {
    /// The leader's last word from the node.
    Heard,
    /// Raft committed that the node is lost.
    Lost,
    /// Raft committed the fence.
    Fenced,
    /// A survivor sealed (R7).
    Sealed,
    /// Whoever moves what uses the volume began: in Kubernetes, a pod was deleted.
    Moved,
    /// Attached to another node.
    Attached,
    /// The first write there was acknowledged.
    Written,
}

impl FailoverStep {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Heard,
        Self::Lost,
        Self::Fenced,
        Self::Sealed,
        Self::Moved,
        Self::Attached,
        Self::Written,
    ];

    /// The `kind` of its event in the control API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Heard => "failover_heard",
            Self::Lost => "failover_lost",
            Self::Fenced => "failover_fenced",
            Self::Sealed => "failover_sealed",
            Self::Moved => "failover_moved",
            Self::Attached => "failover_attached",
            Self::Written => "failover_written",
        }
    }

    /// The step that [`Self::as_str`] calls so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == text)
    }
}

impl fmt::Display for FailoverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
