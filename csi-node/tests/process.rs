//! The `csi-node` program as a process: flags, its socket, its end.
#![allow(clippy::unwrap_used)]

use csi_common::fake::{FakeControl, FakeServer};
use proto::csi::identity_client::IdentityClient;
use proto::csi::node_client::NodeClient;
use proto::csi::{NodeGetInfoRequest, ProbeRequest};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

struct Plugin {
    child: Child,
    socket: PathBuf,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_csi-node"))
}

impl Plugin {
    /// Starts it and waits until it answers.
    async fn start(directory: &Path, replicator: &str) -> (Self, Channel) {
        let socket = directory.join("csi.sock");
        let endpoint = format!("unix://{}", socket.display());
        let child = program()
            .args(["--endpoint", &endpoint, "--replicator", replicator])
            .args(["--node-name", "n1", "--node-id", "1"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let plugin = Self { child, socket };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = client::Endpoint::Unix(plugin.socket.clone()).channel();
            if IdentityClient::new(found.clone()).probe(ProbeRequest {}).await.is_ok() {
                return (plugin, found);
            }
            assert!(Instant::now() < deadline, "csi-node does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end, at most 20 s.
    async fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "csi-node does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn replicator(directory: &Path) -> FakeServer {
    FakeControl::new(directory.to_owned(), directory.to_owned()).serve().await
}

async fn ready(channel: &Channel) -> Option<bool> {
    let answer = IdentityClient::new(channel.clone()).probe(ProbeRequest {}).await.unwrap();
    answer.into_inner().ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_until_it_is_told_to_stop() {
    let directory = tempfile::tempdir().unwrap();
    let fake = replicator(directory.path()).await;
    let (mut plugin, channel) = Plugin::start(directory.path(), &fake.endpoint).await;
    assert_eq!(ready(&channel).await, Some(true));
    fake.control.state().ready = false;
    assert_eq!(ready(&channel).await, Some(false));
    let info = NodeClient::new(channel.clone()).node_get_info(NodeGetInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().node_id, "n1");

    // Killed, it leaves its socket; the next one takes it over.
    plugin.signal("-KILL");
    plugin.end().await;
    assert!(plugin.socket.exists());
    let (mut plugin, _channel) = Plugin::start(directory.path(), &fake.endpoint).await;
    plugin.signal("-TERM");
    assert!(plugin.end().await.success());
    assert!(!plugin.socket.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_on_its_socket_disturb_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let fake = replicator(directory.path()).await;
    let (mut plugin, channel) = Plugin::start(directory.path(), &fake.endpoint).await;
    let silent: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(&plugin.socket).unwrap()).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let huge_frame = [&preface[..], &[0xff; 64]].concat();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &preface[..7], &huge_frame] {
        let mut stream = UnixStream::connect(&plugin.socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Whatever it says to that, it ends the connection.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(ready(&channel).await, Some(true));
    // And they do not keep it from ending.
    plugin.signal("-TERM");
    assert!(plugin.end().await.success());
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_not_ready_without_its_replicator() {
    let directory = tempfile::tempdir().unwrap();
    let nobody = format!("unix://{}/nobody.sock", directory.path().display());
    let (plugin, channel) = Plugin::start(directory.path(), &nobody).await;
    assert_eq!(ready(&channel).await, Some(false));
    drop(plugin);
}

fn output(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("csi-node.toml");
    std::fs::write(&config, "endpoint = \"unix:///a\"\nnode_nmae = \"n1\"\n").unwrap();
    let config = config.to_str().unwrap();
    let all = [
        "--replicator",
        "unix:///nonexistent/r.sock",
        "--node-name",
        "n1",
        "--node-id",
        "1",
        "--endpoint",
    ];
    let with = |rest: &[&'static str]| [&all[..], rest].concat();
    let table: [(Vec<&str>, &str); 8] = [
        (vec![], "--endpoint is missing"),
        (vec!["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (vec!["--config", config], "node_nmae"),
        (with(&["tcp://1.2.3.4:5"]), "accepted: unix:///ABSOLUTE/PATH"),
        (with(&["unix:///nonexistent/csi.sock"]), "/nonexistent/csi.sock"),
        (with(&["unix:///run/x.sock", "--log", "[[["]), "is not a filter"),
        (with(&["unix:///run/x.sock", "--max-volumes=-1"]), "--max-volumes"),
        (with(&["unix:///run/x.sock", "--kubelet-dir=k"]), "not an absolute path"),
    ];
    for (arguments, part) in table {
        let output = output(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text.contains(part), "{arguments:?}: {text}, wanted {part:?}");
    }
}

#[test]
fn help_says_what_it_is_for() {
    let output = output(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["kubelet", "--endpoint", "--replicator", "--node-name", "--node-id", "mkfs.xfs"] {
        assert!(text.contains(part), "{text}");
    }
}
