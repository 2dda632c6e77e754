//! `quipu log`: the offline tools. They work beside a running server and on damaged directories.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, count};
use crate::storage::fs::os::OsFs;
use crate::storage::{Damage, Inspector, Note, Place, Report};
use crate::types::LogId;

mod dump;
mod stats;
mod verify;

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print entries, and the records in them
    Dump(dump::Args),
    /// Read and check everything, and say exactly what is damaged
    Verify(verify::Args),
    /// Count what is there, log by log and segment by segment
    Stats(stats::Args),
}

const AFTER_HELP: &str = "\
DIR is a data directory (it holds a file quipu.dir), the directory of one log
(DATA/logs/<id>), or one segment file (DATA/logs/<id>/<name>.seg).

These tools take no lock and change nothing. They may be used while a server
runs; what it writes meanwhile may then be missing from the picture, and they
say so.

Examples:
  quipu log verify /var/lib/quipu
  quipu log stats /var/lib/quipu --log 0b5e1f6e-8c1c-4a53-9f0e-0d6f6d1c2a77
  quipu log dump /var/lib/quipu --records --max 10
  quipu -o json log dump /var/lib/quipu | jq .index

Exit codes: 0 all is well, 1 damage or failure, 2 wrong usage, 3 not found.";

/// What to look at.
#[derive(Debug, clap::Args)]
struct Target {
    /// A data directory, the directory of one log, or one segment file
    dir: PathBuf,
    /// Look at this log of the data directory only
    #[arg(long, value_name = "UUID", value_parser = parse_log)]
    log: Option<LogId>,
}

impl Target {
    fn open(&self) -> anyhow::Result<Inspector> {
        let path = std::path::absolute(&self.dir)?;
        Ok(Inspector::open(Arc::new(OsFs::new()), &path, self.log)?)
    }
}

fn parse_log(text: &str) -> Result<LogId, String> {
    let wanted = "a log's id is a UUID in lower case with hyphens, as `quipu log stats` prints it";
    LogId::parse(text).ok_or_else(|| wanted.to_owned())
}

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    match &args.verb {
        Verb::Dump(args) => dump::run(args, output),
        Verb::Verify(args) => verify::run(args, output),
        Verb::Stats(args) => stats::run(args, output),
    }
}

/// The JSON document of `stats` and `verify`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// Nothing is damaged and everything could be inspected.
    ok: bool,
    #[serde(flatten)]
    report: &'a Report,
}

impl<'a> Document<'a> {
    fn of(report: &'a Report) -> Self {
        Self { ok: report.is_good(), report }
    }
}

fn verdict(report: &Report) -> Verdict {
    if report.is_good() { Verdict::Good } else { Verdict::Bad }
}

/// One line of what was found.
fn finding(label: &str, file: &Path, position: u64, what: &str) -> String {
    format!("{label} {} at position {position}: {what}", file.display())
}

fn damage_line(damage: &Damage) -> String {
    finding("DAMAGED", &damage.file, damage.position, &damage.what)
}

fn note_line(label: &str, note: &Note) -> String {
    finding(label, &note.file, note.position, &note.what)
}

/// Prints what was found, worst first.
fn print_findings(report: &Report, output: &mut Output) -> anyhow::Result<()> {
    for damage in &report.damage {
        output.line(&damage_line(damage))?;
    }
    for failure in &report.failures {
        output.line(&note_line("FAILED ", failure))?;
    }
    for note in &report.notes {
        output.line(&note_line("note   ", note))?;
    }
    Ok(())
}

/// Tells standard error what is wrong and what to do, where standard output does not.
fn print_advice(report: &Report, format: Format) {
    let mut text = String::new();
    if format == Format::Json {
        let damage = report.damage.iter().map(damage_line);
        let failures = report.failures.iter().map(|failure| note_line("FAILED ", failure));
        text.extend(damage.chain(failures).map(|line| line + "\n"));
    }
    if !report.damage.is_empty() {
        let places = count(report.damage.len() as u64, "damaged place");
        text += &format!(
            "{places}. Keep the files: a server that opens them marks the entries, goes on \
             serving the others and repairs them from another replica. Where there is none, \
             restore from a backup. And check the disk (smartctl, dmesg).\n"
        );
    }
    if !report.failures.is_empty() {
        let places = count(report.failures.len() as u64, "place");
        text += &format!("{places} could not be inspected: nothing is known of what is there.\n");
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

fn place_words(place: Place) -> &'static str {
    match place {
        Place::DataDirectory => "data directory",
        Place::Log => "log",
        Place::Segment => "segment",
    }
}
