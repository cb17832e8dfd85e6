//! Eras: what a copy has sealed is never compared again, so every copy that may become a source has it
//! on its disk (R18, R19).
//!
//! Checked, whenever an engine tells a replica that an era is sealed: each member of the ISR as Raft
//! committed it has answered a flush that was sent to it after its last answer to a write of that era or
//! an earlier one.
//!
//! Not checked: engines of an epoch that is not the newest any more, copies whose disk failed, and what a
//! flush does on the replica (`blocks` sees that after the next loss of power).

use crate::world::World;
use engine::LinkId;
use std::collections::BTreeMap;
use types::{Epoch, Era, ReplicaId, VolumeId};
use wire::{Reply, Request};

/// Order of an engine's events.
type Order = u64;

/// Requests of one engine that matter here, and their answers.
#[derive(Debug, Default)]
pub struct Eras {
    now: Order,
    flushes: BTreeMap<(LinkId, u64), Order>,
    writes: BTreeMap<(LinkId, u64), Era>,
    /// The last answer to a write of an era.
    written: BTreeMap<(ReplicaId, Era), Order>,
    /// When the newest flush that was answered had been sent.
    synced: BTreeMap<ReplicaId, Order>,
}

impl Eras {
    /// The engine sends a request.
    pub fn sent(&mut self, link: LinkId, seq: u64, request: &Request) {
        self.now += 1;
        match request {
            Request::Flush => {
                self.flushes.insert((link, seq), self.now);
            }
            Request::Write { era, .. }
            | Request::Discard { era, .. }
            | Request::WriteZeroes { era, .. } => {
                self.writes.insert((link, seq), *era);
            }
            _ => {}
        }
    }

    /// `replica` answers.
    pub fn answered(&mut self, link: LinkId, replica: ReplicaId, seq: u64, reply: &Reply) {
        self.now += 1;
        let flush = self.flushes.remove(&(link, seq));
        if let Some(era) = self.writes.remove(&(link, seq)) {
            self.written.insert((replica, era), self.now);
        }
        if let Some(sent) = flush.filter(|_| !matches!(reply, Reply::Failed(_))) {
            // One that finds everything synced is answered before an older one that waits for a sync.
            let newest = self.synced.entry(replica).or_default();
            *newest = sent.max(*newest);
        }
    }

    /// Nothing more will be answered on `link`.
    pub fn closed(&mut self, link: LinkId) {
        self.flushes.retain(|(of, _), _| *of != link);
        self.writes.retain(|(of, _), _| *of != link);
    }

    /// Whether `replica` has not synced what it has written of `era` and earlier ones.
    fn lacks(&self, replica: ReplicaId, era: Era) -> bool {
        let synced = self.synced.get(&replica).copied().unwrap_or(0);
        self.written.range((replica, Era(0))..=(replica, era)).any(|(_, at)| *at > synced)
    }
}

impl World {
    /// The engine on node `n` tells a replica that `era` is sealed.
    pub(crate) fn check_era(&mut self, n: usize, volume: VolumeId, epoch: Epoch, era: Era) {
        let members = self.checks.isr.committed(volume, epoch);
        let Some(eras) = self.data_mut(n).and_then(|data| data.volumes.get(&volume)) else {
            return;
        };
        let lacking = members.into_iter().find(|replica| eras.eras.lacks(*replica, era));
        if let Some(replica) = lacking {
            self.violation(format!(
                "eras: the engine of epoch {epoch} on node {} seals era {era:?} of {volume}, but {replica}, which is in the ISR, has not synced it",
                n + 1
            ));
        }
    }
}
