//! New volumes are filled from snapshots (R26): `fill` of `control::attach::internal`, at the leader's wish.

use super::attach::{Operation, Stage, Whom};
use super::data_address;
use super::propose::After;
use crate::world::{World, index};
use core::time::Duration;
use engine::{FillHolder, FillSource, Input};
use metadata::{Command, Lifecycle};
use policy::snapshot::{holders, source};
use types::VolumeId;

const COMMAND: Duration = Duration::from_secs(15);

impl World {
    pub(super) fn fill(&mut self, n: usize, volume: VolumeId) {
        self.begin_internally(n, volume, Whom::Filler);
    }

    /// What `volume` is to be filled from, as node `n` reaches it: the nearest first.
    pub(super) fn fill_source(&mut self, n: usize, volume: VolumeId) -> Option<FillSource> {
        let state = self.state(n)?;
        let here = self.nodes[n].id;
        let record = state.volumes.get(&volume).filter(|v| v.lifecycle == Lifecycle::Filling)?;
        let from = source(&state, record)?;
        let holder = |replica: &metadata::Replica| {
            let address = match replica.node == here {
                true => None,
                false => Some(data_address(index(replica.node)).parse().ok()?),
            };
            let (replica, incarnation) = (replica.replica, replica.incarnation);
            Some(FillHolder { replica, incarnation, address })
        };
        let mut found: Vec<FillHolder> = holders(&state, from).filter_map(holder).collect();
        found.sort_by_key(|holder| holder.address.is_some());
        let (volume, snapshot, size) = (from.volume, from.snapshot, from.size);
        (!found.is_empty()).then_some(FillSource { volume, snapshot, size, holders: found })
    }

    /// The engine is active.
    pub(super) fn begin_fill(&mut self, n: usize, volume: VolumeId) {
        match self.fill_source(n, volume) {
            Some(source) => self.engine_command(n, volume, Input::Fill { ticket: 1, source }),
            None => self.end_fill(n, volume, false),
        }
    }

    /// The engine has copied everything, or could not.
    pub(crate) fn end_fill(&mut self, n: usize, volume: VolumeId, filled: bool) {
        let Some(control) = self.control(n) else { return };
        let Some(operation) = control.operations.get_mut(&volume) else { return };
        if matches!(operation.stage, Stage::Filling { .. }) {
            (operation.attach, operation.filled) = (false, filled);
            self.tear_down(n, volume);
        }
    }

    /// The engine is gone. Only what is flushed on every in-sync replica may be relied upon.
    pub(super) fn record_filled(&mut self, n: usize, volume: VolumeId) {
        let Some(control) = self.control(n) else { return };
        let Some(operation) = control.operations.get_mut(&volume) else { return };
        operation.filled = false;
        let Some((epoch, _, true)) = operation.here else { return self.release(n, volume) };
        operation.stage = Stage::Recording;
        let command = Command::Filled { volume, epoch };
        self.propose(n, command, COMMAND, After::Filled { volume });
    }

    pub(super) fn fill_timers(&mut self, n: usize) {
        let now = self.local(n);
        let Some(control) = self.control(n) else { return };
        let late = |operation: &Operation| matches!(operation.stage, Stage::Filling { until } if until <= now);
        let late: Vec<VolumeId> =
            control.operations.iter().filter(|(_, o)| late(o)).map(|(volume, _)| *volume).collect();
        for volume in late {
            self.end_fill(n, volume, false);
        }
    }
}
