//! The numbers that order attachments and writes.

use core::fmt;
use serde::{Deserialize, Serialize};

/// Number granted by Raft to one attachment of a volume; higher always wins (R2, R3).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next epoch.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A ~30 s window of writes under one epoch, the unit of delta resync (R17, R18).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Era(pub u32);

impl Era {
    /// The next era.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// When a region was last written (R17): epoch first, then era. `Tag::default()` is "never written".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Tag {
    /// Epoch of the write.
    pub epoch: Epoch,
    /// Era of the write within the epoch.
    pub era: Era,
}

/// Version of a volume's ISR: every change is a compare-and-set on (epoch, version) (R1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct IsrVersion(pub u64);
