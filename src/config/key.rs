//! A key: its names, what it takes, and what it is when nobody sets it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::server::ServerConfig;
use super::unit::Unit;
use crate::types::NodeId;

/// One thing that can be configured.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file: `key`, or `section.key`.
    pub name: &'static str,
    /// What it is when nobody sets it.
    pub fallback: Fallback,
    /// What it does, without a full stop at the end.
    pub doc: &'static str,
    pub(super) kind: Kind,
}

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This, written as in any other source.
    Text(&'static str),
    /// Worked out as the words say; the other text is an example.
    Derived(&'static str, &'static str),
    /// It must be set, unless `dev` is; the text is an example.
    Required(&'static str),
}

/// A value that was read and found good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// On or off.
    Switch(bool),
    /// A number; bytes and milliseconds are numbers.
    Number(u64),
    /// Anything else that is one thing.
    Text(String),
    /// Several things.
    List(Vec<String>),
}

/// What a key takes, and the field that it sets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Number { unit: Unit, min: u64, max: u64, set: Set<u64> },
    Time { min_ms: u64, max_ms: u64, set: Set<Duration> },
    Switch(Set<bool>),
    Address(Set<SocketAddr>),
    Endpoint(Set<String>),
    Seeds(Set<Vec<(NodeId, String)>>),
    Directory(Set<PathBuf>),
    Word { allowed: &'static [&'static str], set: Set<String> },
    Label(Set<String>),
    Filter(Set<String>),
}

pub(super) type Set<T> = fn(&mut ServerConfig, T);

const LABEL_BYTES_MAX: usize = 64;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Key {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("QUIPU_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The flag of `quipu serve`, without its dashes.
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }

    /// The section of the file it stands in; empty at the top.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// Its name within its section.
    pub fn short_name(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, name)| name)
    }

    /// Whether it is on or off; its flag then needs no value.
    pub fn is_switch(&self) -> bool {
        matches!(self.kind, Kind::Switch(_))
    }

    /// What it takes, in words.
    pub fn allowed(&self) -> String {
        match self.kind {
            Kind::Number { unit, min, max, .. } => unit.allowed(min, max),
            Kind::Time { min_ms, max_ms, .. } => Unit::Milliseconds.allowed(min_ms, max_ms),
            Kind::Switch(_) => "true or false".to_owned(),
            Kind::Address(_) => "an IP address with a port, like 127.0.0.1:7401".to_owned(),
            Kind::Endpoint(_) => "a host with a port, like log-1.example.org:7401".to_owned(),
            Kind::Seeds(_) => {
                "nodes, each once, as id@host:port with a comma between them".to_owned()
            }
            Kind::Directory(_) => "the path of a directory".to_owned(),
            Kind::Word { allowed, .. } => allowed.join(" or "),
            Kind::Label(_) => {
                format!("at most {LABEL_BYTES_MAX} letters, digits, dots, dashes or underscores")
            }
            Kind::Filter(_) => format!(
                "a level ({}), then maybe levels of modules, like info,quipu::raft=debug",
                LEVELS.join(", ")
            ),
        }
    }

    /// Reads `text` and sets the field. `None`, and nothing is set, if it is not allowed.
    pub(super) fn apply(&self, text: &str, config: &mut ServerConfig) -> Option<Value> {
        let text = text.trim();
        match self.kind {
            Kind::Number { unit, min, max, set } => {
                let number = unit.parse(text).filter(|number| (min..=max).contains(number))?;
                set(config, number);
                return Some(Value::Number(number));
            }
            Kind::Time { min_ms, max_ms, set } => {
                let ms = Unit::Milliseconds.parse(text);
                let ms = ms.filter(|ms| (min_ms..=max_ms).contains(ms))?;
                set(config, Duration::from_millis(ms));
                return Some(Value::Number(ms));
            }
            Kind::Switch(set) => {
                let on = text.parse().ok()?;
                set(config, on);
                return Some(Value::Switch(on));
            }
            Kind::Seeds(set) => {
                let seeds = parse_seeds(text)?;
                let value = seeds_value(&seeds);
                set(config, seeds);
                return Some(value);
            }
            Kind::Address(set) => set(config, text.parse().ok()?),
            Kind::Endpoint(set) => set(config, Some(text).filter(|t| is_endpoint(t))?.to_owned()),
            Kind::Directory(set) => set(config, Some(text).filter(|t| !t.is_empty())?.into()),
            Kind::Word { allowed, set } => {
                set(config, Some(text).filter(|t| allowed.contains(t))?.to_owned());
            }
            Kind::Label(set) => set(config, Some(text).filter(|t| is_label(t))?.to_owned()),
            Kind::Filter(set) => set(config, Some(text).filter(|t| is_filter(t))?.to_owned()),
        }
        Some(Value::Text(text.to_owned()))
    }

    /// The value as people read it.
    pub fn show(&self, value: &Value) -> String {
        match (self.kind, value) {
            (Kind::Number { unit, .. }, Value::Number(number)) => unit.show(*number),
            (Kind::Time { .. }, Value::Number(ms)) => Unit::Milliseconds.show(*ms),
            _ => value.to_string(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(on) => on.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::List(items) => items.join(",").fmt(f),
        }
    }
}

pub(super) fn seeds_value(seeds: &[(NodeId, String)]) -> Value {
    Value::List(seeds.iter().map(|(node, address)| format!("{node}@{address}")).collect())
}

fn parse_seeds(text: &str) -> Option<Vec<(NodeId, String)>> {
    let mut seeds: Vec<(NodeId, String)> = Vec::new();
    for seed in text.split(',') {
        let (node, address) = seed.trim().split_once('@')?;
        let node = Unit::Things.parse(node).filter(|node| (1..=NodeId::MAX).contains(node))?;
        let is_new = seeds.iter().all(|(other, at)| other.0 != node && at != address);
        let address = Some(address).filter(|address| is_new && is_endpoint(address))?;
        seeds.push((NodeId(node), address.to_owned()));
    }
    Some(seeds)
}

/// `host:port` with a host that could be one. Port 0 stands for the one that will be bound.
fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let is_v6 = text.parse::<std::net::SocketAddrV6>().is_ok();
    let is_host = !host.is_empty() && host.len() <= 253 && host.chars().all(is_label_char);
    is_number && port.parse::<u16>().is_ok() && (is_host || is_v6)
}

fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && text.chars().all(is_label_char)
}

fn is_label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// A level first, then `target=level` after commas. A word that is no level would be taken for a
/// target, and a mistyped level would silence everything.
fn is_filter(text: &str) -> bool {
    let mut parts = text.split(',');
    let is_level = |text: &str| LEVELS.contains(&text);
    let is_target =
        |text: &str| !text.is_empty() && text.chars().all(|c| is_label_char(c) || c == ':');
    parts.next().is_some_and(is_level)
        && parts.all(|part| {
            part.split_once('=').is_some_and(|(target, level)| is_target(target) && is_level(level))
        })
}
