//! `quipu doctor`: what is wrong with a cluster or a data directory, and what to do about it.

mod cluster;
mod directory;

use std::path::PathBuf;

use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, Table, count};
use super::remote;

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Look at the data directory of a node on this machine as well
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Ask no cluster
    #[arg(long, requires = "data_dir")]
    offline: bool,
}

const AFTER_HELP: &str = "\
Asks every node how it is, and looks at every partition. Nothing is changed.

Examples:
  quipu doctor                                    the cluster of --server
  quipu doctor --data-dir /var/lib/quipu          and the directory of the node on this machine
  quipu doctor --data-dir /var/lib/quipu --offline

JSON: {ok, nodes, partitions, data_dir, findings: [{severity, about, what, remedy}]}; severity is
problem or note.

Exit codes: 0 no problem, 1 problems, 2 wrong usage, 4 the cluster cannot be reached.";

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Problem,
    Note,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    severity: Severity,
    about: String,
    what: String,
    remedy: String,
}

impl Finding {
    fn problem(about: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Problem, about, what, remedy)
    }

    fn note(about: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Note, about, what, remedy)
    }

    fn new(
        severity: Severity,
        about: &str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, about: about.to_owned(), what: what.into(), remedy: remedy.into() }
    }
}

/// All that was looked at, and what was found.
#[derive(Debug, Default, Serialize)]
struct Diagnosis {
    ok: bool,
    nodes: usize,
    partitions: usize,
    data_dir: Option<PathBuf>,
    findings: Vec<Finding>,
}

pub(super) fn run(
    args: &Args,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    let mut diagnosis = Diagnosis { data_dir: args.data_dir.clone(), ..Diagnosis::default() };
    if let Some(dir) = &args.data_dir {
        diagnosis.findings.extend(directory::look(dir)?);
    }
    let mut unreachable = None;
    if !args.offline {
        match remote.run(async |client| Ok(cluster::look(&client).await?)) {
            Ok(seen) => {
                (diagnosis.nodes, diagnosis.partitions) = (seen.nodes, seen.partitions);
                diagnosis.findings.extend(seen.findings);
            }
            // What was found in the directory is worth printing all the same.
            Err(error) => unreachable = Some(error),
        }
    }
    diagnosis.findings.sort();
    diagnosis.findings.dedup();
    let is_sound = |finding: &Finding| finding.severity == Severity::Note;
    diagnosis.ok = unreachable.is_none() && diagnosis.findings.iter().all(is_sound);
    if unreachable.is_none() || args.data_dir.is_some() {
        print(&diagnosis, output)?;
    }
    match unreachable {
        Some(error) => Err(error),
        None if diagnosis.ok => Ok(Verdict::Good),
        None => Ok(Verdict::Bad),
    }
}

fn print(diagnosis: &Diagnosis, output: &mut Output) -> anyhow::Result<()> {
    if output.format == Format::Json {
        output.json(diagnosis)?;
        return output.flush();
    }
    let problems =
        diagnosis.findings.iter().filter(|f| f.severity == Severity::Problem).count() as u64;
    output.line(&format!(
        "looked at {} and {}: {}",
        count(diagnosis.nodes as u64, "node"),
        count(diagnosis.partitions as u64, "partition"),
        if problems == 0 { "no problem".to_owned() } else { count(problems, "problem") },
    ))?;
    if !diagnosis.findings.is_empty() {
        let mut table = Table::new(&["", "ABOUT", "WHAT", "WHAT TO DO"]);
        for Finding { severity, about, what, remedy } in &diagnosis.findings {
            let severity = match severity {
                Severity::Problem => "problem",
                Severity::Note => "note",
            };
            table.push([severity, about, what, remedy].map(str::to_owned).into());
        }
        table.print(output, 0)?;
    }
    output.flush()
}
