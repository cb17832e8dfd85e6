//! Keeps engines in step with the applied state.

use super::is_ours;
use crate::control::Node;
use engine::MemberSpec;
use metadata::{ReplicaState, State, Volume};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::{NodeId, VolumeId};

/// The replicas of a volume as its engine on node `here` needs them.
pub(in crate::control) fn members(state: &State, volume: &Volume, here: NodeId) -> Vec<MemberSpec> {
    volume
        .replicas
        .values()
        .filter(|replica| replica.state == ReplicaState::Ready)
        .filter_map(|replica| {
            let address = if replica.node == here {
                None
            } else {
                let node = state.nodes.get(&replica.node)?;
                Some(node.data_address.parse().ok()?)
            };
            Some(MemberSpec {
                replica: replica.replica,
                incarnation: replica.incarnation,
                node: replica.node,
                address,
                in_isr: volume.isr.contains(&replica.replica),
                lost: state.is_lost(replica.node),
            })
        })
        .collect()
}

/// Fails the engines of superseded attachments at once, and tells engines of changed members.
pub(in crate::control) async fn follow(node: Arc<Node>) {
    let mut applied = node.meta.watch();
    let mut told: BTreeMap<VolumeId, Vec<MemberSpec>> = BTreeMap::new();
    loop {
        applied.borrow_and_update();
        let state = node.meta.state();
        let locals: Vec<_> = {
            let locals = node.attachments.inner();
            locals.iter().map(|(id, local)| (*id, local.epoch, local.instance)).collect()
        };
        told.retain(|volume, _| locals.iter().any(|(id, ..)| id == volume));
        for (volume, epoch, instance) in locals {
            if !is_ours(&state, volume, epoch, instance) {
                // The engine first: its users wait for the error.
                if node.attachments.fail(volume, epoch, "superseded by a later epoch") {
                    node.data.fail_engine(volume);
                    let message = "superseded: every I/O fails until it is detached";
                    node.events.local("attachment_failed", Some(volume), Some(epoch), message);
                }
                continue;
            }
            let Some(record) = state.volumes.get(&volume) else { continue };
            let mut members = members(&state, record, node.config.node);
            // The engine knows its own ISR better than this.
            members.iter_mut().for_each(|member| member.in_isr = false);
            if told.get(&volume) != Some(&members) {
                node.data.set_members(volume, members.clone());
                told.insert(volume, members);
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}
