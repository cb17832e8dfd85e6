//! Checkpoints while the pool is in use: when the log is half full its state moves to the other
//! area.
//!
//! ```text
//! reserve a generation ──▶ write checkpoint ──▶ sync ──▶ superblock names the new area
//! (superblock pair)        log goes to both                (pair) log goes to the new one
//! ```
//!
//! The generation is reserved first so that blocks of an interrupted checkpoint can never pass for
//! blocks of a later one. The state is encoded at one moment; that takes about 10 ms for each
//! million slots.

use types::Buf;

use crate::api::Output;
use crate::checkpoint;
use crate::flush::SyncWake;
use crate::layout::{Generation, Layout};
use crate::op::Io;
use crate::store::Store;

/// Bytes of one write.
const CHUNK: usize = 1 << 20;
/// Writes in flight.
const WRITES: u32 = 4;

#[derive(Debug)]
pub(crate) enum CheckpointStage {
    Idle,
    /// Writing superblock `copy` with a higher reserved generation.
    Reserve {
        copy: u64,
    },
    /// Writing the checkpoint.
    Body {
        data: Buf,
        done: usize,
        writes: u32,
    },
    /// Waiting for a sync.
    Sync,
    /// Writing superblock `copy` that names the new area.
    Switch {
        copy: u64,
    },
}

impl Store {
    pub(crate) fn pump_checkpoint(&mut self, out: &mut Vec<Output>) {
        match &self.checkpoint {
            CheckpointStage::Idle if self.log.is_half_full() => {
                self.superblock.sequence += 1;
                self.superblock.reserved.0 += 1;
                self.checkpoint = CheckpointStage::Reserve { copy: 0 };
                self.write_superblock(0, out);
            }
            CheckpointStage::Body { .. } => self.write_body(out),
            _ => {}
        }
    }

    fn write_superblock(&mut self, copy: u64, out: &mut Vec<Output>) {
        let id = self.io(Io::Superblock);
        let data = self.superblock.encode();
        out.push(Output::Write { id, offset: Layout::superblock(copy), data, durable: true });
    }

    pub(crate) fn superblock_written(&mut self, out: &mut Vec<Output>) {
        match &mut self.checkpoint {
            CheckpointStage::Reserve { copy } | CheckpointStage::Switch { copy } if *copy == 0 => {
                *copy = 1;
                self.write_superblock(1, out);
            }
            CheckpointStage::Reserve { .. } => {
                let (area, generation) = self.next_area();
                let first = self.log.begin_second(area, generation);
                let data = checkpoint::encode(&self.state, generation, first);
                self.checkpoint = CheckpointStage::Body { data, done: 0, writes: 0 };
            }
            CheckpointStage::Switch { .. } => {
                self.checkpoint = CheckpointStage::Idle;
                self.stats.checkpoints += 1;
                self.log.switch();
                self.wake_log(out);
            }
            _ => {}
        }
    }

    fn next_area(&self) -> (crate::layout::Area, Generation) {
        (self.superblock.area.other(), self.superblock.reserved)
    }

    fn write_body(&mut self, out: &mut Vec<Output>) {
        let start = self.state.layout.area(self.superblock.area.other());
        let CheckpointStage::Body { data, done, writes } = &mut self.checkpoint else { return };
        while *writes < WRITES && *done < data.len() {
            let end = (*done + CHUNK).min(data.len());
            let id = crate::IoId(self.ios.insert(Io::Checkpoint).0);
            let (offset, data) = (start + *done as u64, data.slice(*done..end));
            out.push(Output::Write { id, offset, data, durable: false });
            *writes += 1;
            *done = end;
        }
        if *writes == 0 {
            self.checkpoint = CheckpointStage::Sync;
            self.sync.wait(SyncWake::Checkpoint);
        }
    }

    pub(crate) fn checkpoint_written(&mut self) {
        if let CheckpointStage::Body { writes, .. } = &mut self.checkpoint {
            *writes -= 1;
        }
    }

    pub(crate) fn checkpoint_synced(&mut self, out: &mut Vec<Output>) {
        (self.superblock.area, self.superblock.generation) = self.next_area();
        self.superblock.sequence += 1;
        self.checkpoint = CheckpointStage::Switch { copy: 0 };
        self.write_superblock(0, out);
    }
}
