//! The metadata member of this node: a Raft thread over an own write-ahead log, with sled for the
//! applied state, and [`MetaHandle`] for everybody else.
//!
//! The thread alone touches the log. Nothing is sent or answered before it is durable; a failed
//! write of the log ends the thread (R13).

mod applied;
mod error;
mod events;
mod handle;
mod thread;
pub mod wal;

pub use error::MetaError;
pub use events::EventStream;
pub use handle::{MetaConfig, MetaHandle, PROPOSE_TIMEOUT};
pub use thread::start;

#[cfg(test)]
mod tests;
