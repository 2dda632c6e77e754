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
//! | 4 | the cluster cannot be reached, or not now; or it is unknown whether something was done |
//! | 5 | the cluster or the topic is not in a state in which this can be done |

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::client;
use crate::config as server_config;
use crate::storage::Error;

mod bench;
mod cluster;
mod completions;
mod config;
mod consume;
mod demo;
mod errors;
mod group;
mod log;
mod output;
mod place;
mod produce;
mod remote;
mod serve;
mod topic;

use self::output::{Format, Output, Printing};
use self::remote::Advised;

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_NOT_FOUND: u8 = 3;
const EXIT_UNAVAILABLE: u8 = 4;
const EXIT_PRECONDITION: u8 = 5;

/// A partitioned, replicated, append-only log server.
#[derive(Debug, Parser)]
#[command(name = "quipu", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    /// How to print data on standard output: table or json [default: table, for records raw]
    #[arg(short, long, global = true, value_name = "FORMAT", value_parser = Printing::parse)]
    output: Option<Printing>,
    #[command(flatten)]
    remote: remote::Args,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, look at, change and delete topics
    Topic(topic::Args),
    /// Send records, one per line
    Produce(produce::Args),
    /// Read records
    Consume(consume::Args),
    /// Make, look at, move and delete consumer groups
    Group(group::Args),
    /// Look after the nodes of a cluster
    Cluster(cluster::Args),
    /// Measure how fast a cluster is
    Bench(bench::Args),
    /// Explain the reasons that errors give
    Errors(errors::Args),
    /// Print a script that lets a shell complete commands
    Completions(completions::Args),
    /// Check and print what a server would be configured with
    Config(config::Args),
    /// Look at logs on disk, without a server and without changing anything
    Log(log::Args),
    /// Show a cluster losing its leader and nothing else
    Demo(demo::Args),
    /// Run a node of a cluster
    Serve(Box<serve::Args>),
}

const AFTER_HELP: &str = "\
Examples:
  quipu demo                               a cluster loses its leader and nothing else
  quipu serve --dev                        one node, for trying things out
  quipu topic create orders --partitions 6
  quipu produce orders < orders.ndjson
  quipu consume orders --from earliest
  quipu group create billing --topic orders --start earliest
  quipu consume --group billing            go on where the group is, and keep that
  quipu log verify /var/lib/quipu          is everything on this disk as it was written?
  quipu log stats /var/lib/quipu           what is in there, log by log, segment by segment
  quipu -o json log stats /var/lib/quipu   the same for a program
  quipu log --help                         more about the offline tools

Exit codes: 0 all is well, 1 damage or failure, 2 wrong usage, 3 not found,
4 unavailable or the outcome is unknown, 5 a precondition is not met.";

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut output = Output::new(cli.format());
    let done = cli.run(&mut output);
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

impl Cli {
    fn run(&self, output: &mut Output) -> anyhow::Result<Verdict> {
        match &self.command {
            Command::Topic(args) => topic::run(args, &self.remote, output),
            Command::Produce(args) => produce::run(args, &self.remote, output),
            Command::Consume(args) => {
                let printing = self.output.as_ref().unwrap_or(&Printing::Raw);
                consume::run(args, printing, &self.remote, output)
            }
            Command::Group(args) => group::run(args, &self.remote, output),
            Command::Cluster(args) => cluster::run(args, &self.remote, output),
            Command::Bench(args) => bench::run(args, &self.remote, output),
            Command::Errors(args) => errors::run(args, output),
            Command::Completions(args) => completions::run(args, output),
            Command::Config(args) => config::run(args, output),
            Command::Log(args) => log::run(args, output),
            Command::Demo(args) => demo::run(args, output),
            Command::Serve(args) => serve::run(args),
        }
    }

    /// How to print what are not records. Ends the process if only records can be printed so.
    fn format(&self) -> Format {
        let prints_records = matches!(self.command, Command::Consume(_));
        match &self.output {
            None => Format::Table,
            Some(Printing::Format(format)) => *format,
            Some(Printing::Raw | Printing::Template(_)) if prints_records => Format::Table,
            Some(Printing::Raw | Printing::Template(_)) => {
                let message = "this command prints a table or json: use -o table or -o json";
                Self::command().error(ErrorKind::InvalidValue, message).exit()
            }
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
    if let Some(error) = remote_error(error) {
        return remote_exit_code(error);
    }
    if error.is::<errors::UnknownReason>() {
        return EXIT_NOT_FOUND;
    }
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

fn remote_exit_code(error: &client::Error) -> u8 {
    use client::Error as E;
    match error {
        E::NotFound(_) | E::OffsetOutOfRange(_) => EXIT_NOT_FOUND,
        E::Unavailable(_) | E::Exhausted(_) | E::OutcomeUnknown(_) => EXIT_UNAVAILABLE,
        E::Precondition(_) | E::AlreadyExists(_) | E::Fenced(_) => EXIT_PRECONDITION,
        E::InvalidRequest(_) | E::DataLoss(_) | E::Internal(_) => EXIT_FAILED,
        E::Record(_) | E::DamagedBatch { .. } | E::Closed => EXIT_FAILED,
    }
}

fn remote_error(error: &anyhow::Error) -> Option<&client::Error> {
    let advised = error.downcast_ref::<Advised>().map(|advised| &advised.error);
    advised.or_else(|| error.downcast_ref())
}

/// What to try next.
fn advice(error: &anyhow::Error) -> Option<&str> {
    match error.downcast_ref::<Advised>() {
        Some(advised) => Some(&advised.hint),
        None => match remote_error(error) {
            Some(error) => error.hint(),
            None => storage_advice(error.downcast_ref()?),
        },
    }
}

fn storage_advice(error: &Error) -> Option<&'static str> {
    match error {
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
