//! `quipu completions`: a script that lets a shell complete commands.

use clap::CommandFactory as _;

use super::output::Output;
use super::{Cli, Verdict};

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

const AFTER_HELP: &str = "\
Examples:
  quipu completions bash > /etc/bash_completion.d/quipu
  quipu completions fish > ~/.config/fish/completions/quipu.fish";

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quipu", &mut script);
    output.bytes(&script)?;
    Ok(Verdict::Good)
}
