//! Which replicators are asked.

use anyhow::{Context as _, Result, bail};
use client::Client;
use lab::Lab;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options that say where the cluster is.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// Replicators: unix:///path or http://IP:PORT, comma-separated; calls about one node go to the
    /// first. Without it: the lab in --lab.
    #[arg(long, global = true, env = "HOLDFAST_ENDPOINTS", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Directory of a lab whose replicators are asked.
    #[arg(long, global = true, default_value = lab::command::DEFAULT_DIR)]
    lab: PathBuf,
    /// Node of the lab for calls about one node, for example attach.
    #[arg(long, global = true, default_value_t = 1)]
    on: u64,
    /// Seconds that a call may take, retries included.
    #[arg(long, global = true, default_value_t = 30)]
    timeout: u64,
}

impl Target {
    /// A client as these options say.
    ///
    /// # Errors
    /// If an endpoint is not one, or there is no lab.
    pub fn client(&self) -> Result<Client> {
        let client = if self.endpoints.is_empty() {
            self.lab_client(&std::path::absolute(&self.lab)?)?
        } else {
            Client::new(&self.endpoints)?
        };
        Ok(client.with_deadline(Duration::from_secs(self.timeout)))
    }

    fn lab_client(&self, dir: &Path) -> Result<Client> {
        let lab = Lab::open(dir).context("no --endpoints (or HOLDFAST_ENDPOINTS), and")?;
        if !(1..=lab.nodes).contains(&self.on) {
            bail!("--on {}: this lab has nodes 1 to {}", self.on, lab.nodes);
        }
        lab.client(self.on)
    }
}
