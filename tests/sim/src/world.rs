//! The whole cluster: its hosts, the network between them, consumers, and the one queue of events.

use crate::check::Checks;
use crate::client::Client;
use crate::clock::{MS, Time, US};
use crate::data::Work;
use crate::meta::MetaInput;
use crate::net::{ConnId, Item, Net};
use crate::node::{Death, Node};
use crate::operator::Operator;
use crate::queue::Queue;
use crate::rng::Rng;
use crate::trace::Trace;
use std::collections::BTreeMap;
use types::{ClusterId, Epoch, Instant, NodeId, ReplicaId};

/// Something that happens. Events of a daemon carry its run and are void in another one.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Event {
    /// A disk operation completes.
    Disk { node: usize, run: u64, io: u64 },
    /// A timer of the data thread.
    Data { node: usize, run: u64 },
    /// The metadata thread works off its queue.
    Meta { node: usize, run: u64 },
    /// Raft's tick.
    Tick { node: usize, run: u64 },
    /// A round of the control plane.
    Round { node: usize, run: u64 },
    /// A heartbeat of the control plane is due.
    Heartbeat { node: usize, run: u64 },
    /// A connection has something to deliver from this side.
    Conn { conn: ConnId, side: usize },
    /// The kernel of this side gives a connection up, unless it works again.
    GiveUp { conn: ConnId, side: usize, since: Time },
    /// A Raft message arrives.
    Raft { to: usize, message: Vec<u8> },
    /// A call of the control plane arrives.
    Call { to: usize, call: Box<crate::control::Call> },
    /// One that was held up on its way arrives, unless the way is cut.
    LateCall { from: usize, to: usize, call: Box<crate::control::Call> },
    /// A daemon starts.
    Start { node: usize, run: u64 },
    /// A stopped daemon goes on.
    Thaw { node: usize },
    /// A fault begins.
    Fault { index: usize },
    /// A fault ends.
    Heal { index: usize },
    /// A consumer does something.
    Client { client: usize },
    /// The orchestrator looks at a volume.
    Volume { volume: usize },
    /// The operator looks at the cluster.
    Operator,
}

/// Figures of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Faults that were applied.
    pub faults: u64,
    /// Blocks that were read or written by consumers, and checked.
    pub operations: u64,
    /// Requests of consumers that ended with an error.
    pub errors: u64,
    /// Attachments that came to work.
    pub attachments: u64,
    /// Nodes declared lost, counted at every volume that was fenced for it.
    pub fences: u64,
    /// Resyncs that reached their end.
    pub resyncs: u64,
    /// Volumes all of whose copies were destroyed by faults.
    pub destroyed: u64,
    /// Engines without a device that began to fill replicas.
    pub tendings: u64,
    /// Volumes that were filled from a snapshot, and compared with it.
    pub restores: u64,
    /// Pools whose place an older image of them took.
    pub older_pools: u64,
    /// Nodes that were gone for good and are removed.
    pub removals: u64,
    /// Snapshots that were taken.
    pub snapshots: u64,
    /// Losses of unflushed writes that the promises allow.
    pub losses: u64,
    /// Simulated time.
    pub time: Time,
}

/// See the module's text.
pub struct World {
    /// True time.
    pub now: Time,
    pub(crate) queue: Queue<Event>,
    /// Delays and luck of disks and processes.
    pub rng: Rng,
    /// See [`Net`].
    pub net: Net,
    /// The hosts; node `n` is at `n - 1`.
    pub nodes: Vec<Node>,
    /// Consumers, past and present.
    pub clients: Vec<Client>,
    /// See [`Operator`].
    pub operator: Operator,
    /// See [`Checks`].
    pub checks: Checks,
    /// See [`Trace`].
    pub trace: Trace,
    /// The cluster.
    pub cluster: ClusterId,
    /// See [`Figures`].
    pub figures: Figures,
    /// Faults, by their number in the plan.
    pub plan: crate::plan::Plan,
    /// Everything is healed and stays so.
    pub healing: bool,
    /// Damage that was injected and is still there.
    pub(crate) rotten: Vec<crate::faults::Rotten>,
    /// Replicas whose pool was put back, where they are, and what they had sealed.
    pub(crate) put_back: BTreeMap<ReplicaId, (NodeId, Epoch)>,
    /// All damage that there ever was: copies of it may outlive it.
    pub(crate) spoilt: Vec<crate::faults::Rotten>,
    /// Whose requests are under way.
    pub(crate) ios: std::collections::BTreeMap<types::IoId, usize>,
    pub(crate) next_io: u64,
}

/// Index of a node.
#[must_use]
pub fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}

impl World {
    /// When node `n`'s clock shows that.
    pub(crate) fn local(&self, n: usize) -> Instant {
        self.nodes[n].clock.at(self.now)
    }

    pub(crate) fn post(&mut self, at: Time, event: Event) {
        self.queue.post(at, event);
    }

    pub(crate) fn after(&mut self, delay: Time, event: Event) {
        self.queue.post(self.now + delay, event);
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        self.trace.line(self.now, text);
    }

