//! Generated code of the protocols between Holdfast's processes, and with Kubernetes. No logic.
#![allow(missing_docs, clippy::all)]
#![forbid(unsafe_code)]

/// `holdfast.control.v1`: the replicator's control API.
pub mod control {
    tonic::include_proto!("holdfast.control.v1");
}

/// `csi.v1`: the Container Storage Interface, release 1.12.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The descriptors of csi.proto (an encoded `FileDescriptorSet`), for the test of its numbers.
pub const CSI_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/csi.bin"));
