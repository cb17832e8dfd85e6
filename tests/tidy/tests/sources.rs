//! Sources: their length, where unsafe code is, which words and calls are not there; documents.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A file beyond this wants a second idea of where its parts belong.
const MAX_LINES: usize = 700;

/// Left for later, or left behind.
const BANNED: &[&str] = &["todo!(", "unimplemented!(", "FIXME", "XXX", "dbg!(", "#[ignore]"];

/// Crates without I/O: nothing in them may ask the machine for anything, tests included.
const PURE: &[&str] = &["types", "wire", "metadata", "store", "engine", "policy"];
const NOT_IN_PURE: &[&str] = &[
    "std::time::Instant",
    "SystemTime",
    "std::thread::spawn",
    "thread::sleep",
    "std::net::TcpStream",
    "std::fs::",
    "HashMap",
    "HashSet",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All files below the root whose name ends with one of `endings`, without build output and .git.
fn files(endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    dirs.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_path_buf(), text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let long = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("{}: {lines} lines", path.display()))
    };
    report(&files(&[".rs", ".proto"]).iter().filter_map(long).collect::<Vec<_>>());
}

#[test]
fn unsafe_code_is_in_one_crate_and_every_block_is_argued() {
    let mut wrong = Vec::new();
    for (path, text) in files(&[".rs"]) {
        if path.starts_with("tests/tidy") {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        let inside = path.starts_with("replicator/hostio");
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let block = ["unsafe {", "unsafe impl", "unsafe fn"].iter().any(|u| code.contains(u));
            if !block {
                continue;
            }
            let argued =
                lines[index.saturating_sub(12)..=index].iter().any(|line| line.contains("SAFETY"));
            let documented =
                lines[index.saturating_sub(12)..index].iter().any(|line| line.contains("# Safety"));
            if !inside {
                wrong.push(format!("{}:{}: unsafe outside hostio", path.display(), index + 1));
            } else if !argued && !documented {
                wrong.push(format!("{}:{}: unsafe without SAFETY", path.display(), index + 1));
            }
        }
    }
    report(&wrong);
}

#[test]
fn every_other_crate_forbids_unsafe_code() {
    let mut wrong = Vec::new();
    for (path, text) in files(&["lib.rs", "main.rs"]) {
        let name = path.to_string_lossy();
        let top = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
        if top
            && !path.starts_with("replicator/hostio")
            && !text.contains("#![forbid(unsafe_code)]")
        {
            wrong.push(format!("{name}: no #![forbid(unsafe_code)]"));
        }
    }
    report(&wrong);
}

#[test]
fn nothing_is_left_for_later_and_no_workplace_is_named() {
    let mut wrong = Vec::new();
    for (path, text) in files(&[".rs", ".md", ".toml", ".proto", "Makefile"]) {
        if path.starts_with("tests/tidy") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            for word in BANNED.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}:{}: {word:?}", path.display(), index + 1));
            }
        }
    }
    report(&wrong);
}

#[test]
fn state_machines_ask_the_machine_for_nothing() {
    let mut wrong = Vec::new();
    for (path, text) in files(&[".rs"]) {
        let pure = PURE.iter().any(|name| path.starts_with(format!("replicator/{name}/src")));
        if !pure {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            for word in NOT_IN_PURE.iter().filter(|word| code.contains(**word)) {
                wrong.push(format!("{}:{}: {word}", path.display(), index + 1));
            }
        }
    }
    report(&wrong);
}

#[test]
fn the_front_door_is_there() {
    for (name, words) in [
        ("README.md", &["make demo", "make test", "failover.svg"][..]),
        ("ARCHITECTURE.md", &["replicator/engine/", "deploy/lab/", "mermaid"][..]),
        ("docs/decisions/0001-flat-pool.md", &["Status"][..]),
        ("deny.toml", &["licenses"][..]),
        ("rust-toolchain.toml", &["channel"][..]),
        (".ci/run", &["make test"][..]),
    ] {
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        for word in words {
            assert!(text.contains(word), "{name} does not say {word:?}");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in files(&[".md"]) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let base = root().join(&path);
            if !base.parent().unwrap().join(target).exists() {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
    }
    report(&wrong);
}
