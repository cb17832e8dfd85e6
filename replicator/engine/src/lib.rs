//! The attach side of a volume: mirrors writes to the in-sync set, serves reads under leases,
//! changes the ISR through Raft and resynchronises stale replicas.
//!
//! [`Engine`] is a state machine: [`Engine::step`] takes one [`Input`] and appends [`Output`]s. It
//! must never read a clock, open a socket or know a front-end: production and the simulator drive
//! the same code.
//!
//! ```text
//!          start            all sealed          reconciled        committed
//!   (new) ───────▶ Sealing ───────────▶ Reconciling ─────▶ Activating ─────▶ Active
//!                     │                     │                  │               │ stop
//!                     ▼                     ▼                  ▼               ▼
//!                  Failed ◀──────────── fenced, unreachable for 10 s ───── Stopping ─▶ Stopped
//! ```
#![forbid(unsafe_code)]

mod api;
mod attach;
mod core;
mod era;
mod fill;
mod flight;
mod io;
mod isr;
mod link;
mod lock;
mod member;
mod pace;
mod past;
mod region;
mod repair;
mod reply;
mod resync;
mod rollback;
mod scrub;
mod snapshot;
mod stop;
mod timer;

pub use crate::api::{
    CompareResult, EngineConfig, Input, IsrAnswer, IsrChange, IsrView, LinkId, MemberSpec,
    MemberStatus, Output, Progress, ScrubStatus, SnapshotError, SnapshotTaken, Status,
};
pub use crate::core::Engine;
pub use crate::fill::{FillHolder, FillSource};

#[cfg(test)]
mod tests;
