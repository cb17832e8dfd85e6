//! Fixed newstyle negotiation, without I/O: bytes in, bytes out.

use super::proto::{
    FIXED_NEWSTYLE, IHAVEOPT, NBDMAGIC, NO_ZEROES, OPTION_REPLY_MAGIC, Reader, flag, info, opt, rep,
};
use super::{Export, MAX_REQUEST, TRANSMISSION_FLAGS};
use types::BLOCK;

/// Longest option data taken, in bytes: a GO with the longest legal name (4096) and every info
/// request there is fits.
pub(super) const MAX_OPTION: usize = 8192;
/// Magic, option, length.
const OPTION_HEAD: usize = 16;

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The input is not a whole message yet.
    More,
    /// So many bytes are used up; go on with the rest.
    Used(usize),
    /// So many bytes are used up; what follows are requests.
    Transmit(usize),
    /// The connection is over, once the output is sent.
    Close,
}

pub(super) struct Handshake {
    flags: Option<u16>,
    structured: bool,
}

impl Handshake {
    /// Begins: `out` gets the greeting.
    pub(super) fn new(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&NBDMAGIC.to_be_bytes());
        out.extend_from_slice(&IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        Self { flags: None, structured: false }
    }

    /// Whether structured replies were agreed on.
    pub(super) fn structured(&self) -> bool {
        self.structured
    }

    /// Takes one message off the front of `input`; its answer is appended to `out`.
    pub(super) fn step(&mut self, input: &[u8], export: &Export, out: &mut Vec<u8>) -> Step {
        let mut reader = Reader(input);
        let Some(client) = self.flags else {
            let Some(flags) = reader.u32() else { return Step::More };
            return match u16::try_from(flags) {
                Ok(flags) if flags & !(FIXED_NEWSTYLE | NO_ZEROES) == 0 => {
                    self.flags = Some(flags);
                    Step::Used(4)
                }
                _ => Step::Close,
            };
        };
        let head = (reader.u64(), reader.u32(), reader.u32());
        let (Some(magic), Some(option), Some(len)) = head else {
            // Garbage is told apart by its first bytes, without waiting for more of it.
            let expected = IHAVEOPT.to_be_bytes();
            let shown = input.len().min(expected.len());
            return if input[..shown] == expected[..shown] { Step::More } else { Step::Close };
        };
        let len = len as usize;
        if magic != IHAVEOPT {
            return Step::Close;
        }
        if len > MAX_OPTION {
            reply(out, option, rep::ERR_TOO_BIG, b"option data is longer than 8192 bytes");
            return Step::Close;
        }
        let Some(data) = reader.take(len) else { return Step::More };
        let used = OPTION_HEAD + len;
        if client & FIXED_NEWSTYLE == 0 && option != opt::EXPORT_NAME {
            return Step::Close;
        }
        match option {
            opt::EXPORT_NAME => {
                if !export.answers_to(data) {
                    // This option has no error reply.
                    return Step::Close;
                }
                out.extend_from_slice(&export.size.to_be_bytes());
                out.extend_from_slice(&self.transmission_flags().to_be_bytes());
                if client & NO_ZEROES == 0 {
                    out.extend_from_slice(&[0; 124]);
                }
                Step::Transmit(used)
            }
            opt::ABORT => {
                reply(out, option, rep::ACK, &[]);
                Step::Close
            }
            opt::LIST if data.is_empty() => {
                let name = export.name.as_bytes();
                let entry = [&(name.len() as u32).to_be_bytes(), name].concat();
                reply(out, option, rep::SERVER, &entry);
                reply(out, option, rep::ACK, &[]);
                Step::Used(used)
            }
            opt::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(out, option, rep::ACK, &[]);
                Step::Used(used)
            }
            opt::LIST | opt::STRUCTURED_REPLY => {
                reply(out, option, rep::ERR_INVALID, b"this option takes no data");
                Step::Used(used)
            }
            opt::INFO | opt::GO => {
                let Some(name) = requested_name(data) else {
                    reply(out, option, rep::ERR_INVALID, b"lengths within the option disagree");
                    return Step::Used(used);
                };
                if !export.answers_to(name) {
                    reply(out, option, rep::ERR_UNKNOWN, b"no such export");
                    return Step::Used(used);
                }
                self.describe(option, export, out);
                if option == opt::GO { Step::Transmit(used) } else { Step::Used(used) }
            }
            _ => {
                reply(out, option, rep::ERR_UNSUP, &[]);
                Step::Used(used)
            }
        }
    }

    /// Says what there is to know of the export, asked or not: the block size above all.
    fn describe(&self, option: u32, export: &Export, out: &mut Vec<u8>) {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend_from_slice(&export.size.to_be_bytes());
        data.extend_from_slice(&self.transmission_flags().to_be_bytes());
        reply(out, option, rep::INFO, &data);
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK as u32, BLOCK as u32, MAX_REQUEST] {
            data.extend_from_slice(&size.to_be_bytes());
        }
        reply(out, option, rep::INFO, &data);
        reply(out, option, rep::ACK, &[]);
    }

    fn transmission_flags(&self) -> u16 {
        let flags = TRANSMISSION_FLAGS;
        if self.structured { flags | flag::SEND_DF } else { flags }
    }
}

/// The export name in the data of INFO and GO: length, name, count, that many 16-bit numbers.
fn requested_name(data: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(data);
    let len = reader.u32()? as usize;
    let name = reader.take(len)?;
    let count = usize::from(reader.u16()?);
    (reader.0.len() == 2 * count).then_some(name)
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Export {
        Export { name: "name".to_owned(), size: 1 << 30 }
    }

    /// Feeds `input` in pieces of `size` bytes; what came out and how it ended.
    fn feed(input: &[u8], size: usize) -> (Vec<u8>, Option<Step>) {
        let mut out = Vec::new();
        let mut handshake = Handshake::new(&mut out);
        let mut have = Vec::new();
        for piece in input.chunks(size) {
            have.extend_from_slice(piece);
            loop {
                match handshake.step(&have, &export(), &mut out) {
                    Step::More => break,
                    Step::Used(used) => drop(have.drain(..used)),
                    end @ (Step::Transmit(_) | Step::Close) => return (out, Some(end)),
                }
            }
            assert!(have.len() <= OPTION_HEAD + MAX_OPTION, "waits for no more than one option");
        }
        (out, None)
    }

    /// Valid conversations with seeded damage: no panic, and how the bytes are cut is all one.
    #[test]
    fn damaged_handshakes_end_the_same_however_they_are_cut() {
        let option = |number: u32, data: &[u8]| {
            let len = data.len() as u32;
            [&IHAVEOPT.to_be_bytes()[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
        };
        let mut good = vec![0, 0, 0, 3];
        good.extend(option(8, &[]));
        good.extend(option(10, b"\0\0\0\x04name\0\0\0\0"));
        good.extend(option(3, &[]));
        good.extend(option(6, b"\0\0\0\x04name\0\x01\0\x03"));
        good.extend(option(7, b"\0\0\0\0\0\0"));
        assert!(matches!(feed(&good, good.len()).1, Some(Step::Transmit(_))));
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % below
        };
        for round in 0..3000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random(3) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] = random(256) as u8,
                    1 => bytes[at] ^= 1 << random(8),
                    2 => drop(bytes.drain(at..)),
                    _ => bytes.insert(at, random(256) as u8),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let whole = feed(&bytes, bytes.len().max(1));
            let cut = feed(&bytes, 1 + random(7));
            assert_eq!(whole.0, cut.0, "round {round}");
            assert_eq!(whole.1, cut.1, "round {round}");
        }
    }
}
