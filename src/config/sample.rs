//! The sample file: every key with its default and what it takes.

use std::fmt::Write as _;

use super::key::{Fallback, Key};
use super::table::KEYS;

const INTRODUCTION: &str = "\
# Every key of `quipu serve`, as printed by `quipu config sample`.
#
# A key can also be set in the environment and as a flag: storage.segment_bytes is the variable
# QUIPU_STORAGE_SEGMENT_BYTES and the flag --storage-segment-bytes. Flags win over the environment,
# the environment over this file. `quipu config show --origin` says what holds and where from.
#
# Lines that begin with #key show defaults, or examples where there is no default.
";
const WIDTH: usize = 96;

/// Returns a configuration file that names every key. Only what must be set is set in it.
pub fn sample() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            let _ = write!(text, "\n[{section}]\n");
        }
        let _ = write!(text, "\n{}{}\n", comment(key), assignment(key));
    }
    text
}

fn comment(key: &Key) -> String {
    let derived = match key.fallback {
        Fallback::Derived(words, _) => format!(" Default: {words}."),
        Fallback::Text(_) | Fallback::Required(_) => String::new(),
    };
    let text = format!("{}.{derived} Takes {}.", key.doc, key.allowed());
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            lines += &line;
            lines += "\n";
            line = String::from("#");
        }
        line += " ";
        line += word;
    }
    lines + &line + "\n"
}

fn assignment(key: &Key) -> String {
    let (mark, text) = match key.fallback {
        Fallback::Text(text) | Fallback::Derived(_, text) => ("#", text),
        Fallback::Required(text) => ("", text),
    };
    let is_bare = key.is_switch() || (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    match is_bare {
        true => format!("{mark}{} = {text}", key.short_name()),
        false => format!("{mark}{} = \"{text}\"", key.short_name()),
    }
}
