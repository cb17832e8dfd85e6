//! The in-flight table: every request that was sent and not yet answered by all who must.

use std::collections::VecDeque;
use types::{Era, Instant, IoId};
use wire::Request;

/// A set of members, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask(u16);

impl Mask {
    pub(crate) const fn one(member: usize) -> Self {
        Self(1 << member)
    }

    pub(crate) const fn has(self, member: usize) -> bool {
        self.0 & (1 << member) != 0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn add(&mut self, member: usize) {
        self.0 |= 1 << member;
    }

    pub(crate) fn remove(&mut self, member: usize) {
        self.0 &= !(1 << member);
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in both.
    pub(crate) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..16).filter(move |member| self.has(*member))
    }
}

/// A front-end's request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreground {
    pub(crate) id: IoId,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    /// `start..end` is held in the interval lock once launched.
    Mutation {
        start: u64,
        end: u64,
        fua: bool,
    },
    /// Covers this many completed writes (R29).
    Flush {
        covers: u64,
    },
}

/// Why a request was sent, and so who gets its result.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Foreground(Foreground),
    Seal,
    Ping,
    /// R18: sync of the era that was drained.
    EraFlush,
    /// R18: broadcast of the seal.
    EraSeal,
    /// R19: regions that may differ, asked for by this resync of the target.
    Tags {
        target: usize,
        run: u64,
    },
    /// A step of a region job.
    Region {
        job: u64,
    },
    /// R5: the target's disk must be synced before it may count.
    JoinFlush {
        target: usize,
    },
    /// ENOSPC on some members: the old content, to be put back on those that had room.
    RollbackRead {
        write: u64,
    },
    RollbackWrite {
        write: u64,
    },
    /// R26: the attempt with this ticket. An earlier one that was given up may still be answered.
    Snapshot {
        ticket: u64,
    },
    /// Which snapshots source and target of this resync have.
    Held {
        target: usize,
        run: u64,
    },
    /// The target has the contents of a snapshot, and makes it its own.
    Past {
        target: usize,
    },
    StopFlush,
    StopSeal,
    StopClose,
}

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) purpose: Purpose,
    /// When it entered the engine: what R4's timeout counts from.
    pub(crate) arrived: Instant,
    /// When it was first sent: what leases count from (R8). A later sending to one member must not
    /// lengthen what another member's answer to the first one grants.
    pub(crate) sent: Instant,
    /// When it was last sent to anybody: what the patience with stuck members counts from.
    pub(crate) asked: Instant,
    pub(crate) launched: bool,
    pub(crate) request: Request,
    /// Era of a launched mutation.
    pub(crate) era: Option<Era>,
    /// Members whose answer is needed.
    pub(crate) waiting: Mask,
    /// Resync targets that have it too; their answer is needed only to release its range (R16).
    pub(crate) extra: Mask,
    pub(crate) acked: Mask,
    pub(crate) nospace: Mask,
    /// Members that could not serve this read.
    pub(crate) avoid: Mask,
    /// Nobody could serve all of this read, and a repair has since put together what each had.
    pub(crate) repaired: bool,
    /// No room on some members: the others are being put back.
    pub(crate) rolling_back: bool,
    /// The front-end has its answer.
    pub(crate) completed: bool,
}

/// Flights by sequence number, oldest first.
#[derive(Default)]
pub(crate) struct Flights {
    /// Sequence number of `queue[0]`; numbers start at 1.
    base: u64,
    queue: VecDeque<Option<Flight>>,
}

impl Flights {
    pub(crate) fn insert(
        &mut self,
        now: Instant,
        purpose: Purpose,
        request: Request,
        waiting: Mask,
    ) -> u64 {
        if self.base == 0 {
            self.base = 1;
        }
        let seq = self.base + self.queue.len() as u64;
        self.queue.push_back(Some(Flight {
            purpose,
            arrived: now,
            sent: now,
            asked: now,
            launched: false,
            request,
            era: None,
            waiting,
            extra: Mask::default(),
            acked: Mask::default(),
            nospace: Mask::default(),
            avoid: Mask::default(),
            repaired: false,
            rolling_back: false,
            completed: false,
        }));
        seq
    }

    fn index(&self, seq: u64) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.base)?).ok()
    }

    pub(crate) fn get_mut(&mut self, seq: u64) -> Option<&mut Flight> {
        let index = self.index(seq)?;
        self.queue.get_mut(index)?.as_mut()
    }

    pub(crate) fn remove(&mut self, seq: u64) -> Option<Flight> {
        let index = self.index(seq)?;
        let flight = self.queue.get_mut(index)?.take();
        while matches!(self.queue.front(), Some(None)) {
            self.queue.pop_front();
            self.base += 1;
        }
        flight
    }

    /// The number that the next flight will get.
    pub(crate) fn next(&self) -> u64 {
        self.base.max(1) + self.queue.len() as u64
    }

    pub(crate) fn for_each_mut(&mut self, mut visit: impl FnMut(u64, &mut Flight)) {
        for (flight, seq) in self.queue.iter_mut().zip(self.base..) {
            if let Some(flight) = flight {
                visit(seq, flight);
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Flight)> {
        self.queue.iter().zip(self.base..).filter_map(|(flight, seq)| Some((seq, flight.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_a_set() {
        let (mut odd, low) = (Mask::default(), Mask::one(0).with(Mask::one(1)));
        (0..16).filter(|member| member % 2 == 1).for_each(|member| odd.add(member));
        let members = |mask: Mask| mask.iter().collect::<Vec<_>>();
        assert_eq!((members(low), odd.len(), Mask::default().is_empty()), (vec![0, 1], 8, true));
        assert_eq!(members(low.with(Mask::one(1))), [0, 1]);
        assert_eq!((members(odd.common(low)), members(low.without(odd))), (vec![1], vec![0]));
        odd.remove(1);
        odd.remove(2);
        assert!(odd.common(low).is_empty() && odd.has(15) && !odd.has(1));
    }
}
