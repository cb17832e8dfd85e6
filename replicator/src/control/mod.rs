//! The control plane of a node: gRPC services, liveness, fencing, attach.
