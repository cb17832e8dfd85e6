//! Identities. UUIDs are created outside (this crate has no randomness) and are never reused (R11).

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// A text that is not a UUID where one was wanted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {text:?} is not a UUID")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The 16 bytes that go to disk and wire.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From 16 bytes of disk or wire.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                // Only the canonical form: one volume must not have two spellings.
                match Uuid::try_parse(text) {
                    Ok(id) if id.hyphenated().to_string() == text => Ok(Self(id)),
                    _ => Err(ParseIdError { kind: $kind, text: text.chars().take(64).collect() }),
                }
            }
        }
    };
}

uuid_id!(
    /// A volume; its text is the CSI volume id.
    VolumeId, "volume id");
uuid_id!(
    /// One copy of a volume in one pool.
    ReplicaId, "replica id");
uuid_id!(
    /// One life of a replica: a replica that is wiped and made again gets another (R11).
    Incarnation, "incarnation");
uuid_id!(
    /// One pool, in its superblock.
    PoolId, "pool id");
uuid_id!(
    /// One Holdfast cluster, in every superblock and every connection.
    ClusterId, "cluster id");
uuid_id!(
    /// One boot of a host (/proc/sys/kernel/random/boot_id) (R9).
    BootId, "boot id");
uuid_id!(
    /// One attempt at a snapshot of a volume (R26); its text is the CSI snapshot id.
    SnapshotId, "snapshot id");
uuid_id!(
    /// One attachment's engine: tells apart two engines on one node.
    EngineInstance, "engine instance");

/// A node, and its Raft id. A voter that lost its log comes back under a new one (design §6).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
