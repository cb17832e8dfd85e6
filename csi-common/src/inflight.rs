//! One operation in flight per volume: a second one is turned away, not queued.

use crate::error::RequestError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::Status;
use tracing::Instrument;

type Running = Arc<Mutex<BTreeMap<String, &'static str>>>;

/// The operations in flight, by volume id or name.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    running: Running,
    node: Arc<str>,
}

impl InFlight {
    /// None in flight; `node` is named in every line of log about an operation.
    #[must_use]
    pub fn on(node: &str) -> Self {
        Self { running: Running::default(), node: node.into() }
    }

    /// Runs `work` as the only operation on `key`, to its end even if the caller goes away: an
    /// operation that nobody waits for any more is still in flight. Logs how it ends.
    ///
    /// # Errors
    /// ABORTED while another operation has `key`; INTERNAL if `work` panics; else its own.
    pub async fn run<T, E>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Into<Status> + Send + 'static,
    {
        let guard = self.begin(key, operation)?;
        let span = tracing::info_span!("csi", operation, volume = key, node = &*self.node);
        let work = async move {
            let started = std::time::Instant::now();
            let result = work.await.map_err(Into::into);
            let ms = started.elapsed().as_millis();
            match &result {
                Ok(_) => tracing::info!(ms, "done"),
                Err(status) => {
                    tracing::warn!(ms, code = ?status.code(), reason = status.message(), "failed");
                }
            }
            drop(guard);
            result
        };
        match tokio::spawn(work.instrument(span)).await {
            Ok(result) => result,
            Err(_) => Err(Status::internal(format!("{operation} died; its log says why"))),
        }
    }

    /// Takes `key` for `operation` until the guard is dropped.
    ///
    /// # Errors
    /// [`RequestError::Busy`] (ABORTED) while another operation has it.
    pub fn begin(&self, key: &str, operation: &'static str) -> Result<Guard, RequestError> {
        let mut running = lock(&self.running);
        if let Some(&running) = running.get(key) {
            return Err(RequestError::Busy { key: key.to_owned(), running });
        }
        running.insert(key.to_owned(), operation);
        Ok(Guard { running: Arc::clone(&self.running), key: key.to_owned() })
    }

    /// How many operations are in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.running).len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// A panic elsewhere cannot leave the map half-changed: every change is one insert or remove.
fn lock(running: &Running) -> MutexGuard<'_, BTreeMap<String, &'static str>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An operation in flight; dropping it ends the operation.
#[derive(Debug)]
#[must_use = "the operation ends when this is dropped"]
pub struct Guard {
    running: Running,
    key: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tonic::Code;

    #[test]
    fn the_second_is_turned_away_and_told_by_what() {
        let all = InFlight::default();
        let first = all.begin("v1", "NodeStageVolume").unwrap();
        let error = all.begin("v1", "NodeUnstageVolume").unwrap_err();
        assert_eq!(error.code(), Code::Aborted);
        assert!(error.to_string().contains("NodeStageVolume is in flight for v1"), "{error}");
        let other = all.begin("v2", "NodeStageVolume").unwrap();
        assert_eq!(all.len(), 2);
        drop(first);
        let again = all.begin("v1", "NodeUnstageVolume").unwrap();
        drop((again, other));
        assert!(all.is_empty());
    }

    #[test]
    fn a_panic_releases() {
        let all = InFlight::default();
        let inner = all.clone();
        std::thread::spawn(move || {
            let _guard = inner.begin("v1", "NodeStageVolume").unwrap();
            panic!("the operation died");
        })
        .join()
        .unwrap_err();
        assert!(all.begin("v1", "NodeStageVolume").is_ok());
    }
}
