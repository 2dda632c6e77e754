//! `quipu errors`: what the reasons in errors mean.

use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, Table};
use crate::client::{Explanation, explain, reasons};

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The reason to explain; all of them if none is named
    reason: Option<String>,
}

const AFTER_HELP: &str = "\
Examples:
  quipu errors
  quipu errors NO_LEADER

JSON: [{reason, cause, remedy}], or one of them if a reason is named

Exit codes: 0 done, 2 wrong usage, 3 there is no such reason.";

#[derive(Serialize)]
struct Explained {
    reason: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

impl Explained {
    fn of(Explanation { name, cause, remedy }: Explanation) -> Self {
        Self { reason: name, cause, remedy }
    }
}

/// There is no such reason.
#[derive(Debug, thiserror::Error)]
#[error("there is no reason `{0}`")]
pub(super) struct UnknownReason(String);

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    let all = reasons().map(explain);
    match &args.reason {
        Some(name) => {
            let wanted = name.to_uppercase().replace('-', "_");
            let found = all.into_iter().find(|explanation| explanation.name == wanted);
            print_one(found.ok_or_else(|| UnknownReason(name.clone()))?, output)?;
        }
        None => print_all(all, output)?,
    }
    Ok(Verdict::Good)
}

fn print_one(explanation: Explanation, output: &mut Output) -> anyhow::Result<()> {
    match output.format {
        Format::Json => output.json(&Explained::of(explanation)),
        Format::Table => {
            output.line(explanation.name)?;
            output.line(&format!("  what  {}", explanation.cause))?;
            output.line(&format!("  do    {}", explanation.remedy))
        }
    }
}

fn print_all(all: impl Iterator<Item = Explanation>, output: &mut Output) -> anyhow::Result<()> {
    if output.format == Format::Json {
        return output.json(&all.map(Explained::of).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["REASON", "WHAT HAS HAPPENED"]);
    all.for_each(|one| table.push(vec![one.name.to_owned(), one.cause.to_owned()]));
    table.print(output, 0)
}
