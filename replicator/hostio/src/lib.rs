//! The host beneath Holdfast: io_uring, direct I/O, loop and NBD devices, /dev/fuse, clocks and process
//! limits behind a safe interface.
//!
//! This is the only crate with `unsafe`. It must never know what the bytes mean: no formats, no
//! protocols, no policy.
#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::undocumented_unsafe_blocks)]

pub mod clock;
mod error;
pub mod fuse;
mod ioctl;
pub mod loopdev;
pub mod nbd;
pub mod net;
mod netlink;
pub mod pool;
pub mod process;
mod ring;
pub mod unix;
mod waker;

pub use error::HostError;
pub use ring::{Completion, Fd, Op, Ring, Token};
pub use waker::Waker;
