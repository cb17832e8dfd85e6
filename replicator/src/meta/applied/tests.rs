#![allow(clippy::unwrap_used)]

use super::*;
use metadata::{Command, NodeInfo};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;
use types::{BootId, ClusterId, EngineInstance};
use uuid::Uuid;

fn identity(node: u64) -> Identity {
    Identity { cluster: ClusterId(Uuid::from_u128(1)), node: NodeId(node) }
}

fn command(node: u64, boot: u128) -> Command {
    Command::RegisterNode(NodeInfo {
        node: NodeId(node),
        name: format!("node{node}"),
        control_address: "127.0.0.1:7420".into(),
        data_address: "127.0.0.1:7421".into(),
        pool: None,
        class: None,
        zone: None,
        boot: BootId(Uuid::from_u128(boot)),
        process: EngineInstance::default(),
    })
}

/// Applies `count` commands, storing each.
fn fill(store: &mut SledApplied, state: &mut State, count: u64) {
    for step in 1..=count {
        let command = match step % 5 {
            4 => Command::RemoveNode { node: NodeId(step - 1) },
            _ => command(step, step.into()),
        };
        let applied = state.apply(state.applied + 1, 1, &command);
        store.write(state, &applied.changed);
    }
}

/// Opens it once threads of sled's that outlive the one before have let go of its lock: a process
/// that dies takes them with it.
fn open(dir: &Path, node: u64) -> (SledApplied, Option<State>) {
    if let Ok(file) = fs::File::open(dir.join(APPLIED).join("db")) {
        file.lock().unwrap();
    }
    SledApplied::open(dir, identity(node))
}

fn filled(dir: &Path) -> State {
    let mut state = State::default();
    let (mut store, found) = open(dir, 1);
    assert_eq!(found, None);
    fill(&mut store, &mut state, 60);
    store.flush();
    state
}

#[test]
fn the_state_is_there_again() {
    let dir = TempDir::new().unwrap();
    let mut state = filled(dir.path());
    assert!(!state.retired.is_empty());
    let (mut store, found) = open(dir.path(), 1);
    assert_eq!(found.as_ref(), Some(&state));
    // Also after further changes, and after a replacement.
    fill(&mut store, &mut state, 20);
    drop(store);
    let (mut store, found) = open(dir.path(), 1);
    assert_eq!(found.as_ref(), Some(&state));
    let mut other = State::default();
    other.apply(9, 2, &command(7, 7));
    store.replace(&other);
    drop(store);
    let (_, found) = open(dir.path(), 1);
    assert_eq!(found, Some(other));
}

#[test]
fn a_state_that_misses_a_record_or_has_a_wrong_one_is_set_aside() {
    type Spoil = fn(&sled::Db);
    let spoils: [Spoil; 4] = [
        |db| drop(db.remove(key(Changed::Node(NodeId(1)))).unwrap()),
        |db| drop(db.insert("n12345678", vec![1; 40]).unwrap()),
        |db| drop(db.remove(HEADER_KEY).unwrap()),
        |db| {
            let stolen = db.get(key(Changed::Node(NodeId(1)))).unwrap().unwrap();
            db.insert(key(Changed::Node(NodeId(2))), stolen).unwrap();
        },
    ];
    for spoil in spoils {
        let dir = TempDir::new().unwrap();
        filled(dir.path());
        let db = open_db(&dir.path().join(APPLIED)).unwrap();
        spoil(&db);
        db.flush().unwrap();
        drop(db);
        let (mut store, found) = open(dir.path(), 1);
        assert_eq!(found, None);
        assert!(dir.path().join(SET_ASIDE).exists());
        // The fresh one works.
        let mut state = State::default();
        fill(&mut store, &mut state, 10);
        drop(store);
        assert_eq!(open(dir.path(), 1).1, Some(state));
    }
}

#[test]
fn another_node_s_state_is_not_ours() {
    let dir = TempDir::new().unwrap();
    filled(dir.path());
    assert_eq!(open(dir.path(), 2).1, None);
}

#[test]
fn flipped_bytes_in_sled_s_files_never_give_another_state() {
    let dir = TempDir::new().unwrap();
    let good = filled(dir.path());
    let path = dir.path().join(APPLIED);
    let db = path.join("db");
    let (mut same, mut refused) = (0, 0);
    let length = fs::metadata(&db).unwrap().len();
    let saved = fs::read(&db).unwrap();
    // Bytes that say something: sled pads its segments.
    let places: Vec<usize> = (0..saved.len()).filter(|at| saved[*at] != 0).collect();
    for at in places.iter().step_by(places.len() / 24 + 1) {
        let work = TempDir::new().unwrap();
        let copy = work.path().join(APPLIED);
        fs::create_dir_all(copy.join("blobs")).unwrap();
        for file in fs::read_dir(&path).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), copy.join(file.file_name())).unwrap();
            }
        }
        let file = fs::OpenOptions::new().write(true).open(copy.join("db")).unwrap();
        file.write_all_at(&[saved[*at] ^ 0x21], *at as u64).unwrap();
        match open(work.path(), 1).1 {
            Some(state) if state.applied == good.applied => {
                assert_eq!(state, good, "byte {at} of {length}");
                same += 1;
            }
            // An older state, whole and true to its checksums, is as good: the log goes on from it.
            Some(state) => assert!(state.applied < good.applied),
            None => refused += 1,
        }
    }
    assert!(same + refused > 0);
}

#[test]
fn garbage_in_its_place_is_set_aside() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join(APPLIED)).unwrap();
    fs::write(dir.path().join(APPLIED).join("conf"), b"not sled's").unwrap();
    fs::write(dir.path().join(APPLIED).join("db"), [0xAB; 5000]).unwrap();
    let (mut store, found) = open(dir.path(), 1);
    assert_eq!(found, None);
    let mut state = State::default();
    fill(&mut store, &mut state, 3);
    drop(store);
    assert_eq!(open(dir.path(), 1).1, Some(state));
}