    /// Something that must not be.
    pub(crate) fn violation(&mut self, text: String) {
        self.note(|| format!("VIOLATION {text}"));
        self.checks.violations.push(text);
    }

    /// Runs until `end`, or until something was found.
    pub fn run_until(&mut self, end: Time) {
        while self.checks.violations.is_empty() {
            let Some((at, event)) = self.queue.pop(end) else { break };
            self.now = at;
            self.dispatch(event);
        }
        self.now = self.now.max(end);
        self.figures.time = self.now;
    }

    /// The node that an event is for: a stopped one takes it later.
    fn addressee(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Disk { node, .. }
            | Event::Data { node, .. }
            | Event::Meta { node, .. }
            | Event::Tick { node, .. }
            | Event::Round { node, .. }
            | Event::Heartbeat { node, .. } => Some(*node),
            Event::Raft { to, .. } | Event::Call { to, .. } => Some(*to),
            Event::Client { client } => Some(self.clients[*client].node),
            Event::Conn { conn, side } => {
                self.net.conns.get(conn).map(|conn| conn.ends[1 - side].node)
            }
            _ => None,
        }
    }

    fn dispatch(&mut self, event: Event) {
        if let Some(node) = self.addressee(&event)
            && self.nodes[node].frozen > self.now
        {
            return self.nodes[node].missed.push(event);
        }
        match event {
            Event::Disk { node, run, io } => {
                self.trace.mix(self.now, 1 + node as u64, io);
                if self.is_run(node, run) {
                    self.disk_done(node, io);
                }
            }
            Event::Data { node, run } => {
                if self.is_run(node, run) {
                    self.data_timer(node);
                }
            }
            Event::Meta { node, run } => {
                if self.is_run(node, run) {
                    self.meta_work(node);
                }
            }
            Event::Tick { node, run } => {
                if self.is_run(node, run) {
                    self.after(100 * MS, Event::Tick { node, run });
                    self.meta_input(node, MetaInput::Step(metadata::Input::Tick));
                }
            }
            Event::Round { node, run } => {
                if self.is_run(node, run) {
                    self.after(50 * MS, Event::Round { node, run });
                    self.round(node);
                }
            }
            Event::Heartbeat { node, run } => {
                if self.is_run(node, run) {
                    self.after(300 * MS, Event::Heartbeat { node, run });
                    self.heartbeat(node);
                }
            }
            Event::Conn { conn, side } => self.conn_due(conn, side),
            Event::GiveUp { conn, side, since } => self.give_up_conn(conn, side, since),
            Event::Raft { to, message } => {
                self.trace.mix(self.now, 20 + to as u64, message.len() as u64);
                self.meta_input(to, MetaInput::Step(metadata::Input::Message(message)));
            }
            Event::Call { to, call } => self.call(to, *call),
            Event::LateCall { from, to, call } => {
                if !self.net.control_cut(from, to) {
                    self.after(0, Event::Call { to, call });
                }
            }
            Event::Start { node, run } => {
                if self.nodes[node].run == run {
                    self.start(node);
                }
            }
            Event::Thaw { node } => {
                if self.nodes[node].frozen <= self.now {
                    self.thaw(node);
                }
            }
            Event::Fault { index } => self.begin_fault(index),
            Event::Heal { index } => self.end_fault(index),
            Event::Client { client } => self.client_due(client),
            Event::Volume { volume } => self.orchestrate(volume),
            Event::Operator => self.operate(),
        }
    }

    /// Node `n` is not stopped any more: what it missed comes now.
    pub(crate) fn thaw(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        node.frozen = 0;
        node.resumed = node.clock.at(now);
        for event in std::mem::take(&mut node.missed) {
            self.post(now, event);
        }
    }

    pub(crate) fn is_run(&self, node: usize, run: u64) -> bool {
        let node = &self.nodes[node];
        node.run == run && node.process.is_some()
    }

    /// One output of a state machine is about to be carried out: false if the process dies here.
    pub(crate) fn survives(&mut self, n: usize) -> bool {
        let node = &mut self.nodes[n];
        let Some((left, death)) = &mut node.doomed else { return node.process.is_some() };
        if *left > 0 {
            *left -= 1;
            return true;
        }
        let death = *death;
        node.doomed = None;
        self.kill(n, death);
        false
    }

    /// The daemon of node `n` ends as `death` says, and starts again after a while.
    pub(crate) fn kill(&mut self, n: usize, death: Death) {
        let now = self.now;
        let node = &mut self.nodes[n];
        node.troubled = now;
        node.doomed = None;
        let had_process = node.process.take().is_some();
        let run = node.run;
        node.run += 1;
        self.thaw(n);
        self.note(|| format!("node {} dies: {death:?}", n + 1));
        if death == Death::Power {
            self.power_loss(n);
        } else if had_process {
            let mut disk = std::mem::take(&mut self.nodes[n].disk);
            disk.abandoned(&mut self.rng);
            self.nodes[n].disk = disk;
        }
        self.drop_connections(n, run, death);
        self.clients_lose_node(n, death);
    }

    fn power_loss(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.powered = false;
        let data_start = node.data_start;
        // One that is not plugged in has no power either.
        let mut disk = std::mem::take(&mut node.disk);
        disk.power_loss(&mut self.rng, data_start);
        self.nodes[n].disk = disk;
        self.checks.host_lost_power(n, self.now);
    }

    /// What the death of a process or host does to its connections.
    fn drop_connections(&mut self, n: usize, run: u64, death: Death) {
        for (conn, side) in self.net.of(n, run) {
            let peer = match self.net.conns.get_mut(&conn) {
                Some(found) => {
                    found.ends[side].open = false;
                    found.ends[1 - side].node
                }
                None => continue,
            };
            if death == Death::Kill {
                // The kernel sends what it has and ends the connection, or resets it because
                // something that came was never read.
                if self.rng.chance(50) {
                    self.net.clear(conn, side);
                    self.send_item(conn, side, Item::Reset);
                } else {
                    self.send_item(conn, side, Item::Fin);
                }
            } else {
                self.net.clear(conn, side);
                let since = self.now;
                let delay = crate::net::USER_TIMEOUT + self.rng.below(3_000) * MS;
                self.after(delay, Event::GiveUp { conn, side: 1 - side, since });
            }
            let _ = peer;
            self.net.forget_if_over(conn);
        }
    }

    /// A daemon is to run on node `n` after `delay`.
    pub(crate) fn start_later(&mut self, n: usize, delay: Time) {
        let run = self.nodes[n].run;
        self.after(delay, Event::Start { node: n, run });
    }

    /// Sends on a connection.
    pub(crate) fn send_item(&mut self, conn: ConnId, side: usize, item: Item) {
        if let Some(due) = self.net.send(self.now, conn, side, item) {
            self.post(due, Event::Conn { conn, side });
        }
    }

    fn conn_due(&mut self, conn: ConnId, side: usize) {
        let (item, next) = self.net.deliver(self.now, conn, side);
        if let Some(next) = next {
            self.post(next, Event::Conn { conn, side });
        }
        if let Some(item) = item {
            self.trace.mix(self.now, 40 + side as u64, conn);
            self.receive_item(conn, 1 - side, item);
        }
        self.net.forget_if_over(conn);
    }

    /// Nothing came back on a connection for so long that its kernel ends it.
    fn give_up_conn(&mut self, conn: ConnId, side: usize, since: Time) {
        let Some(found) = self.net.conns.get(&conn) else { return };
        let (end, peer) = (&found.ends[side], &found.ends[1 - side]);
        let path = |a, b| self.net.data_cut(a, b) && self.net.path(a, b).since <= since;
        let dead = self.nodes[peer.node].run != peer.run || !self.nodes[peer.node].powered;
        let still = path(end.node, peer.node) || path(peer.node, end.node) || dead;
        if end.open && still {
            self.note(|| format!("connection {conn} is given up by its end {side}"));
            self.net.clear(conn, side);
            self.conn_lost(conn, side);
        }
    }

    /// One way between two nodes was cut just now: kernels will give up what does not move.
    pub(crate) fn path_was_cut(&mut self, from: usize, to: usize) {
        let since = self.now;
        for conn in self.net.between(from, to) {
            for side in 0..2 {
                let delay = crate::net::USER_TIMEOUT + self.rng.below(4_000) * MS;
                self.after(delay, Event::GiveUp { conn, side, since });
            }
        }
    }

    /// One way between two nodes works again.
    pub(crate) fn path_was_healed(&mut self, from: usize, to: usize) {
        for (due, conn, side) in self.net.resume(self.now, from, to) {
            self.post(due, Event::Conn { conn, side });
        }
    }

    /// A Raft message: it may be lost, late, twice, and overtake others.
    pub(crate) fn send_raft(&mut self, from: usize, to: NodeId, message: Vec<u8>) {
        let to = index(to);
        if to >= self.nodes.len() {
            return;
        }
        let twice = self.net.rng().one_in(100);
        for _ in 0..1 + u32::from(twice) {
            if let Some(mut at) = self.net.message(self.now, from, to) {
                if self.net.rng().one_in(50) {
                    at += self.net.rng().below(300) * MS;
                }
                self.post(at, Event::Raft { to, message: message.clone() });
            }
        }
    }

    /// Work for the data thread of node `n`; it is done at once.
    pub(crate) fn data_input(&mut self, n: usize, work: Work) {
        if let Some(process) = &mut self.nodes[n].process {
            process.data.work.push_back(work);
            self.work_off(n);
        }
    }

    /// Time that a disk operation takes.
    pub(crate) fn disk_time(&mut self, n: usize, sync: bool) -> Time {
        let slow = self.nodes[n].slow_disk;
        let base = if sync {
            300 * US + self.rng.below(3 * MS)
        } else {
            30 * US + self.rng.below(300 * US)
        };
        let spike = if self.rng.one_in(300) { self.rng.below(30 * MS) } else { 0 };
        let slow = if slow > 0 { self.rng.below(slow) } else { 0 };
        base + spike + slow
    }
}
