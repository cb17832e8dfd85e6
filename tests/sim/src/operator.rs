//! Whoever runs the cluster: creates volumes, moves pods, adds, moves and gives up copies, grows volumes, adds
//! nodes. In the daemon's terms: the CSI controller, Kubernetes and a person.

use crate::client::Life;
use crate::clock::{MS, SEC, Time};
use crate::plan::Theme;
use crate::rng::Rng;
use crate::world::{Event, World, index};
use core::time::Duration;
use engine::Input as EngineInput;
use metadata::{
    Attachment, Command, Lifecycle, NewReplica, NodeStatus, ReplicaState, State, placement,
};
use std::sync::Arc;
use types::{BLOCK, Incarnation, ReplicaId, VolumeId};
use uuid::Uuid;

/// A volume that is wanted.
#[derive(Debug)]
pub struct Wanted {
    /// Its id.
    pub id: VolumeId,
    /// Bytes.
    pub size: u64,
    /// Copies.
    pub repl: u32,
    /// Who has it, or is to have it.
    pub owner: Option<usize>,
    /// Groups of blocks that consumers like.
    hot: Vec<u32>,
    live: bool,
    /// Until then nobody wants to use it.
    rests: Time,
}

/// What consumers and pods of a run are like.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Their pauses are so much longer than usual.
    pub slowness: u64,
    /// Requests in a hundred that give whole slots back.
    pub discards: u64,
    /// They use so many more places.
    pub places: u64,
    /// A pod moves once in so many looks.
    pub moves: u64,
    /// A pod that leaves is scaled down for a while, so many times in a hundred.
    pub rests: u64,
    /// A snapshot is taken or deleted once in so many looks.
    pub snapshots: u64,
}

impl Default for Habits {
    fn default() -> Self {
        Self { slowness: 1, discards: 1, places: 1, moves: 120, rests: 0, snapshots: 12 }
    }
}

