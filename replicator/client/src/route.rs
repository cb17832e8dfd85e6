//! Where the next attempt of a call goes: a small state machine without I/O.

use crate::Endpoint;
use core::time::Duration;

/// First pause after a failed attempt; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(25);
/// Longest pause between attempts: bounds what a client adds to a failover.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Which members may answer a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Only the Raft leader (calls marked `[leader]`): redirects are followed.
    Leader,
    /// Only the first endpoint (calls marked `[local]`).
    Local,
    /// The first endpoint, and never again: what must not be done twice.
    Once,
    /// Whoever answers first.
    Any,
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Route {
    endpoints: Vec<Endpoint>,
    next: usize,
    /// Set by a redirect: goes before the endpoints, once.
    redirect: Option<Endpoint>,
    failures: u32,
    hops: u32,
}

impl Route {
    /// `leader` is who led when last heard of.
    pub(crate) fn new(scope: Scope, endpoints: &[Endpoint], leader: Option<Endpoint>) -> Self {
        let (endpoints, redirect) = match scope {
            Scope::Leader => (endpoints.to_vec(), leader),
            Scope::Local | Scope::Once => (endpoints.iter().take(1).cloned().collect(), None),
            Scope::Any => (endpoints.to_vec(), None),
        };
        Self { endpoints, next: 0, redirect, failures: 0, hops: 0 }
    }

    /// Where to try now. `None` only without endpoints.
    pub(crate) fn target(&mut self) -> Option<Endpoint> {
        if let Some(endpoint) = self.redirect.take() {
            return Some(endpoint);
        }
        if self.endpoints.is_empty() {
            return None;
        }
        let endpoint = self.endpoints[self.next % self.endpoints.len()].clone();
        self.next = (self.next + 1) % self.endpoints.len();
        Some(endpoint)
    }

    /// The answer named `leader`: try there, at once the first two times, then with pauses (two
    /// members may each believe in the other for a moment).
    pub(crate) fn redirected(&mut self, leader: Endpoint) -> Duration {
        self.redirect = Some(leader);
        self.hops += 1;
        if self.hops <= 2 { Duration::ZERO } else { self.pause() }
    }

    /// The answer was UNAVAILABLE or did not come: how long to wait before the next attempt.
    pub(crate) fn unavailable(&mut self) -> Duration {
        self.pause()
    }

    fn pause(&mut self) -> Duration {
        // Every endpoint gets its first chance before anybody waits longer.
        let round = self.failures / u32::try_from(self.endpoints.len().max(1)).unwrap_or(1);
        self.failures += 1;
        PAUSE_MIN.saturating_mul(1 << round.min(10)).min(PAUSE_MAX)
    }
}
