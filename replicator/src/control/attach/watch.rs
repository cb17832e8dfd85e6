//! Keeps engines in step with the applied state.

use crate::control::Node;
use engine::MemberSpec;
use metadata::Limits;
use policy::attachment::{is_ours, members};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::{Epoch, VolumeId};

/// Fails the engines of superseded attachments at once, and tells engines of changed members.
pub(in crate::control) async fn follow(node: Arc<Node>) {
    let mut applied = node.meta.watch();
    let mut told: BTreeMap<VolumeId, (Epoch, Vec<MemberSpec>, Limits)> = BTreeMap::new();
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
            let news = (epoch, members, record.limits);
            if told.get(&volume) != Some(&news) {
                node.data.set_members(volume, news.1.clone());
                node.data.set_limits(volume, news.2);
                told.insert(volume, news);
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}
