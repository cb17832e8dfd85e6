//! The Peer service: Raft messages, heartbeats and commands from the other nodes.

use super::Node;
use super::attach;
use super::status::{invalid, not_leader, propose_status};
use super::transport::CLUSTER;
use client::api::peer_server::Peer;
use client::api::{
    FillVolumeRequest, FillVolumeResponse, HeartbeatRequest, HeartbeatResponse, ProposeRequest,
    ProposeResponse, RaftMessage, RaftResponse, TakeSnapshotRequest, TakeSnapshotResponse,
    TendVolumeRequest, TendVolumeResponse, YieldVolumeRequest, YieldVolumeResponse,
};
use core::net::SocketAddr;
use core::str::FromStr;
use core::time::Duration;
use metadata::{Command, NodeInfo, PoolClass, PoolInfo};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};
use types::NodeId;

/// Longest absence that a restarting node is granted.
const MAX_ABSENCE: Duration = Duration::from_secs(60);

/// Serves [`Peer`].
pub(super) struct PeerService(pub(super) Arc<Node>);

impl PeerService {
    fn lead(&self) -> Result<(), Status> {
        let node = &self.0;
        if node.proposer.leads() {
            return Ok(());
        }
        Err(not_leader(&node.meta.state(), node.config.node, node.meta.raft_status().leader))
    }

    fn same_cluster(&self, cluster: &str) -> Result<(), Status> {
        let here = self.0.config.cluster.to_string();
        if cluster == here {
            return Ok(());
        }
        Err(Status::permission_denied(format!("this is cluster {here}, not {cluster:?}")))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn raft(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<RaftResponse>, Status> {
        let cluster = request.metadata().get(CLUSTER).and_then(|value| value.to_str().ok());
        self.same_cluster(cluster.unwrap_or_default())?;
        let mut messages = request.into_inner();
        while let Some(RaftMessage { from, message, from_address }) = messages.message().await? {
            let from = NodeId(from);
            if from.0 == 0 || from == self.0.config.node {
                return Err(invalid("from", from, "the number of another node"));
            }
            if let Ok(address) = from_address.parse::<SocketAddr>() {
                self.0.transport.learn_peer(from, address);
            }
            self.0.meta.receive(from, message);
        }
        Ok(Response::new(RaftResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        self.same_cluster(&request.cluster_id)?;
        self.lead()?;
        let absence = Duration::from_secs(request.returns_within_seconds.into()).min(MAX_ABSENCE);
        let (info, free) = introduction(request)?;
        let node = info.node;
        let lost = self.0.meta.state().is_lost(node);
        self.0.roll.introduce(info, free);
        if !absence.is_zero() {
            tracing::info!(%node, ?absence, "a node restarts");
            self.0.roll.excuse(node, absence);
        }
        Ok(Response::new(HeartbeatResponse { lost }))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        self.lead()?;
        let command = metadata::decode::<Command>(&request.into_inner().command)
            .map_err(|error| invalid("command", error, "a command of this version"))?;
        let node = &self.0;
        let (index, outcome) = node
            .meta
            .propose(command)
            .await
            .map_err(|error| propose_status(&error, &node.meta.state(), node.config.node))?;
        let outcome =
            metadata::encode(&outcome).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ProposeResponse { outcome, index }))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotResponse>, Status> {
        let TakeSnapshotRequest { volume_id, snapshot_id } = request.into_inner();
        let volume = id("volume_id", &volume_id)?;
        let snapshot = id("snapshot_id", &snapshot_id)?;
        attach::take_snapshot(&self.0, volume, snapshot).await?;
        Ok(Response::new(TakeSnapshotResponse {}))
    }

    async fn fill_volume(
        &self,
        request: Request<FillVolumeRequest>,
    ) -> Result<Response<FillVolumeResponse>, Status> {
        attach::fill(&self.0, id("volume_id", &request.into_inner().volume_id)?).await?;
        Ok(Response::new(FillVolumeResponse {}))
    }

    async fn tend_volume(
        &self,
        request: Request<TendVolumeRequest>,
    ) -> Result<Response<TendVolumeResponse>, Status> {
        attach::tend(&self.0, id("volume_id", &request.into_inner().volume_id)?).await?;
        Ok(Response::new(TendVolumeResponse {}))
    }

    async fn yield_volume(
        &self,
        request: Request<YieldVolumeRequest>,
    ) -> Result<Response<YieldVolumeResponse>, Status> {
        self.0.attachments.want(id("volume_id", &request.into_inner().volume_id)?);
        Ok(Response::new(YieldVolumeResponse {}))
    }
}

fn introduction(request: HeartbeatRequest) -> Result<(NodeInfo, u64), Status> {
    fn id<T: FromStr>(field: &str, text: &str) -> Result<T, Status> {
        text.parse().map_err(|_| invalid(field, text, "a UUID in lower case"))
    }
    fn address(field: &str, text: String) -> Result<String, Status> {
        match text.parse::<SocketAddr>() {
            Ok(_) => Ok(text),
            Err(_) => Err(invalid(field, text, "IP:PORT")),
        }
    }
    if request.node == 0 {
        return Err(invalid("node", 0, "a number from 1 on"));
    }
    let pool = if request.pool_id.is_empty() {
        None
    } else {
        Some(PoolInfo { id: id("pool_id", &request.pool_id)?, bytes: request.pool_bytes })
    };
    let class = PoolClass::parse_optional(&request.priority_io)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let info = NodeInfo {
        node: NodeId(request.node),
        name: request.name,
        control_address: address("control_address", request.control_address)?,
        data_address: address("data_address", request.data_address)?,
        pool,
        class,
        zone: Some(request.zone).filter(|zone| !zone.is_empty()),
        boot: id("boot_id", &request.boot_id)?,
        process: id("process_instance", &request.process_instance)?,
    };
    Ok((info, request.pool_free_bytes))
}

fn id<T: FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|_| invalid(field, text, "a UUID"))
}
