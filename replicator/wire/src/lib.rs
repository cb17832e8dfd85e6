//! The protocol between an engine and its replicas: messages, their frames and checksums.
//!
//! `engine` and `store` meet only here: a local replica is served the same messages without a
//! socket. This crate never does I/O and never trusts a length before it has checked it.
#![forbid(unsafe_code)]

mod decode;
mod frame;
mod message;

pub use decode::{DecodeError, Decoder, Receive};
pub use frame::{Encoded, Frame, HEADER, MAX_PAYLOAD, encode};
pub use message::{HeldSnapshot, Hello, Reply, Request, Role, SealInfo, WireError};

/// Versions of the protocol, newest last; one line a change.
pub const VERSIONS: &[(u16, &str)] = &[
    (1, "first version"),
    (2, "Hello names the boot and the run of the sender's daemon"),
    (3, "snapshots"),
    (4, "hashes of 128 bits under the engine's key; what a snapshot has allocated"),
    (
        5,
        "regions of a resync target that need no copy are tagged; Hello says what the replica has sealed",
    ),
];

/// The version that this build speaks. A peer with another one is refused by name.
pub const VERSION: u16 = VERSIONS[VERSIONS.len() - 1].0;
