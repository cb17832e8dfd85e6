//! What volumes of the model hold: sectors that name their volume, block and write.

pub const BLOCK: u64 = 4096;
pub const SECTORS: usize = 8;
/// Number of the write that a sector is of; 0 is zeros.
pub type Value = u64;
pub type Content = [Value; SECTORS];

/// One block of a volume.
#[derive(Clone, Debug, Default)]
pub struct Block {
    pub flushed: Content,
    /// Later writes, oldest first: identity, what they wrote, whether they were acknowledged.
    pub later: Vec<(u64, Value, bool)>,
    pub busy: bool,
}

impl Block {
    pub fn present(&self) -> Content {
        self.later.last().map_or(self.flushed, |(_, value, _)| [*value; SECTORS])
    }

    pub fn allows(&self, sector: usize, value: Value) -> bool {
        self.flushed[sector] == value || self.later.iter().any(|(_, later, _)| *later == value)
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

pub fn parse(n: u8, block: u64, index: usize, bytes: &[u8]) -> Value {
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let mut expected = [0; 512];
    sector(n, block, index, value, &mut expected);
    assert!(bytes == expected, "foreign bytes in volume {n} block {block} sector {index}");
    value
}

pub fn block_bytes(n: u8, block: u64, content: &Content) -> [u8; BLOCK as usize] {
    let mut bytes = [0; BLOCK as usize];
    for (index, out) in bytes.chunks_exact_mut(512).enumerate() {
        sector(n, block, index, content[index], out);
    }
    bytes
}

#[test]
fn a_sector_names_its_owner() {
    let bytes = block_bytes(1, 2, &[3; SECTORS]);
    assert_eq!(parse(1, 2, 0, &bytes[..512]), 3);
}
