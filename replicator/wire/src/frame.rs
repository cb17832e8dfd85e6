//! Frames on a TCP connection.
