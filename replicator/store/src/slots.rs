//! Keeping free slots zeroed ahead of need; see [`crate::alloc`].

use types::Buf;
use types::plant::{Bug, planted};

use crate::api::Output;
use crate::layout::Slot;
use crate::op::Io;
use crate::store::Store;

/// The device cannot zero a range by itself.
const EOPNOTSUPP: i32 = 95;

impl Store {
    pub(crate) fn pump_slots(&mut self, out: &mut Vec<Output>) {
        self.serve_slot_waiters(out);
        if !self.slot_waiters.is_empty() && self.alloc.releasing() > 0 {
            // Somebody waits for slots that only a durable record sets free.
            self.log.want(self.log.appended());
        }
        let layout = self.state.layout;
        while let Some((first, count)) = self.alloc.next_zero() {
            if planted(Bug::ServeDirtySlots) {
                self.alloc.zero_ended(first, count, true);
                continue;
            }
            let (offset, len) = (layout.slot(first), u64::from(count) * layout.slot_size);
            let by_write = self.zero_unsupported;
            let id = self.io(Io::Zero { first, count, by_write });
            out.push(if by_write {
                Output::Write { id, offset, data: Buf::zeroed(len as usize), durable: false }
            } else {
                Output::Zero { id, offset, len }
            });
        }
    }

    pub(crate) fn zero_ended(
        &mut self,
        first: Slot,
        count: u32,
        by_write: bool,
        done: Result<(), i32>,
    ) {
        if done == Err(EOPNOTSUPP) && !by_write {
            self.zero_unsupported = true;
            self.alloc.single_slots();
            self.alloc.zero_undone(first, count);
        } else {
            self.alloc.zero_ended(first, count, done.is_ok());
        }
    }
}
