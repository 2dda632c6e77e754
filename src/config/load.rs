//! The layers: defaults, then the file, then the environment, then flags; the last one wins.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use super::args::Args;
use super::check;
use super::error::{Error, Problem};
use super::file;
use super::key::{Fallback, Key, Value};
use super::server::ServerConfig;
use super::suggest::nearest;
use super::table::KEYS;

const PREFIX: &str = "QUIPU_";
const FILE_VARIABLE: &str = "QUIPU_CONFIG";
/// Variables of other commands, which may be set where a server is started too.
const FOREIGN_VARIABLES: [&str; 1] = ["QUIPU_SERVER"];

/// A configuration that was found good.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: ServerConfig,
    /// The same values one by one with their origins, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
}

/// What one key is, and where that came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key's name.
    pub name: &'static str,
    /// What it is; `None` for a key that has no value.
    pub value: Option<Value>,
    /// Where from.
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file, at a line.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(String),
    /// A flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Puts a server's configuration together. `variables` is the environment; those that do not begin
/// with `QUIPU_` are left alone.
///
/// # Errors
/// [`Error`] with everything that is wrong.
pub fn load(
    args: &Args,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Error> {
    let mut layers = Layers::defaults();
    let mut variables: Vec<_> = variables.into_iter().filter_map(own_variable).collect();
    variables.sort();
    let from_variable = variables.iter().find(|(name, _)| name == FILE_VARIABLE);
    let path = args.config.clone().or_else(|| from_variable.map(|(_, path)| path.into()));
    if let Some(path) = path {
        layers.file(&path);
    }
    for (name, text) in &variables {
        layers.variable(name, text);
    }
    for (name, text) in &args.given {
        let key = find(name).expect("flags are made from the table");
        layers.set(key, Ok(text.clone()), Origin::Flag(format!("--{}", key.flag())));
    }
    check::complete(&mut layers);
    layers.finish()
}

/// The configuration of a server that is only told `--dev`.
pub(super) fn dev() -> ServerConfig {
    let args = Args { config: None, given: vec![("dev", "true".to_owned())] };
    load(&args, []).expect("the defaults are good").config
}

/// What is known after some of the layers.
pub(super) struct Layers {
    pub(super) config: ServerConfig,
    /// One for each key, in their order.
    pub(super) settings: Vec<Setting>,
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    fn defaults() -> Self {
        let unset = |key: &Key| Setting { name: key.name, value: None, origin: Origin::Default };
        let settings = KEYS.iter().map(unset).collect();
        let mut layers = Self { config: ServerConfig::blank(), settings, problems: Vec::new() };
        for key in KEYS {
            if let Fallback::Text(text) = key.fallback {
                layers.set(key, Ok(text.to_owned()), Origin::Default);
            }
        }
        layers
    }

    fn file(&mut self, path: &Path) {
        let entries = match file::read(path) {
            Ok(entries) => entries,
            Err(problem) => return self.problems.push(problem),
        };
        for entry in entries {
            match find(&entry.name) {
                Some(key) => self.set(key, entry.text, entry.origin),
                None => self.problems.push(unknown_key(entry.name, entry.origin)),
            }
        }
    }

    fn variable(&mut self, name: &str, text: &OsStr) {
        if name == FILE_VARIABLE || FOREIGN_VARIABLES.contains(&name) {
            return;
        }
        let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
            return self.problems.push(unknown_variable(name));
        };
        let lossy = || format!("{} (not UTF-8)", text.to_string_lossy());
        let text = text.to_str().map(str::to_owned).ok_or_else(lossy);
        self.set(key, text, Origin::Variable(name.to_owned()));
    }

    /// Sets a key to what `text` says; an error is what was found instead of a text.
    fn set(&mut self, key: &'static Key, text: Result<String, String>, origin: Origin) {
        let value = text.as_ref().ok().and_then(|text| key.apply(text, &mut self.config));
        let Some(value) = value else {
            let found = text.unwrap_or_else(|found| found);
            let (key, allowed) = (key.name, key.allowed());
            return self.problems.push(Problem::BadValue { key, origin, found, allowed });
        };
        *self.setting_mut(key.name) = Setting { name: key.name, value: Some(value), origin };
    }

    pub(super) fn setting(&self, name: &str) -> &Setting {
        let setting = self.settings.iter().find(|setting| setting.name == name);
        setting.expect("every key has its setting")
    }

    /// Gives a key that nobody set the value that was worked out for it.
    pub(super) fn derive(&mut self, name: &str, value: Value) {
        let setting = self.setting_mut(name);
        assert_eq!(setting.origin, Origin::Default, "{name} was set: nothing is worked out");
        setting.value = Some(value);
    }

    fn setting_mut(&mut self, name: &str) -> &mut Setting {
        let setting = self.settings.iter_mut().find(|setting| setting.name == name);
        setting.expect("every key has its setting")
    }

    fn finish(self) -> Result<Loaded, Error> {
        if !self.problems.is_empty() {
            return Err(Error { problems: self.problems });
        }
        Ok(Loaded { config: self.config, settings: self.settings })
    }
}

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn own_variable((name, text): (OsString, OsString)) -> Option<(String, OsString)> {
    let name = name.to_string_lossy().into_owned();
    name.starts_with(PREFIX).then_some((name, text))
}

fn unknown_key(name: String, origin: Origin) -> Problem {
    // It may stand in the wrong section.
    let short = name.rsplit('.').next().unwrap_or(&name);
    let moved = KEYS.iter().find(|key| key.short_name() == short);
    let moved = moved.map(|key| key.name.to_owned());
    let meant = moved.or_else(|| nearest(&name, KEYS.iter().map(|key| key.name.to_owned())));
    let suggestion = meant.map(|meant| format!("; did you mean `{meant}`?"));
    Problem::Unknown { origin, what: "key", name, suggestion }
}

fn unknown_variable(name: &str) -> Problem {
    let known = KEYS.iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]);
    let suggestion = if is_service_link(name) {
        "; Kubernetes sets it for a service: say `enableServiceLinks: false` in the pod".to_owned()
    } else {
        let meant = nearest(name, known).map(|meant| format!("; did you mean `{meant}`?"));
        let advice =
            "; variables that begin with QUIPU_ are the server's, see `quipu serve --help`";
        meant.unwrap_or_else(|| advice.to_owned())
    };
    let origin = Origin::Variable("environment".to_owned());
    let (name, suggestion) = (name.to_owned(), Some(suggestion));
    Problem::Unknown { origin, what: "variable", name, suggestion }
}

/// For a service `quipu-x` every pod is given `QUIPU_X_PORT`, `QUIPU_X_SERVICE_HOST` and more.
fn is_service_link(name: &str) -> bool {
    name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.contains("_PORT")
}
