//! Printing: tables for people, JSON for programs, and how numbers read in both.

use std::fmt::Write as _;
use std::io::{self, BufWriter, StdoutLock, Write};

use anyhow::Context as _;
use serde::Serialize;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For programs; fields are only ever added
    Json,
}

/// How data is to be printed, as the command line says: a [`Format`], or one of those that
/// `quipu consume` knows beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Printing {
    Format(Format),
    /// Values of records, and nothing else.
    Raw,
    /// Records as a template says.
    Template(String),
}

impl Printing {
    /// Reads what stands after `-o`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Format(Format::Table)),
            "json" => Ok(Self::Format(Format::Json)),
            "raw" => Ok(Self::Raw),
            template if template.contains('%') => Ok(Self::Template(template.to_owned())),
            _ => Err("expected `table` or `json`; for records also `raw` or a template".to_owned()),
        }
    }
}

/// Standard output, buffered.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) format: Format,
    out: BufWriter<StdoutLock<'static>>,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format, out: BufWriter::new(io::stdout().lock()) }
    }

    /// Writes one line of text.
    pub(super) fn line(&mut self, line: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.out, "{line}")?)
    }

    /// Writes bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.out.write_all(bytes)?)
    }

    /// Writes one JSON object on a line of its own.
    pub(super) fn json_line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(value).context("a path is not UTF-8: use -o table")?;
        self.line(&line)
    }

    /// Writes one JSON document.
    pub(super) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let text =
            serde_json::to_string_pretty(value).context("a path is not UTF-8: use -o table")?;
        self.line(&text)
    }

    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}

/// Rows under headings; numbers stand on the right.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    pub(super) fn push(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.rows[0].len(), "a row has a cell under every heading");
        self.rows.push(row);
    }

    /// Writes the table, each line after `indent` spaces.
    pub(super) fn print(&self, output: &mut Output, indent: usize) -> anyhow::Result<()> {
        let width = |n: usize| self.rows.iter().map(|row| row[n].chars().count()).max();
        let columns = self.rows[0].len();
        let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
        let on_right: Vec<bool> = (0..columns).map(|n| self.is_numeric(n)).collect();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (n, cell) in row.iter().enumerate() {
                let width = widths[n];
                let _ = match on_right[n] {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            output.line(line.trim_end())?;
        }
        Ok(())
    }

    fn is_numeric(&self, column: usize) -> bool {
        let starts = |row: &Vec<String>| row[column].starts_with(|c: char| c.is_ascii_digit());
        // Dates and ids begin with digits too.
        let is_text = |row: &Vec<String>| row[column].contains([':', '-']);
        self.rows[1..].iter().all(|row| (starts(row) && !is_text(row)) || row[column] == "-")
    }
}

/// A number that may be missing.
pub(super) fn optional(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A count with its noun, in the plural if need be.
pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = match noun.strip_suffix('y') {
        _ if number == 1 => noun.to_owned(),
        Some(stem) => format!("{stem}ies"),
        None => format!("{noun}s"),
    };
    format!("{number} {plural}")
}

/// Bytes in the largest unit that leaves a whole part.
pub(super) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{number} B") } else { format!("{value:.1} {unit}") }
}

/// A time as RFC 3339 has it, in UTC with milliseconds.
pub(super) fn time(unix_ms: i64) -> String {
    const DAY_MS: i64 = 86_400_000;
    let (days, ms) = (unix_ms.div_euclid(DAY_MS), unix_ms.rem_euclid(DAY_MS));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let ms = ms % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day of a day counted from 1970: Howard Hinnant's `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_stand_on_the_right() {
        let column = |cells: &[&str]| {
            let mut table = Table::new(&["H"]);
            cells.iter().for_each(|cell| table.push(vec![(*cell).to_owned()]));
            table.is_numeric(0)
        };
        assert!(column(&["1", "-", "20"]));
        for texts in [&["a"], &["2023-11-14T22:13:20.000Z"], &["3e70f9e5-e8a9-4b6a-a534"]] {
            assert!(!column(texts), "{texts:?}");
        }
    }

    #[test]
    fn times_read_as_the_calendar_has_them() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(time(-1), "1969-12-31T23:59:59.999Z");
    }

    #[test]
    fn bytes_and_counts_read_well() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(count(1, "entry"), "1 entry");
        assert_eq!(count(0, "entry"), "0 entries");
        assert_eq!(count(2, "log"), "2 logs");
    }
}
