//! The loop: look, decide, act; for ever and whatever fails.

use super::cache::Cache;
use super::decide::{Action, Memory, Move, decide};
use super::kubernetes::{CallError, ConnectError, Deletion, Kubernetes};
use super::note::{Note, Subject};
use super::observe::{Observed, is_up};
use super::views::{ClaimView, NodeView};
use client::Client;
use client::api::NoteFailoverRequest;
use core::time::Duration;
use futures::future::join_all;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Pause between two looks while all is well.
const IDLE: Duration = Duration::from_millis(500);
/// Pause between two looks while something happens.
const BUSY: Duration = Duration::from_millis(200);
/// Pause between two looks at nodes that have been lost for a while.
const STEADY: Duration = Duration::from_secs(1);
/// Deadline of a read of the cluster. Longer than the client needs to notice that a leader fell silent
/// and to find the next one.
const CLUSTER: Duration = Duration::from_secs(5);
/// Deadline of a question to one node.
const NODE: Duration = Duration::from_secs(2);
/// How the record of a failover calls what is done here.
const DELETED: &str = "failover_moved";

/// What the failover controller is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node where this instance runs.
    pub node_name: String,
    /// How to reach Kubernetes; `None` in a pod.
    pub kubeconfig: Option<PathBuf>,
    /// When a lost node that Kubernetes does not have any more is removed from the cluster.
    pub gone_after: Duration,
}

/// A failover controller.
pub struct Failover {
    here: String,
    cluster: Client,
    kubernetes: Kubernetes,
    nodes: Cache<NodeView>,
    claims: Cache<ClaimView>,
    watches: Vec<JoinHandle<()>>,
    memory: Memory,
    started: Instant,
    /// The last complaint about an outage, so that it is logged once.
    complaint: Option<String>,
    /// Clients of nodes that are asked about their attachments, by control address.
    peers: BTreeMap<String, Client>,
}

impl Drop for Failover {
    fn drop(&mut self) {
        self.watches.iter().for_each(JoinHandle::abort);
    }
}

