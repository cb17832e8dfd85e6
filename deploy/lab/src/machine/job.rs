//! Shell scripts that run inside a machine, handed over through a directory of the host.

use super::jobs;
use crate::layout::Layout;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(50);

/// A script that was given to a machine.
#[derive(Debug)]
pub struct Job {
    path: PathBuf,
}

impl Job {
    /// Has the machine of `node` run `script` (sh -eu), beside others that run.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn start(layout: &Layout, node: u64, script: &str) -> Result<Self> {
        let path = jobs(layout, node).join(uuid::Uuid::new_v4().to_string());
        let new = path.with_extension("new");
        fs::write(&new, script).with_context(|| format!("writing {}", new.display()))?;
        // Seen whole or not at all.
        fs::rename(&new, path.with_extension("job"))?;
        Ok(Self { path })
    }

    /// What it has said until now.
    #[must_use]
    pub fn output(&self) -> String {
        let bytes = fs::read(self.path.with_extension("output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for its end; what it said.
    ///
    /// # Errors
    /// If it failed, or did not end within `patience`; with what it said.
    pub async fn wait(self, patience: Duration) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            if let Ok(status) = fs::read_to_string(self.path.with_extension("ended")) {
                let said = self.output();
                if status.trim() != "0" {
                    bail!("a script in the machine ended with {}:\n{said}", status.trim());
                }
                return Ok(said);
            }
            if Instant::now() >= end {
                bail!("a script in the machine takes longer than {patience:?}:\n{}", self.output());
            }
            sleep(LOOK).await;
        }
    }
}
