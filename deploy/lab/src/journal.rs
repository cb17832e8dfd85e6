//! Small append-only text files in which the lab's clients note what happened and when: one line an
//! entry, words separated by spaces, the time (nanoseconds of CLOCK_BOOTTIME) first.

use crate::clock;
use anyhow::{Context as _, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use types::Instant;

/// A file being appended to.
pub struct Journal {
    file: File,
}

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was written.
    pub at: Instant,
    /// The words after the time.
    pub text: String,
}

impl Journal {
    /// Opens `path` for appending, and makes it if need be.
    ///
    /// # Errors
    /// If that fails.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file })
    }

    /// Appends an entry with the time of now; it outlives this process.
    ///
    /// # Errors
    /// If the write fails.
    pub fn note(&mut self, text: &str) -> Result<()> {
        self.file.write_all(format!("{} {text}\n", clock::now().0).as_bytes())?;
        Ok(())
    }

    /// As [`Journal::note`], and the entry outlives the machine.
    ///
    /// # Errors
    /// If the write or the sync fails.
    pub fn note_durably(&mut self, text: &str) -> Result<()> {
        self.note(text)?;
        self.file.sync_data()?;
        Ok(())
    }
}

/// All whole entries of a journal; none if the file is not there yet.
///
/// # Errors
/// If it cannot be read or a whole line is not an entry.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("reading {}", path.display()))?,
    };
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    // What follows the last newline is still being written.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let entry = |line: &str| {
        let (at, text) = line.split_once(' ').unwrap_or((line, ""));
        let at = at.parse().with_context(|| format!("{line:?} does not start with a time"))?;
        Ok(Entry { at: Instant(at), text: text.to_owned() })
    };
    whole.lines().map(entry).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_come_back_and_a_torn_last_line_is_not_one() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("j");
        assert_eq!(read(&path).unwrap(), []);
        let mut journal = Journal::open(&path).unwrap();
        journal.note("ack 1").unwrap();
        journal.note_durably("ack 2").unwrap();
        let entries = read(&path).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].text, "ack 2");
        assert!(entries[0].at <= entries[1].at);
        assert_eq!(parse("5 a\n6 b\n7").unwrap().len(), 2);
        assert!(parse("x y\n").is_err());
    }
}
