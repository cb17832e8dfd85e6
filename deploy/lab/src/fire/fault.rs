//! What can happen to a node, and how it is undone.

use super::full;
use crate::cluster::Lab;
use crate::daemons::{CSI_CONTROLLER, CSI_NODE, DEVICE_HOLDER, REPLICATOR};
use crate::disk::Mode;
use crate::layout::{CONTROL_PORT, DATA_PORT, Layout};
use crate::net::Cut;
use crate::process::in_network_namespace;
use anyhow::Result;
use core::fmt;
use nix::sys::signal::Signal;
use std::time::Duration;

/// How long a SIGKILLed program may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How long a daemon lies dead before its supervisor starts it again.
const SUPERVISOR: Duration = Duration::from_millis(300);
/// How long a host takes from the loss of power to the start of its daemons.
const REBOOT: Duration = Duration::from_secs(1);
/// After so many seconds a lost copy is replaced in a soak's lab (R27).
pub(super) const REPLACE_AFTER_SECONDS: u64 = 20;
/// How long a node is away that has its copy replaced.
const ABSENCE: Duration = Duration::from_secs(REPLACE_AFTER_SECONDS + 6);
/// How long a cut lasts: long enough for a failover.
const CUT: Duration = Duration::from_secs(7);
/// How long a freeze lasts: long enough for everything of the frozen one to have been given up.
const FREEZE: Duration = Duration::from_secs(15);
/// How long a pool stays full once the database has noticed.
const FULL: Duration = Duration::from_secs(3);

/// Whom a fault hits, in relation to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The node of the pod: engine, kernel device, one copy.
    Pod,
    /// The node of the other copy.
    Copy,
    /// The node that has only a vote.
    Vote,
    /// All nodes.
    All,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// SIGKILL of one program; it is started again.
    Kill(&'static str),
    /// SIGTERM of the replicator, and a new one: an upgrade.
    Upgrade,
    /// SIGKILL of everything on the node, the pod's processes included.
    Crash,
    /// [`Harm::Crash`] for so long that the node's copy is replaced.
    Absence,
    /// [`Harm::Crash`], and what the disk had not flushed is lost, kept or torn.
    PowerCut,
    /// Every request to the disk of the pool fails.
    DiskErrors,
    /// The disk of the pool answers no request.
    DiskHangs,
    /// The pool has no room left.
    Full,
    /// Traffic is dropped.
    Cut(Cut),
    /// SIGSTOP of the replicator.
    Freeze,
    /// SIGSTOP of everything on the node.
    FreezeAll,
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Under load, with everything whole.
    Calm,
    /// While a copy is brought up to date.
    Resync,
    /// While the volume is attached.
    Attach,
}

/// One fault of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whom.
    pub victim: Victim,
    /// What.
    pub harm: Harm,
    /// When.
    pub when: When,
}

const fn on(victim: Victim, harm: Harm) -> Fault {
    Fault { victim, harm, when: When::Calm }
}

const fn during(when: When, victim: Victim, harm: Harm) -> Fault {
    Fault { victim, harm, when }
}

