//! Tables of what is decided at one look; `stories` are those in which time passes.
#![allow(clippy::unwrap_used)]

mod stories;

use super::*;
use crate::failover::views::{ClaimView, NodeView};
use client::api::{Attachment, GetClusterResponse, Node, Replica, Volume, VolumeState};

const V1: &str = "v1";
const V2: &str = "v2";

fn node(id: u64, state: &str) -> Node {
    Node { node: id, name: format!("n{id}"), state: state.into(), ..Node::default() }
}

fn volume(id: &str, on: &[u64]) -> Volume {
    let replica = |node: &u64| Replica {
        replica_id: format!("{id}-r{node}"),
        node: *node,
        node_name: format!("n{node}"),
        in_sync: true,
        ..Replica::default()
    };
    Volume {
        volume_id: id.into(),
        state: VolumeState::Detached.into(),
        epoch: 7,
        replicas: on.iter().map(replica).collect(),
        ..Volume::default()
    }
}

fn hold(volume: &mut Volume, node: u64) {
    volume.state = VolumeState::Attached.into();
    volume.epoch += 1;
    (volume.attached_node, volume.attached_node_name) = (node, format!("n{node}"));
    (volume.fenced_node, volume.fenced_node_name) = (0, String::new());
    volume.fence_sealed_by.clear();
    volume.fence_sealed_by_node.clear();
}

fn fence(volume: &mut Volume) {
    volume.state = VolumeState::Fenced.into();
    volume.epoch += 1;
    volume.fenced_node = core::mem::take(&mut volume.attached_node);
    volume.fenced_node_name = core::mem::take(&mut volume.attached_node_name);
}

fn seal(volume: &mut Volume, by: u64) {
    volume.fence_sealed_by = format!("r{by}");
    volume.fence_sealed_by_node = format!("n{by}");
}

fn claim(observed: &mut Observed, name: &str, backing: Backing) {
    let view = ClaimView {
        namespace: "db".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        backing,
    };
    observed.claims.insert(("db".into(), name.into()), view);
}

fn pod(name: &str, claims: &[&str]) -> PodView {
    PodView {
        id: PodId { namespace: "db".into(), name: name.into(), uid: format!("uid-{name}") },
        claims: claims.iter().map(|&claim| claim.into()).collect(),
        controller: Some("StatefulSet".into()),
        phase: Phase::Running,
        ..PodView::default()
    }
}

/// Three nodes, n2 leads and this instance is beside it; pg-0 on n1 with v1 (copies on n1 and n2).
fn healthy() -> Observed {
    let mut held = volume(V1, &[1, 2]);
    hold(&mut held, 1);
    let mut observed = Observed {
        here: "n2".into(),
        cluster: GetClusterResponse {
            leader: 2,
            nodes: (1..=3).map(|id| node(id, "up")).collect(),
            volumes: vec![held, volume(V2, &[1, 3])],
            ..GetClusterResponse::default()
        },
        ..Observed::default()
    };
    for name in ["n1", "n2", "n3"] {
        let view = NodeView { uid: format!("uid-{name}"), ..NodeView::default() };
        observed.nodes.insert(name.into(), view);
    }
    claim(&mut observed, "data", Backing::Holdfast(V1.into()));
    claim(&mut observed, "more", Backing::Holdfast(V2.into()));
    claim(&mut observed, "other", Backing::Other);
    observed.pods.insert("n1".into(), vec![pod("pg-0", &["data"])]);
    observed
}

/// As [`healthy`], but n1 is lost, v1 fenced, and sealed on n2.
fn lost() -> Observed {
    let mut observed = healthy();
    observed.cluster.nodes[0].state = "lost".into();
    fence(&mut observed.cluster.volumes[0]);
    seal(&mut observed.cluster.volumes[0], 2);
    observed
}

