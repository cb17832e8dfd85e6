//! What the tests of whole daemons share.
#![allow(dead_code, unreachable_pub)]

pub mod bed;
pub mod nbd;

use client::Client;
use client::api::CreateVolumeRequest;
use replicator::config::{Config, PeerSetting, Settings};
use replicator::daemon::{self, DaemonError};
use replicator::data;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use types::{ClusterId, PoolId};
use uuid::Uuid;

/// Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Serves; a former run that was killed may hold its locks and ports for a moment.
pub async fn serve(config: Config, stopped: watch::Receiver<bool>) -> Result<(), DaemonError> {
    let begin = Instant::now();
    loop {
        match daemon::serve(config.clone(), stopped.clone()).await {
            Err(error) if error.to_string().contains("in use") && begin.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

/// A daemon of a [`Cluster`].
pub struct Node {
    pub settings: Settings,
    pub socket: PathBuf,
    running: Option<(Runtime, JoinHandle<()>, watch::Sender<bool>)>,
}

impl Node {
    /// A runtime of its own, so that a node can be ended as a killed process ends: all at once.
    pub fn start(&mut self) {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let config = self.settings.clone().check().unwrap();
        let task = runtime.spawn(async move {
            if let Err(error) = serve(config, stopped).await {
                panic!("{error}");
            }
        });
        self.running = Some((runtime, task, stop));
    }

    /// Nothing is told, flushed or closed.
    pub fn kill(&mut self) {
        let (runtime, ..) = self.running.take().unwrap();
        runtime.shutdown_background();
    }

    /// As SIGTERM does.
    pub async fn stop(&mut self) {
        let (runtime, task, stop) = self.running.take().unwrap();
        stop.send(true).unwrap();
        task.await.unwrap();
        runtime.shutdown_background();
    }

    pub fn client(&self) -> Client {
        let endpoint = format!("unix://{}", self.socket.display());
        Client::new([endpoint]).unwrap().with_deadline(PATIENCE)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
    }
}

/// Three daemons in one process, and more if added.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub id: String,
    /// The initial voters.
    peers: Vec<PeerSetting>,
    directory: TempDir,
}

/// A volume of `size` bytes, kept twice and used on node 1.
pub fn volume_of(name: &str, size: u64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: size,
        repl: 2,
        preferred_nodes: vec![1],
        ..CreateVolumeRequest::default()
    }
}

/// Two free addresses: control and data. Not of the ports that the kernel gives to outgoing connections (from 32,768
/// on): somebody's would take that of a node which is down for a moment.
pub fn addresses() -> [String; 2] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100;
    [(); 2].map(|()| {
        loop {
            let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
            let address = format!("127.0.0.1:{port}");
            if TcpListener::bind(&address).is_ok() {
                return address;
            }
        }
    })
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With settings of its own.
    pub async fn start_with(change: impl Fn(&mut Settings)) -> Self {
        // Not /tmp: the pool needs direct I/O, which a tmpfs may not have.
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let id = Uuid::new_v4().to_string();
        let addresses = [(); 3].map(|()| addresses());
        let peers = addresses
            .iter()
            .zip(1..)
            .map(|([control, _], node)| PeerSetting { node, control_address: control.clone() })
            .collect();
        let mut cluster = Self { nodes: Vec::new(), id, peers, directory };
        for addresses in addresses {
            cluster.add(addresses);
        }
        cluster.nodes.iter_mut().for_each(|node| {
            change(&mut node.settings);
            node.start();
        });
        for node in 1..=3 {
            cluster.ready(node).await;
        }
        cluster
    }

    /// One more node, with a new pool; not started.
    pub fn add(&mut self, [control, data]: [String; 2]) {
        let node = self.nodes.len() + 1;
        let home = self.directory.path().join(format!("{node}"));
        std::fs::create_dir(&home).unwrap();
        let pool = home.join("pool");
        std::fs::File::create(&pool).unwrap().set_len(256 << 20).unwrap();
        let id: ClusterId = self.id.parse().unwrap();
        data::init_pool(&pool, id, PoolId(Uuid::new_v4()), false).unwrap();
        let socket = home.join("c.sock");
        let settings = Settings {
            node: Some(node as u64),
            cluster: Some(self.id.clone()),
            data_dir: Some(home.join("data")),
            control_address: Some(control),
            data_address: Some(data),
            control_socket: Some(socket.clone()),
            pool: Some(pool),
            peers: Some(self.peers.clone()),
            ..Settings::default()
        };
        self.nodes.push(Node { settings, socket, running: None });
    }

    pub fn node(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node - 1]
    }

    pub fn client(&self, node: usize) -> Client {
        self.nodes[node - 1].client()
    }

    pub async fn ready(&self, node: usize) {
        let client = self.client(node);
        until("the node is ready", async || {
            client.get_node().await.is_ok_and(|node| node.ready).then_some(())
        })
        .await;
    }
}

/// Asks until there is an answer; `what` is for the failure.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
