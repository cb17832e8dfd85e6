//! What can happen to a node, and how it is undone.

use crate::cluster::Lab;
use crate::daemons::{CSI_CONTROLLER, CSI_NODE, DEVICE_HOLDER, REPLICATOR};
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
/// How long a cut lasts: long enough for a failover.
const CUT: Duration = Duration::from_secs(7);
/// How long a freeze lasts: long enough for everything of the frozen one to have been given up.
const FREEZE: Duration = Duration::from_secs(15);

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
    /// Traffic is dropped.
    Cut(Cut),
    /// SIGSTOP of the replicator.
    Freeze,
    /// SIGSTOP of everything on the node.
    FreezeAll,
}

/// One fault of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whom.
    pub victim: Victim,
    /// What.
    pub harm: Harm,
}

/// All faults; a soak goes through them in shuffled order, again and again.
pub const FAULTS: &[Fault] = &[
    Fault { victim: Victim::Pod, harm: Harm::Kill(REPLICATOR) },
    Fault { victim: Victim::Pod, harm: Harm::Cut(Cut::All) },
    Fault { victim: Victim::Copy, harm: Harm::Kill(REPLICATOR) },
    Fault { victim: Victim::Pod, harm: Harm::Cut(Cut::Port(DATA_PORT)) },
    Fault { victim: Victim::Copy, harm: Harm::Freeze },
    Fault { victim: Victim::Pod, harm: Harm::Crash },
    Fault { victim: Victim::Pod, harm: Harm::Upgrade },
    Fault { victim: Victim::Pod, harm: Harm::Freeze },
    Fault { victim: Victim::All, harm: Harm::Crash },
    Fault { victim: Victim::Pod, harm: Harm::Cut(Cut::Port(CONTROL_PORT)) },
    Fault { victim: Victim::Copy, harm: Harm::Cut(Cut::All) },
    Fault { victim: Victim::Pod, harm: Harm::Cut(Cut::Incoming) },
    Fault { victim: Victim::Vote, harm: Harm::Kill(REPLICATOR) },
    Fault { victim: Victim::Pod, harm: Harm::Kill(CSI_NODE) },
    Fault { victim: Victim::Vote, harm: Harm::Kill(CSI_CONTROLLER) },
    Fault { victim: Victim::Pod, harm: Harm::Kill(DEVICE_HOLDER) },
    Fault { victim: Victim::Pod, harm: Harm::Cut(Cut::Outgoing) },
    Fault { victim: Victim::Copy, harm: Harm::Crash },
    Fault { victim: Victim::Pod, harm: Harm::FreezeAll },
    Fault { victim: Victim::Copy, harm: Harm::Upgrade },
    Fault { victim: Victim::All, harm: Harm::Kill(REPLICATOR) },
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let victim = match self.victim {
            Victim::Pod => "the pod's node",
            Victim::Copy => "the other copy's node",
            Victim::Vote => "the third node",
            Victim::All => "all nodes",
        };
        match self.harm {
            Harm::Kill(program) => write!(f, "kill -9 of {program} on {victim}"),
            Harm::Upgrade => write!(f, "replicator upgraded on {victim}"),
            Harm::Crash => write!(f, "crash of {victim}"),
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
            Harm::Crash | Harm::Cut(_) => CUT,
            Harm::Freeze | Harm::FreezeAll => FREEZE,
        }
    }

    /// Does it to `nodes`.
    ///
    /// # Errors
    /// If it cannot be done; what was done stays.
    pub fn strike(&self, lab: &Lab, nodes: &[u64]) -> Result<()> {
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
                Harm::Crash => lab.crash(*node)?,
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
    pub fn undo(&self, lab: &Lab, nodes: &[u64]) -> Result<()> {
        for node in nodes {
            match self.harm {
                Harm::Cut(_) => lab.heal(*node)?,
                Harm::Freeze => lab.signal(*node, REPLICATOR, Signal::SIGCONT, None)?,
                Harm::FreezeAll => signal_all(lab, *node, Signal::SIGCONT)?,
                Harm::Kill(_) | Harm::Upgrade | Harm::Crash => {}
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