/// All faults; a soak goes through them in shuffled order, again and again.
pub const FAULTS: &[Fault] = &[
    on(Victim::Pod, Harm::Kill(REPLICATOR)),
    on(Victim::Pod, Harm::Cut(Cut::All)),
    on(Victim::Copy, Harm::PowerCut),
    on(Victim::Pod, Harm::Cut(Cut::Port(DATA_PORT))),
    on(Victim::Copy, Harm::Freeze),
    on(Victim::All, Harm::PowerCut),
    on(Victim::Copy, Harm::DiskErrors),
    on(Victim::Pod, Harm::Freeze),
    during(When::Resync, Victim::Pod, Harm::Kill(REPLICATOR)),
    on(Victim::Pod, Harm::Cut(Cut::Port(CONTROL_PORT))),
    during(When::Attach, Victim::Pod, Harm::Kill(REPLICATOR)),
    on(Victim::Pod, Harm::Cut(Cut::Incoming)),
    // A short soak has those above.
    on(Victim::Pod, Harm::PowerCut),
    on(Victim::Pod, Harm::DiskErrors),
    on(Victim::Copy, Harm::Absence),
    on(Victim::Pod, Harm::Crash),
    on(Victim::All, Harm::Crash),
    on(Victim::Copy, Harm::Kill(REPLICATOR)),
    on(Victim::Copy, Harm::Cut(Cut::All)),
    on(Victim::Copy, Harm::DiskHangs),
    on(Victim::Pod, Harm::DiskHangs),
    on(Victim::Vote, Harm::Kill(REPLICATOR)),
    on(Victim::Pod, Harm::Kill(CSI_NODE)),
    on(Victim::Vote, Harm::Kill(CSI_CONTROLLER)),
    on(Victim::Pod, Harm::Kill(DEVICE_HOLDER)),
    on(Victim::Pod, Harm::Cut(Cut::Outgoing)),
    on(Victim::Copy, Harm::Crash),
    on(Victim::Pod, Harm::FreezeAll),
    on(Victim::Pod, Harm::Upgrade),
    on(Victim::Copy, Harm::Upgrade),
    on(Victim::All, Harm::Kill(REPLICATOR)),
    during(When::Resync, Victim::Copy, Harm::PowerCut),
    during(When::Attach, Victim::Copy, Harm::Kill(REPLICATOR)),
    on(Victim::Pod, Harm::Full),
    on(Victim::Copy, Harm::Full),
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let victim = match self.victim {
            Victim::Pod => "the pod's node",
            Victim::Copy => "the other copy's node",
            Victim::Vote => "the third node",
            Victim::All => "all nodes",
        };
        match self.when {
            When::Calm => {}
            When::Resync => write!(f, "during a resync: ")?,
            When::Attach => write!(f, "during an attach: ")?,
        }
        match self.harm {
            Harm::Kill(program) => write!(f, "kill -9 of {program} on {victim}"),
            Harm::Upgrade => write!(f, "replicator upgraded on {victim}"),
            Harm::Crash => write!(f, "crash of {victim}"),
            Harm::Absence => write!(f, "long absence of {victim}"),
            Harm::PowerCut => write!(f, "loss of power of {victim}"),
            Harm::DiskErrors => write!(f, "disk of {victim} fails"),
            Harm::DiskHangs => write!(f, "disk of {victim} hangs"),
            Harm::Full => write!(f, "pool of {victim} is full"),
            Harm::Cut(Cut::All) => write!(f, "cable of {victim} cut"),
            Harm::Cut(Cut::Incoming) => write!(f, "{victim} hears nothing"),
            Harm::Cut(Cut::Outgoing) => write!(f, "{victim} is not heard"),
            Harm::Cut(Cut::Port(DATA_PORT)) => write!(f, "storage links of {victim} cut"),
            Harm::Cut(Cut::Port(CONTROL_PORT)) => write!(f, "Raft links of {victim} cut"),
            Harm::Cut(Cut::Port(port)) => write!(f, "port {port} of {victim} cut"),
            Harm::Freeze => write!(f, "replicator frozen on {victim}"),
            Harm::FreezeAll => write!(f, "{victim} frozen"),
        }
    }
}

impl Fault {
    /// How long the harm lasts before [`Fault::undo`].
    #[must_use]
    pub fn lasts(&self) -> Duration {
        match self.harm {
            Harm::Kill(_) | Harm::Upgrade => SUPERVISOR,
            // The database is down as long.
            Harm::Full => FULL,
            // The stall of the database lasts at least as long.
            Harm::Crash | Harm::PowerCut if self.victim == Victim::All => REBOOT,
            // The copy's node is soon back, and nothing is moved meanwhile.
            _ if self.when != When::Calm => REBOOT,
            Harm::Crash | Harm::PowerCut | Harm::DiskErrors | Harm::Cut(_) => CUT,
            Harm::Freeze | Harm::FreezeAll | Harm::DiskHangs => FREEZE,
            Harm::Absence => ABSENCE,
        }
    }

