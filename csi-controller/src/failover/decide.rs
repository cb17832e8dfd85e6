//! What is to be done, as a function of what was seen, what is remembered, and the time.

use super::note::{Note, Subject};
use super::observe::{Observed, is_fenced, is_lost, is_unsealed, is_up};
use super::retire::Gone;
use super::views::{Backing, Phase, PodId, PodView};
use super::{HEALTHY_FOR, HYSTERESIS, STAND_IN_AFTER};
use core::fmt;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

#[cfg(test)]
mod tests;

/// A pod that has to wait for the cluster is spoken of in an event after this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something to be done in Kubernetes. They come in the order in which they are to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keep new pods away from the node. Pods of a node that cannot be tainted are not deleted: what
    /// takes their place might be sent to the same node.
    Taint {
        /// The node.
        node: String,
    },
    /// Delete a pod at once.
    Delete(Move),
    /// The node may have pods again.
    Untaint {
        /// The node.
        node: String,
    },
    /// Have the cluster forget a node that is gone for good.
    Retire {
        /// Its number in Holdfast.
        node: u64,
    },
    /// Tell people.
    Say(Note),
}

/// A pod that is made to run elsewhere, and why that is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The pod.
    pub pod: PodId,
    /// Where it is.
    pub node: String,
    /// Number of that node in Holdfast.
    pub node_id: u64,
    /// For how long Raft has had the node as lost, as seen here; `None` if it is up again, and the
    /// pod's mount is dead.
    pub lost_for: Option<Duration>,
    /// Its volumes, every one safe.
    pub volumes: Vec<MovedVolume>,
}

/// A volume of a pod that is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedVolume {
    /// Its id.
    pub volume: String,
    /// Its claim, and the claim's uid.
    pub claim: (String, String),
    /// Its epoch.
    pub epoch: u64,
    /// Name of the node whose replica sealed; empty if it was not (or is no longer) fenced.
    pub sealed_by: String,
    /// For how long it has been fenced, as seen here.
    pub fenced_for: Option<Duration>,
}

/// Why a pod stays where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// Until the next look, or a few.
    Wait(Waiting),
    /// Until somebody changes something.
    Never(Kept),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Waiting {
    Claim(String),
    Unknown(String),
    Held(String),
    Unsealed(String, u64),
    NoLiveCopy(String),
    Hysteresis(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    OptedOut,
    NoController,
    Bound(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait(Waiting::Claim(claim)) => {
                write!(f, "it is not known which volume its claim {claim} is bound to")
            }
            Self::Wait(Waiting::Unknown(volume)) => {
                write!(f, "its volume {volume} is not known to the cluster")
            }
            Self::Wait(Waiting::Held(volume)) => {
                write!(f, "its volume {volume} has not been taken from the node yet")
            }
            Self::Wait(Waiting::Unsealed(volume, epoch)) => write!(
                f,
                "its volume {volume} is fenced at epoch {epoch}, but no surviving copy has sealed yet"
            ),
            Self::Wait(Waiting::NoLiveCopy(volume)) => {
                write!(f, "no in-sync copy of its volume {volume} is on a node that is up")
            }
            Self::Wait(Waiting::Hysteresis(volume)) => write!(
                f,
                "its volume {volume} was fenced less than {} s before",
                HYSTERESIS.as_secs()
            ),
            Self::Never(Kept::OptedOut) => {
                write!(f, "its annotation holdfast.dev/failover says disabled")
            }
            Self::Never(Kept::NoController) => {
                write!(f, "no controller owns it, so nobody would make another one")
            }
            Self::Never(Kept::Bound(kind)) => {
                write!(f, "it belongs to a {kind}, which makes pods for this node only")
            }
        }
    }
}

/// A fence, as seen here.
#[derive(Clone, Debug)]
struct Fence {
    node: String,
    epoch: u64,
    at: Duration,
    /// No pod is moved for this fence before: the one before it was too near (hysteresis).
    not_before: Duration,
    /// The node has not had the volume since: a pod that runs there has a dead mount.
    stranding: bool,
}

/// What is remembered from round to round. Empty at start: then every node that is lost counts as lost
/// now, every fence as made now.
#[derive(Debug, Default)]
pub struct Memory {
    lost_since: BTreeMap<String, Duration>,
    holders: BTreeMap<String, (String, u64)>,
    fences: BTreeMap<String, Fence>,
    clean_since: BTreeMap<String, Duration>,
    gone: Gone,
    /// Since when each thing has been wanted, and whether an event told it.
    wanted: BTreeMap<String, (Duration, bool)>,
}

impl Memory {
    /// Empty; nodes that are gone for good are removed after `gone_after`.
    pub fn new(gone_after: Duration) -> Self {
        Self { gone: Gone::after(gone_after), ..Self::default() }
    }

