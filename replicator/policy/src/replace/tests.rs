#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::{Cluster, VOLUME, incarnation, info, replica};
use metadata::{Command, Done, NewReplica, NodeInfo, NotGrown, PoolClass};
use types::BootId;

/// Milliseconds since boot, for tables.
fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// A volume of `wanted` copies, replicas on nodes 1 to `wanted`, and one more node without any.
fn attached(wanted: u64) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.done(Command::RegisterNode(info(wanted + 1)));
    cluster.volume(&(1..=wanted).collect::<Vec<_>>());
    cluster.attach(1);
    cluster
}

impl Cluster {
    fn shrink(&mut self, node: u64) {
        let (epoch, isr_version) = (self.state.volumes[&VOLUME].epoch, self.isr_version());
        let remove = vec![replica(node)];
        self.done(Command::ShrinkIsr { volume: VOLUME, epoch, isr_version, remove });
    }

    fn grow(&mut self, node: u64) {
        let (epoch, isr_version) = (self.state.volumes[&VOLUME].epoch, self.isr_version());
        self.done(Command::GrowIsr { volume: VOLUME, epoch, isr_version, add: replica(node) });
    }

    fn lose(&mut self, node: u64) {
        self.done(Command::NodeLost { node: NodeId(node) });
    }

    fn failed(&mut self, node: u64) {
        let reason = "EIO".to_owned();
        self.done(Command::ReplicaFailed { replica: replica(node), reason });
    }

    /// What the plan asks for, in words; carried out.
    fn next(&mut self, gone: &[u64]) -> String {
        let gone: Vec<NodeId> = gone.iter().copied().map(NodeId).collect();
        let actions = plan(&self.state, &gone, &Free::new());
        let Some(&action) = actions.first() else { return "nothing".to_owned() };
        assert_eq!((actions.len(), action.volume()), (1, VOLUME));
        let new = |node: NodeId| NewReplica {
            replica: replica(node.0),
            incarnation: incarnation(node.0),
            node,
        };
        let on = |cluster: &Self, id| cluster.state.volumes[&VOLUME].replicas[&id].node;
        match action {
            Action::Add { node, .. } => {
                self.done(action.command(new).unwrap());
                format!("add on {node}")
            }
            Action::Move { from, node, .. } => {
                let at = on(self, from);
                self.done(action.command(new).unwrap());
                format!("move from {at} to {node}")
            }
            Action::Remove { replica, .. } => {
                let at = on(self, replica);
                self.done(action.command(new).unwrap());
                format!("remove from {at}")
            }
            Action::Release { replica, .. } => {
                let at = on(self, replica);
                self.done(action.command(new).unwrap());
                format!("release from {at}")
            }
            Action::Tend { node, epoch, .. } => {
                assert_eq!(epoch, self.state.volumes[&VOLUME].epoch);
                format!("tend on {node}")
            }
        }
    }

    fn ready(&mut self, node: u64) {
        self.done(Command::ReplicaReady { replica: replica(node) });
    }
}

#[test]
fn a_lost_copy_is_replaced_after_the_time_and_given_up_only_when_the_new_one_is_in_sync() {
    let mut cluster = attached(2);
    assert_eq!(cluster.next(&[]), "nothing");
    cluster.lose(2);
    assert_eq!(cluster.next(&[]), "nothing", "its time is not over");
    cluster.shrink(2);
    assert_eq!(cluster.next(&[]), "nothing");
    assert_eq!(cluster.next(&[2]), "add on 3");
    assert_eq!(cluster.next(&[2]), "nothing", "being made");
    cluster.ready(3);
    assert_eq!(cluster.next(&[2]), "nothing", "being copied: the old one may still come back");
    cluster.grow(3);
    assert_eq!(cluster.next(&[2]), "remove from 2");
    assert_eq!(cluster.next(&[2]), "nothing");
    assert_eq!(cluster.state.volumes[&VOLUME].replicas[&replica(2)].state, ReplicaState::Deleting);
}