    /// Whether the volume goes on after a failover at most: one node is hit, and writes have room.
    #[must_use]
    pub fn is_survived(&self) -> bool {
        self.victim != Victim::All && self.harm != Harm::Full
    }

    /// Does it to `nodes`; `seed` chooses what is left on a disk whose power was cut.
    ///
    /// # Errors
    /// If it cannot be done; what was done stays.
    pub async fn strike(&self, lab: &Lab, nodes: &[u64], seed: u64) -> Result<()> {
        if self.harm == Harm::PowerCut {
            // All at once: none of them outlives another one.
            nodes.iter().try_for_each(|node| lab.crash(*node))?;
        }
        for node in nodes {
            match self.harm {
                Harm::Kill(DEVICE_HOLDER) => {
                    for holder in lab.processes(*node, DEVICE_HOLDER)? {
                        holder.signal(Signal::SIGKILL)?;
                    }
                }
                // It runs on one node only.
                Harm::Kill(CSI_CONTROLLER) => {
                    let at = lab.controller_node;
                    lab.signal(at, CSI_CONTROLLER, Signal::SIGKILL, Some(KILL_PATIENCE))?;
                }
                Harm::Kill(daemon) => {
                    lab.signal(*node, daemon, Signal::SIGKILL, Some(KILL_PATIENCE))?;
                }
                Harm::Upgrade => {
                    lab.signal(*node, REPLICATOR, Signal::SIGTERM, Some(KILL_PATIENCE))?;
                }
                Harm::Crash | Harm::Absence => lab.crash(*node)?,
                Harm::PowerCut => {
                    lab.cut_power(*node, seed.wrapping_add(*node))?;
                }
                Harm::DiskErrors => lab.set_disk(*node, Mode::Errors)?,
                Harm::DiskHangs => lab.set_disk(*node, Mode::Hangs)?,
                Harm::Full => full::fill(lab, *node).await?,
                Harm::Cut(cut) => lab.cut_some(*node, cut)?,
                Harm::Freeze => lab.signal(*node, REPLICATOR, Signal::SIGSTOP, None)?,
                Harm::FreezeAll => signal_all(lab, *node, Signal::SIGSTOP)?,
            }
        }
        Ok(())
    }

    /// Undoes what it did to `nodes`: everything runs and is connected again.
    ///
    /// # Errors
    /// If something cannot be undone.
    pub async fn undo(&self, lab: &Lab, nodes: &[u64]) -> Result<()> {
        for node in nodes {
            match self.harm {
                Harm::Cut(_) => lab.heal(*node)?,
                Harm::Freeze => lab.signal(*node, REPLICATOR, Signal::SIGCONT, None)?,
                Harm::FreezeAll => signal_all(lab, *node, Signal::SIGCONT)?,
                Harm::Full => full::empty(lab, *node).await?,
                Harm::PowerCut | Harm::DiskHangs => lab.set_disk(*node, Mode::Fine)?,
                Harm::DiskErrors => {
                    lab.set_disk(*node, Mode::Fine)?;
                    // What a daemon has seen failing it does not touch again (R13).
                    lab.signal(*node, REPLICATOR, Signal::SIGTERM, Some(KILL_PATIENCE))?;
                }
                Harm::Kill(_) | Harm::Upgrade | Harm::Crash | Harm::Absence => {}
            }
        }
        for node in 1..=lab.nodes {
            lab.start(node)?;
        }
        Ok(())
    }
}

fn signal_all(lab: &Lab, node: u64, signal: Signal) -> Result<()> {
    for process in in_network_namespace(&Layout::namespace_path(&lab.layout.namespace(node)))? {
        process.signal(signal)?;
    }
    Ok(())
}
