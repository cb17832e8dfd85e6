//! `replicator`: the daemon of one node.
fn main() {}
