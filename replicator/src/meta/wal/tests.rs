#![allow(clippy::unwrap_used)]

use super::frame::{Damage, HEADER, encode, scan};
use super::*;
use metadata::Membership;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;
use uuid::Uuid;

fn identity() -> Identity {
    Identity { cluster: ClusterId(Uuid::from_u128(1)), node: NodeId(1) }
}

fn entry(index: u64, term: u64, bytes: usize) -> LogEntry {
    // No zero bytes, as in real commands for long stretches.
    LogEntry { index, term, bytes: (0..bytes).map(|at| (at % 250 + 1) as u8).collect() }
}

fn batch(first: u64, count: u64, term: u64) -> LogBatch {
    LogBatch {
        hard_state: Some(HardState { term, vote: 1, commit: first - 1 }),
        entries: (first..first + count).map(|index| entry(index, term, 90)).collect(),
    }
}

fn founding() -> LogContents {
    let membership = Membership { voters: [NodeId(1)].into(), ..Membership::default() };
    LogContents {
        hard_state: HardState { term: 1, vote: 0, commit: 1 },
        snapshot: LogSnapshot { index: 1, term: 1, membership, state: vec![9; 50] },
        entries: Vec::new(),
    }
}

fn open(dir: &Path) -> Result<(Wal, LogContents), MetaError> {
    Wal::open(dir, identity(), || Ok(founding()))
}

fn indices(contents: &LogContents) -> Vec<(u64, u64)> {
    contents.entries.iter().map(|entry| (entry.index, entry.term)).collect()
}

#[test]
fn what_was_persisted_is_there_again() {
    let dir = TempDir::new().unwrap();
    let (mut wal, found) = open(dir.path()).unwrap();
    assert_eq!(found, founding());
    wal.persist(&batch(2, 3, 1)).unwrap();
    wal.persist(&batch(5, 2, 1)).unwrap();
    // A new leader's entries replace those from 4 on.
    wal.persist(&batch(4, 1, 2)).unwrap();
    wal.persist(&LogBatch::default()).unwrap();
    drop(wal);
    let (mut wal, found) = open(dir.path()).unwrap();
    assert_eq!(indices(&found), [(2, 1), (3, 1), (4, 2)]);
    assert_eq!(found.hard_state, HardState { term: 2, vote: 1, commit: 3 });
    assert_eq!(found.snapshot, founding().snapshot);

    let kept = LogContents { entries: found.entries[2..].to_vec(), ..found };
    wal.rewrite(&kept).unwrap();
    wal.persist(&batch(5, 1, 2)).unwrap();
    drop(wal);
    let (_, found) = open(dir.path()).unwrap();
    assert_eq!(indices(&found), [(4, 2), (5, 2)]);
}

#[test]
fn a_tail_cut_at_any_byte_loses_only_the_last_batch() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(LOG);
    let (mut wal, _) = open(dir.path()).unwrap();
    wal.persist(&batch(2, 2, 1)).unwrap();
    let kept = fs::metadata(&path).unwrap().len();
    wal.persist(&batch(4, 2, 1)).unwrap();
    drop(wal);
    let whole = fs::read(&path).unwrap();
    for cut in usize::try_from(kept).unwrap()..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let (mut wal, found) = open(dir.path()).unwrap();
        assert_eq!(indices(&found), [(2, 1), (3, 1)], "cut at {cut}");
        assert_eq!(fs::metadata(&path).unwrap().len(), kept, "the torn end is gone");
        wal.persist(&batch(4, 1, 7)).unwrap();
        drop(wal);
        let (_, found) = open(dir.path()).unwrap();
        assert_eq!(indices(&found), [(2, 1), (3, 1), (4, 7)], "cut at {cut}, then written on");
    }
}

/// A file of a start and two more frames; where the last begins.
fn file(first: usize, last: usize) -> (Vec<u8>, usize) {
    let payload = |bytes: usize| entry(1, 1, bytes).bytes;
    let mut bytes = encode(Kind::Start, 0, &payload(first)).unwrap();
    bytes.extend(encode(Kind::Batch, 1, &payload(40)).unwrap());
    let begin = bytes.len();
    bytes.extend(encode(Kind::Batch, 2, &payload(last)).unwrap());
    (bytes, begin)
}

#[test]
fn any_flipped_bit_is_refused() {
    // Two alignments of the last frame within its sectors, and one right at a boundary.
    for first in [10, 130, 512 - 3 * HEADER - 40 - 8] {
        let (good, _) = file(first, 700);
        assert_eq!(scan(&good).unwrap().frames.len(), 3);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(scan(&bad).is_err(), "byte {at} of {}, bit {bit}", good.len());
            }
        }
    }
}

#[test]
fn a_last_frame_with_a_sector_missing_is_torn() {
    for first in (0..600).step_by(23) {
        let (good, begin) = file(first, 1500);
        let mut sector = begin;
        while sector < good.len() {
            let end = ((sector / 512 + 1) * 512).min(good.len());
            let mut torn = good.clone();
            torn[sector..end].fill(0);
            let found = scan(&torn).unwrap_or_else(|d| panic!("{first}, {sector}: {d:?}"));
            assert_eq!((found.frames.len(), found.good), (2, begin));
            sector = end;
        }
        // The size was extended, the data never came.
        let mut torn = good.clone();
        torn[begin..].fill(0);
        assert_eq!(scan(&torn).unwrap().good, begin);
    }
}

