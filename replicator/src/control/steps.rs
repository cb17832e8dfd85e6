//! Runs steps that may be repeated: one at a time per key, again after a pause while still due.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Steps at a time; others wait for their turn.
const LIMIT: usize = 64;
/// A step that could not be done is tried again after this long.
const RETRY: Duration = Duration::from_millis(200);
/// A step that was refused is tried again after this long, if the state still asks for it.
const REFUSED: Duration = Duration::from_secs(1);

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Done, or not needed any more.
    Done,
    /// Somebody did not answer, or something was not ready.
    Again,
    /// Decided against.
    Refused,
}

/// The steps under way; dropping it ends them.
pub(super) struct Steps<K> {
    running: BTreeSet<K>,
    not_before: BTreeMap<K, Instant>,
    tasks: JoinSet<(K, Ended)>,
}

impl<K: Copy + Ord + Send + 'static> Steps<K> {
    pub(super) fn new() -> Self {
        Self { running: BTreeSet::new(), not_before: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Begins `step` unless one of its key is under way or was tried a moment ago.
    pub(super) fn begin<F>(&mut self, key: K, step: impl FnOnce() -> F)
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let now = Instant::now();
        let early = self.not_before.get(&key).is_some_and(|time| *time > now);
        if early || self.running.len() >= LIMIT || !self.running.insert(key) {
            return;
        }
        let step = step();
        self.tasks.spawn(async move { (key, step.await) });
    }

    /// Completes when a step has ended or a pause is over: then it is worth looking at what is due
    /// again. Cancel safe; waits for ever while there is nothing to wait for.
    pub(super) async fn progress(&mut self) {
        let pause = self.not_before.values().min().copied();
        let pause = async {
            match pause {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.tasks.join_next() => {
                // A step that panicked keeps its key: it is not tried again.
                if let Ok((key, ended)) = ended {
                    self.running.remove(&key);
                    let wait = match ended {
                        Ended::Done => None,
                        Ended::Again => Some(RETRY),
                        Ended::Refused => Some(REFUSED),
                    };
                    if let Some(wait) = wait {
                        self.not_before.insert(key, Instant::now() + wait);
                    }
                }
            }
            () = pause => {
                let now = Instant::now();
                self.not_before.retain(|_, time| *time > now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_step_runs_once_at_a_time_and_again_after_a_pause() {
        let mut steps = Steps::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let begin = |steps: &mut Steps<u32>| {
            let runs = Arc::clone(&runs);
            steps.begin(1, move || async move {
                runs.fetch_add(1, Ordering::Relaxed);
                Ended::Again
            });
        };
        begin(&mut steps);
        begin(&mut steps);
        steps.progress().await;
        begin(&mut steps);
        assert_eq!(runs.load(Ordering::Relaxed), 1, "the pause is not over");
        let before = Instant::now();
        steps.progress().await;
        assert!(before.elapsed() >= RETRY);
        begin(&mut steps);
        steps.progress().await;
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }
}
