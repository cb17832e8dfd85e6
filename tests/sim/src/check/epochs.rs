//! Epochs: never two that acknowledge or answer reads (promise 3).
//!
//! Checked: no read is answered under an epoch once a later one is active; no write and no flush
//! that was asked for after a later epoch became active is acknowledged.
//!
//! Not checked: a write whose replies were under way when the later epoch became active. It had
//! reached every in-sync copy before those were sealed, so that acknowledging it late is true; that
//! it is there, and that no later write is lost to it, checks `blocks`.

use types::Epoch;

/// What a consumer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A read.
    Read,
    /// A write, discard, write-zeroes or flush.
    Change,
}

/// Whether a success under `epoch` is wrong, when `then` was the newest active epoch as it was
/// asked for, and `now` is.
#[must_use]
pub fn wrong(asked: Asked, epoch: Epoch, then: Epoch, now: Epoch) -> Option<String> {
    match asked {
        Asked::Read if now > epoch => {
            Some(format!("epochs: a read was answered under {epoch} while {now} is active"))
        }
        Asked::Change if then > epoch => Some(format!(
            "epochs: what was asked for under {epoch} while {then} was active was acknowledged"
        )),
        _ => None,
    }
}
