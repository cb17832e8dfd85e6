//! The network: links between nodes that are slow, lossy or cut one way, and connections on them.
//!
//! A connection is TCP as its ends see it: frames arrive whole, once and in order, or the
//! connection breaks. On a cut link they wait, and come late when it is healed before the kernel
//! gives up. Raft messages and calls are single messages (see `world::send_raft`).

use crate::clock::{MS, SEC, Time, US};
use crate::rng::Rng;
use std::collections::{BTreeMap, VecDeque};
use store::SessionId;
use types::VolumeId;
use wire::Frame;

/// Number of a connection.
pub type ConnId = u64;

/// After this long without an answer the kernel gives a connection up (TCP_USER_TIMEOUT).
pub const USER_TIMEOUT: Time = 10 * SEC;

/// Whom an end serves; see `data::conn::Purpose` of the daemon.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// An engine of another node, once it said Hello.
    Inbound(Option<SessionId>),
    /// A link of an engine here.
    Engine(VolumeId, engine::LinkId),
    /// A seal without an engine (R7).
    Sealer(u64),
}

/// What travels on a connection.
#[derive(Clone, Debug)]
pub enum Item {
    /// The connection is wanted.
    Syn,
    /// It is accepted.
    SynAck,
    /// A frame.
    Frame(Box<Frame>),
    /// No more will come: closed by the other end in order.
    Fin,
    /// Broken: nobody is there.
    Reset,
}

/// One end.
#[derive(Debug)]
pub struct End {
    /// Index of the node.
    pub node: usize,
    /// Run of its process.
    pub run: u64,
    /// Not closed by this end, and established.
    pub open: bool,
    /// See [`Purpose`].
    pub purpose: Purpose,
    /// What travels to the other end.
    queue: VecDeque<(Time, Item)>,
    /// When the last of it arrives: TCP keeps the order.
    last: Time,
    /// A delivery is scheduled.
    pumped: bool,
}

/// A connection: the end that asked for it, and the other.
#[derive(Debug)]
pub struct Conn {
    /// Initiator first.
    pub ends: [End; 2],
}

/// The way from one node to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    /// Number of faults that cut it now.
    pub cuts: u32,
    /// Likewise, of data connections only.
    pub data_cuts: u32,
    /// Likewise, of Raft and calls only.
    pub control_cuts: u32,
    /// Added to every latency.
    pub slow: Time,
    /// Messages lost, in a hundred.
    pub loss: u64,
    /// Since when it is cut or was last healed.
    pub since: Time,
}

/// See the module's text.
pub struct Net {
    nodes: usize,
    paths: Vec<Path>,
    /// All connections that have an end.
    pub conns: BTreeMap<ConnId, Conn>,
    next: ConnId,
    rng: Rng,
    /// Latency of a good link, at most.
    base: Time,
}

impl Net {
    /// `nodes` nodes, all connected.
    #[must_use]
    pub fn new(nodes: usize, mut rng: Rng) -> Self {
        let base = rng.between(50, 400) * US;
        Self {
            nodes,
            paths: vec![Path::default(); nodes * nodes],
            conns: BTreeMap::new(),
            next: 0,
            rng,
            base,
        }
    }

    /// The way between two nodes.
    #[must_use]
    pub fn path(&self, from: usize, to: usize) -> &Path {
        &self.paths[from * self.nodes + to]
    }

    /// The same, to be changed.
    pub fn path_mut(&mut self, from: usize, to: usize) -> &mut Path {
        &mut self.paths[from * self.nodes + to]
    }

    /// Whether nothing of data connections gets through.
    #[must_use]
    pub fn data_cut(&self, from: usize, to: usize) -> bool {
        let path = self.path(from, to);
        path.cuts + path.data_cuts > 0
    }

    /// Whether no message of Raft or the control plane gets through.
    #[must_use]
    pub fn control_cut(&self, from: usize, to: usize) -> bool {
        let path = self.path(from, to);
        path.cuts + path.control_cuts > 0
    }

    /// Latency of one message.
    pub fn latency(&mut self, from: usize, to: usize) -> Time {
        let slow = self.path(from, to).slow;
        let base = 20 * US + self.rng.below(self.base);
        let spike = if self.rng.one_in(200) { self.rng.below(20 * MS) } else { 0 };
        let slow = if slow > 0 { slow / 2 + self.rng.below(slow) } else { 0 };
        base + spike + slow
    }

    /// When a single message arrives; `None` if it is lost.
    pub fn message(&mut self, now: Time, from: usize, to: usize) -> Option<Time> {
        if self.control_cut(from, to) || self.rng.below(100) < self.path(from, to).loss {
            return None;
        }
        Some(now + self.latency(from, to))
    }

