//! `holdfast lab ...`.

use crate::cluster::{Lab, POOL_BYTES, Plan};
use crate::fire;
use crate::layout::Layout;
use crate::machine::relay;
use crate::state::{Registry, State};
use crate::story::{self, Options, Palette};
use crate::{disk, down, ledger, net, witness};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Directory of a lab unless said otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/holdfast-lab";

/// A cluster of several nodes on this machine, to try things on. Needs root.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Args)]
struct Place {
    /// Directory of the lab, made and removed with it (at most 40 bytes).
    #[arg(long, default_value = DEFAULT_DIR)]
    dir: PathBuf,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Makes a lab: network namespaces, pools, daemons. Prints sockets and addresses.
    Up {
        #[command(flatten)]
        place: Place,
        /// How many nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u64,
        /// Size of each node's pool, a sparse file.
        #[arg(long, default_value_t = POOL_BYTES >> 30)]
        pool_gib: u64,
        /// Numbers of nodes that get a kernel of their own (user-mode Linux): killing one is a loss
        /// of power. Such a node has no CSI plugin.
        #[arg(long, value_delimiter = ',')]
        machines: Vec<u64>,
    },
    /// Ends a lab and removes everything of it, also after a crash.
    Down {
        #[command(flatten)]
        place: Place,
        /// Every lab of this machine, also the remains of killed ones.
        #[arg(long, conflicts_with = "dir")]
        all: bool,
    },
    /// Shows a lab: sockets and addresses, daemons, cuts.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Drops all traffic of a node, both ways; nothing on the node is told.
    Cut {
        /// Number of the node.
        node: u64,
        #[command(flatten)]
        place: Place,
    },
    /// Ends a cut.
    Heal {
        /// Number of the node.
        node: u64,
        #[command(flatten)]
        place: Place,
    },
    /// SIGKILLs a node's daemons.
    Kill {
        /// Number of the node.
        node: u64,
        #[command(flatten)]
        place: Place,
    },
    /// Starts a node's daemons again and waits until they are ready.
    Start {
        /// Number of the node.
        node: u64,
        #[command(flatten)]
        place: Place,
    },
    /// The whole story on a lab of its own: PostgreSQL on a replicated volume outlives its node.
    Demo {
        #[command(flatten)]
        place: Place,
        /// Where report.json and timeline.svg go.
        #[arg(long, default_value = "target/demo")]
        out: PathBuf,
        /// Leave the lab up for a look around; `holdfast lab down` ends it.
        #[arg(long)]
        keep: bool,
    },
    /// PostgreSQL under fire on a lab of its own: one fault after the other, the ledger compared after
    /// each.
    Soak {
        #[command(flatten)]
        place: Place,
        /// How many faults.
        #[arg(long, default_value_t = 12)]
        rounds: u32,
        /// Chooses the order of faults and the filesystem (even: ext4, odd: xfs).
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Leave the lab up for a look around, also when it failed; `holdfast lab down` ends it.
        #[arg(long)]
        keep: bool,
    },
    /// The demo's ledger client.
    #[command(hide = true)]
    Ledger(ledger::Arguments),
    /// The way to the control API of a node that is a machine.
    #[command(hide = true)]
    Relay(relay::Arguments),
    /// The disk under a node's pool, whose power can be cut.
    #[command(hide = true)]
    Disk(disk::Arguments),
    /// The demo's witnesses on the node that is cut off.
    #[command(hide = true)]
    Witness {
        #[command(subcommand)]
        witness: witness::Witness,
    },
}

/// Runs a lab command.
///
/// # Errors
/// With a sentence for the person at the keyboard.
pub async fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Up { place, nodes, pool_gib, machines } => {
            let plan = Plan {
                pool_bytes: pool_gib << 30,
                machines: machines.into_iter().collect(),
                ..Plan::new(absolute(&place.dir)?, nodes)
            };
            up(&plan).await
        }
        Command::Down { all: true, .. } => down::all(),
        Command::Down { place, .. } => down_one(&absolute(&place.dir)?),
        Command::Status { place } => status(&open(&place)?).await,
        Command::Cut { node, place } => open(&place)?.cut(node),
        Command::Heal { node, place } => open(&place)?.heal(node),
        Command::Kill { node, place } => open(&place)?.kill(node),
        Command::Start { node, place } => {
            let lab = open(&place)?;
            lab.start(node)?;
            lab.wait_ready([node]).await
        }
        Command::Demo { place, out, keep } => demo(&place, out, keep).await,
        Command::Soak { place, rounds, seed, keep } => soak(&place, rounds, seed, keep).await,
        Command::Ledger(arguments) => ledger::run(arguments).await,
        Command::Relay(arguments) => relay::run(arguments).await,
        Command::Disk(arguments) => {
            tokio::task::spawn_blocking(move || disk::run(&arguments)).await?
        }
        Command::Witness { witness } => witness::run(witness).await,
    }
}

fn open(place: &Place) -> Result<Lab> {
    Lab::open(&absolute(&place.dir)?)
}

fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).with_context(|| format!("--dir {}", dir.display()))
}

