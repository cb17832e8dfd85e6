//! A host: its clock, its disk, what of Raft survives it, and the daemon that runs on it.

use crate::clock::{Clock, SEC, Time};
use crate::control::Control;
use crate::data::Data;
use crate::disk::SimDisk;
use crate::meta::{Meta, RaftDisk};
use crate::rng::Rng;
use crate::world::Event;
use std::collections::BTreeMap;
use store::PoolDisk as _;
use types::{BootId, EngineInstance, Epoch, NodeId, PoolId, VolumeId};
use uuid::Uuid;

/// One host.
pub struct Node {
    /// Its number, from 1 on.
    pub id: NodeId,
    /// Its clock, of this boot.
    pub clock: Clock,
    /// This boot.
    pub boot: BootId,
    /// False from a power loss to the next boot.
    pub powered: bool,
    /// The disk that is plugged in.
    pub disk: SimDisk,
    /// The right disk, while another one is plugged in.
    pub kept: Option<SimDisk>,
    /// What is to be put in its place.
    pub image: Option<Image>,
    /// Its pool.
    pub pool: PoolId,
    /// The directory of the Raft member.
    pub raft: RaftDisk,
    /// Counts starts and ends of the daemon: events of another run are void.
    pub run: u64,
    /// The daemon.
    pub process: Option<Process>,
    /// Stopped (SIGSTOP, a starved machine) until then.
    pub frozen: Time,
    /// What came while it was stopped.
    pub missed: Vec<Event>,
    /// Dies after so many more outputs of its state machines.
    pub doomed: Option<(u32, Death)>,
    /// Not started before that.
    pub start_after: Time,
    /// Slowness of its disk: added to every operation.
    pub slow_disk: Time,
    /// When something last was wrong with it…
    pub troubled: Time,
    /// …and faults that concern it now.
    pub troubles: u32,
    /// When it last came back from being stopped, by its own clock.
    pub resumed: types::Instant,
    /// Bytes of its pool before the slots, as far as known: see [`SimDisk::power_loss`].
    pub data_start: u64,
    /// The pool does not open any more: errno or damage that was injected.
    pub pool_dead: bool,
    /// A member of the cluster: false before it joins and after it left.
    pub member: bool,
}

/// A copy of a pool.
#[derive(Debug)]
pub struct Image {
    /// What was on the disk.
    pub disk: SimDisk,
    /// The epochs of all volumes then: no replica had sealed a later one.
    pub epochs: BTreeMap<VolumeId, Epoch>,
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: the kernel and its page cache live on.
    Kill,
    /// The machine goes, and with it what its disk had not synced.
    Power,
}

/// The daemon.
pub struct Process {
    /// Tells runs of the daemon apart for the cluster.
    pub instance: EngineInstance,
    /// The data thread.
    pub data: Data,
    /// The metadata thread.
    pub meta: Meta,
    /// The control plane.
    pub control: Control,
}

impl Node {
    /// A host with a blank disk.
    pub fn new(id: u64, disk: SimDisk, rng: &mut Rng) -> Self {
        let data_start = disk.size() / 8;
        Self {
            id: NodeId(id),
            clock: Clock::new(0, 0, 0),
            boot: BootId(Uuid::from_u128(rng.id())),
            powered: true,
            disk,
            kept: None,
            image: None,
            pool: PoolId(Uuid::from_u128(rng.id())),
            raft: RaftDisk::default(),
            run: 0,
            process: None,
            frozen: 0,
            missed: Vec::new(),
            doomed: None,
            start_after: 0,
            slow_disk: 0,
            troubled: 0,
            troubles: 0,
            resumed: types::Instant(0),
            data_start,
            pool_dead: false,
            member: false,
        }
    }

    /// The present run of its daemon.
    pub fn identity(&self) -> types::Process {
        let run = EngineInstance(Uuid::from_u128(self.run.into()));
        types::Process { node: self.id, boot: self.boot, run }
    }

    /// A boot: another id, another clock.
    pub fn power_on(&mut self, now: Time, rng: &mut Rng) {
        self.powered = true;
        self.boot = BootId(Uuid::from_u128(rng.id()));
        self.start_clock(now, rng);
    }

    /// The clock of a boot: up to two per cent wrong.
    pub fn start_clock(&mut self, now: Time, rng: &mut Rng) {
        let drift = rng.between(0, 40_000) as i64 - 20_000;
        self.clock = Clock::new(now, rng.between(5, 100_000) * SEC, drift);
    }

    /// The daemon runs and is not stopped.
    #[must_use]
    pub fn is_running(&self, now: Time) -> bool {
        self.process.is_some() && self.frozen <= now
    }
}
