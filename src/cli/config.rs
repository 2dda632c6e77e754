//! `quipu config`: what a server would be configured with, without starting one.

use clap::Subcommand;
use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, Table};
use crate::config::{self, KEYS, Key, Origin, Setting, Value};

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the configuration and print it, with the flags of `quipu serve`
    Show(Box<ShowArgs>),
    /// Print a configuration file that names every key
    Sample,
}

const AFTER_HELP: &str = "\
Examples:
  quipu config sample > quipu.toml
  quipu config show --config quipu.toml --origin
  quipu -o json config show --dev

Exit codes: 0 the configuration is good, 2 it is refused.";

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Say where each value comes from
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    server: config::Args,
}

/// A setting for programs.
#[derive(Debug, Serialize)]
struct Row<'a> {
    key: &'static str,
    value: Option<&'a Value>,
    /// `default`, `file`, `env` or `flag`.
    source: &'static str,
    /// The file with its line, the variable or the flag.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
}

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    match &args.verb {
        Verb::Show(args) => show(args, output)?,
        Verb::Sample => output.line(config::sample().trim_end())?,
    }
    Ok(Verdict::Good)
}

fn show(args: &ShowArgs, output: &mut Output) -> anyhow::Result<()> {
    let loaded = config::load(&args.server, std::env::vars_os())?;
    if output.format == Format::Json {
        return output.json(&loaded.settings.iter().map(row).collect::<Vec<_>>());
    }
    let mut table = match args.origin {
        true => Table::new(&["KEY", "VALUE", "ORIGIN"]),
        false => Table::new(&["KEY", "VALUE"]),
    };
    for (key, setting) in KEYS.iter().zip(&loaded.settings) {
        let mut cells = vec![key.name.to_owned(), shown(key, setting)];
        cells.extend(args.origin.then(|| setting.origin.to_string()));
        table.push(cells);
    }
    table.print(output, 0)
}

fn shown(key: &Key, setting: &Setting) -> String {
    assert_eq!(key.name, setting.name, "settings come in the order of the keys");
    let text = setting.value.as_ref().map(|value| key.show(value));
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

fn row(setting: &Setting) -> Row<'_> {
    let source = match &setting.origin {
        Origin::Default => "default",
        Origin::File(..) => "file",
        Origin::Variable(_) => "env",
        Origin::Flag(_) => "flag",
    };
    let place = (setting.origin != Origin::Default).then(|| setting.origin.to_string());
    Row { key: setting.name, value: setting.value.as_ref(), source, place }
}