/// A future that resolves when the person or the system wants this program to end. The signals are
/// caught from this call on, not only once the future is polled: what is begun after it is cleaned.
fn told_to_end() -> Result<impl Future<Output = &'static str>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    })
}

async fn up(plan: &Plan) -> Result<()> {
    // Whose directory it is decides who cleans it: never somebody else's lab.
    let ours = !known(&plan.dir)?;
    let told_to_end = told_to_end()?;
    let made = tokio::select! {
        made = Lab::up(plan) => made,
        signal = told_to_end => Err(anyhow::anyhow!("ended by {signal}")),
    };
    match made {
        Ok(lab) => {
            println!("{}", lab.describe().trim_end());
            Ok(())
        }
        Err(error) if ours => Err(cleaned(error, &plan.dir)),
        Err(error) => Err(error),
    }
}

async fn demo(place: &Place, out: PathBuf, keep: bool) -> Result<()> {
    let plan = Plan::new(absolute(&place.dir)?, 3);
    let ours = !known(&plan.dir)?;
    let options = Options { plan, out, quiet: false };
    let told_to_end = told_to_end()?;
    let told = tokio::select! {
        told = story::run(&options) => told,
        signal = told_to_end => Err(anyhow::anyhow!("ended by {signal}")),
    };
    let palette = Palette::detect();
    let verdict = match told {
        Ok(report) if report.failed_checks.is_empty() => {
            println!("\n{}", palette.green("Every check passed."));
            Ok(())
        }
        Ok(report) => {
            let sentences = report.failed_checks.join("\n");
            println!("\n{}", palette.red(&sentences));
            Err(anyhow::anyhow!("{} of the checks failed: {sentences}", report.failed_checks.len()))
        }
        Err(error) => Err(error),
    };
    finish(verdict, &options.plan.dir, ours, keep)
}

async fn soak(place: &Place, rounds: u32, seed: u64, keep: bool) -> Result<()> {
    let plan = Plan::new(absolute(&place.dir)?, 3);
    let ours = !known(&plan.dir)?;
    let options = fire::Options { plan, rounds, seed, faults: fire::FAULTS.to_vec() };
    let told_to_end = told_to_end()?;
    let tally = tokio::select! {
        tally = fire::run(&options, |line| println!("{line}")) => tally,
        signal = told_to_end => Err(anyhow::anyhow!("ended by {signal}")),
    };
    let verdict = tally.map(|tally| {
        println!(
            "{} rounds, {} acknowledged rows, {} lost, {} phantom, longest stall {:.2} s ({})",
            tally.rounds,
            tally.acknowledged,
            tally.lost,
            tally.phantom,
            tally.longest_stall_ms as f64 / 1e3,
            tally.longest_stall_in
        );
    });
    finish(verdict, &options.plan.dir, ours, keep)
}

/// Ends the lab of a command, unless it is to be kept.
fn finish(verdict: Result<()>, dir: &Path, ours: bool, keep: bool) -> Result<()> {
    if keep {
        println!("the lab stays: holdfast lab down --dir {}", dir.display());
        return verdict;
    }
    match verdict {
        Ok(()) => down_one(dir),
        Err(error) if ours => Err(cleaned(error, dir)),
        Err(error) => Err(error),
    }
}

/// Whether the machine's registry has a lab in `dir`.
fn known(dir: &Path) -> Result<bool> {
    Ok(Registry::default().list()?.values().any(|known| known == dir))
}

/// Ends the lab of a failed command; `error` stays what is reported.
fn cleaned(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    match down_one(dir) {
        Ok(()) => error,
        Err(left) => error.context(format!("and cleaning up failed: {left:#}")),
    }
}

/// Ends the lab in `dir`, whatever is left of it; fine if there is nothing.
fn down_one(dir: &Path) -> Result<()> {
    let registered = Registry::default().list()?;
    let number = registered.iter().find(|(_, known)| known.as_path() == dir).map(|(n, _)| *n);
    let number = match (number, State::load(dir)) {
        (Some(number), _) => number,
        (None, Ok(Some(state))) => state.number,
        (None, Ok(None)) => return Ok(()),
        (None, Err(error)) => return Err(error),
    };
    down::lab(&Layout { number, dir: dir.to_path_buf() })
}

async fn status(lab: &Lab) -> Result<()> {
    print!("{}", lab.describe());
    let state = State::load(&lab.layout.dir)?.context("the lab is gone")?;
    for node in 1..=lab.nodes {
        let daemons = state.daemons.get(&node).into_iter().flatten();
        let daemons: Vec<String> = daemons
            .map(|(name, process)| {
                let state =
                    if process.is_alive() { format!("{}", process.pid) } else { "down".into() };
                format!("{name} {state}")
            })
            .collect();
        let cut = if net::is_cut(&lab.layout, node)? { ", CUT OFF" } else { "" };
        let pool = state.pools.get(&node).map(|pool| pool.display().to_string());
        println!(
            "  n{node}: {}; pool {}{cut}",
            daemons.join(", "),
            pool.unwrap_or_else(|| "none".into())
        );
    }
    if state.daemons.is_empty() {
        bail!("no daemon was ever started here: `holdfast lab down` removes the remains");
    }
    Ok(())
}
