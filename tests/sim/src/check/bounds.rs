//! Resource bounds: what is queued is bounded.
//!
//! Checked: disk operations under way on a pool, connections, inputs that wait for a metadata
//! thread, entries in a Raft log; that an engine answers every request within the time that R4
//! states (`client` does that one). Not checked: bytes of memory.

/// Highest values seen, and what is allowed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    disk: usize,
    connections: usize,
    meta: usize,
    log: usize,
    /// Entries after which a snapshot is due.
    pub snapshot: usize,
}

/// Hashes read 16 blocks each, and a comparison and resyncs have several under way.
const DISK: usize = 2048;
const CONNECTIONS: usize = 512;
const META: usize = 4096;

impl Bounds {
    /// Operations under way on a disk.
    pub fn disk_queue(&mut self, len: usize) {
        self.disk = self.disk.max(len);
    }

    /// Connections that have an end.
    pub fn connections(&mut self, len: usize) {
        self.connections = self.connections.max(len);
    }

    /// Inputs that wait for a metadata thread.
    pub fn meta_queue(&mut self, len: usize) {
        self.meta = self.meta.max(len);
    }

    /// Entries in a log.
    pub fn log(&mut self, len: usize) {
        self.log = self.log.max(len);
    }

    /// What was exceeded.
    #[must_use]
    pub fn exceeded(&self) -> Option<String> {
        let log = self.snapshot * 2 + 600;
        [
            ("disk operations", self.disk, DISK),
            ("connections", self.connections, CONNECTIONS),
            ("inputs of metadata", self.meta, META),
            ("entries of a Raft log", self.log, log),
        ]
        .into_iter()
        .find(|(_, seen, allowed)| seen > allowed)
        .map(|(what, seen, allowed)| format!("bounds: {seen} {what}, allowed are {allowed}"))
    }
}
