//! What goes wrong and when: a plan made from the seed before the run, so that each fault can be left
//! out to find those that matter.

use crate::clock::{MS, SEC, Time};
use crate::node::Death;
use crate::rng::Rng;
use types::ERA;

/// What goes wrong. Nodes by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    /// The daemon is killed and starts again when the fault ends.
    Kill { node: usize },
    /// The host loses power and boots when the fault ends.
    Power { node: usize },
    /// All of them at once.
    PowerAll,
    /// The process dies after so many more outputs of its state machines.
    CrashAtOutput { node: usize, outputs: u32, death: Death },
    /// The next write of the Raft log fails; `kept`: the batch is on the disk all the same.
    RaftDisk { node: usize, kept: bool },
    /// One way between two nodes is cut, for everything or for some.
    CutOneWay { from: usize, to: usize, what: Traffic },
    /// Both ways.
    Cut { a: usize, b: usize, what: Traffic },
    /// A node hears nobody, is heard by nobody, or both.
    Isolate { node: usize, hears: bool, heard: bool },
    /// Two sides that do not hear each other: nodes with their bit set, and the others.
    Split { side: u32 },
    /// A slow link, both ways.
    Slow { a: usize, b: usize, by: Time },
    /// A lossy link, both ways, in per cent.
    Loss { a: usize, b: usize, percent: u64 },
    /// All data connections between two nodes break once.
    Break { a: usize, b: usize },
    /// The daemon is stopped for the time (SIGSTOP, a starved machine).
    Freeze { node: usize },
    /// Every operation of a disk takes up to that much longer.
    SlowDisk { node: usize, by: Time },
    /// The next write to the pool fails.
    WriteError { node: usize },
    /// The next sync of the pool fails.
    SyncError { node: usize },
    /// Blocks that consumers use become unreadable on one copy.
    ReadError { node: usize, pick: u64 },
    /// Bits of such blocks flip on one copy.
    Rot { node: usize, pick: u64 },
    /// The daemon is killed and finds another disk: blank, or of another pool or cluster.
    Swap { node: usize, how: u64 },
    /// The pool is copied, and when the fault ends the daemon is killed and finds that copy.
    Image { node: usize },
    /// The host's clock runs at another rate.
    Drift { node: usize, ppm: i64 },
    /// Raft and calls of a node get nowhere; data do.
    Mute { node: usize },
    /// Likewise, of all nodes: nothing can be decided.
    MuteAll,
}

/// What a fault waits for, if it does not simply begin: hosts fail right after something was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Moment {
    /// A consumer's write was acknowledged.
    Acked,
    /// A consumer's flush was.
    Flushed,
    /// An engine tells a replica that it stops cleanly.
    Closing,
    /// A volume was taken from a lost node.
    Fenced,
    /// An era is about to be sealed.
    EraSealing,
    /// A replica joined the in-sync set.
    Joined,
    /// A volume's new epoch is active.
    Activated,
    /// A node leads Raft.
    Elected,
    /// An engine asks a replica for a snapshot.
    Snapshotting,
}

impl Moment {
    const ALL: [Self; 9] = [
        Self::Acked,
        Self::Flushed,
        Self::Closing,
        Self::Fenced,
        Self::EraSealing,
        Self::Joined,
        Self::Activated,
        Self::Elected,
        Self::Snapshotting,
    ];
}

/// Whom a fault is about, when that is known only as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The node that has the volume attached.
    Holder,
    /// Another node with an in-sync copy of it.
    Member,
    /// Raft's leader.
    Leader,
}

impl Kind {
    /// Makes it about `aim`, of `nodes` nodes.
    pub(crate) fn aim(&mut self, aim: usize, nodes: usize) {
        match self {
            Self::Kill { node }
            | Self::Power { node }
            | Self::CrashAtOutput { node, .. }
            | Self::RaftDisk { node, .. }
            | Self::Isolate { node, .. }
            | Self::Freeze { node }
            | Self::SlowDisk { node, .. }
            | Self::WriteError { node }
            | Self::SyncError { node }
            | Self::ReadError { node, .. }
            | Self::Rot { node, .. }
            | Self::Swap { node, .. }
            | Self::Image { node }
            | Self::Drift { node, .. }
            | Self::Mute { node } => *node = aim,
            Self::CutOneWay { from: a, to: b, .. }
            | Self::Cut { a, b, .. }
            | Self::Slow { a, b, .. }
            | Self::Loss { a, b, .. }
            | Self::Break { a, b } => {
                *a = aim;
                if a == b {
                    *b = (aim + 1) % nodes;
                }
            }
            Self::PowerAll | Self::Split { .. } | Self::MuteAll => {}
        }
    }
}

