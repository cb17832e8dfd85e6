//! Events of the cluster as a stream that misses nothing the state still remembers.

use metadata::{Event, State};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// Events in order of sequence, from some point on. Fed by the applied state itself, so a slow
/// reader loses only what the state has forgotten.
pub struct EventStream {
    state: watch::Receiver<Arc<State>>,
    ready: VecDeque<Event>,
    last: u64,
}

impl EventStream {
    /// Events whose Raft index is above `after`.
    pub(super) fn new(mut state: watch::Receiver<Arc<State>>, after: u64) -> Self {
        let now = Arc::clone(&state.borrow_and_update());
        let ready: VecDeque<Event> =
            now.events_after(0).filter(|e| e.index > after).cloned().collect();
        Self { state, ready, last: now.last_event }
    }

    /// The next event; `None` once metadata has shut down. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.state.changed().await.ok()?;
            let now = Arc::clone(&self.state.borrow_and_update());
            self.ready.extend(now.events_after(self.last).cloned());
            self.last = now.last_event;
        }
    }
}
