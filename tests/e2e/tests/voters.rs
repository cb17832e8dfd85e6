//! Who votes: a node that is gone for long does not count for the majority any more, and is a voter again when
//! it is back.
#![allow(clippy::unwrap_used)]

use client::Client;
use e2e::{eventually, lab_that_replaces, volume};

async fn roles(client: &Client) -> Vec<String> {
    let cluster = client.get_cluster().await;
    cluster.map(|c| c.nodes.into_iter().map(|n| n.raft_role).collect()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_bear_a_second_loss_once_the_first_was_long_ago() {
    let lab = lab_that_replaces(4, 5).await.unwrap();
    let client = lab.client(1).unwrap();
    lab.kill(4).unwrap();
    let wanted = ["voter", "voter", "voter", "learner"];
    eventually("node 4 votes no more", || async { Ok(roles(&client).await == wanted) })
        .await
        .unwrap();

    // Two of four would be no majority.
    lab.kill(3).unwrap();
    eventually("the cluster goes on", || async { Ok(volume(&lab, "v", 64 << 20).await.is_ok()) })
        .await
        .unwrap();

    lab.start(3).unwrap();
    lab.start(4).unwrap();
    eventually("all vote again", || async { Ok(roles(&client).await == ["voter"; 4]) })
        .await
        .unwrap();
}
