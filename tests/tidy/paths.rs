//! The paths a file names, from its `use` trees and from its code, resolved inside the crate.

use crate::scan::Token;
use crate::source::{Source, group_end};

/// The name under which the program and the tests know the crate.
const CRATE_NAME: &str = "quipu";

/// A path as named somewhere. Paths into the crate begin with `crate`, whether they were written
/// with `crate`, `self`, `super` or the crate's own name; all others begin with what was written.
#[derive(Debug)]
pub(crate) struct NamedPath {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

impl NamedPath {
    /// The top module of the crate that the path leads to.
    pub(crate) fn top_module(&self) -> Option<&str> {
        (self.segments.first()? == "crate").then(|| self.segments.get(1).map(String::as_str))?
    }

    /// Whether the path leads out of the crate to the given one or into it (`std::fs`), or into
    /// its family: `tonic` stands for `tonic_health`, too.
    pub(crate) fn is_within(&self, outer: &str) -> bool {
        let outer: Vec<&str> = outer.split("::").collect();
        let is_family = outer.len() == 1
            && self.segments[0].strip_prefix(outer[0]).is_some_and(|rest| rest.starts_with('_'));
        let begins = outer.len() <= self.segments.len()
            && outer.iter().zip(&self.segments).all(|(wanted, segment)| wanted == segment);
        is_family || begins
    }
}

/// All paths of a file, with single words only where a `use` names them. Words that the file
/// itself brings into scope from inside the crate are not taken for crates of the same name.
pub(crate) fn named_paths(source: &Source) -> Vec<NamedPath> {
    let mut walk = Walk {
        tokens: &source.tokens,
        module: source.module(),
        inline: Vec::new(),
        paths: Vec::new(),
        local: Vec::new(),
    };
    walk.run();
    let Walk { mut paths, local, .. } = walk;
    paths.retain(|path| !local.contains(&path.segments[0]));
    paths
}

struct Walk<'a> {
    tokens: &'a [Token],
    module: Vec<String>,
    /// The inline modules around the present token, each with the token that closes it.
    inline: Vec<(String, usize)>,
    paths: Vec<NamedPath>,
    /// Modules of the crate that the file declares or imports.
    local: Vec<String>,
}

