//! Records of the metadata log: every change of durable state is one of these.

use types::{
    BootId, EngineInstance, Epoch, Era, Incarnation, NodeId, Process, ReplicaId, SnapshotId, Tag,
    VolumeId,
};

use crate::layout::{Region, ReplicaIndex, Slot, VSlot};

/// A change of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It begins to exist, empty.
    Create { volume: VolumeId, replica: ReplicaId, incarnation: Incarnation, size: u64 },
    /// It is gone, and with it its map: its slots are free.
    Delete,
    /// It grew (R25).
    Resize { size: u64 },
    /// It promised to refuse lower epochs (R3).
    Seal { epoch: Epoch, instance: EngineInstance },
    /// The seal is over, and this daemon's engine may hold a lease from here on (R3, R8).
    Leased { process: Process },
    /// Everything up to this tag is on every ISR member, and the checksum table says so (R18).
    SealEra { tag: Tag },
    /// It is about to be written under this boot (R9).
    InUse { boot: BootId },
    /// Its engine closed cleanly (R20).
    Clean,
    /// It failed for good with this errno (R13).
    Failed { errno: i32 },
    /// Regions are about to be written under this tag (R17).
    Tag { tag: Tag, first: Region, count: u32 },
    /// A piece of it is in a slot now.
    Map { vslot: VSlot, slot: Slot },
    /// Pieces of it are in no slot any more and read as zeros.
    Unmap { first: VSlot, count: u32 },
    /// What it holds now is a snapshot (R26): slots in use now are not written any more.
    Snapshot { snapshot: SnapshotId, size: u64 },
    /// A snapshot is gone, and slots that only it used are free.
    DropSnapshot { snapshot: SnapshotId },
    /// A piece that snapshots use was copied, for writing, to this slot.
    Copied { vslot: VSlot, slot: Slot },
    /// It is empty for good, and kept for its snapshots.
    Retired,
}

/// Longest encoded record, in bytes.
pub(crate) const MAX_RECORD: usize = 64;

/// Little-endian fields appended to a vector.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn id(&mut self, value: &[u8; 16]) {
        self.0.extend_from_slice(value);
    }
    pub(crate) fn tag(&mut self, tag: Tag) {
        self.u64(tag.epoch.0);
        self.u32(tag.era.0);
    }
    pub(crate) fn process(&mut self, process: &Process) {
        self.u64(process.node.0);
        self.id(process.boot.as_bytes());
        self.id(process.run.as_bytes());
    }
}

/// The reverse of [`Writer`]; `None` when the bytes end too early.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    pub(crate) fn id(&mut self) -> Option<[u8; 16]> {
        self.take()
    }
    pub(crate) fn tag(&mut self) -> Option<Tag> {
        Some(Tag { epoch: Epoch(self.u64()?), era: Era(self.u32()?) })
    }
    pub(crate) fn process(&mut self) -> Option<Process> {
        Some(Process {
            node: NodeId(self.u64()?),
            boot: BootId::from_bytes(self.id()?),
            run: EngineInstance::from_bytes(self.id()?),
        })
    }
}

pub(crate) fn encode(index: ReplicaIndex, change: &Change, out: &mut Writer) {
    let kind = match change {
        Change::Create { .. } => 1,
        Change::Delete => 2,
        Change::Resize { .. } => 3,
        Change::Seal { .. } => 4,
        Change::SealEra { .. } => 5,
        Change::InUse { .. } => 6,
        Change::Clean => 7,
        Change::Failed { .. } => 8,
        Change::Tag { .. } => 9,
        Change::Map { .. } => 10,
        Change::Unmap { .. } => 11,
        Change::Leased { .. } => 12,
        Change::Snapshot { .. } => 13,
        Change::DropSnapshot { .. } => 14,
        Change::Copied { .. } => 15,
        Change::Retired => 16,
    };
    out.u8(kind);
    out.u32(index.0);
    match change {
        Change::Create { volume, replica, incarnation, size } => {
            out.id(volume.as_bytes());
            out.id(replica.as_bytes());
            out.id(incarnation.as_bytes());
            out.u64(*size);
        }
        Change::Delete | Change::Clean | Change::Retired => {}
        Change::Resize { size } => out.u64(*size),
        Change::Seal { epoch, instance } => {
            out.u64(epoch.0);
            out.id(instance.as_bytes());
        }
        Change::Leased { process } => out.process(process),
        Change::SealEra { tag } => out.tag(*tag),
        Change::InUse { boot } => out.id(boot.as_bytes()),
        Change::Failed { errno } => out.u32(errno.cast_unsigned()),
        Change::Tag { tag, first, count } => {
            out.tag(*tag);
            out.u32(first.0);
            out.u32(*count);
        }
        Change::Snapshot { snapshot, size } => {
            out.id(snapshot.as_bytes());
            out.u64(*size);
        }
        Change::DropSnapshot { snapshot } => out.id(snapshot.as_bytes()),
        Change::Map { vslot, slot } | Change::Copied { vslot, slot } => {
            out.u32(vslot.0);
            out.u32(slot.0);
        }
        Change::Unmap { first, count } => {
            out.u32(first.0);
            out.u32(*count);
        }
    }
}

/// The next record of a log block's payload; `None` if the bytes are not one.
pub(crate) fn decode(from: &mut Reader<'_>) -> Option<(ReplicaIndex, Change)> {
    let kind = from.u8()?;
    let index = ReplicaIndex(from.u32()?);
    let change = match kind {
        1 => Change::Create {
            volume: VolumeId::from_bytes(from.id()?),
            replica: ReplicaId::from_bytes(from.id()?),
            incarnation: Incarnation::from_bytes(from.id()?),
            size: from.u64()?,
        },
        2 => Change::Delete,
        3 => Change::Resize { size: from.u64()? },
        4 => Change::Seal {
            epoch: Epoch(from.u64()?),
            instance: EngineInstance::from_bytes(from.id()?),
        },
        5 => Change::SealEra { tag: from.tag()? },
        6 => Change::InUse { boot: BootId::from_bytes(from.id()?) },
        7 => Change::Clean,
        8 => Change::Failed { errno: from.u32()?.cast_signed() },
        9 => Change::Tag { tag: from.tag()?, first: Region(from.u32()?), count: from.u32()? },
        10 => Change::Map { vslot: VSlot(from.u32()?), slot: Slot(from.u32()?) },
        11 => Change::Unmap { first: VSlot(from.u32()?), count: from.u32()? },
        12 => Change::Leased { process: from.process()? },
        13 => Change::Snapshot { snapshot: SnapshotId::from_bytes(from.id()?), size: from.u64()? },
        14 => Change::DropSnapshot { snapshot: SnapshotId::from_bytes(from.id()?) },
        15 => Change::Copied { vslot: VSlot(from.u32()?), slot: Slot(from.u32()?) },
        16 => Change::Retired,
        _ => return None,
    };
    Some((index, change))
}
