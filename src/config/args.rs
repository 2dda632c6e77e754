//! The flags of `quipu serve` and `quipu config show`, made from the table of keys.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, Error};

use super::key::{Fallback, Key};
use super::table::KEYS;

/// The flags that were given, not yet checked: to be flattened into the arguments of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// Names of keys with their texts.
    pub given: Vec<(&'static str, String)>,
}

const CONFIG: &str = "config";

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(ValueParser::new(OsStringValueParser::new()))
            .help("Read a configuration file (TOML) [env: QUIPU_CONFIG]");
        KEYS.iter().map(flag).fold(command.arg(config), Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        if let Some(path) = matches.get_one::<std::ffi::OsString>(CONFIG) {
            self.config = Some(path.into());
        }
        let text = |key: &Key| Some((key.name, matches.get_one::<String>(key.name)?.clone()));
        self.given.extend(KEYS.iter().filter_map(text));
        Ok(())
    }
}

fn flag(key: &'static Key) -> Arg {
    let flag = Arg::new(key.name).long(key.flag()).action(ArgAction::Set).help(help(key));
    let flag = match key.section() {
        "" => flag,
        section => flag.help_heading(heading(section)),
    };
    match key.is_switch() {
        true => flag
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
            .hide_possible_values(true),
        false => flag.value_name(key.short_name().to_uppercase()).allow_hyphen_values(true),
    }
}

fn help(key: &Key) -> String {
    let fallback = match key.fallback {
        Fallback::Text("" | "false") => String::new(),
        Fallback::Text(text) => format!(" [default: {text}]"),
        Fallback::Derived(words, _) => format!(" [default: {words}]"),
        Fallback::Required(_) => String::new(),
    };
    format!("{}{fallback} [env: {}]", key.doc, key.variable())
}

fn heading(section: &str) -> &'static str {
    match section {
        "log" => "Logging",
        "storage" => "Storage",
        "raft" => "Replication",
        "limits" => "Limits",
        _ => "Other",
    }
}
