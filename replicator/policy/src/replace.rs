//! Which replicas are added, moved and given up (R27, and when the wish for a volume changes): pure
//! functions of the applied state and of how long each node has been lost.
//!
//! Grow before shrink: a replacement is added outside the ISR, the volume's engine copies it whole
//! and grows the ISR (R5), and only when as many sound replicas are in sync as the volume wants is
//! the rest given up. So a replica is never removed for one that is not complete, and whichever is
//! in sync first is kept: the replacement, or the old one that came back. A replica that is moved
//! (`leaving`) counts for the ISR as ever, but no longer as one of those that are wanted.
//!
//! Only an engine can fill a replica. A volume that nobody has attached gets one for as long as there is
//! something to fill, on a node with an in-sync replica ([`Action::Tend`]; docs/decisions/0011 and 0019).

#[cfg(test)]
mod tests;

use crate::liveness::STALL;
use core::time::Duration;
use metadata::placement::{Free, Request, place};
use metadata::{
    Attachment, Command, Lifecycle, NewReplica, NodeStatus, Replica, ReplicaState, State, Volume,
};
use std::collections::BTreeMap;
use types::{Epoch, Instant, IsrVersion, NodeId, ReplicaId, VolumeId};

/// For how long the nodes that Raft has as lost have been so, as far as one leadership saw it (R6).
#[derive(Debug)]
pub struct Absence {
    lost: BTreeMap<NodeId, Duration>,
    looked: Instant,
}

impl Absence {
    /// A new leadership: nobody has been lost for any time.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { lost: BTreeMap::new(), looked: now }
    }

    /// `lost` are lost now. Time in which the leader did not look counts as [`STALL`] at most: the
    /// others could not be heard in it. To be called several times a second.
    pub fn look(&mut self, lost: impl IntoIterator<Item = NodeId>, now: Instant) {
        let passed = now.since(self.looked).min(STALL);
        self.looked = now;
        let before = core::mem::take(&mut self.lost);
        let longer = |node| (node, before.get(&node).map_or(Duration::ZERO, |time| *time + passed));
        self.lost = lost.into_iter().map(longer).collect();
    }

    /// The nodes that have been lost for `time` or longer.
    #[must_use]
    pub fn at_least(&self, time: Duration) -> Vec<NodeId> {
        self.lost.iter().filter(|(_, lost)| **lost >= time).map(|(node, _)| *node).collect()
    }
}

/// One step towards the copies that a volume wants; repeating one that was done changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Add a replica on `node`.
    Add {
        /// The volume.
        volume: VolumeId,
        /// The replicas that it has had added so far.
        added: u64,
        /// Where there is most room.
        node: NodeId,
    },
    /// Replace an in-sync replica whose pool is not of the class that the volume wants.
    Move {
        /// The volume.
        volume: VolumeId,
        /// The replicas that it has had added so far.
        added: u64,
        /// The replica.
        from: ReplicaId,
        /// Where there is most room in a pool of that class.
        node: NodeId,
    },
    /// Give up a replica that is outside a full ISR.
    Remove {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        replica: ReplicaId,
        /// The ISR that does without it.
        isr_version: IsrVersion,
    },
    /// Give up a replica of an ISR that is full without it.
    Release {
        /// The volume.
        volume: VolumeId,
        /// The replica.
        replica: ReplicaId,
        /// The ISR that can do without it.
        isr_version: IsrVersion,
    },
    /// Have `node` attach a detached volume without a device, so that its replicas can be filled.
    Tend {
        /// The volume.
        volume: VolumeId,
        /// Has an in-sync replica.
        node: NodeId,
        /// Under which nobody has it.
        epoch: Epoch,
    },
}

impl Action {
    /// The volume.
    #[must_use]
    pub const fn volume(&self) -> VolumeId {
        match self {
            Self::Add { volume, .. }
            | Self::Move { volume, .. }
            | Self::Remove { volume, .. }
            | Self::Release { volume, .. }
            | Self::Tend { volume, .. } => *volume,
        }
    }