#[test]
fn whichever_is_in_sync_first_is_kept() {
    let mut cluster = attached(2);
    cluster.lose(2);
    cluster.shrink(2);
    assert_eq!(cluster.next(&[2]), "add on 3");
    cluster.ready(3);
    cluster.done(Command::RegisterNode(info(2)));
    assert_eq!(cluster.next(&[]), "nothing", "both are resynced");
    cluster.grow(2);
    assert_eq!(cluster.next(&[]), "remove from 3");
    let (epoch, isr_version) = (cluster.state.volumes[&VOLUME].epoch, cluster.isr_version());
    let grow = Command::GrowIsr { volume: VOLUME, epoch, isr_version, add: replica(3) };
    assert!(matches!(cluster.apply(grow), Ok(Done::NotGrown { why: NotGrown::NotReady, .. })));
}

#[test]
fn who_lost_its_memory_is_not_who_stays() {
    let mut cluster = attached(2);
    let boot = BootId::from_bytes([9; 16]);
    cluster.done(Command::RegisterNode(NodeInfo { boot, ..info(1) }));
    cluster.done(Command::ModifyVolume { volume: VOLUME, repl: Some(1), class: None });
    assert_eq!(cluster.next(&[]), "release from 1", "although it is attached there");
    assert_eq!(cluster.next(&[]), "nothing");

    let mut cluster = attached(2);
    for node in [1, 2] {
        cluster.done(Command::RegisterNode(NodeInfo { boot, ..info(node) }));
    }
    cluster.done(Command::ModifyVolume { volume: VOLUME, repl: Some(1), class: None });
    assert_eq!(cluster.next(&[]), "nothing", "an attach has to find out first");
}

#[test]
fn a_failed_copy_does_not_wait() {
    let mut cluster = attached(2);
    cluster.failed(2);
    cluster.shrink(2);
    assert_eq!(cluster.next(&[]), "add on 3");
    cluster.ready(3);
    cluster.grow(3);
    assert_eq!(cluster.next(&[]), "remove from 2");
}

#[test]
fn a_replacement_that_is_lost_or_fails_is_replaced_too() {
    for fail in [Cluster::failed as fn(&mut Cluster, u64), Cluster::lose] {
        let mut cluster = attached(2);
        cluster.done(Command::RegisterNode(info(4)));
        cluster.failed(2);
        cluster.shrink(2);
        assert_eq!(cluster.next(&[]), "add on 3");
        fail(&mut cluster, 3);
        assert_eq!(cluster.next(&[3]), "add on 4");
        cluster.ready(4);
        cluster.grow(4);
        assert_eq!(cluster.next(&[3]), "remove from 2");
        assert_eq!(cluster.next(&[3]), "remove from 3");
        assert_eq!(cluster.next(&[3]), "nothing");
    }
}

#[test]
fn a_detached_volume_is_tended_where_an_engine_has_something_to_fill() {
    let mut cluster = attached(2);
    cluster.detach();
    assert_eq!(cluster.next(&[]), "nothing");
    cluster.lose(2);
    assert_eq!(cluster.next(&[]), "nothing", "its time is not over");
    assert_eq!(cluster.next(&[2]), "tend on 1");
    assert!(tended(&cluster.state, VOLUME), "an engine would have to wait for the new replica");
    cluster.attach(1);
    cluster.shrink(2);
    assert_eq!(cluster.next(&[2]), "add on 3");
    assert!(!tended(&cluster.state, VOLUME), "it is being made");
    // The engine ends too early: there is one to be filled.
    cluster.detach();
    assert_eq!(cluster.next(&[2]), "tend on 1");
    cluster.ready(3);
    assert_eq!(cluster.next(&[2]), "tend on 1");
    cluster.attach(1);
    assert!(!tended(&cluster.state, VOLUME), "it is being filled");
    cluster.grow(3);
    assert!(tended(&cluster.state, VOLUME));
    cluster.detach();
    assert_eq!(cluster.next(&[2]), "remove from 2");
    assert_eq!(cluster.next(&[2]), "nothing");
}

