//! Client of the replicator's control API: one method a call, with leader redirect and retries.
//!
//! Every call is idempotent on the server, so that UNAVAILABLE and broken connections are retried
//! until the deadline of the client; every other answer is returned as it is. This crate must
//! never turn a refusal into a success or wait without a bound.
#![forbid(unsafe_code)]

mod calls;
mod endpoint;
mod error;
pub mod record;
mod route;
#[cfg(test)]
mod tests;

pub use endpoint::{CONNECT_TIMEOUT, Endpoint, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
pub use error::Error;
pub use proto::control as api;

use core::time::Duration;
use route::{Route, Scope};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Metadata key of a redirect: Raft id of the leader, decimal.
pub const LEADER_ID: &str = "holdfast-leader-id";
/// Metadata key of a redirect: control address of the leader, `IP:PORT`.
pub const LEADER_ADDRESS: &str = "holdfast-leader-address";

/// Largest message that clients and replicators accept, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Deadline of a call unless [`Client::with_deadline`] says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Least deadline of AttachVolume and DetachVolume: an attach waits up to 60 s for a fence, and
/// the I/O timeout of an engine (10 s) comes on top.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(90);

/// What clones of a client share.
#[derive(Default)]
struct Shared {
    endpoints: Vec<Endpoint>,
    /// Who led when last heard of.
    leader: Option<Endpoint>,
    channels: BTreeMap<Endpoint, Channel>,
}

/// A client of one cluster; cheap to clone, connects when first used.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Mutex<Shared>>,
    deadline: Duration,
    /// Whether an address in a redirect may be connected to.
    follow: bool,
}

impl Client {
    /// A client of the replicators at `endpoints` (`http://IP:PORT`, `IP:PORT` or `unix:///path`).
    /// Calls marked `[local]` in `control.proto` go to the first one only, the others to whoever
    /// leads. Nothing is connected yet.
    ///
    /// # Errors
    /// [`Error::NoEndpoint`], [`Error::Endpoint`].
    pub fn new<I>(endpoints: I) -> Result<Self, Error>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let endpoints = endpoints
            .into_iter()
            .map(|text| text.as_ref().parse())
            .collect::<Result<Vec<Endpoint>, Error>>()?;
        if endpoints.is_empty() {
            return Err(Error::NoEndpoint);
        }
        Ok(Self::of(endpoints))
    }

    /// As [`Client::new`], of parsed endpoints; without any, calls fail with [`Error::NoEndpoint`].
    #[must_use]
    pub fn of(endpoints: Vec<Endpoint>) -> Self {
        let shared = Shared { endpoints, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(shared)), deadline: DEFAULT_DEADLINE, follow: true }
    }

    /// The same client (connections are shared) with another deadline per call.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline, follow: self.follow }
    }

    /// The same client, but it never connects to an address that a redirect names: it looks for
    /// the leader among its own endpoints. For a cluster whose addresses mean nothing here, such
    /// as one in network namespaces reached by Unix sockets.
    #[must_use]
    pub fn without_redirects(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline: self.deadline, follow: false }
    }

    /// Replaces the endpoints, for all clones: the cluster's members changed.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) {
        let mut shared = self.shared();
        shared.channels.retain(|endpoint, _| endpoints.contains(endpoint));
        shared.endpoints = endpoints;
    }

    /// Tells the client who leads, as known from elsewhere.
    pub fn set_leader(&self, leader: Option<Endpoint>) {
        self.shared().leader = leader;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // No code panics while it holds the lock; the data is a cache in any case.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self, endpoint: &Endpoint) -> Channel {
        let mut shared = self.shared();
        shared.channels.entry(endpoint.clone()).or_insert_with(|| endpoint.channel()).clone()
    }

    /// Makes `attempt` at the members that `scope` allows until one answers, at most for the
    /// longer of the client's deadline and `least`.
    async fn call<T, F, A>(
        &self,
        call: &'static str,
        scope: Scope,
        least: Duration,
        attempt: A,
    ) -> Result<T, Error>
    where
        A: Fn(Channel) -> F,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let after = self.deadline.max(least);
        let deadline = Instant::now() + after;
        let mut route = {
            let shared = self.shared();
            Route::new(scope, &shared.endpoints, shared.leader.clone())
        };
        let mut last = None;
        loop {
            let endpoint = route.target().ok_or(Error::NoEndpoint)?;
            let answer = timeout_at(deadline, attempt(self.channel(&endpoint))).await;
            let status = match answer {
                Err(_) => return Err(Error::Deadline { call, after, last }),
                Ok(Ok(response)) => {
                    if scope == Scope::Leader {
                        self.shared().leader = Some(endpoint);
                    }
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => status,
            };
            let pause = match (scope, judge(&status)) {
                (Scope::Leader, Verdict::Redirect(leader)) if self.follow => {
                    route.redirected(leader)
                }
                (Scope::Leader, Verdict::Redirect(_)) => {
                    self.forget(&endpoint, false);
                    route.unavailable()
                }
                (Scope::Leader | Scope::Local | Scope::Any, Verdict::Again) => {
                    self.forget(&endpoint, is_broken(&status));
                    route.unavailable()
                }
                _ => {
                    let endpoint = endpoint.to_string();
                    return Err(Error::Status { call, endpoint, status: Box::new(status) });
                }
            };
            tracing::debug!(call, %endpoint, code = ?status.code(), message = status.message(), "trying again");
            last = Some(Box::new(status));
            if Instant::now() + pause >= deadline {
                return Err(Error::Deadline { call, after, last });
            }
            sleep_until(Instant::now() + pause).await;
        }
    }

    /// `endpoint` is not the leader (any more), and if `broken` its connection is of no use.
    fn forget(&self, endpoint: &Endpoint, broken: bool) {
        let mut shared = self.shared();
        if shared.leader.as_ref() == Some(endpoint) {
            shared.leader = None;
        }
        if broken {
            shared.channels.remove(endpoint);
        }
    }
}

/// What an error answer means for the next attempt.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Another member leads.
    Redirect(Endpoint),
    /// Nobody can answer now.
    Again,
    /// A real answer.
    Final,
}

fn judge(status: &Status) -> Verdict {
    if is_broken(status) || status.code() == Code::Unavailable {
        return Verdict::Again;
    }
    let address = status.metadata().get(LEADER_ADDRESS).and_then(|value| value.to_str().ok());
    match (status.code(), address.map(str::parse)) {
        (Code::FailedPrecondition, Some(Ok(leader))) => Verdict::Redirect(leader),
        _ => Verdict::Final,
    }
}

/// Whether the status was made here from a transport error: an answer of a server has no source.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}