#[test]
fn a_missing_sector_before_the_last_frame_is_damage() {
    let (good, begin) = file(2000, 100);
    for sector in (0..begin - 512).step_by(512) {
        let mut bad = good.clone();
        bad[sector..sector + 512].fill(0);
        assert!(matches!(scan(&bad), Err(Damage { offset: 0, .. })), "sector {sector}");
    }
    let mut bad = good.clone();
    bad[begin - 60..begin - 20].fill(0);
    let damage = scan(&bad).unwrap_err();
    assert_eq!(damage.detail, "a damaged frame is followed by later ones");
}

#[test]
fn bytes_that_nobody_wrote_are_damage() {
    let (good, begin) = file(10, 100);
    let mut longer = good.clone();
    longer.extend_from_slice(&[7; 200]);
    assert!(scan(&longer).is_err());
    // A frame of another place in the file.
    let mut repeated = good.clone();
    repeated.extend_from_slice(&good[begin..]);
    assert_eq!(scan(&repeated).unwrap_err().detail, "a frame is out of sequence");
    assert_eq!(scan(&[]).unwrap().frames.len(), 0);
}

#[test]
fn damage_in_the_file_is_a_clear_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(LOG);
    let (mut wal, _) = open(dir.path()).unwrap();
    for first in 2..6 {
        wal.persist(&batch(first, 1, 1)).unwrap();
    }
    drop(wal);
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(37) {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[good[at] ^ 0x10], at as u64).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, MetaError::Corrupt { .. }), "byte {at}: {error}");
        file.write_all_at(&[good[at]], at as u64).unwrap();
    }
    fs::write(&path, b"").unwrap();
    assert!(matches!(open(dir.path()), Err(MetaError::Corrupt { .. })));
    fs::write(&path, &good).unwrap();
    assert_eq!(open(dir.path()).unwrap().1.entries.len(), 4);
}

#[test]
fn the_directory_is_one_node_s_of_one_cluster() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()).unwrap());
    for (cluster, node) in [(1, 2), (2, 1)] {
        let other = Identity { cluster: ClusterId(Uuid::from_u128(cluster)), node: NodeId(node) };
        let refused = Wal::open(dir.path(), other, || Ok(founding()));
        assert!(matches!(refused, Err(MetaError::Foreign { .. })), "{refused:?}");
        // Also when only the log is left.
        fs::rename(dir.path().join(IDENTITY), dir.path().join("away")).unwrap();
        let refused = Wal::open(dir.path(), other, || Ok(founding()));
        assert!(matches!(refused, Err(MetaError::Foreign { .. })), "{refused:?}");
        fs::rename(dir.path().join("away"), dir.path().join(IDENTITY)).unwrap();
    }
    fs::write(dir.path().join(IDENTITY), b"node 1").unwrap();
    assert!(matches!(open(dir.path()), Err(MetaError::Corrupt { .. })));
    // Killed between the log and the identity: it is written again.
    fs::remove_file(dir.path().join(IDENTITY)).unwrap();
    drop(open(dir.path()).unwrap());
    assert!(dir.path().join(IDENTITY).exists());
}

#[test]
fn a_lost_log_is_not_founded_again() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()).unwrap());
    fs::remove_file(dir.path().join(LOG)).unwrap();
    assert!(matches!(open(dir.path()), Err(MetaError::LogLost { .. })));
    fs::remove_file(dir.path().join(IDENTITY)).unwrap();
    fs::create_dir(dir.path().join(APPLIED)).unwrap();
    assert!(matches!(open(dir.path()), Err(MetaError::LogLost { .. })));
    fs::remove_dir(dir.path().join(APPLIED)).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn a_rewrite_that_was_killed_changed_nothing() {
    let dir = TempDir::new().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    wal.persist(&batch(2, 3, 1)).unwrap();
    drop(wal);
    fs::write(dir.path().join(LOG_NEW), b"half a fil").unwrap();
    let (mut wal, found) = open(dir.path()).unwrap();
    assert_eq!(indices(&found), [(2, 1), (3, 1), (4, 1)]);
    wal.rewrite(&found).unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).unwrap().1, found);
}

#[test]
fn one_owner_at_a_time() {
    let dir = TempDir::new().unwrap();
    let owner = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(MetaError::InUse { .. })));
    drop(owner);
    open(dir.path()).unwrap();
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    let dir = TempDir::new().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    let good = wal.file.try_clone().unwrap();
    wal.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = wal.persist(&batch(2, 1, 1)).unwrap_err();
    let WalError::Io { source, .. } = error.downcast_ref().unwrap() else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull, "errno is kept");
    wal.file = good;
    let again = wal.persist(&batch(2, 1, 1)).unwrap_err();
    assert!(matches!(again.downcast_ref(), Some(WalError::Failed)));
    assert!(wal.rewrite(&founding()).is_err());
    drop(wal);
    assert_eq!(open(dir.path()).unwrap().1, founding());
}