    /// The command that carries it out, for what is not asked of a node; `new` makes ids for a replica.
    pub fn command(self, new: impl FnOnce(NodeId) -> NewReplica) -> Option<Command> {
        Some(match self {
            Self::Add { volume, added, node } => {
                Command::AddReplica { volume, added, replica: new(node) }
            }
            Self::Move { volume, added, from, node } => {
                Command::MoveReplica { volume, added, from, to: new(node) }
            }
            Self::Remove { volume, replica, isr_version } => {
                Command::RemoveReplica { volume, replica, isr_version }
            }
            Self::Release { volume, replica, isr_version } => {
                Command::ReleaseReplica { volume, replica, isr_version }
            }
            Self::Tend { .. } => return None,
        })
    }
}

/// The next step for every volume that needs one and can have one; the nodes `gone` have been lost
/// for so long that their replicas are to be replaced, and `free` is what pools really have.
#[must_use]
pub fn plan(state: &State, gone: &[NodeId], free: &Free) -> Vec<Action> {
    let step = |volume| View { state, volume }.step(gone, free);
    state.volumes.values().filter_map(step).collect()
}

/// Whether an engine without a device has nothing more to fill in `volume`, as far as can be known
/// where it runs: as many copies as are wanted are in sync, or none of the others can be filled now.
#[must_use]
pub fn tended(state: &State, volume: VolumeId) -> bool {
    let Some(volume) = state.volumes.get(&volume) else { return true };
    let view = View { state, volume };
    volume.lifecycle != Lifecycle::Live
        || view.staying() >= volume.repl as usize
        || !view.replicas().any(|r| view.fillable(r))
}

/// One volume in its cluster.
#[derive(Clone, Copy)]
struct View<'s> {
    state: &'s State,
    volume: &'s Volume,
}