/// Which traffic a cut stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Traffic {
    All,
    Data,
    Control,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When it begins.
    pub at: Time,
    /// How long it lasts.
    pub lasts: Time,
    /// What it is.
    pub kind: Kind,
    /// Its first node, if not the one in `kind`.
    pub whom: Option<Whom>,
    /// From `at` on it waits for this, and begins so much later.
    pub when: Option<(Moment, Time)>,
}

/// What a run is about, beside a mixture of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Theme {
    /// Links.
    Network,
    /// Processes and hosts.
    Power,
    /// Disks, stops, clocks.
    Disks,
    /// All of it.
    #[default]
    Mixture,
    /// Nodes that lose a volume without hearing of it, and go on (R7, R8).
    Usurped,
    /// Hosts that die right after something was promised.
    Promises,
    /// Raft without rest.
    Elections,
    /// Nothing can be decided while a copy is lost and an era ends; then the copy that sealed it is lost.
    LateSeal,
    /// Slots change hands on disks that fall behind, until power is lost (R23).
    Reuse,
    /// Copies are at a snapshot for so long that it is given up, and asked for the next one (R26).
    Snapshots,
}

impl Theme {
    fn pick(rng: &mut Rng) -> Self {
        match rng.below(16) {
            0 => Self::Network,
            1 => Self::Power,
            2 => Self::Disks,
            3..5 => Self::Usurped,
            5..8 => Self::Promises,
            8 => Self::Elections,
            9..11 => Self::LateSeal,
            11 => Self::Reuse,
            12..14 => Self::Snapshots,
            _ => Self::Mixture,
        }
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// All faults.
    pub faults: Vec<Fault>,
    /// Those that are left out.
    pub without: Vec<bool>,
    /// What the run is about.
    pub theme: Theme,
    pub(crate) begun: Vec<bool>,
    /// Those that wait for their moment.
    pub(crate) armed: Vec<usize>,
}

impl Plan {
    /// Faults for `nodes` nodes between `from` and `to`.
    #[must_use]
    pub fn random(nodes: usize, from: Time, to: Time, rng: &mut Rng) -> Self {
        let mut faults = Vec::new();
        let theme = Theme::pick(rng);
        let told = !matches!(theme, Theme::Network | Theme::Power | Theme::Disks | Theme::Mixture);
        // A story needs some quiet around it.
        let quiet = if theme == Theme::LateSeal {
            24
        } else if told {
            3
        } else {
            1
        };
        let mean = rng.between(2_200, 5_000) * MS * quiet;
        let mut at = from;
        while told && at < to {
            at += rng.between(3_000, 16_000) * MS;
            at += Self::story(nodes, at, theme, rng, &mut faults);
        }
        faults.retain(|fault| fault.at < to);
        at = from;
        loop {
            at += rng.below(2 * mean) + 1;
            if at >= to {
                break;
            }
            faults.push(Self::one(nodes, at, theme, rng));
            // Trouble comes in pairs.
            if rng.chance(25) {
                let at = at + rng.below(1500 * MS);
                faults.push(Self::one(nodes, at, theme, rng));
            }
        }
        // Now and then anything at all waits for anything.
        for fault in faults.iter_mut().filter(|fault| fault.when.is_none()) {
            if !told && rng.one_in(20) {
                let moment = rng.pick(&Moment::ALL).unwrap_or(Moment::Acked);
                fault.when = Some((moment, rng.below(3) * rng.below(100 * MS)));
            }
        }
        faults.sort_by_key(|fault| fault.at);
        let count = faults.len();
        let (without, begun) = (vec![false; count], vec![false; count]);
        Self { faults, without, theme, begun, armed: Vec::new() }
    }

