//! The thread that runs the driver: requests in, one sync for all of them, answers out.

use super::applied::SledApplied;
use super::error::MetaError;
use super::handle::{MetaConfig, MetaHandle, Request};
use super::wal::{Identity, Wal};
use metadata::{
    ChangeError, Driver, DriverConfig, DriverError, Input, LogContents, Outcome, Output,
    ProposeError, RaftStatus, State,
};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use types::{EngineInstance, NodeId};

/// Raft's tick: elections begin 1 to 2 s after a leader fell silent.
const TICK: Duration = Duration::from_millis(100);
/// Requests that wait for the thread; beyond that they are refused as busy.
const QUEUE: usize = 4096;
/// Requests taken in before one sync.
const BATCH: usize = 512;

type Proposal = oneshot::Sender<Result<(u64, Outcome), ProposeError>>;

/// Who waits for an answer.
enum Waiter {
    Proposal(Proposal),
    Read(oneshot::Sender<Result<u64, ProposeError>>),
    Change(oneshot::Sender<Result<u64, ChangeError>>),
}

struct Thread {
    driver: Driver<Wal, SledApplied>,
    requests: Receiver<Request>,
    outbound: mpsc::Sender<(NodeId, Vec<u8>)>,
    state: watch::Sender<Arc<State>>,
    applied: watch::Sender<u64>,
    status: watch::Sender<RaftStatus>,
    waiters: BTreeMap<u64, Waiter>,
    last_ticket: u64,
    out: Vec<Output>,
}

fn driver_error(error: DriverError, config: &MetaConfig) -> MetaError {
    match error {
        DriverError::LogLost { .. } => {
            MetaError::LogLost { dir: config.dir.clone(), detail: error.to_string() }
        }
        error => MetaError::Driver { dir: config.dir.clone(), source: error },
    }
}

fn founding(config: &MetaConfig) -> Result<LogContents, MetaError> {
    let voters = &config.initial_voters;
    if voters.is_empty() {
        return Ok(LogContents::default());
    }
    if !voters.contains(&config.node) || voters.contains(&NodeId(0)) {
        return Err(MetaError::Config {
            field: "peers",
            value: format!("{voters:?}"),
            accepted: "a list with this node and without node 0, or none on a node that joins later",
        });
    }
    LogContents::found(voters).map_err(|e| MetaError::Driver {
        dir: config.dir.clone(),
        source: DriverError::Unreadable { index: 1, source: e },
    })
}

/// Opens (or founds) the metadata member in `config.dir` and starts its thread. Raft messages for
/// other members go to `outbound`; when that is full they are dropped, and Raft sends again.
///
/// # Errors
/// [`MetaError`]; nothing was started.
pub fn start(
    config: MetaConfig,
    outbound: mpsc::Sender<(NodeId, Vec<u8>)>,
) -> Result<MetaHandle, MetaError> {
    if config.node == NodeId(0) {
        return Err(MetaError::Config {
            field: "node",
            value: "0".into(),
            accepted: "ids start at 1",
        });
    }
    let identity = Identity { cluster: config.cluster, node: config.node };
    let (wal, contents) = Wal::open(&config.dir, identity, || founding(&config))?;
    let (store, found) = SledApplied::open(&config.dir, identity);
    let instance = EngineInstance(uuid::Uuid::new_v4());
    let driver =
        Driver::open(DriverConfig::new(config.node, instance), contents, found, wal, store)
            .map_err(|error| driver_error(error, &config))?;

    let (requests, queue) = sync_channel(QUEUE);
    let (state, state_receiver) = watch::channel(Arc::clone(driver.state()));
    let (applied, applied_receiver) = watch::channel(driver.state().applied);
    let (status, status_receiver) = watch::channel(driver.status());
    let (failure, failure_receiver) = watch::channel(None);
    let mut thread = Thread {
        driver,
        requests: queue,
        outbound,
        state,
        applied,
        status,
        waiters: BTreeMap::new(),
        last_ticket: 0,
        out: Vec::new(),
    };
    let node = config.node;
    std::thread::Builder::new()
        .name("metadata".into())
        .spawn(move || {
            // raft-rs panics where its invariants break; the process must hear of that too.
            let reason = match catch_unwind(AssertUnwindSafe(|| thread.run())) {
                // The directory is given up before anybody is told.
                Ok(Ok(())) => return drop(thread),
                Ok(Err(error)) => describe(&error),
                Err(_) => "the metadata thread panicked".to_owned(),
            };
            // Not dropped: sled flushes then, and on a full disk waits for ever. The process ends.
            core::mem::forget(thread.driver);
            tracing::error!(%node, reason, "metadata has failed");
            failure.send_replace(Some(reason.into()));
        })
        .map_err(|source| MetaError::Io {
            action: "start the metadata thread of",
            path: config.dir.clone(),
            source,
        })?;
    Ok(MetaHandle {
        requests,
        state: state_receiver,
        applied: applied_receiver,
        status: status_receiver,
        failure: failure_receiver,
    })
}

