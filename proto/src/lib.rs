//! Generated code of the protocols between Holdfast's processes. No logic.
#![allow(missing_docs, clippy::all)]

/// `holdfast.control.v1`: the replicator's control API.
pub mod control {
    tonic::include_proto!("holdfast.control.v1");
}
