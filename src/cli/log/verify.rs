//! `quipu log verify`: is everything as it was written?

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::super::Verdict;
use super::super::output::{Format, Output, bytes, count};
use super::{Document, Target, place_words, print_advice, print_findings, verdict};
use crate::storage::{Inspector, Report};

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
}

const AFTER_HELP: &str = "\
Reads every byte from the disk and checks headers, checkpoints, the checksum and
the chain of every entry, payloads, padding, index files, the links between
segments, and both copies of the meta journal.

What a crash may leave behind (a torn tail) is no damage: it is told as a note,
and the next open removes it. Entries that were known to be on disk and are not
there any more are damage.

Examples:
  quipu log verify /var/lib/quipu
  quipu log verify /var/lib/quipu/logs/0b5e1f6e-8c1c-4a53-9f0e-0d6f6d1c2a77
  quipu -o json log verify /var/lib/quipu | jq '.ok, .damage'

JSON: one document {ok, path, kind, in_use, closed_cleanly, journal, totals,
logs: [{log, ..., segments: [...]}], damage: [{file, position, what}],
failures: [...], notes: [...]}, the same that `quipu log stats` prints.

Exit codes: 0 all is well, 1 damage or failure, 2 wrong usage, 3 not found.";

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    let inspector = args.target.open()?;
    let started = Instant::now();
    let report = inspect(&inspector);
    match output.format {
        Format::Json => output.json(&Document::of(&report))?,
        Format::Table => print(&report, started.elapsed(), output)?,
    }
    output.flush()?;
    print_advice(&report, output.format);
    Ok(verdict(&report))
}

/// Inspects with a line of progress on a terminal, silently elsewhere.
fn inspect(inspector: &Inspector) -> Report {
    if !io::stderr().is_terminal() {
        return inspector.inspect(true, &mut |_| {});
    }
    let total = inspector.bytes();
    let mut done = 0;
    let mut shown = Instant::now();
    let report = inspector.inspect(true, &mut |more| {
        done += more;
        if shown.elapsed() >= PROGRESS_EVERY {
            shown = Instant::now();
            let percent = (100 * done).checked_div(total).unwrap_or(100).min(100);
            let line = format!("\r\x1b[K{} of {} ({percent} %)", bytes(done), bytes(total));
            let _ = io::stderr().write_all(line.as_bytes());
        }
    });
    let _ = io::stderr().write_all(b"\r\x1b[K");
    report
}

fn print(report: &Report, elapsed: Duration, output: &mut Output) -> anyhow::Result<()> {
    print_findings(report, output)?;
    let totals = &report.totals;
    let word = if report.is_good() { "ok" } else { "NOT OK" };
    output.line(&format!(
        "{word}: {} {}: {}, {}, {}, {}; {} read in {:.1} s",
        place_words(report.kind),
        report.path.display(),
        count(totals.logs, "log"),
        count(totals.segments, "segment"),
        count(totals.entries, "entry"),
        count(totals.records, "record"),
        bytes(totals.file_bytes),
        elapsed.as_secs_f64(),
    ))
}