/// The error with its causes.
fn describe(error: &DriverError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Thread {
    fn run(&mut self) -> Result<(), DriverError> {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let mut first = match self.requests.recv_timeout(wait) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            for _ in 0..BATCH {
                let Some(request) = first.take().or_else(|| self.requests.try_recv().ok()) else {
                    break;
                };
                if !self.take(request)? {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                // After a stall one tick, not all those missed: silence that was ours proves
                // nothing about others.
                next_tick = now + TICK;
                self.driver.step(Input::Tick, &mut self.out)?;
            }
            self.driver.flush(&mut self.out)?;
            self.publish();
            self.deliver()?;
        }
    }

    fn ticket(&mut self, waiter: Waiter) -> u64 {
        self.last_ticket += 1;
        self.waiters.insert(self.last_ticket, waiter);
        self.last_ticket
    }

    /// Hands a request to the driver; `false` to end.
    fn take(&mut self, request: Request) -> Result<bool, DriverError> {
        let input = match request {
            Request::Message(bytes) => Input::Message(bytes),
            Request::Propose(command, sender) => {
                let ticket = self.ticket(Waiter::Proposal(sender));
                Input::Propose { ticket, command: *command }
            }
            Request::ReadIndex(sender) => {
                Input::ReadIndex { ticket: self.ticket(Waiter::Read(sender)) }
            }
            Request::Change(change, sender) => {
                let ticket = self.ticket(Waiter::Change(sender));
                Input::ChangeMembership { ticket, change }
            }
            Request::Transfer(to) => Input::TransferLeadership(to),
            Request::Unreachable(node) => Input::Unreachable(node),
            Request::Stop => return Ok(false),
        };
        self.driver.step(input, &mut self.out)?;
        Ok(true)
    }

    /// Shows the state before anybody hears of an outcome in it.
    fn publish(&self) {
        let state = self.driver.state();
        let applied = state.applied;
        if *self.applied.borrow() != applied {
            self.state.send_replace(Arc::clone(state));
            self.applied.send_replace(applied);
        }
        let status = self.driver.status();
        self.status.send_if_modified(|shown| {
            let differs = *shown != status;
            if differs {
                if (shown.leader, shown.role) != (status.leader, status.role) {
                    tracing::info!(
                        node = %status.node, term = status.term, role = %status.role,
                        leader = status.leader.map_or(0, |leader| leader.0), "Raft role"
                    );
                }
                *shown = status;
            }
            differs
        });
    }

    fn deliver(&mut self) -> Result<(), DriverError> {
        let mut unreachable = Vec::new();
        for output in core::mem::take(&mut self.out) {
            // A waiter that went away (timed out) needs no answer.
            match output {
                Output::Send { to, message } => match self.outbound.try_send((to, message)) {
                    Err(TrySendError::Full(_)) if !unreachable.contains(&to) => {
                        unreachable.push(to)
                    }
                    _ => {}
                },
                Output::Proposed { ticket, result } => {
                    if let Some(Waiter::Proposal(sender)) = self.waiters.remove(&ticket) {
                        let _ = sender.send(result);
                    }
                }
                Output::Read { ticket, result } => {
                    if let Some(Waiter::Read(sender)) = self.waiters.remove(&ticket) {
                        let _ = sender.send(result);
                    }
                }
                Output::Changed { ticket, result } => {
                    if let Some(Waiter::Change(sender)) = self.waiters.remove(&ticket) {
                        let _ = sender.send(result);
                    }
                }
                Output::Event(event) => tracing::info!(
                    kind = %event.kind, index = event.index,
                    volume = event.volume.map(|v| v.to_string()), node = event.node.map(|n| n.0),
                    epoch = event.epoch.map(|e| e.0), "{}", event.message
                ),
            }
        }
        for node in unreachable {
            self.driver.step(Input::Unreachable(node), &mut self.out)?;
        }
        Ok(())
    }
}