fn shown(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::Taint { node } => format!("taint {node}"),
        Action::Untaint { node } => format!("untaint {node}"),
        Action::Retire { node } => format!("retire {node}"),
        Action::Delete(moved) => format!("delete {}", moved.pod.name),
        Action::Say(note) => format!("say {} of {}", note.reason, note.subject),
    };
    actions.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn once(observed: &Observed) -> String {
    shown(&decide(observed, &mut Memory::default(), at(100)))
}

fn the_pod(observed: &mut Observed) -> &mut PodView {
    &mut observed.pods.get_mut("n1").unwrap()[0]
}

fn v1(observed: &mut Observed) -> &mut Volume {
    &mut observed.cluster.volumes[0]
}

fn v2(observed: &mut Observed) -> &mut Volume {
    &mut observed.cluster.volumes[1]
}

fn k1(observed: &mut Observed) -> &mut NodeView {
    observed.nodes.get_mut("n1").unwrap()
}

type Row = (&'static str, fn(&mut Observed), &'static str);

#[test]
fn nothing_is_done_while_all_is_well() {
    assert_eq!(once(&healthy()), "");
}

#[test]
fn what_a_lost_node_leads_to() {
    let rows: &[Row] = &[
        ("fenced and sealed", |_| {}, "taint n1, delete pg-0"),
        ("tainted already", |o| k1(o).fenced = true, "delete pg-0"),
        (
            "lost, not fenced yet",
            |o| {
                *v1(o) = healthy().cluster.volumes[0].clone();
            },
            "",
        ),
        ("fenced, not sealed yet", |o| v1(o).fence_sealed_by.clear(), ""),
        ("attached elsewhere already", |o| hold(v1(o), 2), "taint n1, delete pg-0"),
        (
            "detached in time",
            |o| {
                *v1(o) = volume(V1, &[1, 2]);
            },
            "taint n1, delete pg-0",
        ),
        (
            "the pod is not running yet",
            |o| the_pod(o).phase = Phase::Pending,
            "taint n1, delete pg-0",
        ),
        (
            "the pod is being deleted in vain",
            |o| the_pod(o).terminating = true,
            "taint n1, delete pg-0",
        ),
        ("the pod has ended", |o| the_pod(o).phase = Phase::Ended, "taint n1"),
        (
            "ended, and its deletion hangs",
            |o| {
                the_pod(o).phase = Phase::Ended;
                the_pod(o).terminating = true;
            },
            "taint n1, delete pg-0",
        ),
        ("no volume at all", |o| the_pod(o).claims.clear(), "taint n1"),
        ("only somebody else's volume", |o| the_pod(o).claims = vec!["other".into()], "taint n1"),
        ("one of each", |o| the_pod(o).claims.push("other".into()), "taint n1, delete pg-0"),
        ("a claim that nobody knows", |o| the_pod(o).claims.push("new".into()), "taint n1"),
        ("only a claim that nobody knows", |o| the_pod(o).claims = vec!["new".into()], "taint n1"),
        (
            "a volume that Raft does not know",
            |o| {
                claim(o, "gone", Backing::Holdfast("v9".into()));
                the_pod(o).claims.push("gone".into());
            },
            "taint n1",
        ),
        (
            "two volumes, one still held",
            |o| {
                hold(v2(o), 1);
                the_pod(o).claims.push("more".into());
            },
            "",
        ),
        (
            "two volumes, one not sealed",
            |o| {
                hold(v2(o), 1);
                fence(v2(o));
                the_pod(o).claims.push("more".into());
            },
            "",
        ),
        (
            "two volumes, both sealed",
            |o| {
                hold(v2(o), 1);
                fence(v2(o));
                seal(v2(o), 3);
                the_pod(o).claims.push("more".into());
            },
            "taint n1, delete pg-0",
        ),
        (
            "another pod's volume is not sealed: this pod need not wait",
            |o| {
                hold(v2(o), 1);
                fence(v2(o));
                o.pods.get_mut("n1").unwrap().push(pod("pg-1", &["more"]));
            },
            "taint n1, delete pg-0",
        ),
        (
            "several pods, all at once",
            |o| {
                o.pods.get_mut("n1").unwrap().push(pod("pg-1", &["more"]));
                o.pods.get_mut("n1").unwrap().push(pod("web", &[]));
            },
            "taint n1, delete pg-0, delete pg-1",
        ),
        (
            "the only copy is on the lost node",
            |o| {
                v1(o).replicas.truncate(1);
                v1(o).fence_sealed_by.clear();
            },
            "taint n1, say FailoverHeld of Pod db/pg-0",
        ),
        (
            "the other copy is not in sync",
            |o| {
                v1(o).replicas[1].in_sync = false;
                v1(o).fence_sealed_by.clear();
            },
            "taint n1, say FailoverHeld of Pod db/pg-0",
        ),
        (
            "its owner does not want it",
            |o| the_pod(o).opted_out = true,
            "taint n1, say FailoverHeld of Pod db/pg-0",
        ),
        (
            "nobody would make another one",
            |o| the_pod(o).controller = None,
            "taint n1, say FailoverHeld of Pod db/pg-0",
        ),
        (
            "it can only be on this node",
            |o| the_pod(o).controller = Some("DaemonSet".into()),
            "taint n1, say FailoverHeld of Pod db/pg-0",
        ),
        (
            "Kubernetes does not know the node",
            |o| {
                o.nodes.remove("n1");
            },
            "delete pg-0",
        ),
        (
            "its pods are not known",
            |o| {
                o.pods.clear();
            },
            "taint n1",
        ),
        (
            "no volume was held there",
            |o| {
                *v1(o) = volume(V1, &[1, 2]);
                o.pods.clear();
            },
            "taint n1",
        ),
        (
            "two of three are lost",
            |o| o.cluster.nodes[2].state = "lost".into(),
            "say FailoverRefused of Node n1, say FailoverRefused of Node n3",
        ),
        (
            "two of four are no minority",
            |o| {
                o.cluster.nodes[2].state = "lost".into();
                o.cluster.nodes.push(node(4, "up"));
            },
            "say FailoverRefused of Node n1, say FailoverRefused of Node n3",
        ),
        (
            "two of five are",
            |o| {
                o.cluster.nodes[2].state = "lost".into();
                o.cluster.nodes.extend([node(4, "up"), node(5, "up")]);
            },
            "taint n1, taint n3, delete pg-0",
        ),
        (
            "who was never heard does not count",
            |o| {
                o.cluster.nodes[2].state = "lost".into();
                o.cluster.nodes.extend([node(4, "unknown"), node(5, "unknown")]);
            },
            "say FailoverRefused of Node n1, say FailoverRefused of Node n3",
        ),
        (
            "an administrator vouches for one of two",
            |o| {
                o.cluster.nodes[2].state = "lost".into();
                k1(o).out_of_service = true;
            },
            "taint n1, delete pg-0, say FailoverRefused of Node n3",
        ),
        (
            "an administrator is not enough without the fence",
            |o| {
                k1(o).out_of_service = true;
                *v1(o) = healthy().cluster.volumes[0].clone();
            },
            "",
        ),
        ("not beside the leader", |o| o.here = "n3".into(), ""),
    ];
    for (name, change, wanted) in rows {
        let mut observed = lost();
        change(&mut observed);
        assert_eq!(once(&observed), *wanted, "{name}");
    }
}

#[test]
fn a_node_that_is_up_is_left_alone() {
    let rows: &[Row] = &[
        (
            "marked out-of-service by mistake",
            |o| k1(o).out_of_service = true,
            "say FailoverRefused of Node n1",
        ),
        ("its volume detached", |o| *v1(o) = volume(V1, &[1, 2]), ""),
        ("its volume attached elsewhere, nobody knows why", |o| hold(v1(o), 3), ""),
    ];
    for (name, change, wanted) in rows {
        let mut observed = healthy();
        change(&mut observed);
        assert_eq!(once(&observed), *wanted, "{name}");
    }
}