impl Habits {
    /// Most are usual.
    #[must_use]
    pub fn random(theme: Theme, rng: &mut Rng) -> Self {
        let mut habits = Self::default();
        let often = if theme == Theme::Promises { 35 } else { 10 };
        if theme == Theme::LateSeal || rng.chance(often / 2) {
            habits.slowness = rng.between(8, 40);
        }
        if theme == Theme::Snapshots {
            habits.snapshots = 3;
            if rng.chance(50) {
                // Nothing is written for seconds.
                habits.slowness = rng.between(20, 80);
            }
        }
        if rng.chance(often) {
            habits.discards = rng.between(5, 40);
        }
        if rng.chance(often) {
            habits.places = 10;
        }
        if theme == Theme::LateSeal {
            // An era ends only where a pod stays.
            habits.moves = 1_000;
        } else if rng.chance(often) {
            habits.moves = rng.between(6, 30);
        }
        if theme != Theme::LateSeal && rng.chance(20) {
            (habits.rests, habits.moves) = (70, rng.between(20, 60));
        }
        habits
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Operator {
    /// What its consumers are like.
    pub habits: Habits,
    /// The volumes.
    pub volumes: Vec<Wanted>,
    /// Nodes that are to join, and when.
    pub joiners: Vec<(usize, u64)>,
    /// A node that is lost for good at that time, and then removed from the cluster.
    pub leaver: Option<(usize, Time)>,
    /// Until then a change of membership may be under way: whoever makes it may die over it.
    pub(crate) changing: Time,
    /// Whether snapshots are taken.
    pub snapshots: bool,
    /// Whether copies are added without need.
    pub restless: bool,
    /// How long a node may be lost before its replicas are replaced (R27).
    pub replace_after: Duration,
}

impl Operator {
    /// Blocks of a volume.
    #[must_use]
    pub fn blocks(&self, volume: usize) -> u32 {
        (self.volumes[volume].size / BLOCK) as u32
    }

    /// A range of blocks for a request.
    pub fn pick(&self, volume: usize, rng: &mut Rng) -> (u32, u32) {
        let blocks = self.blocks(volume);
        let base = rng.pick(&self.volumes[volume].hot).unwrap_or(0);
        let block = (base + rng.below(5) as u32).min(blocks - 1);
        let count = if rng.one_in(12) { rng.between(4, 24) } else { rng.between(1, 4) } as u32;
        (block, count.min(blocks - block))
    }

    /// A volume of `size` bytes whose consumers like `hot` places.
    pub fn want(&mut self, id: VolumeId, size: u64, repl: u32, hot: u64, rng: &mut Rng) {
        let blocks = (size / BLOCK) as u32;
        let hot = (0..hot).map(|_| rng.below(u64::from(blocks)) as u32).collect();
        self.volumes.push(Wanted { id, size, repl, owner: None, hot, live: false, rests: 0 });
    }
}

impl World {
    /// The newest state that a running daemon has.
    pub(crate) fn newest_state(&self) -> Option<Arc<State>> {
        (0..self.nodes.len())
            .filter(|n| self.nodes[*n].is_running(self.now))
            .filter_map(|n| self.state(n))
            .max_by_key(|state| state.applied)
    }

    /// A command of the operator, at a random daemon.
    pub(crate) fn order(&mut self, command: Command) {
        let Some(n) = self.any_running() else { return };
        self.note(|| format!("operator at node {}: {command:?}", n + 1));
        self.propose(n, command, Duration::from_secs(8), crate::control::NOTHING);
    }

    /// The operator looks at everything, twice a second.
    pub(crate) fn operate(&mut self) {
        let pause = self.rng.between(300, 900) * MS;
        self.after(pause, Event::Operator);
        let Some(state) = self.newest_state() else { return };
        self.check_put_back();
        self.join_nodes(&state);
        self.remove_nodes(&state);
        if self.operator.snapshots {
            self.care_for_restores(&state);
        }
        for volume in 0..self.operator.volumes.len() {
            match state.volumes.get(&self.operator.volumes[volume].id) {
                None => self.create(volume, &state),
                Some(record) if record.lifecycle == Lifecycle::Live => {
                    if !std::mem::replace(&mut self.operator.volumes[volume].live, true) {
                        self.after(0, Event::Volume { volume });
                    }
                    self.care(&state, record);
                }
                Some(_) => {}
            }
        }
    }

    fn create(&mut self, volume: usize, state: &State) {
        let wanted = &self.operator.volumes[volume];
        let (id, size, repl) = (wanted.id, wanted.size, wanted.repl);
        let request = placement::Request { size, repl, ..placement::Request::default() };
        let Ok(mut nodes) = placement::place(state, &request) else { return };
        // Any placement is legal; the same one each time would leave nodes idle.
        let up = |n: &&metadata::Node| n.status == NodeStatus::Up && n.pool.is_some();
        let all: Vec<_> = state.nodes.values().filter(up).map(|n| n.node).collect();
        let from = self.rng.below(all.len() as u64) as usize;
        nodes.clear();
        nodes.extend((0..repl as usize).map(|k| all[(from + k) % all.len()]));
        let replicas = nodes.into_iter().map(|node| self.new_replica(node)).collect();
        self.order(Command::CreateVolume {
            volume: id,
            name: format!("v{volume}"),
            size,
            repl,
            class: None,
            fs_type: None,
            pinned: false,
            source: None,
            replicas,
        });
    }

    pub(crate) fn new_replica(&mut self, node: types::NodeId) -> NewReplica {
        NewReplica {
            replica: ReplicaId(Uuid::from_u128(self.rng.id())),
            incarnation: Incarnation(Uuid::from_u128(self.rng.id())),
            node,
        }
    }

    /// Copies are added without need or changed, and volumes grow, now and then.
    fn care(&mut self, state: &State, record: &metadata::Volume) {
        let usable = |r: &&metadata::Replica| {
            matches!(r.state, ReplicaState::Ready | ReplicaState::Creating)
        };
        let count = record.replicas.values().filter(usable).count() as u32;
        let id = record.volume;
        let whim = self.operator.restless && !self.healing && self.rng.one_in(60);
        if whim && count == record.repl {
            let request = placement::Request {
                size: record.reserved(),
                repl: 1,
                exclude: record.replicas.values().map(|r| r.node).collect(),
                ..placement::Request::default()
            };
            if let Ok(nodes) = placement::place(state, &request)
                && let Some(node) = nodes.first()
            {
                let replica = self.new_replica(*node);
                let added = record.added;
                return self.order(Command::AddReplica { volume: id, added, replica });
            }
        }
        if self.operator.restless && !self.healing && self.rng.one_in(90) {
            return self.change_copies(state, record);
        }
        let often = self.operator.habits.snapshots;
        if self.operator.snapshots && !self.healing && self.rng.one_in(often) {
            return self.care_for_snapshots(state, id);
        }
        if !self.healing && record.size < 2 * record.created_size && self.rng.one_in(150) {
            let size = record.size + self.rng.between(1, 3) * types::REGION;
            self.order(Command::ExpandBegin { volume: id, size });
        }
    }

    /// ModifyVolume to another number of copies, or MoveReplica of any of them to where there is none.
    fn change_copies(&mut self, state: &State, record: &metadata::Volume) {
        let volume = record.volume;
        if self.rng.one_in(2) {
            let repl = self.rng.between(1, 3) as u32;
            return self.order(Command::ModifyVolume { volume, repl: Some(repl), class: None });
        }
        let here: Vec<_> = record.replicas.values().map(|r| (r.replica, r.node)).collect();
        let empty = |n: &&metadata::Node| {
            n.status == NodeStatus::Up
                && n.pool.is_some()
                && here.iter().all(|(_, at)| *at != n.node)
        };
        let free: Vec<_> = state.nodes.values().filter(empty).map(|n| n.node).collect();
        if let (Some((from, _)), Some(node)) = (self.rng.pick(&here), self.rng.pick(&free)) {
            let to = self.new_replica(node);
            self.order(Command::MoveReplica { volume, added: record.added, from, to });
        }
    }

    /// A daemon that runs and believes to lead.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |p: &crate::node::Process| p.meta.status().role == metadata::Role::Leader;
        (0..self.nodes.len()).find(|n| {
            let node = &self.nodes[*n];
            node.is_running(self.now) && node.process.as_ref().is_some_and(leads)
        })
    }

    /// Kubernetes looks at a volume: its pod must run somewhere.
    pub(crate) fn orchestrate(&mut self, volume: usize) {
        let pause = self.rng.between(150, 600) * MS;
        self.after(pause, Event::Volume { volume });
        for client in 0..self.clients.len() {
            if self.clients[client].volume == volume {
                self.look_after(client);
            }
        }
        let owner = self.operator.volumes[volume].owner;
        let owner = owner.filter(|client| self.clients[*client].life != Life::Over);
        self.operator.volumes[volume].owner = owner;
        let other = self.clients.iter().enumerate().position(|(index, client)| {
            let wants = matches!(client.life, Life::Attaching | Life::Active(_));
            client.volume == volume && wants && Some(index) != owner
        });
        match owner {
            // Somebody tried to run it twice, and now may.
            None if other.is_some() => self.operator.volumes[volume].owner = other,
            None if self.operator.volumes[volume].rests > self.now && !self.healing => {}
            None => self.place_pod(volume, owner),
            Some(client) if self.is_taken_away(client) => match other {
                Some(other) => self.operator.volumes[volume].owner = Some(other),
                None => self.place_pod(volume, Some(client)),
            },
            Some(client) => self.maybe_move(client),
        }
    }

    /// A pod with a dead device is ended; one that wants to leave does when its I/O is done.
    fn look_after(&mut self, client: usize) {
        self.check_patience(client);
        self.check_grace(client);
        let this = &self.clients[client];
        let (n, run) = (this.node, this.run);
        if this.life == Life::Over || !self.nodes[n].is_running(self.now) || !self.is_run(n, run) {
            return;
        }
        let id = self.checks.volumes[this.volume];
        match this.life {
            Life::Active(_) | Life::Leaving(_) if this.failed => self.leave(client, id),
            Life::Leaving(_) if self.is_idle(client) => self.leave(client, id),
            _ => {}
        }
    }

    fn leave(&mut self, client: usize, id: VolumeId) {
        let n = self.clients[client].node;
        if self.detach(n, id, client) && self.clients[client].life != Life::Over {
            self.clients[client].life = Life::Detaching;
        }
    }

    /// Whether the volume was fenced away from the node of this consumer (R7): only then may the pod
    /// run elsewhere.
    fn is_taken_away(&self, client: usize) -> bool {
        let this = &self.clients[client];
        let Some(state) = self.newest_state() else { return false };
        let Some(record) = state.volumes.get(&self.checks.volumes[this.volume]) else {
            return false;
        };
        match record.attachment {
            Attachment::Fenced { holder, sealed: Some(_) } => index(holder) == this.node,
            // Kubernetes noticed first: the attach waits for the fence.
            Attachment::Attached { node, .. } => index(node) == this.node && state.is_lost(node),
            _ => false,
        }
    }

    fn place_pod(&mut self, volume: usize, former: Option<usize>) {
        let now = self.now;
        let avoid = former.map(|client| self.clients[client].node);
        let fit = |n: &usize| {
            let node = &self.nodes[*n];
            // One that has not joined yet has nothing to attach with.
            let joined =
                self.state(*n).is_some_and(|state| state.membership.contains(self.nodes[*n].id));
            node.is_running(now) && joined && Some(*n) != avoid
        };
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(fit).collect();
        let Some(n) = self.rng.pick(&nodes) else { return };
        if let Some(client) = self.new_client(volume, n) {
            self.operator.volumes[volume].owner = Some(client);
        }
    }

    /// Now and then a pod moves, or somebody tries to run it twice.
    fn maybe_move(&mut self, client: usize) {
        let Life::Active(epoch) = self.clients[client].life else { return };
        if self.healing || self.age(client) < 3 * SEC {
            return;
        }
        if self.rng.one_in(self.operator.habits.moves) {
            self.clients[client].life = Life::Leaving(epoch);
            if self.rng.chance(self.operator.habits.rests) {
                let volume = self.clients[client].volume;
                self.operator.volumes[volume].rests = self.now + self.rng.between(8, 45) * SEC;
            }
        } else if self.rng.one_in(150) {
            let volume = self.clients[client].volume;
            let n = self.rng.below(self.nodes.len() as u64) as usize;
            if n != self.clients[client].node && self.nodes[n].is_running(self.now) {
                // Refused while this node lives, and waits for the fence if it does not.
                self.new_client(volume, n);
            }
        }
    }

    /// Compares all in-sync replicas of a consumer's volume.
    pub(crate) fn compare(&mut self, client: usize) {
        self.clients[client].compared = None;
        let (n, id) = (self.clients[client].node, self.checks.volumes[self.clients[client].volume]);
        self.engine_command(n, id, EngineInput::Compare { ticket: 1 });
    }
}
