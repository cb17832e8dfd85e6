//! What both CSI plugins do alike: serving a Unix socket, checking requests, one operation in flight.
#![forbid(unsafe_code)]