    /// Draws for the caller.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// A new connection; its first item is [`Item::Syn`].
    pub fn connect(&mut self, from: (usize, u64), to: usize, purpose: Purpose) -> ConnId {
        self.next += 1;
        let end = |node, run, open, purpose| End {
            node,
            run,
            open,
            purpose,
            queue: VecDeque::new(),
            last: 0,
            pumped: false,
        };
        let ends = [end(from.0, from.1, true, purpose), end(to, 0, false, Purpose::Inbound(None))];
        self.conns.insert(self.next, Conn { ends });
        self.next
    }

    /// Queues `item` from end `side`; returns when to call [`Self::deliver`], if that is not
    /// scheduled yet.
    pub fn send(&mut self, now: Time, id: ConnId, side: usize, item: Item) -> Option<Time> {
        let conn = self.conns.get(&id)?;
        let (from, to) = (conn.ends[side].node, conn.ends[1 - side].node);
        let mut due = now + self.latency(from, to);
        if self.path(from, to).loss > 0 && self.rng.below(100) < self.path(from, to).loss {
            // TCP sends it again.
            due += 200 * MS;
        }
        let end = &mut self.conns.get_mut(&id)?.ends[side];
        due = due.max(end.last);
        end.last = due;
        end.queue.push_back((due, item));
        if end.pumped {
            return None;
        }
        end.pumped = true;
        Some(due)
    }

    /// The next item from end `side` that is due, and when to call again.
    pub fn deliver(&mut self, now: Time, id: ConnId, side: usize) -> (Option<Item>, Option<Time>) {
        let Some(conn) = self.conns.get(&id) else { return (None, None) };
        let cut = self.data_cut(conn.ends[side].node, conn.ends[1 - side].node);
        let Some(end) = self.conns.get_mut(&id).map(|conn| &mut conn.ends[side]) else {
            return (None, None);
        };
        end.pumped = false;
        if cut {
            // It waits until the link is healed.
            return (None, None);
        }
        let item = match end.queue.front() {
            Some((due, _)) if *due <= now => end.queue.pop_front().map(|(_, item)| item),
            _ => None,
        };
        let next = end.queue.front().map(|(due, _)| (*due).max(now));
        end.pumped = next.is_some();
        (item, next)
    }

    /// The link `from` to `to` carries data again: what waited is sent again, each connection after
    /// its own backoff. Returns what to call [`Self::deliver`] with.
    pub fn resume(&mut self, now: Time, from: usize, to: usize) -> Vec<(Time, ConnId, usize)> {
        let cut_for = now - self.path(from, to).since.min(now);
        let mut due = Vec::new();
        for (id, conn) in &mut self.conns {
            for side in 0..2 {
                let fits = conn.ends[side].node == from && conn.ends[1 - side].node == to;
                let end = &mut conn.ends[side];
                if fits && !end.queue.is_empty() && !end.pumped {
                    end.pumped = true;
                    let backoff = self.rng.below((2 * cut_for).min(3 * SEC) + 1);
                    end.last = end.last.max(now + backoff);
                    due.push((now + backoff, *id, side));
                }
            }
        }
        due
    }

    /// What end `side` has not yet sent is lost.
    pub fn clear(&mut self, id: ConnId, side: usize) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.ends[side].queue.clear();
        }
    }

    /// Forgets the connection if nothing of it is left.
    pub fn forget_if_over(&mut self, id: ConnId) {
        let over = |end: &End| !end.open && end.queue.is_empty();
        if self.conns.get(&id).is_some_and(|conn| conn.ends.iter().all(over)) {
            self.conns.remove(&id);
        }
    }

    /// Connections between two nodes, in either direction.
    #[must_use]
    pub fn between(&self, a: usize, b: usize) -> Vec<ConnId> {
        let fits = |conn: &Conn| {
            let (x, y) = (conn.ends[0].node, conn.ends[1].node);
            (x, y) == (a, b) || (x, y) == (b, a)
        };
        self.conns.iter().filter(|(_, conn)| fits(conn)).map(|(id, _)| *id).collect()
    }

    /// Connections with an open end of this run of a node, and which end it is.
    #[must_use]
    pub fn of(&self, node: usize, run: u64) -> Vec<(ConnId, usize)> {
        let mut found = Vec::new();
        for (id, conn) in &self.conns {
            for (side, end) in conn.ends.iter().enumerate() {
                if end.node == node && end.run == run && end.open {
                    found.push((*id, side));
                }
            }
        }
        found
    }
}
