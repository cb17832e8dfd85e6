//! Production side of the metadata Raft: its log file, applied store and thread.