#[test]
fn a_detached_volume_is_not_tended_in_vain() {
    // One that came back out of date can be filled, one that is away cannot.
    let mut cluster = attached(2);
    cluster.lose(2);
    cluster.shrink(2);
    cluster.detach();
    assert_eq!(cluster.next(&[]), "nothing", "its time is not over");
    cluster.done(Command::RegisterNode(info(2)));
    assert_eq!(cluster.next(&[]), "tend on 1");
    cluster.lose(1);
    assert_eq!(cluster.next(&[]), "nothing", "nothing to fill it from");

    // No node for another one.
    let mut cluster = attached(3);
    cluster.lose(4);
    cluster.failed(3);
    cluster.shrink(3);
    cluster.detach();
    assert_eq!(cluster.next(&[4]), "nothing");

    // It is attached where nobody is: the fence comes first, then its user.
    let mut cluster = attached(2);
    cluster.failed(2);
    cluster.shrink(2);
    cluster.lose(1);
    assert_eq!(cluster.next(&[]), "nothing");
}

#[test]
fn a_copy_of_a_detached_volume_moves_to_the_class_that_is_wanted() {
    let mut cluster = attached(2);
    cluster.detach();
    cluster.done(Command::RegisterNode(NodeInfo { class: Some(PoolClass::High), ..info(3) }));
    let class = Some(Some(PoolClass::High));
    cluster.done(Command::ModifyVolume { volume: VOLUME, repl: None, class });
    let first = cluster.next(&[]);
    assert!(["move from 1 to 3", "move from 2 to 3"].contains(&first.as_str()), "{first}");
    assert!(cluster.next(&[]).starts_with("tend on "));
}

#[test]
fn nothing_is_done_where_nothing_good_can_come_of_it() {
    // Its holder is lost: the fence comes first.
    let mut cluster = attached(2);
    cluster.lose(1);
    assert_eq!(cluster.next(&[1]), "nothing");

    // The last copy: there is nothing to copy from.
    let mut cluster = attached(1);
    cluster.failed(1);
    assert_eq!(cluster.next(&[]), "nothing");

    // No node without a copy of it.
    let mut cluster = attached(3);
    cluster.lose(4);
    cluster.failed(3);
    cluster.shrink(3);
    assert_eq!(cluster.next(&[4]), "nothing");

    // It is being deleted.
    let mut cluster = attached(2);
    cluster.failed(2);
    let (epoch, instance) = (cluster.state.volumes[&VOLUME].epoch, crate::testing::ENGINE);
    cluster.done(Command::Detach { volume: VOLUME, epoch, instance, clean: true });
    cluster.done(Command::DeleteVolume { volume: VOLUME });
    assert_eq!(cluster.next(&[]), "nothing");
}

#[test]
fn an_isr_member_that_is_lost_does_not_make_up_the_number() {
    let mut cluster = attached(3);
    cluster.failed(3);
    cluster.shrink(3);
    assert_eq!(cluster.next(&[]), "add on 4");
    cluster.ready(4);
    cluster.grow(4);
    cluster.lose(2);
    assert_eq!(cluster.next(&[]), "nothing", "three in the ISR, but one of them is lost");
    cluster.done(Command::RegisterNode(info(2)));
    assert_eq!(cluster.next(&[]), "remove from 3");
}

#[test]
fn absence_counts_what_the_leader_saw() {
    const NOBODY: [u64; 0] = [];
    let mut absence = Absence::new(at(0));
    let time = Duration::from_secs(5);
    // (time in ms, nodes lost then, nodes that have been lost for 5 s)
    let look = |absence: &mut Absence, now: u64, lost: &[u64]| {
        absence.look(lost.iter().copied().map(NodeId), at(now));
        absence.at_least(time).into_iter().map(|node| node.0).collect::<Vec<_>>()
    };
    for now in (0..5000).step_by(100) {
        assert_eq!(look(&mut absence, now, &[2]), NOBODY, "{now}");
    }
    assert_eq!(look(&mut absence, 5000, &[2, 3]), [2]);
    assert_eq!(look(&mut absence, 5100, &[3]), NOBODY, "heard again");
    assert_eq!(look(&mut absence, 5200, &[2, 3]), NOBODY, "from the start");
    // A leader that stood still for an hour heard nobody: that is no hour of absence.
    assert_eq!(look(&mut absence, 3_605_200, &[2, 3]), NOBODY);
    for now in (3_605_300..3_609_200).step_by(100) {
        look(&mut absence, now, &[2, 3]);
    }
    assert_eq!(look(&mut absence, 3_609_200, &[2, 3]), [2, 3]);
}

