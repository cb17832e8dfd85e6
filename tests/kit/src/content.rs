//! What volumes of a model hold: sectors that name their volume, block and write.

/// Bytes of a block.
pub const BLOCK: u64 = types::BLOCK;
/// Bytes of a sector: what a disk writes whole.
pub const SECTOR: usize = 512;
/// Sectors of a block.
pub const SECTORS: usize = 8;
/// Number of the write that a sector is of; 0 is zeros.
pub type Value = u64;
/// The sectors of a block.
pub type Content = [Value; SECTORS];

/// One block of a volume.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// What a flush was acknowledged for.
    pub flushed: Content,
    /// Later writes, oldest first: identity, what they wrote, whether they were acknowledged.
    pub later: Vec<(u64, Value, bool)>,
    /// A write to it is in flight.
    pub busy: bool,
}

impl Block {
    /// The newest content.
    #[must_use]
    pub fn present(&self) -> Content {
        self.later.last().map_or(self.flushed, |(_, value, _)| [*value; SECTORS])
    }

    /// Whether a sector may be `value` after a loss of power.
    #[must_use]
    pub fn allows(&self, sector: usize, value: Value) -> bool {
        self.flushed[sector] == value || self.later.iter().any(|(_, later, _)| *later == value)
    }

    /// Whether a sector may be `value` after the death of the process alone: what was acknowledged
    /// is there (R28).
    #[must_use]
    pub fn keeps(&self, sector: usize, value: Value) -> bool {
        match self.later.iter().rposition(|(.., acked)| *acked) {
            Some(last) => self.later[last..].iter().any(|(_, later, _)| *later == value),
            None => self.allows(sector, value),
        }
    }

    /// The identity of the last acknowledged write that no flush covers; 0 if there is none.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.later.iter().rev().find(|(.., acked)| *acked).map_or(0, |(id, ..)| *id)
    }

    /// A flush covers everything up to the write `id`.
    pub fn flush(&mut self, id: u64) {
        if let Some(at) = self.later.iter().position(|(of, ..)| *of == id) {
            self.flushed = [self.later[at].1; SECTORS];
            self.later.drain(..=at);
        }
    }
}

fn sector(n: u8, block: u64, sector: usize, value: Value, out: &mut [u8]) {
    out.fill(0);
    if value != 0 {
        for (chunk, word) in out
            .chunks_exact_mut(8)
            .zip([value, u64::from(n), block, sector as u64, value, value].into_iter().cycle())
        {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The write that the bytes of sector `index` of a block are of; `None` if they are of another
/// place or of no write at all.
#[must_use]
pub fn read_sector(n: u8, block: u64, index: usize, bytes: &[u8]) -> Option<Value> {
    let value = u64::from_le_bytes(*bytes.first_chunk()?);
    let mut expected = [0; SECTOR];
    sector(n, block, index, value, &mut expected);
    (bytes == expected).then_some(value)
}

/// [`read_sector`] where anything else fails the test.
///
/// # Panics
/// The bytes are foreign.
#[must_use]
pub fn parse(n: u8, block: u64, index: usize, bytes: &[u8]) -> Value {
    match read_sector(n, block, index, bytes) {
        Some(value) => value,
        None => panic!("foreign bytes in volume {n} block {block} sector {index}"),
    }
}

/// The bytes of a block.
#[must_use]
pub fn block_bytes(n: u8, block: u64, content: &Content) -> [u8; BLOCK as usize] {
    let mut bytes = [0; BLOCK as usize];
    for (index, out) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        sector(n, block, index, content[index], out);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_names_its_owner() {
        let bytes = block_bytes(1, 2, &[3; SECTORS]);
        assert_eq!(parse(1, 2, 0, &bytes[..512]), 3);
        for (n, block, index) in [(2, 2, 0), (1, 3, 0), (1, 2, 1)] {
            assert_eq!(read_sector(n, block, index, &bytes[..512]), None);
        }
        assert_eq!(read_sector(9, 9, 9, &[0; 512]), Some(0));
    }
}
