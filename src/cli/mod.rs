//! The command line: one file per verb.
//!
//! Data goes to standard output, as a table or as JSON; progress, advice and errors go to standard
//! error. It is the top of the program: it calls everything and nothing calls it.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done, and all is well |
//! | 1 | something is damaged, or the command failed; the file and the position were printed |
//! | 2 | the command line or the configuration is wrong |
//! | 3 | what the command was pointed at is not there |

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config as server_config;
use crate::storage::Error;

mod config;
mod log;
mod output;
mod serve;

use self::output::{Format, Output};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NOT_FOUND: u8 = 3;

/// A partitioned, replicated, append-only log server.
#[derive(Debug, Parser)]
#[command(name = "quipu", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    /// How to print data on standard output
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check and print what a server would be configured with
    Config(config::Args),
    /// Look at logs on disk, without a server and without changing anything
    Log(log::Args),
    /// Run a node of a cluster
    Serve(Box<serve::Args>),
}

const AFTER_HELP: &str = "\
Examples:
  quipu serve --dev                        one node, for trying things out
  quipu log verify /var/lib/quipu          is everything on this disk as it was written?
  quipu log stats /var/lib/quipu           what is in there, log by log, segment by segment
  quipu -o json log stats /var/lib/quipu   the same for a program
  quipu log --help                         more about the offline tools

Exit codes: 0 all is well, 1 damage or failure, 2 wrong usage, 3 not found.";

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut output = Output::new(cli.output);
    let done = match &cli.command {
        Command::Config(args) => config::run(args, &mut output),
        Command::Log(args) => log::run(args, &mut output),
        Command::Serve(args) => serve::run(args),
    };
    let done = done.and_then(|verdict| output.flush().map(|()| verdict));
    match done {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(EXIT_FAILED),
        // Whoever reads has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let advice = advice(&error).map_or(String::new(), |advice| format!("\nhint: {advice}"));
            let _ = writeln!(io::stderr(), "error: {}{advice}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// What a command that ran to its end has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Bad,
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let source = error.root_cause().downcast_ref::<io::Error>();
    source.is_some_and(|source| source.kind() == io::ErrorKind::BrokenPipe)
}

/// The error with its causes; the log engine's own errors tell theirs by themselves.
fn message(error: &anyhow::Error) -> String {
    if error.is::<Error>() { error.to_string() } else { format!("{error:#}") }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<server_config::Error>() {
        return EXIT_USAGE;
    }
    match error.downcast_ref::<Error>() {
        Some(Error::UnknownLog { .. }) => EXIT_NOT_FOUND,
        Some(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            EXIT_NOT_FOUND
        }
        _ => EXIT_FAILED,
    }
}

/// What to try next.
fn advice(error: &anyhow::Error) -> Option<&'static str> {
    match error.downcast_ref::<Error>()? {
        Error::UnknownLog { .. } => Some("without --log, `quipu log stats DIR` lists all logs"),
        Error::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotFound => Some("check the path; it is the server's data directory"),
            io::ErrorKind::PermissionDenied => {
                Some("run this as the user that owns the data directory")
            }
            _ => None,
        },
        Error::Foreign { .. } => Some(
            "point at a data directory (it holds a file quipu.dir), at logs/<id> in it, or at a \
             file that ends in .seg",
        ),
        _ => None,
    }
}
