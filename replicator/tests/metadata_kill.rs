//! SIGKILL of a process that writes metadata: nothing that it acknowledged is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use metadata::{Command, NodeInfo, Role};
use replicator::meta::{MetaConfig, MetaError, MetaHandle, start};
use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use tokio::sync::mpsc;
use types::{BootId, ClusterId, EngineInstance, NodeId};
use uuid::Uuid;

const DIR: &str = "HOLDFAST_TEST_METADATA_DIR";
/// Proposers side by side, so that syncs are shared and a truncation of the log comes soon.
const WRITERS: u64 = 48;

fn open(dir: &Path) -> Result<MetaHandle, MetaError> {
    let config = MetaConfig {
        node: NodeId(1),
        cluster: ClusterId(Uuid::from_u128(1)),
        dir: dir.to_path_buf(),
        initial_voters: vec![NodeId(1)],
    };
    start(config, mpsc::channel(16).0)
}

/// A writer's count is the boot id of a node of its own.
fn count_of(handle: &MetaHandle, writer: u64) -> u128 {
    handle.state().nodes.get(&NodeId(writer)).map_or(0, |node| node.boot.0.as_u128())
}

fn command(writer: u64, count: u128) -> Command {
    Command::RegisterNode(NodeInfo {
        node: NodeId(writer),
        name: format!("node{writer}"),
        control_address: String::new(),
        data_address: String::new(),
        pool: None,
        class: None,
        zone: None,
        boot: BootId(Uuid::from_u128(count)),
        process: EngineInstance::default(),
    })
}

/// The victim: run by the test below in a process of its own; writes until it is killed.
#[test]
#[ignore = "run by nothing_acknowledged_is_lost_by_sigkill"]
fn victim() {
    let Some(dir) = env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = open(Path::new(&dir)).unwrap();
        handle.watch_status().wait_for(|status| status.role == Role::Leader).await.unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 1..=WRITERS {
            let handle = handle.clone();
            writers.spawn(async move {
                for count in count_of(&handle, writer) + 1.. {
                    handle.propose(command(writer, count)).await.unwrap().1.unwrap();
                    // One write call per line: what is read was acknowledged.
                    let line = format!("acknowledged {writer} {count}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                    std::io::stdout().flush().unwrap();
                }
            });
        }
        writers.join_all().await;
    });
}

fn spawn(dir: &Path) -> Child {
    std::process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn parse(line: &str) -> Option<(u64, u128)> {
    let (writer, count) = line.split_once("acknowledged ")?.1.split_once(' ')?;
    Some((writer.parse().ok()?, count.parse().ok()?))
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_sigkill() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut acknowledged: BTreeMap<u64, u128> = BTreeMap::new();
    // The second and later rounds pass the truncation of the log at 4096 entries.
    for lines in [1, 3000, 2500, 777, 5000] {
        let mut child = spawn(dir.path());
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < lines {
            let line = output.next().expect("the victim goes on").unwrap();
            if let Some((writer, count)) = parse(&line) {
                acknowledged.insert(writer, count);
                seen += 1;
            }
        }
        let refused = open(dir.path()).map(drop);
        assert!(matches!(refused, Err(MetaError::InUse { .. })), "{refused:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        for line in output {
            if let Some((writer, count)) = line.ok().as_deref().and_then(parse) {
                acknowledged.insert(writer, count);
            }
        }

        let handle = open(dir.path()).unwrap();
        handle.watch_status().wait_for(|status| status.role == Role::Leader).await.unwrap();
        handle.wait_applied(handle.read_index().await.unwrap()).await.unwrap();
        for (writer, acknowledged) in &acknowledged {
            let found = count_of(&handle, *writer);
            assert!(
                found == *acknowledged || found == acknowledged + 1,
                "writer {writer}: {acknowledged} acknowledged, {found} found"
            );
        }
        handle.shutdown().await;
    }
}
