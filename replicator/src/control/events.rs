//! Events for operators: those of the applied state, stamped when they were applied here, and
//! those that only this node saw.

use crate::meta::MetaHandle;
use client::api;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use types::{Epoch, NodeId, VolumeId};

/// Events that are remembered; older ones are forgotten.
const KEPT: usize = 2048;

/// The event log of this node; cheap to clone.
#[derive(Clone)]
pub struct Events {
    node: NodeId,
    log: Arc<Mutex<Log>>,
    /// Number of events ever logged.
    grown: watch::Sender<u64>,
}

#[derive(Default)]
struct Log {
    events: VecDeque<api::Event>,
    /// Number of the first event in `events`.
    first: u64,
}

impl Events {
    /// Empty.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self { node, log: Arc::default(), grown: watch::Sender::new(0) }
    }

    /// Something that only this node saw.
    pub fn local(&self, kind: &str, volume: Option<VolumeId>, epoch: Option<Epoch>, message: &str) {
        tracing::info!(
            node = %self.node,
            volume = volume.map(tracing::field::display),
            epoch = epoch.map(tracing::field::display),
            event = kind,
            "{message}"
        );
        self.push(api::Event {
            index: 0,
            kind: kind.to_owned(),
            volume_id: volume.map(|volume| volume.to_string()).unwrap_or_default(),
            node: self.node.0,
            epoch: epoch.unwrap_or_default().0,
            message: message.to_owned(),
            boottime_ns: hostio::clock::boottime().0,
        });
    }

    fn push(&self, event: api::Event) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.events.push_back(event);
        if log.events.len() > KEPT {
            log.events.pop_front();
            log.first += 1;
        }
        let grown = log.first + log.events.len() as u64;
        drop(log);
        self.grown.send_replace(grown);
    }

    /// A cursor before the oldest event.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader { log: Arc::clone(&self.log), grown: self.grown.subscribe(), next: 0 }
    }

    /// Takes over the events of the applied state as they come, for ever. Those that were applied
    /// before this began have no known time, given as 0.
    pub async fn follow(self, meta: MetaHandle) {
        let begun = meta.state().applied;
        let mut events = meta.events(0);
        while let Some(event) = events.next().await {
            let new = event.index > begun;
            self.push(api::Event {
                index: event.index,
                kind: event.kind.as_str().to_owned(),
                volume_id: event.volume.map(|volume| volume.to_string()).unwrap_or_default(),
                node: event.node.unwrap_or_default().0,
                epoch: event.epoch.unwrap_or_default().0,
                message: event.message,
                boottime_ns: if new { hostio::clock::boottime().0 } else { 0 },
            });
        }
    }
}

/// Reads the log from somewhere on.
pub struct Reader {
    log: Arc<Mutex<Log>>,
    grown: watch::Receiver<u64>,
    next: u64,
}

impl Reader {
    /// The next event, waiting for it; `None` when the log is gone.
    pub async fn next(&mut self) -> Option<api::Event> {
        loop {
            {
                let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                self.next = self.next.max(log.first);
                let at = usize::try_from(self.next - log.first).unwrap_or(usize::MAX);
                if let Some(event) = log.events.get(at) {
                    self.next += 1;
                    return Some(event.clone());
                }
            }
            self.grown.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn readers_get_everything_that_is_kept_in_order_and_wait_for_more() {
        let events = Events::new(NodeId(1));
        for number in 0..KEPT + 10 {
            events.local("test", None, None, &number.to_string());
        }
        let mut reader = events.reader();
        for number in 10..KEPT + 10 {
            assert_eq!(reader.next().await.unwrap().message, number.to_string());
        }
        let waiting = tokio::spawn(async move { reader.next().await });
        tokio::task::yield_now().await;
        events.local("test", Some(VolumeId::default()), Some(Epoch(3)), "late");
        let event = waiting.await.unwrap().unwrap();
        assert_eq!((event.message.as_str(), event.epoch, event.index), ("late", 3, 0));
        assert!(event.boottime_ns > 0);
    }
}