impl<'s> View<'s> {
    fn replicas(self) -> impl Iterator<Item = &'s Replica> {
        self.volume.replicas.values()
    }

    fn up(self, node: NodeId) -> bool {
        self.state.nodes.get(&node).is_some_and(|n| n.status == NodeStatus::Up)
    }

    fn in_isr(self, replica: &Replica) -> bool {
        self.volume.isr.contains(&replica.replica)
    }

    /// In sync and within reach.
    fn sound(self, replica: &Replica) -> bool {
        self.in_isr(replica) && replica.state == ReplicaState::Ready && self.up(replica.node)
    }

    /// One of the copies that are wanted, as far as anybody knows.
    fn stays(self, replica: &Replica) -> bool {
        self.sound(replica) && !replica.leaving
    }

    fn staying(self) -> usize {
        self.replicas().filter(|r| self.stays(r)).count()
    }

    /// There, or about to be, and only out of date.
    fn fillable(self, replica: &Replica) -> bool {
        let there = matches!(replica.state, ReplicaState::Creating | ReplicaState::Ready);
        there && !self.in_isr(replica) && self.up(replica.node)
    }

    fn of_class(self, replica: &Replica) -> bool {
        let class = self.state.nodes.get(&replica.node).and_then(|node| node.class);
        self.volume.class.is_none() || self.volume.class == class
    }

    fn step(self, gone: &[NodeId], free: &Free) -> Option<Action> {
        match self.volume.lifecycle {
            Lifecycle::Live => {}
            Lifecycle::Retired => return self.give_up_snapshots(gone),
            Lifecycle::Creating | Lifecycle::Filling | Lifecycle::Deleting => return None,
        }
        let staying = self.staying();
        if staying >= self.volume.repl as usize {
            return self.give_up(staying).or_else(|| self.change_class(free));
        }
        // Only an engine can fill a replica, from one that it can reach.
        let source = self.replicas().find(|r| self.sound(r))?;
        if self.holder().is_none() {
            return self.tend(source.node, gone, free);
        }
        let (volume, added) = (self.volume.volume, self.volume.added);
        Some(Action::Add { volume, added, node: self.missing(gone, free)? })
    }

    /// Where a replica is to be added.
    fn missing(self, gone: &[NodeId], free: &Free) -> Option<NodeId> {
        let hopeful = |r: &&Replica| match r.state {
            ReplicaState::Creating | ReplicaState::Ready => !r.leaving && !gone.contains(&r.node),
            ReplicaState::Failed | ReplicaState::Deleting => false,
        };
        if self.replicas().filter(hopeful).count() >= self.volume.repl as usize {
            return None;
        }
        let apart_from = self.replicas().filter(hopeful).map(|r| r.node).collect();
        self.place(apart_from, free)
    }

    /// An engine is needed on `node`, and nobody has one.
    fn tend(self, node: NodeId, gone: &[NodeId], free: &Free) -> Option<Action> {
        let Volume { volume, epoch, attachment, .. } = *self.volume;
        let needed = attachment == Attachment::Detached
            && (self.replicas().any(|r| self.fillable(r)) || self.missing(gone, free).is_some());
        needed.then_some(Action::Tend { volume, node, epoch })
    }

    /// The node where the volume is attached, if that is up.
    fn holder(self) -> Option<NodeId> {
        match self.volume.attachment {
            Attachment::Attached { node, .. } => Some(node).filter(|node| self.up(*node)),
            _ => None,
        }
    }

    /// As many as are wanted stay: what is there beside them?
    fn give_up(self, staying: usize) -> Option<Action> {
        let (volume, isr_version) = (self.volume.volume, self.volume.isr_version);
        let surplus = |r: &&Replica| !self.in_isr(r) && r.state != ReplicaState::Deleting;
        if let Some(Replica { replica, .. }) = self.replicas().find(surplus).copied() {
            return Some(Action::Remove { volume, replica, isr_version });
        }
        if !matches!(self.volume.attachment, Attachment::Attached { .. } | Attachment::Detached) {
            return None;
        }
        let spare = staying > self.volume.repl as usize;
        let dispensable = |r: &&Replica| self.in_isr(r) && (spare || !self.stays(r));
        let crowded = |r: &Replica| {
            let zone = |r: &Replica| self.state.nodes.get(&r.node)?.zone.as_deref();
            let there = |other: &Replica| other.replica != r.replica && zone(other) == zone(r);
            zone(r).is_some() && self.replicas().any(there)
        };
        let room = |r: &Replica| {
            let node = self.state.nodes.get(&r.node);
            node.map_or(0, |node| metadata::placement::room(self.state, node))
        };
        // The first one in this order goes.
        let order = |r: &&Replica| {
            let local = self.volume.attachment.holder() == Some(r.node);
            let stays = self.stays(r);
            (stays, stays && self.of_class(r), local, !crowded(r), room(r), r.replica)
        };
        // Those that stay must have what was acknowledged: a host may just have lost its memory.
        let secure = |r: &&Replica| self.stays(r) && self.state.remembers(self.volume, r);
        let enough = |r: &&Replica| {
            let others = self.replicas().filter(secure).filter(|other| other.replica != r.replica);
            others.count() >= self.volume.repl as usize
        };
        let all = self.replicas().filter(dispensable).filter(enough);
        let Replica { replica, .. } = *all.min_by_key(order)?;
        Some(Action::Release { volume, replica, isr_version })
    }

    /// Nobody adds copies of the snapshots that a deleted volume left; one that failed or is gone is kept
    /// while it may be the last.
    fn give_up_snapshots(self, gone: &[NodeId]) -> Option<Action> {
        let (volume, isr_version) = (self.volume.volume, self.volume.isr_version);
        let useless = |r: &&Replica| match r.state {
            ReplicaState::Failed => true,
            ReplicaState::Ready => gone.contains(&r.node),
            ReplicaState::Creating | ReplicaState::Deleting => false,
        };
        let spare = |r: &&Replica| self.state.only_holder(self.volume, r.replica).is_none();
        let Replica { replica, .. } = *self.replicas().filter(useless).find(spare)?;
        Some(Action::Remove { volume, replica, isr_version })
    }

    /// One replica after the other moves to a pool of the class that is wanted, if there is one.
    fn change_class(self, free: &Free) -> Option<Action> {
        if self.holder().is_none() && self.volume.attachment != Attachment::Detached {
            return None;
        }
        let wrong = |r: &&Replica| self.stays(r) && !self.of_class(r);
        let Replica { replica: from, .. } = *self.replicas().find(wrong)?;
        let apart = self.replicas().filter(|r| r.replica != from).map(|r| r.node).collect();
        let node = self.place(apart, free)?;
        let (volume, added) = (self.volume.volume, self.volume.added);
        Some(Action::Move { volume, added, from, node })
    }

    fn place(self, apart_from: Vec<NodeId>, free: &Free) -> Option<NodeId> {
        let request = Request {
            size: self.volume.reserved(),
            repl: 1,
            class: self.volume.class,
            exclude: self.replicas().map(|replica| replica.node).collect(),
            apart_from,
            free: free.clone(),
            ..Request::default()
        };
        place(self.state, &request).ok()?.first().copied()
    }
}
