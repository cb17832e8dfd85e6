//! Commands from anywhere on this node to whoever leads, until the outcome is known.

use super::status::CommandError;
use crate::meta::MetaHandle;
use client::{Client, Endpoint};
use core::net::SocketAddr;
use core::time::Duration;
use metadata::{Command, Done, Outcome, ProposeError, State};
use std::collections::BTreeMap;
use tokio::time::{Instant, timeout_at};
use types::NodeId;

/// An attempt is given up after this long, so that a new leader is looked for; the command may
/// still be carried out, which is why every one can be repeated.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Proposes here or at the leader; cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    node: NodeId,
    meta: MetaHandle,
    client: Client,
    /// Addresses from the configuration, for before State knows the nodes.
    seeds: BTreeMap<NodeId, SocketAddr>,
}

impl Proposer {
    /// `seeds` are the members of the configuration.
    #[must_use]
    pub fn new(node: NodeId, meta: MetaHandle, seeds: BTreeMap<NodeId, SocketAddr>) -> Self {
        Self { node, meta, client: Client::of(Vec::new()), seeds }
    }

    /// A client of the other members that asks the leader first.
    #[must_use]
    pub fn peers(&self, deadline: Duration) -> Client {
        let state = self.meta.state();
        let mut members = self.seeds.clone();
        members.extend(
            state.nodes.values().filter_map(|n| Some((n.node, n.control_address.parse().ok()?))),
        );
        members.remove(&self.node);
        let leader = self.meta.raft_status().leader.and_then(|leader| members.get(&leader));
        self.client.set_leader(leader.copied().map(Endpoint::Tcp));
        self.client.set_endpoints(members.into_values().map(Endpoint::Tcp).collect());
        self.client.with_deadline(deadline)
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.meta.raft_status().leader == Some(self.node)
    }

    /// Has the leader carry out `command`, through changes of the leader, and waits until it is
    /// applied here too.
    ///
    /// # Errors
    /// [`CommandError::Refused`] if it was applied and refused, [`CommandError::Unknown`] if
    /// nothing is known, or not applied here, after `within`.
    pub async fn propose(&self, command: Command, within: Duration) -> Result<Done, CommandError> {
        let deadline = Instant::now() + within;
        let mut reason = "the time was over at once".to_owned();
        while Instant::now() < deadline {
            let attempt = deadline.min(Instant::now() + ATTEMPT);
            match self.attempt(&command, attempt).await {
                Ok((index, outcome)) => {
                    return once_applied(self.meta.wait_applied(index), deadline, outcome).await;
                }
                Err(error) => reason = error,
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)).await;
        }
        Err(CommandError::Unknown { reason })
    }

    async fn attempt(&self, command: &Command, until: Instant) -> Result<(u64, Outcome), String> {
        if self.leads() {
            return match timeout_at(until, self.meta.propose(command.clone())).await {
                Ok(answer) => answer.map_err(|error: ProposeError| error.to_string()),
                Err(_) => Err("the proposal was not committed in time".to_owned()),
            };
        }
        let command = metadata::encode(command).map_err(|error| error.to_string())?;
        let client = self.peers(until.saturating_duration_since(Instant::now()));
        let answer = client.propose(command).await.map_err(|error| error.to_string())?;
        let outcome = metadata::decode(&answer.outcome).map_err(|error| error.to_string())?;
        Ok((answer.index, outcome))
    }

    /// The state, at least as new as everything committed when this was called.
    ///
    /// # Errors
    /// If this node does not lead or has no majority.
    pub async fn leader_state(&self) -> Result<std::sync::Arc<State>, ProposeError> {
        let index = self.meta.read_index().await?;
        self.meta.wait_applied(index).await?;
        Ok(self.meta.state())
    }
}

/// The outcome of a command that was decided, once it is applied here too. Callers look at the state
/// next: one from before the decision would tell an engine that a replica is not in the ISR which is.
async fn once_applied(
    applied: impl Future<Output = Result<(), ProposeError>>,
    deadline: Instant,
    outcome: Outcome,
) -> Result<Done, CommandError> {
    let reason = match timeout_at(deadline, applied).await {
        Ok(Ok(())) => return Ok(outcome?),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it was decided, but is not applied on this node yet".to_owned(),
    };
    Err(CommandError::Unknown { reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::{pending, ready};

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[tokio::test]
    async fn a_decision_that_is_not_applied_here_is_not_known_here() {
        let unknown = once_applied(pending(), soon(), Ok(Done::Ok)).await;
        assert!(matches!(unknown, Err(CommandError::Unknown { .. })), "{unknown:?}");
        let down = ready(Err(ProposeError::Shutdown));
        let unknown = once_applied(down, soon(), Ok(Done::Ok)).await;
        assert!(matches!(unknown, Err(CommandError::Unknown { .. })), "{unknown:?}");
        let known = once_applied(ready(Ok(())), soon(), Ok(Done::Ok)).await;
        assert!(matches!(known, Ok(Done::Ok)), "{known:?}");
    }
}
