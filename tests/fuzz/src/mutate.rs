//! Ways to alter an input.

use kit::Rng;

/// Numbers at which decoders go wrong.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    4095,
    4096,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

fn range(bytes: &[u8], rng: &mut Rng) -> std::ops::Range<usize> {
    let at = rng.index(bytes.len() + 1);
    let longest = (bytes.len() - at).min(if rng.one_in(4) { 256 } else { 9 });
    at..at + rng.index(longest + 1)
}

/// Alters an input in one to six ways.
pub fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], rng: &mut Rng) {
    for _ in 0..=rng.below(6) {
        match rng.below(11) {
            0 | 1 if !bytes.is_empty() => {
                let at = rng.index(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            2 if !bytes.is_empty() => {
                let at = rng.index(bytes.len());
                bytes[at] = rng.next() as u8;
            }
            3..=5 if !bytes.is_empty() => {
                let number = match rng.below(4) {
                    0 => rng.next() >> rng.below(53),
                    1 => bytes.len() as u64 + rng.below(9) - 4u64.min(bytes.len() as u64),
                    _ => NUMBERS[rng.index(NUMBERS.len())],
                };
                let width = [1, 2, 4, 8][rng.index(4)];
                let number = if rng.one_in(2) {
                    number.to_le_bytes()[..width].to_vec()
                } else {
                    number.to_be_bytes()[8 - width..].to_vec()
                };
                let at = rng.index(bytes.len());
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            6 => drop(bytes.drain(range(bytes, rng))),
            7 => {
                let piece = bytes[range(bytes, rng)].to_vec();
                let at = rng.index(bytes.len() + 1);
                bytes.splice(at..at, piece);
            }
            8 => {
                let other = &corpus[rng.index(corpus.len())];
                let piece = other[range(other, rng)].to_vec();
                let into = range(bytes, rng);
                bytes.splice(into, piece);
            }
            9 if !words.is_empty() => {
                let word = words[rng.index(words.len())].to_vec();
                let into = range(bytes, rng);
                bytes.splice(into, word);
            }
            10 if rng.one_in(4) => bytes.truncate(rng.index(bytes.len() + 1)),
            _ => {
                let piece: Vec<u8> = (0..rng.below(9)).map(|_| rng.next() as u8).collect();
                let at = rng.index(bytes.len() + 1);
                bytes.splice(at..at, piece);
            }
        }
    }
}