    /// Nodes whose pods are to be looked at.
    pub fn of_interest(&self, observed: &Observed) -> BTreeSet<String> {
        let lost = observed.cluster.nodes.iter().filter(|n| is_lost(n)).map(|n| n.name.clone());
        let stranding = self.fences.values().filter(|f| f.stranding).map(|f| f.node.clone());
        let fenced = observed
            .cluster
            .volumes
            .iter()
            .filter(|v| is_fenced(v))
            .map(|v| v.fenced_node_name.clone());
        lost.chain(stranding).chain(fenced).filter(|name| !name.is_empty()).collect()
    }

    /// Whether a node was lost or a volume fenced within the last minute.
    pub fn is_eventful(&self, now: Duration) -> bool {
        let times = self.lost_since.values().chain(self.fences.values().map(|fence| &fence.at));
        times.into_iter().any(|at| now < *at + HYSTERESIS)
    }

    /// Takes in what the cluster says, before anything is decided on it.
    fn learn(&mut self, observed: &Observed, now: Duration) {
        let nodes = &observed.cluster.nodes;
        self.lost_since.retain(|name, _| nodes.iter().any(|n| n.name == *name && is_lost(n)));
        for node in nodes.iter().filter(|node| is_lost(node)) {
            self.lost_since.entry(node.name.clone()).or_insert(now);
        }
        self.holders.retain(|id, _| observed.volume(id).is_some());
        self.fences.retain(|id, _| observed.volume(id).is_some());
        for volume in &observed.cluster.volumes {
            let id = &volume.volume_id;
            let holder = &volume.attached_node_name;
            let before = self.holders.insert(id.clone(), (holder.clone(), volume.epoch));
            // A fence that was sealed and attached over between two looks shows in the holder alone.
            let fence = match before {
                _ if is_fenced(volume) => Some((volume.fenced_node_name.clone(), volume.epoch)),
                Some((node, epoch)) if node != *holder && self.lost_since.contains_key(&node) => {
                    Some((node, epoch + 1))
                }
                _ => None,
            };
            let known = self.fences.get(id);
            if let Some((node, epoch)) = fence
                && known.is_none_or(|fence| fence.epoch < epoch)
            {
                let not_before = known.map_or(now, |fence| (fence.at + HYSTERESIS).max(now));
                let fence = Fence { node, epoch, at: now, not_before, stranding: true };
                self.fences.insert(id.clone(), fence);
            }
            if let Some(fence) = self.fences.get_mut(id)
                && fence.node == *holder
                && volume.epoch > fence.epoch
            {
                fence.stranding = false;
            }
        }
    }

    /// Forgets what cannot matter any more: dead mounts of a node that is up and has none left.
    fn forget(&mut self, observed: &Observed, stranded: &BTreeSet<String>, now: Duration) {
        let lost = &self.lost_since;
        for (id, fence) in &mut self.fences {
            let looked = observed.pods.contains_key(&fence.node);
            let over = now >= fence.at + HYSTERESIS && !lost.contains_key(&fence.node);
            let fenced = observed.volume(id).is_some_and(is_fenced);
            if over && looked && !fenced && !stranded.contains(id) {
                fence.stranding = false;
            }
        }
    }

    /// Since when `what` has been wanted; asked in every round as long as it is.
    fn since(&mut self, round: &mut BTreeSet<String>, what: &str, now: Duration) -> Duration {
        round.insert(what.to_owned());
        self.wanted.entry(what.to_owned()).or_insert((now, false)).0
    }
}

/// One round of deciding.
struct Round<'a> {
    observed: &'a Observed,
    memory: &'a mut Memory,
    now: Duration,
    /// How long something must have been wanted before this instance does it.
    delay: Duration,
    wanted: BTreeSet<String>,
    actions: Vec<Action>,
}

