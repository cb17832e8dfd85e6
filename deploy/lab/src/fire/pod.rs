//! The pod: PostgreSQL on the volume, and the part of Kubernetes that keeps it alive.

use crate::cluster::Lab;
use crate::kubelet::Kubelet;
use crate::layout::POSTGRES_PORT;
use crate::ledger::Files;
use crate::postgres::Postgres;
use anyhow::{Context as _, Result};
use proto::csi::Volume;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest wait for anything that the cluster has to do by itself.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Pod {
    pub(super) volume: Volume,
    pub(super) fs_type: &'static str,
    pub(super) node: u64,
    pub(super) postgres: Postgres,
    kubelet: Kubelet,
    ledger: Files,
    /// Stages that the pod left behind, and what still runs on them.
    stale: BTreeMap<u64, Postgres>,
}

impl Pod {
    /// Brings `volume` to `node`; PostgreSQL is not made yet.
    pub(super) async fn new(
        lab: &Lab,
        kubelet: Kubelet,
        volume: Volume,
        fs_type: &'static str,
        node: u64,
        ledger: Files,
    ) -> Result<Self> {
        let target = lab.layout.target_path(node, &volume.volume_id);
        let postgres = Postgres::new(&lab.layout, node, &target)?;
        let stale = BTreeMap::new();
        let pod = Self { volume, fs_type, node, postgres, kubelet, ledger, stale };
        pod.bring(node).await?;
        Ok(pod)
    }

    async fn bring(&self, node: u64) -> Result<()> {
        self.kubelet.mount(node, &self.volume, self.fs_type, PATIENCE).await?;
        self.ledger.set_target((self.lab_address(node), POSTGRES_PORT).into())
    }

    fn lab_address(&self, node: u64) -> std::net::Ipv4Addr {
        self.postgres.layout().address(node)
    }

    /// Starts it on `node`, where it has never been or has been taken down; what runs where it was is
    /// left as it is: nobody can reach that node.
    pub(super) async fn move_to(&mut self, node: u64) -> Result<()> {
        let target = self.postgres.layout().target_path(node, &self.volume.volume_id);
        let fresh = Postgres::new(self.postgres.layout(), node, &target)?;
        let former = core::mem::replace(&mut self.postgres, fresh);
        self.stale.insert(self.node, former);
        self.node = node;
        self.bring(node).await?;
        self.postgres.start()
    }

    /// Starts it anew where it is, as kubelet does with a pod whose volume or process has died.
    pub(super) async fn restart(&mut self) -> Result<()> {
        self.postgres.kill().context("the old PostgreSQL is stuck")?;
        self.kubelet.take_down(self.node, &self.volume, PATIENCE).await?;
        self.start().await
    }

    /// Ends it cleanly, and takes its volume from the node.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.postgres.stop()?;
        self.kubelet.take_down(self.node, &self.volume, PATIENCE).await.map(drop)
    }

    /// Starts it where it was.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.bring(self.node).await?;
        self.postgres.start()
    }

    /// Ends what was left behind on other nodes.
    pub(super) async fn clear(&mut self) -> Result<()> {
        while let Some((node, mut postgres)) = self.stale.pop_first() {
            if node != self.node {
                postgres.kill().context("the stale PostgreSQL is stuck")?;
                self.kubelet.take_down(node, &self.volume, PATIENCE).await?;
            }
        }
        Ok(())
    }

    /// Where something of it was left behind.
    pub(super) fn left_behind(&self, node: u64) -> bool {
        self.stale.contains_key(&node)
    }
}
