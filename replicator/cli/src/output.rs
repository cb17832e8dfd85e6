//! Tables for people, JSON for programs.

use anyhow::Result;
use serde_json::Value;
use std::io::{Write as _, stdout};

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON, one document a result, instead of tables.
    pub json: bool,
}

impl Output {
    /// Prints `json`, or else the table.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn show(self, json: &Value, table: impl FnOnce() -> Table) -> Result<()> {
        if self.json {
            self.line(&json.to_string())
        } else {
            self.line(table().render().trim_end())
        }
    }

    /// Prints a line.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn line(self, text: &str) -> Result<()> {
        writeln!(stdout(), "{text}")?;
        Ok(())
    }
}

/// Rows of words in aligned columns.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    #[must_use]
    pub fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, words: [String; N]) {
        self.rows.push(words.into());
    }

    /// As [`Self::row`], for rows whose length is not known here.
    pub fn words(&mut self, words: Vec<String>) {
        self.rows.push(words);
    }

    /// All rows, the heads first.
    #[cfg(test)]
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

/// Bytes as people say them.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >= 1 << shift {
            let value = bytes as f64 / (1_u64 << shift) as f64;
            let digits = usize::from(value.fract() > 0.05 && value < 100.0);
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

/// Reads "10GiB", "512 MiB", "1g", "1073741824".
///
/// # Errors
/// In words for the person who typed it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let refuse =
        || format!("{text:?} is not a size; for example 10GiB, 512MiB or a number of bytes");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let number: u64 = trimmed[..digits].parse().map_err(|_| refuse())?;
    let shift = match trimmed[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(refuse()),
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_said() {
        for (text, bytes) in [
            ("10GiB", Ok(10 << 30)),
            ("512 MiB", Ok(512 << 20)),
            ("1g", Ok(1 << 30)),
            ("4096", Ok(4096)),
            ("0", Err(())),
            ("-1", Err(())),
            ("1.5G", Err(())),
            ("99999999999TiB", Err(())),
        ] {
            assert_eq!(parse_size(text).map_err(drop), bytes, "{text}");
        }
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(1_610_612_736), "1.5 GiB");
        assert_eq!(size(17), "17 B");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["a", "b"]);
        table.row(["long".into(), "x".into()]);
        assert_eq!(table.render(), "a     b\nlong  x\n");
    }
}