    /// Faults that belong together, from `at` on; returns how long they take.
    fn story(nodes: usize, at: Time, theme: Theme, rng: &mut Rng, faults: &mut Vec<Fault>) -> Time {
        let node = rng.below(nodes as u64) as usize;
        let other = (node + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
        let fault = |kind, lasts| Fault { at, lasts, kind, whom: None, when: None };
        let death = if rng.chance(50) { Death::Kill } else { Death::Power };
        match theme {
            Theme::Usurped => {
                // Some have the time to try again, while their successor stands still.
                let again = rng.chance(50);
                let (least, most) = if again { (12_000, 20_000) } else { (5_000, 11_000) };
                let lasts = rng.between(least, most) * MS;
                let whom = Some(Whom::Holder);
                if rng.chance(40) {
                    // What they had sent is still on its way to the disk when the successor seals.
                    let slow = Kind::SlowDisk { node, by: rng.between(1_000, 8_000) * MS };
                    let slow = fault(slow, rng.between(200, 900) * MS);
                    let at = at + rng.between(2_000, 2_900) * MS;
                    faults.push(Fault { at, whom: Some(Whom::Member), ..slow });
                }
                faults.push(Fault { whom, ..fault(Kind::Mute { node }, lasts) });
                let kind = match rng.below(4) {
                    0 => Kind::CutOneWay { from: node, to: other, what: Traffic::Data },
                    1 => Kind::Freeze { node },
                    2 => Kind::Isolate { node, hears: false, heard: true },
                    _ => Kind::Isolate { node, hears: false, heard: false },
                };
                let when = Some((Moment::Fenced, rng.below(80) * MS));
                let cut = rng.between(500, if again { 2_000 } else { 5_000 }) * MS;
                faults.push(Fault { whom, when, ..fault(kind, cut) });
                if again {
                    let when = Some((Moment::Activated, rng.below(1_500) * MS));
                    let still = fault(Kind::Freeze { node }, rng.between(3_000, 6_000) * MS);
                    faults.push(Fault { at: at + 2_500 * MS, whom, when, ..still });
                }
                lasts
            }
            Theme::Promises => {
                let moment = match rng.below(16) {
                    0..6 => Moment::Acked,
                    few => Moment::ALL[few as usize % Moment::ALL.len()],
                };
                let (kind, whom) = match rng.below(8) {
                    0..3 => (Kind::PowerAll, None),
                    3 => (Kind::Power { node }, Some(Whom::Member)),
                    4 => (Kind::Power { node }, Some(Whom::Holder)),
                    5 => (Kind::Kill { node }, Some(Whom::Member)),
                    6 => (Kind::Kill { node }, Some(Whom::Holder)),
                    _ => {
                        let outputs = rng.below(12) as u32;
                        (Kind::CrashAtOutput { node, outputs, death }, Some(Whom::Member))
                    }
                };
                let delay = match rng.below(4) {
                    0 => 0,
                    1 => rng.below(400) * 1_000,
                    2 => rng.below(5 * MS),
                    _ => rng.below(300 * MS),
                };
                let when = Some((moment, delay));
                faults.push(Fault { whom, when, ..fault(kind, rng.between(20, 2_500) * MS) });
                2 * SEC
            }
            Theme::Elections => {
                let whom = Some(Whom::Leader);
                let short = rng.between(20, 400) * MS;
                let long = rng.between(1_500, 6_000) * MS;
                let (kind, lasts) = match rng.below(6) {
                    0 => (Kind::Kill { node }, short),
                    1 => (Kind::Mute { node }, long),
                    2 => (Kind::Isolate { node, hears: false, heard: true }, long),
                    3 => (Kind::Isolate { node, hears: true, heard: false }, long),
                    4 => (Kind::Freeze { node }, long),
                    _ => {
                        (Kind::CrashAtOutput { node, outputs: rng.below(20) as u32, death }, short)
                    }
                };
                faults.push(Fault { whom, ..fault(kind, lasts) });
                if rng.chance(60) {
                    let kind = Kind::Slow { a: node, b: other, by: rng.between(20, 400) * MS };
                    faults.push(fault(kind, long));
                }
                let kind = if rng.chance(50) { Kind::Kill { node } } else { Kind::Mute { node } };
                let when = Some((Moment::Elected, rng.below(20) * MS));
                let lasts = if rng.chance(50) { short } else { long };
                faults.push(Fault { when, ..fault(kind, lasts) });
                long
            }
            Theme::Snapshots => {
                let by = rng.between(1_500, 6_000) * MS;
                let lasts = rng.between(1_000, 6_000) * MS;
                let whom = Some(if rng.chance(70) { Whom::Member } else { Whom::Holder });
                let when = Some((Moment::Snapshotting, 0));
                faults.push(Fault { whom, when, ..fault(Kind::SlowDisk { node, by }, lasts) });
                lasts
            }
            Theme::Reuse => {
                let by = rng.between(20, 600) * MS;
                let lasts = rng.between(1_000, 4_000) * MS;
                let whom = Some(if rng.chance(70) { Whom::Member } else { Whom::Holder });
                faults.push(Fault { whom, ..fault(Kind::SlowDisk { node, by }, lasts) });
                let at = at + 300 * MS + rng.below(lasts);
                let away = rng.between(20, 2_500) * MS;
                faults.push(Fault { at, whom, ..fault(Kind::Power { node }, away) });
                lasts + 2 * SEC
            }
            _ => {
                // A copy is lost, with what was not flushed, in the moment before an era ends, and nobody can
                // decide that it does not count: the other one seals alone. Then that is lost too, and stays
                // away until the first is the truth.
                let mut after = |least, most, kind, whom, lasts| {
                    let when = Some((Moment::EraSealing, rng.between(least, most) * MS));
                    faults.push(Fault { at, lasts: lasts * MS, kind, whom, when });
                };
                let (member, holder) = (Some(Whom::Member), Some(Whom::Holder));
                after(27_500, 28_500, Kind::MuteAll, None, 5_000);
                after(28_600, 29_950, Kind::Power { node }, member, 6_000);
                after(30_150, 31_500, Kind::Power { node }, holder, 15_000);
                2 * ERA.as_nanos() as Time + 16 * SEC
            }
        }
    }

    fn one(nodes: usize, at: Time, theme: Theme, rng: &mut Rng) -> Fault {
        let node = rng.below(nodes as u64) as usize;
        let other = (node + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
        let what = match rng.below(4) {
            0 => Traffic::Data,
            1 => Traffic::Control,
            _ => Traffic::All,
        };
        let death = if rng.chance(50) { Death::Kill } else { Death::Power };
        let short = rng.between(20, 2_500) * MS;
        let long = rng.between(1_000, 14_000) * MS;
        let lasts = if rng.chance(60) { short } else { long };
        let dice = match theme {
            Theme::Network => rng.between(26, 62),
            Theme::Power => rng.between(0, 25),
            Theme::Disks => rng.between(63, 99),
            _ => rng.below(100),
        };
        let kind = match dice {
            0..8 => Kind::Kill { node },
            8..14 => Kind::Power { node },
            14 => Kind::PowerAll,
            15..24 => Kind::CrashAtOutput { node, outputs: rng.below(60) as u32, death },
            24..26 => Kind::RaftDisk { node, kept: rng.chance(50) },
            26..33 => Kind::CutOneWay { from: node, to: other, what },
            33..40 => Kind::Cut { a: node, b: other, what },
            40..48 => {
                let both = rng.below(3);
                Kind::Isolate { node, hears: both == 1, heard: both == 2 }
            }
            48..51 => Kind::Split { side: rng.below(1 << nodes) as u32 },
            51..55 => Kind::Slow { a: node, b: other, by: rng.between(1, 400) * MS },
            55..58 => Kind::Loss { a: node, b: other, percent: rng.between(2, 50) },
            58..63 => Kind::Break { a: node, b: other },
            63..74 => Kind::Freeze { node },
            74..80 => Kind::SlowDisk { node, by: rng.between(5, 1_500) * MS },
            80..83 => Kind::WriteError { node },
            83..85 => Kind::SyncError { node },
            85..90 => Kind::ReadError { node, pick: rng.bits() },
            90..95 => Kind::Rot { node, pick: rng.bits() },
            95 => Kind::Swap { node, how: rng.bits() },
            96 => Kind::Image { node },
            _ => Kind::Drift { node, ppm: rng.between(0, 40_000) as i64 - 20_000 },
        };
        // For an image, long enough for later epochs.
        let restored = matches!(kind, Kind::Image { .. });
        let lasts = if restored { rng.between(2_000, 40_000) * MS } else { lasts };
        Fault { at, lasts, kind, whom: None, when: None }
    }

    /// When everything is over.
    #[must_use]
    pub fn end(&self) -> Time {
        self.faults.iter().map(|fault| fault.at + fault.lasts).max().unwrap_or(0)
    }
}
