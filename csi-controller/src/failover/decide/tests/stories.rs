//! Stories: what is decided as time passes.

use super::*;

/// When (seconds), what changes, and what is to be done then.
type Scene<'a> = (u64, fn(&mut Observed), &'a str);

/// Decides at each time in turn.
fn story(mut observed: Observed, steps: &[Scene<'_>]) {
    let mut memory = Memory::default();
    for (seconds, change, wanted) in steps {
        change(&mut observed);
        let actions = decide(&observed, &mut memory, at(*seconds));
        assert_eq!(shown(&actions), *wanted, "at {seconds} s");
    }
}

#[test]
fn who_is_not_beside_the_leader_acts_when_it_is_still_undone() {
    let mut observed = lost();
    observed.here = "n3".into();
    story(
        observed,
        &[
            (100, |_| {}, ""),
            (101, |_| {}, ""),
            (102, |_| {}, "taint n1, delete pg-0"),
            (103, |o| k1(o).fenced = true, "delete pg-0"),
            (104, |o| o.pods.get_mut("n1").unwrap().clear(), ""),
            // Another pod is another matter: two seconds again.
            (105, |o| o.pods.get_mut("n1").unwrap().push(pod("pg-1", &["data"])), ""),
            (107, |_| {}, "delete pg-1"),
        ],
    );
}

#[test]
fn a_pod_that_appears_on_a_fenced_node_goes_too() {
    story(
        lost(),
        &[
            (100, |_| {}, "taint n1, delete pg-0"),
            (
                101,
                |o| {
                    k1(o).fenced = true;
                    o.pods.get_mut("n1").unwrap().clear();
                },
                "",
            ),
            (
                130,
                |o| {
                    let late = PodView { phase: Phase::Pending, ..pod("pg-9", &["data"]) };
                    o.pods.get_mut("n1").unwrap().push(late);
                },
                "delete pg-9",
            ),
            (131, |_| {}, "delete pg-9"),
        ],
    );
}

#[test]
fn a_second_loss_within_a_minute_waits() {
    story(
        lost(),
        &[
            (100, |_| {}, "taint n1, delete pg-0"),
            (
                103,
                |o| {
                    k1(o).fenced = true;
                    o.pods.clear();
                    hold(v1(o), 2);
                },
                "",
            ),
            (110, |o| o.cluster.nodes[0].state = "up".into(), ""),
            // Now n2, where the volume is.
            (
                120,
                |o| {
                    o.cluster.nodes[1].state = "lost".into();
                    (o.cluster.leader, o.here) = (3, "n3".into());
                    o.pods.insert("n2".into(), vec![pod("pg-0", &["data"])]);
                    fence(v1(o));
                    seal(v1(o), 1);
                },
                "taint n2, say FailoverHeld of Pod db/pg-0",
            ),
            (159, |_| {}, "taint n2"),
            (160, |o| o.nodes.get_mut("n2").unwrap().fenced = true, "delete pg-0"),
        ],
    );
}

#[test]
fn an_administrator_need_not_wait() {
    story(
        lost(),
        &[
            (100, |_| {}, "taint n1, delete pg-0"),
            (
                110,
                |o| {
                    o.cluster.nodes[0].state = "up".into();
                    hold(v1(o), 1);
                    o.pods.insert("n1".into(), vec![pod("pg-0", &["data"])]);
                },
                "",
            ),
            (
                115,
                |o| {
                    o.cluster.nodes[0].state = "lost".into();
                    fence(v1(o));
                    seal(v1(o), 2);
                },
                "taint n1, say FailoverHeld of Pod db/pg-0",
            ),
            (116, |o| k1(o).out_of_service = true, "taint n1, delete pg-0"),
        ],
    );
}

#[test]
fn a_fence_that_nobody_saw_counts_too() {
    story(
        healthy(),
        &[
            (100, |_| {}, ""),
            // Lost, fenced, sealed and attached elsewhere between two looks.
            (
                110,
                |o| {
                    o.cluster.nodes[0].state = "lost".into();
                    fence(v1(o));
                    seal(v1(o), 2);
                    hold(v1(o), 3);
                    o.pods.clear();
                },
                "taint n1",
            ),
            (
                111,
                |o| {
                    k1(o).fenced = true;
                    o.cluster.nodes[0].state = "up".into();
                },
                "",
            ),
            (
                120,
                |o| {
                    o.cluster.nodes[2].state = "lost".into();
                    o.pods.insert("n3".into(), vec![pod("pg-0", &["data"])]);
                    fence(v1(o));
                    seal(v1(o), 2);
                },
                "taint n3, say FailoverHeld of Pod db/pg-0",
            ),
            (170, |o| o.nodes.get_mut("n3").unwrap().fenced = true, "delete pg-0"),
        ],
    );
}

#[test]
fn a_short_loss_strands_a_pod_which_is_made_anew_once() {
    let back: fn(&mut Observed) = |o| o.cluster.nodes[0].state = "up".into();
    story(
        lost(),
        &[
            // Back before anybody saw it lost: the engine on n1 is fenced for good all the same.
            (100, back, "delete pg-0"),
            // The pod that takes its place has not been staged yet.
            (
                101,
                |o| {
                    the_pod(o).id.uid = "another".into();
                    the_pod(o).phase = Phase::Pending;
                },
                "",
            ),
            (103, |o| hold(v1(o), 1), ""),
            (104, |o| the_pod(o).phase = Phase::Running, ""),
        ],
    );
    let rows: &[Row] = &[
        ("not sealed yet", |o| v1(o).fence_sealed_by.clear(), ""),
        ("being deleted already", |o| the_pod(o).terminating = true, ""),
        ("its owner does not want it", |o| the_pod(o).opted_out = true, ""),
        (
            "two others are lost",
            |o| {
                o.cluster.nodes.push(node(4, "lost"));
                o.cluster.nodes.push(node(5, "lost"));
                o.cluster.nodes.push(node(6, "lost"));
                for name in ["n4", "n5", "n6"] {
                    o.nodes.insert(name.into(), NodeView { fenced: true, ..NodeView::default() });
                }
            },
            "say FailoverRefused of Node n4, say FailoverRefused of Node n5, say FailoverRefused of Node n6",
        ),
    ];
    for (name, change, wanted) in rows {
        let mut observed = lost();
        back(&mut observed);
        change(&mut observed);
        assert_eq!(once(&observed), *wanted, "{name}");
    }
}

#[test]
fn a_pod_left_behind_is_found_after_its_volume_has_moved_on() {
    story(
        lost(),
        &[
            (
                100,
                |o| {
                    o.pods.get_mut("n1").unwrap().push(pod("pg-1", &["data"]));
                    o.pods.get_mut("n1").unwrap()[1].terminating = true;
                },
                "taint n1, delete pg-0, delete pg-1",
            ),
            // The first is gone and runs on n2; the API server did not take the second deletion in time.
            (
                101,
                |o| {
                    k1(o).fenced = true;
                    o.pods.get_mut("n1").unwrap().remove(0);
                    hold(v1(o), 2);
                    o.cluster.nodes[0].state = "up".into();
                },
                "",
            ),
            (102, |o| the_pod(o).terminating = false, "delete pg-1"),
        ],
    );
}

#[test]
fn the_taint_goes_after_ten_clean_seconds() {
    let attached =
        |id: &str, failed| Attachment { volume_id: id.into(), failed, ..Attachment::default() };
    let answer = move |o: &mut Observed, attachments: Vec<Attachment>| {
        o.attachments.insert("n1".into(), attachments);
    };
    let mut observed = healthy();
    k1(&mut observed).fenced = true;
    let mut memory = Memory::default();
    let mut look =
        |observed: &Observed, seconds| shown(&decide(observed, &mut memory, at(seconds)));
    let clean = vec![attached(V1, false)];
    assert_eq!(look(&observed, 100), "", "it does not answer");
    answer(&mut observed, clean.clone());
    assert_eq!(look(&observed, 110), "");
    assert_eq!(look(&observed, 119), "");
    answer(&mut observed, vec![attached(V1, true)]);
    assert_eq!(look(&observed, 120), "", "a failed attachment");
    answer(&mut observed, vec![attached(V1, false), attached(V2, false)]);
    assert_eq!(look(&observed, 140), "", "v2 is not its own");
    answer(&mut observed, clean);
    assert_eq!(look(&observed, 150), "");
    observed.cluster.nodes[0].state = "lost".into();
    look(&observed, 155);
    observed.cluster.nodes[0].state = "up".into();
    assert_eq!(look(&observed, 160), "", "lost in between");
    assert_eq!(look(&observed, 169), "");
    assert_eq!(look(&observed, 170), "untaint n1");
    k1(&mut observed).fenced = false;
    assert_eq!(look(&observed, 171), "");
}

#[test]
fn who_waits_for_the_cluster_is_spoken_of_after_a_while_and_once() {
    let mut observed = lost();
    v1(&mut observed).fence_sealed_by.clear();
    story(
        observed,
        &[
            (100, |_| {}, ""),
            (109, |_| {}, ""),
            (110, |_| {}, "say FailoverHeld of Pod db/pg-0"),
            (200, |_| {}, ""),
            (201, |o| seal(v1(o), 2), "taint n1, delete pg-0"),
        ],
    );
}

#[test]
fn a_refusal_ends_by_itself_when_a_node_is_back() {
    let mut observed = lost();
    observed.cluster.nodes[2].state = "lost".into();
    story(
        observed,
        &[
            (100, |_| {}, "say FailoverRefused of Node n1, say FailoverRefused of Node n3"),
            (101, |_| {}, ""),
            (130, |o| o.cluster.nodes[2].state = "up".into(), "taint n1, delete pg-0"),
        ],
    );
}

#[test]
fn which_nodes_are_looked_at() {
    let mut memory = Memory::default();
    let mut look = |observed: &Observed, seconds| {
        decide(observed, &mut memory, at(seconds));
        memory.of_interest(observed).into_iter().collect::<Vec<_>>().join(" ")
    };
    let mut observed = healthy();
    assert_eq!(look(&observed, 90), "");
    observed = lost();
    assert_eq!(look(&observed, 100), "n1");
    observed.cluster.nodes[0].state = "up".into();
    assert_eq!(look(&observed, 105), "n1", "its pods may be stranded");
    hold(v1(&mut observed), 2);
    the_pod(&mut observed).terminating = true;
    assert_eq!(look(&observed, 106), "n1");
    assert_eq!(look(&observed, 160), "", "a minute later that is over");
}

#[test]
fn a_move_says_what_made_it_safe() {
    let mut memory = Memory::default();
    let observed = lost();
    decide(&observed, &mut memory, at(100));
    let actions = decide(&observed, &mut memory, at(101));
    let Action::Delete(moved) = &actions[1] else { panic!("{actions:?}") };
    assert_eq!((moved.node.as_str(), moved.lost_for), ("n1", Some(at(1))));
    assert_eq!(moved.pod.uid, "uid-pg-0");
    let volume = MovedVolume {
        volume: V1.into(),
        claim: ("data".into(), "uid-data".into()),
        epoch: 9,
        sealed_by: "n2".into(),
        fenced_for: Some(at(1)),
    };
    assert_eq!(moved.volumes, [volume]);
}

#[test]
fn a_node_that_is_gone_for_good_is_removed_once_it_has_no_copy() {
    let mut observed = healthy();
    observed.pods.clear();
    for volume in &mut observed.cluster.volumes {
        *volume = self::volume(&volume.volume_id, &[2, 3]);
    }
    observed.cluster.nodes[0].state = "lost".into();
    story(
        observed,
        &[
            (100, |_| {}, "taint n1"),
            (101, |o| k1(o).fenced = true, ""),
            (200, |o| drop(o.nodes.remove("n1")), ""),
            (799, |_| {}, ""),
            (800, |_| {}, "retire 1"),
            (801, |_| {}, ""),
            // The cluster refused: it has a copy there of what is not shown.
            (830, |_| {}, "retire 1"),
            (860, |o| o.cluster.volumes[0].replicas[0].node = 1, ""),
            (890, |o| o.cluster.volumes[0].replicas[0].node = 2, "retire 1"),
            // An API server that knows no node, a node that is back, most nodes lost: from the beginning.
            (920, |o| o.nodes.clear(), ""),
            (
                930,
                |o| {
                    for name in ["n2", "n3"] {
                        o.nodes.insert(name.into(), NodeView::default());
                    }
                },
                "",
            ),
            (1529, |_| {}, ""),
            (1530, |_| {}, "retire 1"),
            (1540, |o| o.cluster.nodes[0].state = "up".into(), ""),
            (1541, |o| o.cluster.nodes[0].state = "lost".into(), ""),
            (1570, |_| {}, ""),
            (2141, |_| {}, "retire 1"),
            (2172, |o| drop(o.cluster.nodes.remove(0)), ""),
        ],
    );
}
