//! Watching the cluster's events on a surviving node: when it noticed, fenced, sealed.

use crate::clock;
use anyhow::{Context as _, Result};
use client::Client;
use client::api::Event;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use types::Instant;

/// Collects events in the background until dropped.
pub struct Watcher {
    events: watch::Receiver<Vec<Event>>,
    task: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Starts to collect all events as the replicator behind `client` sees them.
    #[must_use]
    pub fn start(client: Client) -> Self {
        let (sender, events) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let mut after = 0;
            loop {
                if let Ok(mut stream) = client.watch_events(after, "").await {
                    while let Ok(Some(event)) = stream.message().await {
                        after = after.max(event.index);
                        sender.send_modify(|events| events.push(event));
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self { events, task }
    }

    /// The first event that `matches`, later than `since`; waits for it at most `patience`.
    ///
    /// # Errors
    /// If it does not come; the text names `what`.
    pub async fn wait_for(
        &mut self,
        what: &str,
        since: Instant,
        patience: Duration,
        matches: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let wanted = |event: &&Event| event.boottime_ns > since.0 && matches(event);
        let find = |events: &Vec<Event>| events.iter().find(wanted).cloned();
        let waiting = self.events.wait_for(|events| find(events).is_some());
        let late = || format!("no event {what:?} within {patience:?}");
        let seen = timeout(patience, waiting).await.with_context(late)?.with_context(late)?;
        find(&seen).with_context(late)
    }
}

/// When the answering node applied or saw an event.
#[must_use]
pub fn time(event: &Event) -> Instant {
    if event.boottime_ns == 0 { clock::now() } else { Instant(event.boottime_ns) }
}