impl Walk<'_> {
    fn run(&mut self) {
        let mut at = 0;
        while at < self.tokens.len() {
            while self.inline.last().is_some_and(|(_, end)| *end < at) {
                self.inline.pop();
            }
            at = if self.opens_use(at) {
                self.use_tree(at + 1, &[])
            } else if self.begins_path(at) {
                self.path_in_code(at)
            } else {
                self.note_module(at);
                at + 1
            };
        }
    }

    fn is(&self, at: usize, text: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(text))
    }

    fn is_word(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(Token::is_word)
    }

    fn is_colons(&self, at: usize) -> bool {
        self.is(at, ":") && self.is(at + 1, ":")
    }

    /// A `use` declaration, and not the `use<'a>` of a captured lifetime.
    fn opens_use(&self, at: usize) -> bool {
        self.is(at, "use") && !self.is(at + 1, "<")
    }

    fn begins_path(&self, at: usize) -> bool {
        let continues = at >= 2 && self.is_colons(at - 2) && !self.is_global(at);
        let is_method = at >= 1 && self.is(at - 1, ".") && !(at >= 2 && self.is(at - 2, "."));
        self.is_word(at) && self.is_colons(at + 1) && !continues && !is_method
    }

    /// Whether the colons before a word begin the path (`::tokio`).
    fn is_global(&self, at: usize) -> bool {
        at < 3 || !(self.is_word(at - 3) || self.is(at - 3, ">"))
    }

    fn note_module(&mut self, at: usize) {
        if !self.is(at, "mod") || !self.is_word(at + 1) {
            return;
        }
        let name = self.tokens[at + 1].text.clone();
        self.local.push(name.clone());
        if self.is(at + 2, "{") {
            self.inline.push((name, group_end(self.tokens, at + 2)));
        }
    }

    /// Takes the path that begins at `at`; returns the token behind it.
    fn path_in_code(&mut self, at: usize) -> usize {
        let mut segments = vec![self.tokens[at].text.clone()];
        let mut next = at + 1;
        while self.is_colons(next) && self.is_word(next + 2) {
            segments.push(self.tokens[next + 2].text.clone());
            next += 3;
        }
        self.push(&segments, at);
        next
    }

    /// Takes the tree of a `use` from `at` on, below `prefix`; returns the token behind it.
    fn use_tree(&mut self, mut at: usize, prefix: &[String]) -> usize {
        let mut segments = prefix.to_vec();
        let start = at;
        loop {
            if self.is_colons(at) {
                at += 2;
            } else if self.is(at, "{") {
                return self.use_group(at, &segments);
            } else if self.is(at, "as") {
                at += 2;
            } else if self.is_word(at) {
                segments.push(self.tokens[at].text.clone());
                at += 1;
            } else if self.is(at, "*") {
                at += 1;
            } else {
                break;
            }
        }
        self.push_import(&segments, start);
        at
    }

    fn use_group(&mut self, at: usize, prefix: &[String]) -> usize {
        let end = group_end(self.tokens, at);
        let mut next = at + 1;
        while next < end {
            next = self.use_tree(next, prefix).max(next + 1);
            if self.is(next, ",") {
                next += 1;
            }
        }
        end + 1
    }

    fn push_import(&mut self, segments: &[String], at: usize) {
        if segments.is_empty() {
            return;
        }
        self.push(segments, at);
        let resolved = &self.paths[self.paths.len() - 1].segments;
        if resolved[0] == "crate" && resolved.len() > 1 {
            self.local.push(resolved[resolved.len() - 1].clone());
        }
    }

    fn push(&mut self, segments: &[String], at: usize) {
        let line = self.tokens[at].line;
        self.paths.push(NamedPath { segments: self.resolve(segments), line });
    }

    fn resolve(&self, segments: &[String]) -> Vec<String> {
        let inline = self.inline.iter().map(|(name, _)| name);
        let mut base: Vec<String> = self.module.iter().chain(inline).cloned().collect();
        let mut rest = segments;
        match segments[0].as_str() {
            "crate" | CRATE_NAME => base.clear(),
            "self" | "super" => {}
            _ => return segments.to_vec(),
        }
        while let Some(word) = rest.first().filter(|word| is_relative(word)) {
            if *word == "super" {
                base.pop();
            }
            rest = &rest[1..];
        }
        let crate_root = ["crate".to_owned()];
        crate_root.iter().chain(&base).chain(rest).cloned().collect()
    }
}

fn is_relative(word: &str) -> bool {
    matches!(word, "crate" | "self" | "super" | CRATE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(path: &str, text: &str) -> Vec<String> {
        let found = named_paths(&Source::new(path, text));
        found.iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn use_trees_are_opened() {
        let text = "use std::{fs::{self, File}, io as i};\npub use ::tokio::*;\nuse libc;";
        let found = paths("src/a.rs", text);
        assert_eq!(found, ["std::fs::self", "std::fs::File", "std::io", "tokio", "libc"]);
    }

    #[test]
    fn paths_in_code_are_found() {
        let text =
            "fn f() -> io::Result<a::B> { Vec::<u8>::new(); x.y::<c::D>(); ::e::f!(0..g::H) }";
        let found = paths("src/a.rs", text);
        assert_eq!(found, ["io::Result", "a::B", "Vec", "c::D", "e::f", "g::H"]);
    }

    #[test]
    fn inner_paths_are_resolved() {
        let text = "use super::log::Log;\nuse self::a::B;\n\
            mod tests { use super::super::c; }\nuse quipu::d;";
        let found = paths("src/storage/entry.rs", text);
        let wanted = ["storage::log::Log", "storage::entry::a::B", "storage::c", "d"];
        assert_eq!(found, wanted.map(|path| format!("crate::{path}")));
    }

    #[test]
    fn own_modules_are_not_taken_for_crates() {
        assert!(paths("src/lib.rs", "pub mod raft;\nuse raft::Node;").is_empty());
        assert_eq!(paths("src/a.rs", "use crate::raft; fn f() { raft::g() }"), ["crate::raft"]);
        assert_eq!(paths("src/a.rs", "fn f() { raft::g() }"), ["raft::g"]);
    }
}