impl Round<'_> {
    fn due(&mut self, what: &str) -> bool {
        let since = self.memory.since(&mut self.wanted, what, self.now);
        self.now >= since + self.delay
    }

    /// Says it once, when it has been true for `patience`, until it was false in between.
    fn say(&mut self, subject: Subject, reason: &'static str, text: String, patience: Duration) {
        let key = format!("say {subject} {reason} {text}");
        let since = self.memory.since(&mut self.wanted, &key, self.now);
        let said = self.memory.wanted.get_mut(&key);
        if let Some((_, said @ false)) = said
            && self.now >= since + patience + self.delay
        {
            *said = true;
            self.actions.push(Action::Say(Note { subject, reason, text, warning: true }));
        }
    }

    /// The volumes of `pod` if it uses any of ours and every one of them has left `node` for good.
    fn volumes(&self, pod: &PodView, node: &str) -> Option<Result<Vec<MovedVolume>, Why>> {
        let mut volumes = Vec::new();
        let mut unknown = None;
        let mut wait = None;
        for name in &pod.claims {
            let key = (pod.id.namespace.clone(), name.clone());
            let Some(claim) = self.observed.claims.get(&key) else {
                unknown = Some(Waiting::Claim(name.clone()));
                continue;
            };
            let Backing::Holdfast(id) = &claim.backing else { continue };
            match self.left(id, node) {
                Err(why) => wait = Some(why),
                Ok((epoch, sealed_by)) => volumes.push(MovedVolume {
                    volume: id.clone(),
                    claim: (name.clone(), claim.uid.clone()),
                    epoch,
                    sealed_by,
                    fenced_for: self
                        .memory
                        .fences
                        .get(id)
                        .filter(|fence| fence.node == node)
                        .map(|fence| self.now.saturating_sub(fence.at)),
                }),
            }
        }
        if volumes.is_empty() && wait.is_none() {
            return None;
        }
        Some(match wait.or(unknown) {
            Some(why) => Err(Why::Wait(why)),
            None => Ok(volumes),
        })
    }

    /// Whether `node` can neither write nor read the volume any more, and another one could (R7).
    fn left(&self, id: &str, node: &str) -> Result<(u64, String), Waiting> {
        let Some(volume) = self.observed.volume(id) else {
            return Err(Waiting::Unknown(id.to_owned()));
        };
        if volume.attached_node_name == node {
            return Err(Waiting::Held(id.to_owned()));
        }
        if !self.observed.has_live_copy(volume) {
            return Err(Waiting::NoLiveCopy(id.to_owned()));
        }
        if is_unsealed(volume) {
            return Err(Waiting::Unsealed(id.to_owned(), volume.epoch));
        }
        Ok((volume.epoch, volume.fence_sealed_by_node.clone()))
    }

    /// What is to become of a pod on `node`; `None` if it is none of this controller's business.
    fn verdict(&self, pod: &PodView, node: &str, forced: bool) -> Option<Result<Move, Why>> {
        if pod.phase == Phase::Ended && !pod.terminating {
            return None;
        }
        let volumes = self.volumes(pod, node)?;
        let kept = match pod.controller.as_deref() {
            _ if pod.opted_out => Some(Kept::OptedOut),
            None => Some(Kept::NoController),
            Some(kind @ ("DaemonSet" | "Node")) => Some(Kept::Bound(kind.to_owned())),
            Some(_) => None,
        };
        if let Some(kept) = kept {
            return Some(Err(Why::Never(kept)));
        }
        let volumes = match volumes {
            Ok(volumes) => volumes,
            Err(why) => return Some(Err(why)),
        };
        let early = |moved: &&MovedVolume| {
            self.memory.fences.get(&moved.volume).is_some_and(|f| self.now < f.not_before)
        };
        if !forced && let Some(early) = volumes.iter().find(early) {
            return Some(Err(Why::Wait(Waiting::Hysteresis(early.volume.clone()))));
        }
        let lost_for = self.memory.lost_since.get(node).map(|at| self.now.saturating_sub(*at));
        let nodes = &self.observed.cluster.nodes;
        let node_id = nodes.iter().find(|known| known.name == node).map_or(0, |known| known.node);
        Some(Ok(Move { pod: pod.id.clone(), node: node.to_owned(), node_id, lost_for, volumes }))
    }

    /// `allowed`: nothing else has to be done first. The pod's time runs all the same.
    fn moved(&mut self, pod: &PodView, node: &str, verdict: Result<Move, Why>, allowed: bool) {
        match verdict {
            Ok(moved) => {
                if self.due(&format!("delete {}", pod.id.uid)) && allowed {
                    self.actions.push(Action::Delete(moved));
                }
            }
            Err(why) => {
                let patience = match &why {
                    Why::Wait(Waiting::Hysteresis(_) | Waiting::NoLiveCopy(_)) | Why::Never(_) => {
                        Duration::ZERO
                    }
                    Why::Wait(_) => PATIENCE,
                };
                let text = format!("not moved from lost node {node}: {why}");
                self.say(Subject::Pod(pod.id.clone()), "FailoverHeld", text, patience);
            }
        }
    }

    /// Whether the pods of lost node `name` may be deleted now: it is tainted, or about to be.
    fn taint(&mut self, name: &str, movable: bool) -> bool {
        let Some(node) = self.observed.nodes.get(name) else {
            // Kubernetes has no such node: nothing can be sent there.
            return true;
        };
        if node.fenced {
            return true;
        }
        let volumes = &self.observed.cluster.volumes;
        let pending = volumes.iter().any(|volume| {
            let awaits = volume.fenced_node_name == name
                && is_unsealed(volume)
                && self.observed.has_live_copy(volume);
            volume.attached_node_name == name || awaits
        });
        if (pending && !movable) || !self.due(&format!("taint {name}")) {
            return false;
        }
        self.actions.push(Action::Taint { node: name.to_owned() });
        true
    }

    fn lost(&mut self, name: &str) {
        let view = self.observed.nodes.get(name).cloned().unwrap_or_default();
        if let Some((lost, all)) = self.observed.too_many_lost()
            && !view.out_of_service
        {
            let text = format!(
                "{lost} of {all} nodes are lost: no pod is moved until fewer than half are"
            );
            self.say(Subject::node(name, &view), "FailoverRefused", text, Duration::ZERO);
            return;
        }
        let observed = self.observed;
        let pods = observed.pods.get(name).map(Vec::as_slice).unwrap_or_default();
        let verdicts: Vec<_> = pods
            .iter()
            .filter_map(|pod| Some((pod, self.verdict(pod, name, view.out_of_service)?)))
            .collect();
        let tainted = self.taint(name, verdicts.iter().any(|(_, verdict)| verdict.is_ok()));
        for (pod, verdict) in verdicts {
            self.moved(pod, name, verdict, tainted);
        }
    }

    /// A node that was lost and is back: pods that ran all the while have dead mounts.
    fn back(&mut self, name: &str) -> BTreeSet<String> {
        let mut stranded = BTreeSet::new();
        let observed = self.observed;
        let pods = observed.pods.get(name).map(Vec::as_slice).unwrap_or_default();
        for pod in pods.iter().filter(|pod| pod.phase == Phase::Running && !pod.terminating) {
            let Some(Ok(moved)) = self.verdict(pod, name, false) else { continue };
            let dead = |moved: &&MovedVolume| {
                let fence = self.memory.fences.get(&moved.volume);
                fence.is_some_and(|fence| fence.node == name && fence.stranding)
            };
            let dead: Vec<String> =
                moved.volumes.iter().filter(dead).map(|moved| moved.volume.clone()).collect();
            if dead.is_empty() {
                continue;
            }
            stranded.extend(dead);
            if self.observed.too_many_lost().is_none() {
                self.moved(pod, name, Ok(moved), true);
            }
        }
        stranded
    }

    fn heal(&mut self, name: &str) {
        let answered = self.observed.attachments.get(name);
        let stale: Option<Vec<&str>> =
            answered.map(|attachments| self.observed.stale_on(name, attachments).collect());
        if stale.as_ref().is_none_or(|stale| !stale.is_empty()) {
            self.memory.clean_since.remove(name);
            return;
        }
        let since = *self.memory.clean_since.entry(name.to_owned()).or_insert(self.now);
        if self.now >= since + HEALTHY_FOR && self.due(&format!("untaint {name}")) {
            self.actions.push(Action::Untaint { node: name.to_owned() });
        }
    }
}

