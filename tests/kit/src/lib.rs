//! What the test rigs share: seeded randomness, blocks that name themselves, ids made from small
//! numbers. It must never do I/O or read a clock: a seed has to replay everywhere.
#![forbid(unsafe_code)]

pub mod content;
pub mod ids;
mod rng;

pub use rng::Rng;