impl Failover {
    /// A controller for the cluster that `cluster` reaches. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn new(settings: &Settings, cluster: &Client) -> Result<Self, ConnectError> {
        let kubernetes = Kubernetes::new(settings.kubeconfig.as_deref()).await?;
        Ok(Self {
            here: settings.node_name.clone(),
            cluster: cluster.with_deadline(CLUSTER),
            kubernetes,
            nodes: Cache::default(),
            claims: Cache::default(),
            watches: Vec::new(),
            memory: Memory::new(settings.gone_after),
            started: Instant::now(),
            complaint: None,
            peers: BTreeMap::new(),
        })
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        tracing::info!(node = self.here, "failover controller started");
        self.watch();
        let mut looked_at = BTreeSet::new();
        loop {
            let (pause, interest) = self.round(&looked_at).await;
            // A node that has just become interesting is looked at at once.
            if interest.is_subset(&looked_at) {
                sleep(pause).await;
            } else {
                // Connections and watches may lead to what was just lost.
                self.renew();
            }
            looked_at = interest;
        }
    }

    fn watch(&mut self) {
        self.watches.drain(..).for_each(|watch| watch.abort());
        let kubernetes = &self.kubernetes;
        self.watches.push(tokio::spawn(kubernetes.clone().watch_nodes(self.nodes.clone())));
        self.watches.push(tokio::spawn(kubernetes.clone().watch_claims(self.claims.clone())));
    }

    fn renew(&mut self) {
        self.kubernetes = self.kubernetes.renewed();
        self.watch();
    }

    fn complain(&mut self, complaint: Option<String>) {
        if self.complaint == complaint {
            return;
        }
        match (&complaint, &self.complaint) {
            (Some(new), _) => tracing::warn!("{new}"),
            (None, _) => tracing::info!("the cluster and Kubernetes answer again"),
        }
        self.complaint = complaint;
    }

    /// One look and what follows from it. Returns when to look again and at which nodes.
    async fn round(&mut self, look_at: &BTreeSet<String>) -> (Duration, BTreeSet<String>) {
        // Pods before the cluster: see `Observed`.
        let (pods, mut complaint) = self.pods(look_at).await;
        let cluster = match self.cluster.get_cluster().await {
            Ok(cluster) => cluster,
            Err(error) => {
                self.complain(Some(format!("cannot read the cluster: {}", chain(&error))));
                return (BUSY, look_at.clone());
            }
        };
        let (Some(nodes), Some(claims)) = (self.nodes.all(), self.claims.all()) else {
            complaint
                .get_or_insert_with(|| "Kubernetes' nodes and volumes are not known yet".into());
            self.complain(complaint);
            return (BUSY, look_at.clone());
        };
        let claims = claims
            .into_values()
            .map(|claim| ((claim.namespace.clone(), claim.name.clone()), claim))
            .collect();
        let here = self.here.clone();
        let attachments = BTreeMap::new();
        let mut observed = Observed { here, cluster, nodes, claims, pods, attachments };
        observed.attachments = self.attachments(&observed).await;
        let now = self.started.elapsed();
        let actions = decide(&observed, &mut self.memory, now);
        let interest = self.memory.of_interest(&observed);
        let pause = match () {
            () if !actions.is_empty() || self.memory.is_eventful(now) => BUSY,
            () if !interest.is_empty() => STEADY,
            () => IDLE,
        };
        if let Some(error) = self.act(actions).await {
            complaint.get_or_insert(error);
        }
        self.complain(complaint);
        (pause, interest)
    }

    async fn pods(
        &mut self,
        nodes: &BTreeSet<String>,
    ) -> (BTreeMap<String, Vec<super::views::PodView>>, Option<String>) {
        let kubernetes = &self.kubernetes;
        let asked = nodes.iter().map(async |node| (node.clone(), kubernetes.pods_on(node).await));
        let mut pods = BTreeMap::new();
        let mut failed = None;
        for (node, answer) in join_all(asked).await {
            match answer {
                Ok(found) => {
                    pods.insert(node, found);
                }
                Err(error) => failed = Some(error),
            }
        }
        let complaint = failed.as_ref().map(|error| chain(error));
        if failed.is_some_and(|error| !error.answered()) {
            self.renew();
        }
        (pods, complaint)
    }

    /// Asks the nodes that are up and carry our taint what they still have attached.
    async fn attachments(
        &mut self,
        observed: &Observed,
    ) -> BTreeMap<String, Vec<client::api::Attachment>> {
        let mut asked = Vec::new();
        for node in observed.cluster.nodes.iter().filter(|node| is_up(node)) {
            if !observed.nodes.get(&node.name).is_some_and(|view| view.fenced) {
                continue;
            }
            let peer = match self.peers.get(&node.control_address) {
                Some(peer) => peer.clone(),
                None => match Client::new([&node.control_address]) {
                    Ok(peer) => peer.with_deadline(NODE),
                    Err(error) => {
                        tracing::warn!(node = node.name, %error, "control address");
                        continue;
                    }
                },
            };
            self.peers.insert(node.control_address.clone(), peer.clone());
            let (name, id) = (node.name.clone(), node.node);
            asked.push(async move { (name, id, peer.get_node().await) });
        }
        if asked.is_empty() {
            self.peers.clear();
        }
        let answers = join_all(asked).await.into_iter();
        answers
            .filter_map(|(name, id, answer)| {
                let answer = answer.ok().filter(|answer| answer.node == id && answer.ready)?;
                Some((name, answer.attachments))
            })
            .collect()
    }

    /// Carries actions out; an error, if there was any. All of it is decided anew in the next round.
    async fn act(&self, actions: Vec<Action>) -> Option<String> {
        let (mut taints, mut moves, mut untaints) = (Vec::new(), Vec::new(), Vec::new());
        let (mut notes, mut retired) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Taint { node } => taints.push(node),
                Action::Delete(moved) => moves.push(moved),
                Action::Untaint { node } => untaints.push(node),
                Action::Retire { node } => retired.push(node),
                Action::Say(note) => {
                    tracing::warn!(about = %note.subject, reason = note.reason, "{}", note.text);
                    notes.push(note);
                }
            }
        }
        let mut failed = None;
        let mut open = BTreeSet::new();
        let tainted = taints.iter().map(async |node| (node, self.taint(node).await));
        for (node, result) in join_all(tainted).await {
            match result {
                Ok(said) => notes.extend(said),
                Err(error) => {
                    open.insert(node.clone());
                    failed = Some(error);
                }
            }
        }
        let moves = moves.into_iter().filter(|moved| !open.contains(&moved.node));
        let moved = join_all(moves.map(async |moved| self.delete(&moved).await)).await;
        let untainted = join_all(untaints.iter().map(async |node| self.untaint(node).await)).await;
        for result in moved.into_iter().chain(untainted) {
            match result {
                Ok(said) => notes.extend(said),
                Err(error) => failed = Some(error),
            }
        }
        for node in retired {
            self.retire(node);
        }
        self.say(notes);
        failed.map(|error| chain(&error))
    }

    /// Has the cluster forget a node, without waiting for it: that may take a change of Raft's membership.
    fn retire(&self, node: u64) {
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            match cluster.remove_node(node).await {
                Ok(()) => tracing::warn!(node, "gone for good: removed, its number is retired"),
                Err(error) => {
                    tracing::warn!(node, error = chain(&error), "gone for good, but not removed")
                }
            }
        });
    }

    fn subject(&self, node: &str) -> Subject {
        let nodes = self.nodes.all().unwrap_or_default();
        Subject::node(node, &nodes.get(node).cloned().unwrap_or_default())
    }

    async fn taint(&self, node: &str) -> Result<Vec<Note>, CallError> {
        let now = Timestamp::now();
        if !self.kubernetes.taint(node, now).await? {
            return Ok(Vec::new());
        }
        tracing::warn!(node, "lost, and its volumes are fenced: tainted");
        let text = format!(
            "The storage has lost the node and taken its volumes away ({}): no new pods until it is back and clean",
            clock(now)
        );
        Ok(vec![Note { subject: self.subject(node), reason: "Fenced", text, warning: true }])
    }

    async fn untaint(&self, node: &str) -> Result<Vec<Note>, CallError> {
        if !self.kubernetes.untaint(node).await? {
            return Ok(Vec::new());
        }
        tracing::info!(node, "healed: the taint is gone");
        let text = "The node is back and serves no volume that was taken from it".to_owned();
        Ok(vec![Note { subject: self.subject(node), reason: "Healed", text, warning: false }])
    }

    async fn delete(&self, moved: &Move) -> Result<Vec<Note>, CallError> {
        let deletion = self.kubernetes.delete(&moved.pod).await?;
        if deletion == Deletion::Gone {
            return Ok(Vec::new());
        }
        let text = moved.describe(Timestamp::now());
        let pod = format!("{}/{}", moved.pod.namespace, moved.pod.name);
        tracing::warn!(pod, uid = moved.pod.uid, node = moved.node, "moved: {text}");
        self.record(moved);
        let claims = moved.volumes.iter().map(|volume| {
            let (name, uid) = volume.claim.clone();
            Subject::Claim(moved.pod.namespace.clone(), name, uid)
        });
        let subjects = [Subject::Pod(moved.pod.clone()), self.subject(&moved.node)];
        let note = |subject| {
            let text = match &subject {
                Subject::Pod(_) => text.clone(),
                _ => format!("Pod {pod}: {text}"),
            };
            Note { subject, reason: "FailedOver", text, warning: true }
        };
        Ok(subjects.into_iter().chain(claims).map(note).collect())
    }

    /// Has the cluster remember when the pod was deleted, without waiting for it.
    fn record(&self, moved: &Move) {
        let unix_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        for volume in moved.volumes.iter().filter(|volume| !volume.sealed_by.is_empty()) {
            let note = NoteFailoverRequest {
                volume_id: volume.volume.clone(),
                epoch: volume.epoch,
                step: DELETED.to_owned(),
                node: moved.node_id,
                unix_ms,
            };
            let cluster = self.cluster.clone();
            tokio::spawn(async move {
                if let Err(error) = cluster.note_failover(note).await {
                    tracing::warn!(error = chain(&error), "deletion not recorded");
                }
            });
        }
    }

    /// Tells people, without waiting for it.
    fn say(&self, notes: Vec<Note>) {
        if notes.is_empty() {
            return;
        }
        let (kubernetes, here) = (self.kubernetes.clone(), self.here.clone());
        tokio::spawn(async move {
            let now = Timestamp::now();
            let said = notes.iter().map(async |note| kubernetes.say(note, &here, now).await);
            for error in join_all(said).await.into_iter().filter_map(Result::err) {
                tracing::warn!(error = chain(&error), "event not recorded");
            }
        });
    }
}

/// Time of day, UTC, to the millisecond.
fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S%.3f UTC").to_string()
}

impl Move {
    /// What happened when, for people; `now` is when the pod was deleted.
    fn describe(&self, now: Timestamp) -> String {
        let ago = |span: Duration| clock(now - SignedDuration::try_from(span).unwrap_or_default());
        let node = &self.node;
        let mut text = match self.lost_for {
            Some(span) => format!("node {node} lost, seen {}", ago(span)),
            None => format!("node {node} was lost and is back"),
        };
        for volume in &self.volumes {
            text += &format!("; volume {} at epoch {}", volume.volume, volume.epoch);
            if let Some(span) = volume.fenced_for {
                text += &format!(" fenced, seen {}", ago(span));
            }
            if !volume.sealed_by.is_empty() {
                text += &format!(", sealed by {}", volume.sealed_by);
            }
        }
        text + &format!("; pod deleted {}", clock(now))
    }
}

/// An error with all of its causes, in one line.
fn chain(error: &dyn core::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
