//! What the daemon reads from its own disk and from people: the Raft log, the configuration file.
#![allow(clippy::unwrap_used)]

use crash::files::{FileLie, Files, MemoryDirectory, Moment};
use fuzz::{Target, no_repair, run};
use metadata::{HardState, LogBatch, LogContents, LogEntry, LogSnapshot, LogStore};
use replicator::config::Settings;
use replicator::meta::wal::{Identity, Wal};
use types::{NodeId, crc32c};

const IDENTITY: Identity = Identity { cluster: kit::ids::CLUSTER, node: NodeId(1) };
const LOG: &str = "raft.wal";
/// Of a frame: header and end.
const HEADER: usize = 28;
const END: usize = 4;

fn founding() -> LogContents {
    LogContents {
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        snapshot: LogSnapshot { index: 1, term: 1, state: vec![9; 20], ..LogSnapshot::default() },
        entries: Vec::new(),
    }
}

fn open(files: &Files) -> Result<(MemoryDirectory, Wal<MemoryDirectory>, LogContents), String> {
    let directory = MemoryDirectory::new(Moment::of(files, FileLie::Honest));
    let opened = Wal::open_in(directory.clone(), IDENTITY, || Ok(founding()));
    opened.map(|(wal, found)| (directory, wal, found)).map_err(|error| error.to_string())
}

/// Makes the checksums of frames right again, as far as their lengths make sense.
fn repair(bytes: &mut [u8]) {
    let (mut at, mut sequence) = (0, 0u64);
    while at + HEADER <= bytes.len() {
        let length = u32::from_le_bytes(*bytes[at + 8..].first_chunk().unwrap()) as usize;
        let Some(payload) = bytes.get(at + HEADER..(at + HEADER).saturating_add(length)) else {
            return;
        };
        let crc = crc32c(payload);
        bytes[at + 12..at + 20].copy_from_slice(&sequence.to_le_bytes());
        bytes[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c(&bytes[at..at + 24]);
        bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
        at += HEADER + length + END;
        sequence += 1;
    }
}

#[test]
fn raft_logs() {
    let (directory, mut wal, _) = open(&Files::new()).unwrap();
    let mut corpus = vec![directory.now().seen()[LOG].clone()];
    for index in 2..5 {
        let batch = LogBatch {
            hard_state: Some(HardState { term: index, vote: 1, commit: index - 1 }),
            entries: vec![LogEntry { index, term: index, bytes: vec![index as u8; 60] }],
        };
        wal.persist(&batch).unwrap();
        corpus.push(directory.now().seen()[LOG].clone());
    }
    run(&Target {
        name: "Raft logs",
        corpus,
        words: &[b"HFW\x01"],
        longest: 2000,
        repair: &|bytes| repair(bytes),
        decode: &|bytes| {
            let files: Files = [(LOG.to_owned(), bytes.to_vec())].into();
            match open(&files) {
                Ok((directory, wal, found)) => {
                    drop(wal);
                    // What one recovery made of it the next one finds.
                    let again = open(&directory.now().seen()).unwrap().2;
                    assert_eq!(again, found);
                    true
                }
                Err(said) => {
                    assert!(!said.is_empty());
                    false
                }
            }
        },
    });
}

const CONFIG: &str = r#"node = 1
name = "node-1"
cluster = "6f1c1d3e-8a4b-4c65-9d5e-0a1b2c3d4e5f"
data_dir = "/var/lib/holdfast"
control_address = "10.0.0.1:7420"
data_address = "10.0.0.1:7421"
pool = "/dev/sdb"
priority_io = "high"
replace_after_seconds = 300
log = "info,raft=debug"
peers = [{ node = 1, control_address = "10.0.0.1:7420" }, { node = 2, control_address = "10.0.0.2" }]
"#;

const SMALL: &str = r#"node = 7
cluster = "6f1c1d3e-8a4b-4c65-9d5e-0a1b2c3d4e5f"
data_dir = "/d"
control_address = "[::1]:1"
data_address = "[::1]:2"
pool = "/p"
"#;

#[test]
fn configurations() {
    run(&Target {
        name: "configurations",
        corpus: vec![CONFIG.into(), SMALL.into()],
        words: &[b"node = ", b"[[peers]]\n", b"\"\"\"", b"/../", b"0.0.0.0:0", b"65536"],
        longest: 1000,
        repair: &no_repair,
        decode: &|bytes| {
            let Ok(text) = str::from_utf8(bytes) else { return false };
            let Ok(settings) = toml::from_str::<Settings>(text) else { return false };
            match settings.or(Settings::default()).check() {
                Ok(config) => {
                    assert!(config.node.0 > 0 && config.data_dir.is_absolute());
                    true
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    false
                }
            }
        },
    });
}
