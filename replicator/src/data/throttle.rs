//! Limits of a volume's I/O: two token buckets at the door between front-ends and engine, and the
//! requests that wait for them.
//!
//! Pure: the time is handed in. Requests leave in the order in which they came; a flush does not wait,
//! since it covers only what was answered before it came. What waits is bounded by the front-ends.

use metadata::Limits;
use std::collections::VecDeque;
use std::time::Duration;
use types::{BlockOp, Instant, IoId};

/// How far a volume that was idle may run ahead of its rate.
const BURST: Duration = Duration::from_millis(100);

/// A rate, and when what was let through will have been paid for. Full buckets are all alike, so that
/// only this moment is kept (the generic cell rate algorithm of ITU-T I.371).
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: u64,
    paid: Instant,
}

impl Bucket {
    fn opens(&self) -> Instant {
        Instant(self.paid.0.saturating_sub(BURST.as_nanos() as u64))
    }

    fn take(&mut self, now: Instant, amount: u64) {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.per_second.max(1));
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        self.paid = self.paid.max(now).after(Duration::from_nanos(nanos));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    waiting: VecDeque<(IoId, BlockOp)>,
}

impl Throttle {
    /// Changes the limits; what waits goes by the new ones.
    pub(super) fn set(&mut self, limits: Limits) {
        let change = |bucket: Option<Bucket>, limit: Option<u64>| {
            let paid = bucket.map_or(Instant::default(), |bucket| bucket.paid);
            limit.map(|per_second| Bucket { per_second, paid })
        };
        self.requests = change(self.requests, limits.iops);
        self.bytes = change(self.bytes, limits.bandwidth);
    }

    /// A request comes: it may pass if it is given back.
    pub(super) fn offer(&mut self, now: Instant, id: IoId, op: BlockOp) -> Option<(IoId, BlockOp)> {
        let limited = self.requests.is_some() || self.bytes.is_some();
        if !limited && self.waiting.is_empty() || matches!(op, BlockOp::Flush) {
            return Some((id, op));
        }
        self.waiting.push_back((id, op));
        self.next(now)
    }

    /// The next request whose time has come.
    pub(super) fn next(&mut self, now: Instant) -> Option<(IoId, BlockOp)> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let (id, op) = self.waiting.pop_front()?;
        let bytes = match &op {
            BlockOp::Read { len, .. } => u64::from(*len),
            BlockOp::Write { data, .. } => data.len() as u64,
            BlockOp::Flush | BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => 0,
        };
        for (bucket, amount) in [(&mut self.requests, 1), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.take(now, amount);
            }
        }
        Some((id, op))
    }

    /// When [`Self::next`] has one; `None` if nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.front()?;
        let opens = [self.requests, self.bytes].into_iter().flatten().map(|bucket| bucket.opens());
        Some(opens.max().unwrap_or_default())
    }

    /// All that waits, at once: it will not be served at any rate any more.
    pub(super) fn end(&mut self) -> VecDeque<(IoId, BlockOp)> {
        self.set(Limits::default());
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn read(len: u32) -> BlockOp {
        BlockOp::Read { offset: 0, len }
    }

    /// Keeps 32 requests of `len` bytes waiting for 10 s; how many passed, in order.
    fn passed(throttle: &mut Throttle, len: u32) -> u64 {
        let (mut now, mut sent, mut got) = (Instant(SECOND), 0, 0);
        let end = Instant(11 * SECOND);
        while now < end {
            let mut next = throttle.next(now);
            while sent < got + 32 && next.is_none() {
                next = throttle.offer(now, IoId(sent), read(len));
                sent += 1;
            }
            match next {
                Some((id, _)) => {
                    assert_eq!(id, IoId(got), "in order");
                    got += 1;
                }
                None => now = throttle.due().unwrap_or(end),
            }
        }
        got
    }

    #[test]
    fn the_rate_is_kept_by_the_tighter_limit() {
        let mebi = 1 << 20;
        for (iops, bandwidth, len, least, most) in [
            (Some(500), None, 4096, 5_000, 5_051),
            (None, Some(10 * mebi), 1 << 20, 100, 102),
            (Some(500), Some(mebi), 4096, 2_560, 2_587),
            (Some(100), Some(100 * mebi), 4096, 1_000, 1_011),
            // One request may be longer than a burst: it passes, and the next ones pay for it.
            (None, Some(mebi), 1 << 20, 10, 12),
        ] {
            let mut throttle = Throttle::default();
            throttle.set(Limits { iops, bandwidth });
            let got = passed(&mut throttle, len);
            assert!((least..=most).contains(&got), "{iops:?} {bandwidth:?} {len}: {got}");
        }
    }

    #[test]
    fn without_limits_and_for_flushes_there_is_no_wait() {
        let mut throttle = Throttle::default();
        for id in 0..1000 {
            assert!(throttle.offer(Instant(1), IoId(id), read(4096)).is_some());
        }
        throttle.set(Limits { iops: Some(100), bandwidth: None });
        while throttle.offer(Instant(1), IoId(0), read(4096)).is_some() {}
        assert!(throttle.offer(Instant(1), IoId(1), BlockOp::Flush).is_some());
        assert!(throttle.due().is_some_and(|due| due > Instant(1)));
    }

    #[test]
    fn a_change_takes_effect_for_what_waits() {
        let mut throttle = Throttle::default();
        throttle.set(Limits { iops: Some(100), bandwidth: None });
        let now = Instant(SECOND);
        let through = (0..100).filter(|id| throttle.offer(now, IoId(*id), read(4096)).is_some());
        let through = through.count() as u64;
        assert!((10..=12).contains(&through), "the burst: {through}");
        throttle.set(Limits::default());
        assert_eq!(throttle.due(), Some(Instant(0)));
        // Nobody overtakes what still waits.
        assert_eq!(
            throttle.offer(now, IoId(100), read(4096)).map(|(id, _)| id),
            Some(IoId(through))
        );
        let rest: Vec<u64> = throttle.end().into_iter().map(|(id, _)| id.0).collect();
        assert_eq!(rest, (through + 1..=100).collect::<Vec<_>>());
        assert_eq!(throttle.due(), None);
    }
}
