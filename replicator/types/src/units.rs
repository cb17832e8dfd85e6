//! Sizes and durations that more than one crate must agree on.

use core::time::Duration;

/// Logical block of every volume and pool, in bytes (R23): offsets and lengths are multiples of it.
pub const BLOCK: u64 = 4096;

/// Unit of the tags of R17, in bytes.
pub const REGION: u64 = 1 << 20;

/// Unit of comparison during resync, in bytes (R19).
pub const HASH_BLOCK: u64 = 64 << 10;

/// Longest payload of one read or write anywhere (front-end, engine, wire, store), in bytes.
pub const MAX_IO: u64 = 1 << 20;

/// Largest volume, in bytes (what ext4 can be with its default blocks): a bound that every decoder
/// enforces before it allocates.
pub const MAX_VOLUME: u64 = 16 << 40;

/// What a reply of a replica grants its engine (R8), counted by the replica from its reply.
pub const LEASE: Duration = Duration::from_millis(3000);

/// What the engine counts of [`LEASE`], from its own send time (R8): 0.8 L.
pub const LEASE_ENGINE: Duration = Duration::from_millis(2400);

/// How long an engine that can neither reach its ISR nor shrink it holds I/O before it fails (R4).
pub const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// Length of an era (R18).
pub const ERA: Duration = Duration::from_secs(30);

/// Whether `offset` and `len` (bytes) are block-aligned, non-empty and inside a volume of `size`.
#[must_use]
pub const fn in_bounds(offset: u64, len: u64, size: u64) -> bool {
    len > 0
        && offset.is_multiple_of(BLOCK)
        && len.is_multiple_of(BLOCK)
        && len <= size
        && offset <= size - len
}
