//! The asynchronous face of the metadata thread.

use super::events::EventStream;
use metadata::{Change, ChangeError, Command, Outcome, ProposeError, RaftStatus, State};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use types::{ClusterId, NodeId};

/// A proposal, read or change without an outcome ends with [`ProposeError::Timeout`] after this.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How to run the metadata member of this node.
#[derive(Clone, Debug)]
pub struct MetaConfig {
    /// This node; not 0.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its own directory, made if absent. One process at a time.
    pub dir: PathBuf,
    /// Members that found the cluster, the same list on each of them; used only while the directory
    /// is empty. A node that joins later gives none and waits to be added.
    pub initial_voters: Vec<NodeId>,
}

/// What the thread is asked to do.
pub(super) enum Request {
    Message(Vec<u8>),
    Propose(Box<Command>, oneshot::Sender<Result<(u64, Outcome), ProposeError>>),
    ReadIndex(oneshot::Sender<Result<u64, ProposeError>>),
    Change(Change, oneshot::Sender<Result<u64, ChangeError>>),
    Transfer(NodeId),
    Unreachable(NodeId),
    Stop,
}

/// Cheap to clone; the thread ends when [`Self::shutdown`] is called or the last one is dropped.
#[derive(Clone)]
pub struct MetaHandle {
    pub(super) requests: SyncSender<Request>,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) applied: watch::Receiver<u64>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) failure: watch::Receiver<Option<Arc<str>>>,
}

impl MetaHandle {
    /// Proposes a command and waits until it is applied here.
    ///
    /// # Errors
    /// [`ProposeError`]; after `Dropped`, `Timeout` and `Shutdown` the outcome is unknown, and the
    /// same command may be proposed again.
    pub async fn propose(&self, command: Command) -> Result<(u64, Outcome), ProposeError> {
        let (sender, receiver) = oneshot::channel();
        self.send(Request::Propose(Box::new(command), sender))?;
        answer(receiver).await?
    }

    /// An index such that a state applied up to it holds everything committed before this call
    /// (R6). Leader only; follow it with [`Self::wait_applied`].
    ///
    /// # Errors
    /// [`ProposeError`]; nothing was changed.
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let (sender, receiver) = oneshot::channel();
        self.send(Request::ReadIndex(sender))?;
        answer(receiver).await?
    }

    /// Waits until `index` is applied here.
    ///
    /// # Errors
    /// [`ProposeError::Shutdown`] if it never will be.
    pub async fn wait_applied(&self, index: u64) -> Result<(), ProposeError> {
        let mut applied = self.applied.clone();
        match applied.wait_for(|at| *at >= index).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ProposeError::Shutdown),
        }
    }

    /// The state as last applied here; no copy is made.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// The applied index, as it rises.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Events whose Raft index is above `after`, as far back as the state remembers, then as they
    /// happen.
    #[must_use]
    pub fn events(&self, after: u64) -> EventStream {
        EventStream::new(self.state.clone(), after)
    }

    /// A Raft message from another member. Dropped when too much is queued; Raft sends again.
    pub fn receive(&self, from: NodeId, message: Vec<u8>) {
        if let Err(error) = self.send(Request::Message(message)) {
            tracing::debug!(%from, %error, "Raft message dropped");
        }
    }

    /// A message to `node` was lost on the way out, as far as the transport knows.
    pub fn unreachable(&self, node: NodeId) {
        // If even this cannot be queued, Raft finds out by itself.
        let _ = self.send(Request::Unreachable(node));
    }

    /// Raft as this node sees it.
    #[must_use]
    pub fn raft_status(&self) -> RaftStatus {
        self.status.borrow().clone()
    }

    /// Raft as this node sees it, as it changes: leadership among it.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Changes the Raft membership by one node; answered with the index as of which it holds.
    ///
    /// # Errors
    /// [`ChangeError`]; `InProgress` and `NotCaughtUp` are worth another try.
    pub async fn change_membership(&self, change: Change) -> Result<u64, ChangeError> {
        let (sender, receiver) = oneshot::channel();
        self.send(Request::Change(change, sender))?;
        answer(receiver).await?
    }

    /// Asks the voter `to` to take over, if this node leads. See [`Self::watch_status`].
    ///
    /// # Errors
    /// [`ProposeError::Busy`] or [`ProposeError::Shutdown`].
    pub fn transfer_leadership(&self, to: NodeId) -> Result<(), ProposeError> {
        self.send(Request::Transfer(to))
    }

    /// Completes when the thread has ended, with the reason if it failed: then this process can no
    /// longer take part and should end.
    pub async fn stopped(&self) -> Option<Arc<str>> {
        let mut failure = self.failure.clone();
        // The sender goes away only with the thread.
        while failure.changed().await.is_ok() {}
        failure.borrow().clone()
    }

    /// Ends the thread and waits for it. Everything acknowledged is durable anyway.
    pub async fn shutdown(&self) {
        let mut requests = self.send(Request::Stop);
        while requests == Err(ProposeError::Busy) {
            tokio::task::yield_now().await;
            requests = self.send(Request::Stop);
        }
        self.stopped().await;
    }

    fn send(&self, request: Request) -> Result<(), ProposeError> {
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Disconnected(_) => ProposeError::Shutdown,
        })
    }
}

async fn answer<T>(receiver: oneshot::Receiver<T>) -> Result<T, ProposeError> {
    match tokio::time::timeout(PROPOSE_TIMEOUT, receiver).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(ProposeError::Shutdown),
        Err(_) => Err(ProposeError::Timeout),
    }
}
