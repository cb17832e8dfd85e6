//! A directory of files with a volatile cache, as the Raft log sees it and as a loss of power finds
//! it: what `replicator::meta::wal::Directory` says may happen, happens.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kit::Rng;
use kit::content::SECTOR;
use replicator::meta::wal::{Directory, LogFile};

/// The content of all files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Debug)]
enum FileChange {
    /// These bytes were appended.
    Append(Vec<u8>),
    /// The file was cut off.
    Length(usize),
}

/// A file: what is durable of it, and what was done since.
#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    changes: Vec<FileChange>,
}

impl Content {
    fn seen(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.changes {
            match change {
                FileChange::Append(more) => bytes.extend_from_slice(more),
                FileChange::Length(length) => bytes.truncate(*length),
            }
        }
        bytes
    }
}

#[derive(Clone, Debug)]
enum NameChange {
    Is(String, usize),
    Rename(String, String),
}

fn change_names(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Is(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

/// Ways to break a promise on which the log relies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLie {
    /// None.
    Honest,
    /// A sync of a file makes nothing durable.
    Syncs,
    /// A sync of the directory makes no name durable.
    Names,
}

/// A moment of a directory: what is durable, and what may be.
#[derive(Clone, Debug)]
pub struct Moment {
    files: Vec<Content>,
    durable_names: BTreeMap<String, usize>,
    names: Vec<NameChange>,
    lie: FileLie,
}

#[derive(Debug)]
struct State {
    now: Moment,
    /// After each operation, if they are recorded.
    moments: Vec<Moment>,
}

/// The directory; clones are the same one.
#[derive(Clone, Debug)]
pub struct MemoryDirectory(Arc<Mutex<State>>);

/// A file of it, open.
#[derive(Debug)]
pub struct MemoryFile {
    directory: MemoryDirectory,
    file: usize,
}

/// All subsets of sectors are tried up to this many images at a moment.
const EXHAUSTIVE: usize = 1 << 8;

impl Moment {
    /// A directory with these durable files.
    #[must_use]
    pub fn of(files: &Files, lie: FileLie) -> Self {
        let contents =
            files.values().map(|bytes| Content { durable: bytes.clone(), ..Content::default() });
        Self {
            files: contents.collect(),
            durable_names: files.keys().cloned().zip(0..).collect(),
            names: Vec::new(),
            lie,
        }
    }

    fn names(&self, changes: usize) -> BTreeMap<String, usize> {
        let mut names = self.durable_names.clone();
        for change in &self.names[..changes] {
            change_names(&mut names, change);
        }
        names
    }

    /// What the process sees.
    #[must_use]
    pub fn seen(&self) -> Files {
        let names = self.names(self.names.len());
        names.into_iter().map(|(name, file)| (name, self.files[file].seen())).collect()
    }

    /// Contents that a loss of power may leave: all of them if they are few, else some by chance.
    #[must_use]
    pub fn images(&self, rng: &mut Rng, samples: usize) -> Vec<Files> {
        let mut images = Vec::new();
        for changes in 0..=self.names.len() {
            let names = self.names(changes);
            let mut partial = vec![Files::new()];
            for (name, file) in &names {
                let versions = self.files[*file].versions(rng, samples);
                partial = partial
                    .iter()
                    .flat_map(|files| {
                        versions.iter().map(move |bytes| {
                            let mut files = files.clone();
                            files.insert(name.clone(), bytes.clone());
                            files
                        })
                    })
                    .collect();
                while partial.len() > EXHAUSTIVE {
                    partial.swap_remove(rng.index(partial.len()));
                }
            }
            images.append(&mut partial);
        }
        images
    }
}

impl Content {
    /// What may be left of the file.
    fn versions(&self, rng: &mut Rng, samples: usize) -> Vec<Vec<u8>> {
        let mut versions = vec![self.durable.clone()];
        let mut before = self.durable.clone();
        for change in &self.changes {
            match change {
                FileChange::Length(length) => {
                    before.truncate(*length);
                    versions.push(before.clone());
                }
                FileChange::Append(more) => {
                    torn(&before, more, rng, samples, &mut versions);
                    before.extend_from_slice(more);
                }
            }
        }
        versions
    }
}

/// Adds what may be left of an append: each new sector is there or reads as zeros, and the file ends
/// after any of them, or within one.
fn torn(before: &[u8], more: &[u8], rng: &mut Rng, samples: usize, versions: &mut Vec<Vec<u8>>) {
    let end = before.len() + more.len();
    let first = before.len() / SECTOR;
    let sectors = end.div_ceil(SECTOR) - first;
    let image = |kept: &dyn Fn(usize) -> bool, length: usize| {
        let mut bytes = before.to_vec();
        bytes.extend_from_slice(more);
        for at in (0..sectors).filter(|at| !kept(*at)) {
            let from = ((first + at) * SECTOR).max(before.len());
            let to = ((first + at + 1) * SECTOR).min(end);
            bytes[from..to].fill(0);
        }
        bytes.truncate(length);
        bytes
    };
    if sectors <= 7 {
        for ends in 1..=sectors {
            let length = ((first + ends) * SECTOR).min(end);
            for subset in 0..1usize << ends {
                versions.push(image(&|at| subset >> at & 1 == 1, length));
            }
        }
    } else {
        versions.push(image(&|_| true, end));
        versions.push(image(&|_| false, end));
        for _ in 0..samples {
            let (odd, mode, bits) = (rng.index(sectors), rng.below(3), rng.next());
            let length = if rng.one_in(2) {
                end
            } else {
                ((first + 1 + rng.index(sectors)) * SECTOR).min(end)
            };
            let kept = |at: usize| match mode {
                0 => at != odd,
                1 => at == odd,
                _ => bits >> (at % 53) & 1 == 1,
            };
            versions.push(image(&kept, length));
        }
    }
    // A length that no sector explains.
    let within = before.len() + rng.index(more.len().max(1));
    versions.push(image(&|_| true, within));
}

impl MemoryDirectory {
    /// A directory that begins like this; `record`: its moments are kept.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self(Arc::new(Mutex::new(State { now, moments: Vec::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Moment) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.now);
        let now = state.now.clone();
        state.moments.push(now);
        result
    }

    /// The moments since the last call.
    #[must_use]
    pub fn take_moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.lock().moments)
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.lock().now.clone()
    }
}