/// Decides. Actions are repeated until they show in what is observed.
pub fn decide(observed: &Observed, memory: &mut Memory, now: Duration) -> Vec<Action> {
    memory.learn(observed, now);
    let delay = if observed.beside_leader() { Duration::ZERO } else { STAND_IN_AFTER };
    let (wanted, actions) = (BTreeSet::new(), Vec::new());
    let mut round = Round { observed, memory, now, delay, wanted, actions };
    let mut stranded = BTreeSet::new();
    for node in &observed.cluster.nodes {
        let name = node.name.as_str();
        if is_lost(node) {
            round.memory.clean_since.remove(name);
            round.lost(name);
        } else if is_up(node) {
            stranded.extend(round.back(name));
            let Some(view) = observed.nodes.get(name) else { continue };
            if view.fenced {
                round.heal(name);
            } else {
                round.memory.clean_since.remove(name);
            }
            if view.out_of_service {
                let text =
                    "the node is marked out-of-service, but the storage hears it: nothing is moved";
                let subject = Subject::node(name, view);
                round.say(subject, "FailoverRefused", text.to_owned(), Duration::ZERO);
            }
        }
    }
    let Round { wanted, mut actions, .. } = round;
    let gone = memory.gone.look(observed, now);
    actions.extend(gone.into_iter().map(|node| Action::Retire { node }));
    memory.wanted.retain(|what, _| wanted.contains(what));
    memory.forget(observed, &stranded, now);
    // Taints first: what takes a deleted pod's place must not be sent to the same node.
    actions.sort_by_key(|action| match action {
        Action::Taint { .. } => 0,
        Action::Delete(_) => 1,
        Action::Untaint { .. } => 2,
        Action::Retire { .. } => 3,
        Action::Say(_) => 4,
    });
    actions
}
