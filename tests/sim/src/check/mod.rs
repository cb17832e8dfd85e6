//! What must be true, each in a file of its own that says what it checks and what it does not.

pub mod blocks;
pub mod bounds;
pub mod epochs;
pub mod eras;
pub mod isr;
pub mod metadata;
pub mod slots;
pub mod snapshots;
pub mod tags;

use crate::clock::Time;
use types::VolumeId;

/// All checkers, and what they found.
#[derive(Debug, Default)]
pub struct Checks {
    /// What must not be; a run ends with the first.
    pub violations: Vec<String>,
    /// By index of the volume.
    pub blocks: Vec<blocks::Blocks>,
    /// See [`isr`].
    pub isr: isr::Isr,
    /// See [`metadata`].
    pub metadata: metadata::Metadata,
    /// See [`snapshots`].
    pub snapshots: snapshots::Snapshots,
    /// See [`bounds`].
    pub bounds: bounds::Bounds,
    /// Ids of the volumes, by index.
    pub volumes: Vec<VolumeId>,
}

impl Checks {
    /// Index of a volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<usize> {
        self.volumes.iter().position(|volume| *volume == id)
    }

    /// The disk under a replica failed.
    pub fn copy_failed(&mut self, replica: types::ReplicaId, now: Time) {
        if let Some(index) =
            self.isr.copy_failed(replica, now).and_then(|volume| self.volume(volume))
        {
            self.blocks[index].lose();
        }
    }

    /// Host `n` lost its memory.
    pub fn host_lost_power(&mut self, n: usize, now: Time) {
        for volume in self.isr.host_lost_power(n, now) {
            if let Some(index) = self.volume(volume) {
                self.blocks[index].lose();
            }
        }
    }
}
