//! System calls that a dead device may hang: each runs on a thread of its own and is waited for only so long.
//!
//! Not tokio's blocking pool: that one is waited for at exit, and shared with everything else.

use crate::Error;
use core::time::Duration;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// How many calls may run at once, stuck ones included. A stuck umount holds one kernel thread until its
/// device answers or is torn down; beyond this many the node needs help, not more threads.
const MAX_CALLS: usize = 64;

/// Where bounded calls run; clones share the bound.
#[derive(Clone, Debug)]
pub struct Bounded(Arc<Semaphore>);

impl Default for Bounded {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}

impl Bounded {
    /// Runs `work`, which is `call`, and waits at most `limit` for it.
    ///
    /// # Errors
    /// [`Error::Stuck`], then `work` goes on alone; [`Error::TooManyStuck`], [`Error::Thread`]; else what
    /// `work` returns.
    pub async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        limit: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit =
            Arc::clone(&self.0).try_acquire_owned().map_err(|_| Error::TooManyStuck(MAX_CALLS))?;
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name(call.to_owned())
            .spawn(move || {
                let outcome = work();
                drop(permit);
                // Nobody waits any more if the call was given up; the mount table tells the next one.
                let _ = done.send(outcome);
            })
            .map_err(|_| Error::Thread(call))?;
        match timeout(limit, result).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Thread(call)),
            Err(_) => Err(Error::Stuck { call, limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_stuck_call_is_given_up_and_counts_until_it_ends() {
        let bounded = Bounded(Arc::new(Semaphore::new(1)));
        let (release, stuck) = mpsc::channel::<()>();
        let limit = Duration::from_millis(20);
        let work = move || stuck.recv().map_err(|_| Error::Thread("test"));
        let error = bounded.run("umount2", limit, work).await.unwrap_err();
        assert!(matches!(error, Error::Stuck { call: "umount2", .. }), "{error}");
        let error = bounded.run("umount2", limit, || Ok(())).await.unwrap_err();
        assert!(matches!(error, Error::TooManyStuck(_)), "{error}");
        release.send(()).unwrap();
        drop(bounded.0.acquire().await.unwrap());
        bounded.run("umount2", Duration::from_secs(5), || Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let work = || -> Result<(), Error> { panic!("a bug") };
        let error = Bounded::default().run("mount", Duration::from_secs(5), work).await;
        assert!(matches!(error, Err(Error::Thread("mount"))));
    }
}