/// A volume of `copies` on nodes 1.., and two nodes more, each of the class in the list.
fn classed(copies: u64, classes: &[PoolClass]) -> Cluster {
    let mut cluster = Cluster::new();
    for (node, class) in (1..).zip(classes) {
        cluster.done(Command::RegisterNode(NodeInfo { class: Some(*class), ..info(node) }));
    }
    cluster.volume(&(1..=copies).collect::<Vec<_>>());
    cluster.attach(1);
    cluster
}

impl Cluster {
    fn modify(&mut self, repl: Option<u32>, class: Option<Option<PoolClass>>) {
        self.done(Command::ModifyVolume { volume: VOLUME, repl, class });
    }

    fn in_sync(&self) -> Vec<u64> {
        let record = &self.state.volumes[&VOLUME];
        record.isr.iter().map(|id| record.replicas[id].node.0).collect()
    }
}

#[test]
fn a_volume_gets_the_copies_that_it_is_changed_to() {
    let mut cluster = attached(2);
    cluster.modify(Some(3), None);
    assert!(cluster.state.volumes[&VOLUME].degraded());
    assert_eq!(cluster.next(&[]), "add on 3");
    assert_eq!(cluster.next(&[]), "nothing", "being made");
    cluster.ready(3);
    cluster.grow(3);
    assert_eq!(cluster.next(&[]), "nothing");
    // Down again: the engine's own copy stays to the last.
    cluster.modify(Some(1), None);
    assert_eq!(cluster.next(&[]), "release from 2");
    assert_eq!(cluster.next(&[]), "release from 3");
    assert_eq!(cluster.next(&[]), "nothing");
    assert_eq!(cluster.in_sync(), [1]);
}

#[test]
fn copies_are_released_without_an_engine_too_but_only_filled_by_one() {
    let mut cluster = attached(2);
    let (epoch, instance) = (cluster.state.volumes[&VOLUME].epoch, crate::testing::ENGINE);
    cluster.done(Command::Detach { volume: VOLUME, epoch, instance, clean: true });
    cluster.modify(Some(3), None);
    assert_eq!(cluster.next(&[]), "tend on 1");
    cluster.modify(Some(1), None);
    assert_eq!(cluster.next(&[]), "release from 1");
    assert_eq!(cluster.next(&[]), "nothing");
}

#[test]
fn a_wish_that_is_taken_back_in_time_costs_nothing() {
    let mut cluster = attached(2);
    cluster.modify(Some(3), None);
    assert_eq!(cluster.next(&[]), "add on 3");
    cluster.ready(3);
    cluster.modify(Some(2), None);
    assert_eq!(cluster.next(&[]), "remove from 3");
    assert_eq!(cluster.in_sync(), [1, 2]);
}

#[test]
fn what_is_lost_goes_before_what_is_there() {
    let mut cluster = attached(3);
    cluster.lose(3);
    cluster.modify(Some(2), None);
    assert_eq!(cluster.next(&[]), "release from 3");
    assert_eq!(cluster.next(&[]), "nothing");
    // Fewer than are wanted are within reach: nothing goes.
    let mut cluster = attached(3);
    cluster.lose(3);
    cluster.shrink(3);
    assert_eq!(cluster.next(&[]), "nothing");
}

#[test]
fn a_copy_is_moved_by_growing_before_shrinking() {
    let mut cluster = attached(2);
    let to = NewReplica { replica: replica(3), incarnation: incarnation(3), node: NodeId(3) };
    let order = Command::MoveReplica { volume: VOLUME, added: 0, from: replica(2), to };
    cluster.done(order.clone());
    cluster.done(order);
    assert_eq!(cluster.next(&[]), "nothing", "being made");
    assert_eq!(cluster.in_sync(), [1, 2], "it counts until the other one does");
    cluster.ready(3);
    assert_eq!(cluster.next(&[]), "nothing", "being copied");
    cluster.grow(3);
    assert_eq!(cluster.in_sync(), [1, 2, 3]);
    assert_eq!(cluster.next(&[]), "release from 2");
    assert_eq!(cluster.in_sync(), [1, 3]);
    assert_eq!(cluster.next(&[]), "nothing");
}

