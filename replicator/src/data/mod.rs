//! The data thread: one pinned thread per pool with an io_uring, which owns the store, the engines
//! of the volumes attached here, their front-ends and every data connection.
//!
//! Nothing here takes a lock or hands an I/O to another thread. The control plane talks to it by
//! messages ([`DataHandle`]); it reports by [`DataEvent`]s. State machines (`store`, `engine`) say
//! what to do; this module only does it: it must never decide.
//!
//! ```text
//! front-end ──BlockOp──▶ engine ──Request──▶ (this thread) store ──▶ ring: disk
//!     ▲                    │ ╰────Request──▶ connection ──▶ ring: socket ─ ─ ▶ another node's store
//!     ╰────BlockResult─────╯
//! ```

mod command;
mod conn;
mod handle;
mod pool;
mod replica;
mod thread;
mod throttle;
mod volume;

pub use command::{DataError, DataEvent, EngineSpec};
pub use handle::{DataHandle, start};
pub(crate) use pool::outwait;
pub use pool::{DataConfig, PoolError, existing_pool, init_pool, listen, wipe_pool};
