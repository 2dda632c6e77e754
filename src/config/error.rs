//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use super::load::Origin;

/// The configuration is refused: everything that was found wrong with it, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration is refused{}", Lines(.problems))]
pub struct Error {
    /// What is wrong, in the order of the sources.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("{}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The file is not TOML.
    #[error("{origin}: {why}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser said.
        why: String,
    },
    /// A name that means nothing, maybe mistyped.
    #[error("{origin}: there is no {what} `{name}`{}", .suggestion.as_deref().unwrap_or_default())]
    Unknown {
        /// Where.
        origin: Origin,
        /// Key or variable.
        what: &'static str,
        /// The name.
        name: String,
        /// What to do, from a semicolon on.
        suggestion: Option<String>,
    },
    /// A value that its key does not take.
    #[error("{origin}: {key} is `{found}`; allowed: {allowed}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// Where.
        origin: Origin,
        /// The value.
        found: String,
        /// What the key takes.
        allowed: String,
    },
    /// A key that must be set and is not.
    #[error("{key} is not set: use --{flag}, {variable} or the file (or try out with --dev)")]
    Missing {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: String,
        /// Its variable.
        variable: String,
    },
    /// Values that do not fit each other.
    #[error("{key} is {value} ({origin}), but {why}")]
    Conflict {
        /// A key.
        key: &'static str,
        /// What it is.
        value: String,
        /// Where from.
        origin: Origin,
        /// What it should be, and because of what.
        why: String,
    },
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