#[test]
fn a_move_whose_target_is_lost_finds_another() {
    let mut cluster = attached(2);
    cluster.done(Command::RegisterNode(info(4)));
    let to = NewReplica { replica: replica(3), incarnation: incarnation(3), node: NodeId(3) };
    cluster.done(Command::MoveReplica { volume: VOLUME, added: 0, from: replica(2), to });
    cluster.ready(3);
    cluster.failed(3);
    assert_eq!(cluster.next(&[]), "add on 4");
    cluster.ready(4);
    cluster.grow(4);
    assert_eq!(cluster.next(&[]), "remove from 3");
    assert_eq!(cluster.next(&[]), "release from 2");
    assert_eq!(cluster.in_sync(), [1, 4]);
}

#[test]
fn copies_move_one_by_one_to_pools_of_the_class_that_is_wanted() {
    use PoolClass::{High, Low};
    let mut cluster = classed(2, &[Low, Low, High, High]);
    cluster.modify(None, Some(Some(High)));
    for (from, to) in [(1, 3), (2, 4)] {
        assert_eq!(cluster.next(&[]), format!("move from {from} to {to}"));
        assert_eq!(cluster.next(&[]), "nothing");
        cluster.ready(to);
        cluster.grow(to);
        assert_eq!(cluster.next(&[]), format!("release from {from}"));
    }
    assert_eq!(cluster.next(&[]), "nothing");
    assert_eq!(cluster.in_sync(), [3, 4]);
    // Where no pool of the class has room all stays as it is.
    cluster.modify(None, Some(Some(PoolClass::Medium)));
    assert_eq!(cluster.next(&[]), "nothing");
}

#[test]
fn a_replacement_goes_to_a_zone_without_a_copy() {
    let mut cluster = Cluster::new();
    for (node, zone) in [(1, "a"), (2, "b"), (3, "a"), (4, "c")] {
        let node = NodeInfo { zone: Some(zone.to_owned()), ..info(node) };
        cluster.done(Command::RegisterNode(node));
    }
    cluster.volume(&[1, 2]);
    cluster.attach(1);
    cluster.failed(2);
    cluster.shrink(2);
    assert_eq!(cluster.next(&[]), "add on 4", "not on 3, which stands beside 1");
}

#[test]
fn a_copy_of_a_deleted_volumes_snapshots_is_given_up_if_another_has_them() {
    let retired = || {
        let mut cluster = Cluster::new();
        cluster.volume(&[1, 2]);
        cluster.attach(1);
        cluster.snapshot(1, false);
        cluster.detach();
        cluster.done(Command::DeleteVolume { volume: VOLUME });
        cluster
    };
    let remove = |cluster: &Cluster, node| {
        let isr_version = cluster.isr_version();
        [Action::Remove { volume: VOLUME, replica: replica(node), isr_version }]
    };
    let mut cluster = retired();
    assert_eq!(plan(&cluster.state, &[], &Free::new()), []);
    cluster.done(Command::NodeLost { node: NodeId(2) });
    assert_eq!(plan(&cluster.state, &[], &Free::new()), [], "it may come back");
    assert_eq!(plan(&cluster.state, &[NodeId(2)], &Free::new()), remove(&cluster, 2));
    cluster.done(Command::ReplicaFailed { replica: replica(1), reason: "EIO".to_owned() });
    assert_eq!(plan(&cluster.state, &[NodeId(2)], &Free::new()), [], "the last ones are kept");
    let mut cluster = retired();
    cluster.done(Command::ReplicaFailed { replica: replica(1), reason: "EIO".to_owned() });
    assert_eq!(plan(&cluster.state, &[], &Free::new()), remove(&cluster, 1));
}
