//! Real members on real files, joined by channels.
#![allow(clippy::unwrap_used)]

use super::*;
use metadata::{Command, Done, NodeInfo, PoolInfo, ProposeError, Role};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::sync::mpsc;
use types::{BootId, ClusterId, EngineInstance, NodeId, PoolId};
use uuid::Uuid;

type Routes = Arc<Mutex<BTreeMap<NodeId, MetaHandle>>>;

fn config(dir: &Path, node: u64, voters: u64) -> MetaConfig {
    MetaConfig {
        node: NodeId(node),
        cluster: ClusterId(Uuid::from_u128(1)),
        dir: dir.join(node.to_string()),
        initial_voters: (1..=voters).map(NodeId).collect(),
    }
}

/// Starts a member whose messages go to the others in `routes`.
fn run(dir: &Path, node: u64, voters: u64, routes: &Routes) -> MetaHandle {
    let (sender, mut outbound) = mpsc::channel::<(NodeId, Vec<u8>)>(1024);
    let handle = start(config(dir, node, voters), sender).unwrap();
    routes.lock().unwrap().insert(NodeId(node), handle.clone());
    let routes = Arc::clone(routes);
    tokio::spawn(async move {
        while let Some((to, message)) = outbound.recv().await {
            let target = routes.lock().unwrap().get(&to).cloned();
            if let Some(target) = target {
                target.receive(NodeId(node), message);
            }
        }
    });
    handle
}

async fn leader(handles: &[MetaHandle]) -> MetaHandle {
    let mut status = handles[0].watch_status();
    let known = status.wait_for(|status| status.leader.is_some()).await.unwrap().leader.unwrap();
    let found = handles.iter().find(|h| h.raft_status().node == known).unwrap().clone();
    found.watch_status().wait_for(|status| status.role == Role::Leader).await.unwrap();
    found
}

fn register(node: u64) -> Command {
    Command::RegisterNode(NodeInfo {
        node: NodeId(node),
        name: format!("node{node}"),
        control_address: "127.0.0.1:7420".into(),
        data_address: "127.0.0.1:7421".into(),
        pool: Some(PoolInfo { id: PoolId(Uuid::from_u128(u128::from(node))), bytes: 10 << 30 }),
        class: None,
        zone: None,
        boot: BootId(Uuid::from_u128(3)),
        process: EngineInstance(Uuid::from_u128(4)),
    })
}

#[tokio::test]
async fn three_members_agree_restart_and_agree_again() {
    let dir = TempDir::new().unwrap();
    let routes = Routes::default();
    let handles: Vec<_> = (1..=3).map(|node| run(dir.path(), node, 3, &routes)).collect();
    let leading = leader(&handles).await;
    let mut events = handles[0].events(0);
    let mut last = 0;
    for node in 1..=3 {
        let (index, outcome) = leading.propose(register(node)).await.unwrap();
        assert_eq!(outcome, Ok(Done::Ok));
        last = index;
    }
    let read = leading.read_index().await.unwrap();
    assert!(read >= last);
    for handle in &handles {
        handle.wait_applied(read).await.unwrap();
        assert_eq!(handle.state().nodes.len(), 3);
    }
    for node in 1..=3 {
        assert_eq!(events.next().await.unwrap().node, Some(NodeId(node)));
    }
    let follower = handles.iter().find(|h| h.raft_status().role != Role::Leader).unwrap();
    let refused = follower.propose(register(1)).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: leading.raft_status().leader }));

    routes.lock().unwrap().clear();
    for handle in &handles {
        handle.shutdown().await;
    }
    assert_eq!(events.next().await, None);
    assert_eq!(leading.propose(register(1)).await, Err(ProposeError::Shutdown));
    drop((handles, leading));

    let handles: Vec<_> = (1..=3).map(|node| run(dir.path(), node, 3, &routes)).collect();
    assert_eq!(handles[0].state().nodes.len(), 3, "from the applied state, before any leader");
    let leading = leader(&handles).await;
    let (index, _) = leading.propose(register(2)).await.unwrap();
    handles[0].wait_applied(index).await.unwrap();
    for handle in &handles {
        handle.shutdown().await;
    }
}
