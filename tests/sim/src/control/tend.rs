//! Replicas of volumes that nobody has attached are filled by engines without a device; `control::attach::tend`
//! and `release_dead` of `control::attach::internal` (docs/decisions/0019).

use super::attach::{Operation, Stage, Whom};
use super::propose::Call;
use crate::world::World;
use core::time::Duration;
use policy::attachment::is_ours;
use policy::replace::tended;
use std::sync::Arc;
use types::{EngineInstance, NodeId, VolumeId};
use uuid::Uuid;

const INTERNAL_WAIT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn tend(&mut self, n: usize, volume: VolumeId) {
        self.begin_internally(n, volume, Whom::Nobody);
    }

    /// Begins to attach a volume without a device, unless something else is under way with it here.
    pub(super) fn begin_internally(&mut self, n: usize, volume: VolumeId, whom: Whom) {
        let deadline = self.local(n).after(INTERNAL_WAIT);
        let instance = EngineInstance(Uuid::from_u128(self.rng.id()));
        // The leader's state may be newer than this one: it asks again.
        if whom == Whom::Filler && self.fill_source(n, volume).is_none() {
            return;
        }
        let Some(control) = self.control(n) else { return };
        if control.operations.contains_key(&volume) {
            return;
        }
        let mut operation = Operation::new(whom, true);
        (operation.deadline, operation.instance) = (deadline, instance);
        control.operations.insert(volume, operation);
        self.begin_epoch(n, volume);
    }

    /// Tells `holder`, which has `volume` without a device, that somebody wants it.
    pub(super) fn ask_back(&mut self, n: usize, volume: VolumeId, holder: NodeId) {
        self.have(n, holder, Call::Yield { volume });
    }

    pub(super) fn want_back(&mut self, n: usize, volume: VolumeId) {
        if let Some(operation) = self.control(n).and_then(|c| c.operations.get_mut(&volume)) {
            operation.wanted = true;
        }
    }

    /// Ends what has nothing more to fill, is wanted by somebody else, or must be attached anew.
    pub(super) fn tend_timers(&mut self, n: usize) {
        let now = self.local(n);
        let Some(process) = &mut self.nodes[n].process else { return };
        let state = Arc::clone(process.meta.state());
        let mut over = Vec::new();
        for (volume, operation) in &mut process.control.operations {
            let Stage::Tending { size, since } = &mut operation.stage else { continue };
            let ours = is_ours(&state, *volume, operation.epoch, operation.instance);
            let same = state.volumes.get(volume).is_some_and(|record| record.size == *size);
            let failed = process.control.locals.get(volume).is_none_or(|local| local.failed);
            *since = tended(&state, *volume).then(|| since.unwrap_or(now));
            let idle = since.is_some_and(|since| now.since(since) >= IDLE);
            if idle || operation.wanted || failed || !ours || !same {
                operation.attach = false;
                over.push(*volume);
            }
        }
        for volume in over {
            self.tear_down(n, volume);
        }
    }

    /// Ends internal attachments of this node that it does not have.
    pub(super) fn release_dead(&mut self, n: usize) {
        let here = self.nodes[n].id;
        let Some(process) = &mut self.nodes[n].process else { return };
        let state = Arc::clone(process.meta.state());
        let control = &mut process.control;
        let mut dead = Vec::new();
        for record in state.held_by(here).filter(|record| record.internal) {
            let volume = record.volume;
            let local = control.locals.get(&volume);
            let ours = local.is_some_and(|l| is_ours(&state, volume, l.epoch, l.instance));
            if !ours && !control.operations.contains_key(&volume) {
                control.operations.insert(volume, Operation::new(Whom::Nobody, false));
                dead.push(volume);
            }
        }
        for volume in dead {
            self.release(n, volume);
        }
    }
}