impl Directory for MemoryDirectory {
    type File = MemoryFile;

    fn path(&self) -> &Path {
        Path::new("")
    }

    fn exists(&self, name: &str) -> bool {
        let now = &self.lock().now;
        now.names(now.names.len()).contains_key(name)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let now = &self.lock().now;
        let names = now.names(now.names.len());
        Ok(names.get(name).map(|file| now.files[*file].seen()))
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let file = self.change(|now| {
            now.files.push(Content::default());
            let file = now.files.len() - 1;
            now.names.push(NameChange::Is(name.to_owned(), file));
            file
        });
        Ok(MemoryFile { directory: self.clone(), file })
    }

    fn append(&self, name: &str) -> io::Result<MemoryFile> {
        let file = {
            let now = &self.lock().now;
            now.names(now.names.len()).get(name).copied()
        };
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(MemoryFile { directory: self.clone(), file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|now| now.names.push(NameChange::Rename(from.to_owned(), to.to_owned())));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|now| {
            if now.lie != FileLie::Names {
                now.durable_names = now.names(now.names.len());
                now.names.clear();
            }
        });
        Ok(())
    }
}

impl LogFile for MemoryFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let change = FileChange::Append(bytes.to_vec());
        self.directory.change(|now| now.files[self.file].changes.push(change));
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let change = FileChange::Length(usize::try_from(len).unwrap_or(usize::MAX));
        self.directory.change(|now| now.files[self.file].changes.push(change));
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.directory.change(|now| {
            if now.lie != FileLie::Syncs {
                let content = &mut now.files[self.file];
                content.durable = content.seen();
                content.changes.clear();
            }
        });
        Ok(())
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
