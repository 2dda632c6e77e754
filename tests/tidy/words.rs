//! Words: what code and comments may not say, and what they must.

use crate::paths::{NamedPath, named_paths};
use crate::scan::{Comment, Token};
use crate::source::{Breach, Source};

const UNFINISHED_MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
const UNFINISHED_TAGS: [&str; 3] = ["TODO", "FIXME", "XXX"];
const UNFINISHED_PHRASE: &str = "for now";

const VAGUE_WORDS: [&str; 8] =
    ["manager", "helper", "helpers", "util", "utils", "common", "misc", "impl2"];
const NAMING_WORDS: [&str; 6] = ["mod", "struct", "enum", "trait", "union", "type"];
/// What may stand before "epoch"; the last is the clock's.
const EPOCH_OWNERS: [&str; 3] = ["leader", "producer", "unix"];

const MPSC_CHANNEL: [&str; 2] = ["mpsc", "channel"];

/// The only file with unsafe code.
const UNSAFE_FILE: &str = "src/storage/fs/map.rs";
const SAFETY_TAG: &str = "SAFETY:";
/// How far above its code the end of a safety comment may stand.
const SAFETY_LINES_MAX: usize = 5;

pub(crate) fn unwrap_outside_tests(source: &Source) -> Vec<Breach> {
    source.breaches_at_tokens(|at, token| {
        let is_call = token.is("unwrap") && source.reads(at + 1, &["("]);
        let is_path = token.is("unwrap") && at >= 2 && source.reads(at - 2, &[":", ":"]);
        let is_breach = (is_call || is_path) && !source.is_test_line(token.line);
        is_breach.then(|| "`unwrap` outside tests: give the reason with `expect`".to_owned())
    })
}

pub(crate) fn unfinished_code(source: &Source) -> Vec<Breach> {
    source.breaches_at_tokens(|at, token| {
        let is_macro = UNFINISHED_MACROS.iter().any(|name| token.is(name));
        let is_breach = is_macro && source.reads(at + 1, &["!"]);
        is_breach.then(|| format!("`{}!` in the tree", token.text))
    })
}

pub(crate) fn unfinished_comments(source: &Source) -> Vec<Breach> {
    let lines = source.comments.iter().flat_map(comment_lines);
    let find = |(line, text): (usize, &str)| {
        let words = || text.split(|c: char| !c.is_alphanumeric());
        let tag = UNFINISHED_TAGS.into_iter().find(|tag| words().any(|word| word == *tag));
        let normal = format!(" {} ", words().collect::<Vec<_>>().join(" ").to_lowercase());
        let has_phrase = normal.contains(&format!(" {UNFINISHED_PHRASE} "));
        let said = tag.or(has_phrase.then_some(UNFINISHED_PHRASE))?;
        Some(source.breach(line, format!("\"{said}\" in a comment: do it or drop it")))
    };
    lines.filter_map(find).collect()
}

fn comment_lines(comment: &Comment) -> impl Iterator<Item = (usize, &str)> {
    (comment.line..).zip(comment.text.lines())
}

pub(crate) fn vague_names(source: &Source) -> Vec<Breach> {
    let parts = source.path.trim_end_matches(".rs").split('/');
    let in_path = parts.filter_map(|part| vague_word(part).map(|word| source.breach(1, word)));
    let in_code = source.breaches_at_tokens(|at, token| {
        let is_named = token.is_word() && at >= 1;
        let follows = |word: &&str| source.tokens[at - 1].is(word);
        (is_named && NAMING_WORDS.iter().any(follows)).then(|| vague_word(&token.text))?
    });
    in_path.chain(in_code).collect()
}

fn vague_word(name: &str) -> Option<String> {
    let words = split_words(name);
    let vague = VAGUE_WORDS.into_iter().find(|vague| words.iter().any(|word| word == vague))?;
    Some(format!("\"{vague}\" in the name `{name}` says nothing"))
}

pub(crate) fn bare_epoch(source: &Source) -> Vec<Breach> {
    if !source.in_crate() {
        return Vec::new();
    }
    let message = |name: &str| format!("`{name}`: say leader_epoch or producer_epoch");
    let is_breach = |token: &Token| token.is_word() && says_bare_epoch(&token.text);
    source.breaches_at_tokens(|_, token| is_breach(token).then(|| message(&token.text)))
}

fn says_bare_epoch(name: &str) -> bool {
    let words = split_words(name);
    let is_owned = |at: usize| at >= 1 && EPOCH_OWNERS.contains(&words[at - 1].as_str());
    let is_epoch = |at: usize| matches!(words[at].as_str(), "epoch" | "epochs");
    (0..words.len()).any(|at| is_epoch(at) && !is_owned(at))
}

/// The words of a name in snake or camel case, in lower case.
fn split_words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous = '_';
    for c in name.chars() {
        if c == '_' || c == '-' || (c.is_uppercase() && !previous.is_uppercase()) {
            words.push(String::new());
        }
        if c != '_' && c != '-' {
            let last = words.len() - 1;
            words[last].extend(c.to_lowercase());
        }
        previous = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

pub(crate) fn unbounded_channels(source: &Source) -> Vec<Breach> {
    let is_mpsc = |path: &NamedPath| path.segments.ends_with(&MPSC_CHANNEL.map(str::to_owned));
    let imports_channel = named_paths(source).iter().any(is_mpsc);
    source.breaches_at_tokens(|at, token| {
        let is_breach = match token.text.as_str() {
            "unbounded_channel" => token.is_word(),
            "unbounded" => is_free_call(source, at),
            "channel" => is_unbounded_mpsc(source, at, imports_channel),
            _ => false,
        };
        is_breach.then(|| format!("`{}` is unbounded: give the channel a bound", token.text))
    })
}

/// `mpsc::channel()`, or a bare `channel()` where that one was imported: no argument, no bound.
fn is_unbounded_mpsc(source: &Source, at: usize, imports_channel: bool) -> bool {
    let is_path = at >= 2 && source.reads(at - 2, &[":", ":"]);
    let is_mpsc = at >= 3 && source.reads(at - 3, &["mpsc", ":", ":"]);
    let arguments = after_turbofish(source, at + 1);
    let has_none = source.reads(arguments, &["(", ")"]);
    has_none && is_free_call(source, at) && (is_mpsc || (imports_channel && !is_path))
}

/// Whether the word is called as a function: neither as a method nor where it is defined.
fn is_free_call(source: &Source, at: usize) -> bool {
    let is_other = at >= 1 && (source.reads(at - 1, &["."]) || source.reads(at - 1, &["fn"]));
    !is_other && source.reads(after_turbofish(source, at + 1), &["("])
}

/// Passes `::<...>`, if it stands there.
fn after_turbofish(source: &Source, at: usize) -> usize {
    if !source.reads(at, &[":", ":", "<"]) {
        return at;
    }
    let mut depth = 0usize;
    for (offset, token) in source.tokens[at + 2..].iter().enumerate() {
        depth += usize::from(token.is("<"));
        depth -= usize::from(token.is(">") && depth > 0);
        if depth == 0 {
            return at + 3 + offset;
        }
    }
    at
}

pub(crate) fn unsafe_code(source: &Source) -> Vec<Breach> {
    if !source.in_crate() {
        return Vec::new();
    }
    source.breaches_at_tokens(|_, token| {
        if !token.is("unsafe") {
            None
        } else if source.path != UNSAFE_FILE {
            Some(format!("`unsafe` outside {UNSAFE_FILE}"))
        } else {
            let is_argued = safety_ends(source)
                .any(|end| (end + 1..=end + SAFETY_LINES_MAX).contains(&token.line));
            (!is_argued).then(|| format!("`unsafe` without a `{SAFETY_TAG}` comment above"))
        }
    })
}

/// The last lines of the comments with a safety argument; adjacent line comments are one.
fn safety_ends(source: &Source) -> impl Iterator<Item = usize> {
    let comments = &source.comments;
    let tagged = (0..comments.len()).filter(|at| comments[*at].text.contains(SAFETY_TAG));
    tagged.map(|mut at| {
        while comments.get(at + 1).is_some_and(|next| next.line == comments[at].last_line + 1) {
            at += 1;
        }
        comments[at].last_line
    })
}

pub(crate) fn ignored_tests(source: &Source) -> Vec<Breach> {
    source.breaches_at_tokens(|at, token| {
        let is_attribute = at >= 2 && source.reads(at - 2, &["#", "["]);
        let is_conditional =
            at >= 1 && source.reads(at - 1, &[","]) && source.reads(at + 1, &[")", "]"]);
        let has_reason = source.reads(at + 1, &["="]);
        let is_breach = token.is("ignore") && (is_attribute || is_conditional) && !has_reason;
        is_breach.then(|| "an ignored test needs its reason: `#[ignore = \"...\"]`".to_owned())
    })
}

pub(crate) fn module_docs(source: &Source) -> Vec<Breach> {
    let first = source.text.lines().next().unwrap_or_default();
    let is_documented = first.strip_prefix("//!").is_some_and(|doc| !doc.trim().is_empty());
    let breach = || source.breach(1, "a file begins with a `//!` that says what it owns");
    if is_documented { Vec::new() } else { vec![breach()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: impl Fn(&Source) -> Vec<Breach>, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text)).iter().map(|breach| breach.line).collect()
    }

    fn count(rule: impl Fn(&Source) -> Vec<Breach>, text: &str) -> usize {
        lines(rule, "src/a.rs", text).len()
    }

    #[test]
    fn unwrap_is_for_tests() {
        let text = "fn a() { b.unwrap(); c.unwrap_or(1); \"x.unwrap()\"; }\n\
            fn d() { e.map(Option::unwrap) }\n\
            #[cfg(test)] mod tests { fn f() { g.unwrap() } }";
        assert_eq!(lines(unwrap_outside_tests, "src/a.rs", text), [1, 2]);
        assert!(lines(unwrap_outside_tests, "tests/a.rs", text).is_empty());
    }

    #[test]
    fn unfinished_code_is_found_in_tests_too() {
        assert_eq!(count(unfinished_code, "fn a() { todo!() }\nfn b() { dbg!(c) }"), 2);
        assert_eq!(lines(unfinished_code, "tests/a.rs", "fn a() { unimplemented!() }"), [1]);
        assert_eq!(count(unfinished_code, "fn todo() {} // todo!()"), 0);
    }

    #[test]
    fn unfinished_comments_are_found_by_their_tags() {
        let text = "// a\n/* b\n FIXME */\n/// TODO: c\n// XXX\n//! Enough for now.";
        assert_eq!(lines(unfinished_comments, "src/a.rs", text), [3, 4, 5, 6]);
        assert_eq!(count(unfinished_comments, "// for nowhere, TODOS\nlet a = \"TODO\";"), 0);
    }

    #[test]
    fn vague_names_are_found_in_files_modules_and_types() {
        assert_eq!(lines(vague_names, "src/storage/utils.rs", ""), [1]);
        assert_eq!(lines(vague_names, "tests/common/mod.rs", ""), [1]);
        assert_eq!(count(vague_names, "mod misc;\nstruct LogManager;\ntype Impl2 = A;"), 3);
        assert_eq!(count(vague_names, "struct Utilization;\nfn common() {}\nenum Community {}"), 0);
    }

    #[test]
    fn an_epoch_says_whose_it_is() {
        assert_eq!(count(bare_epoch, "let epoch = old_epoch;\nstruct Epoch;"), 3);
        let fine = "let leader_epoch = next_producer_epoch; UNIX_EPOCH; LeaderEpochs; // epoch";
        assert_eq!(count(bare_epoch, fine), 0);
        assert!(lines(bare_epoch, "tests/a.rs", "let epoch = 1;").is_empty());
    }

    #[test]
    fn names_split_into_words() {
        assert_eq!(split_words("LogManager"), ["log", "manager"]);
        assert_eq!(split_words("UNIX_EPOCH"), ["unix", "epoch"]);
        assert_eq!(split_words("next_impl2"), ["next", "impl2"]);
    }

    #[test]
    fn channels_have_a_bound() {
        for text in [
            "let a = mpsc::channel();",
            "let a = std::sync::mpsc::channel::<Vec<u8>>();",
            "let a = mpsc::unbounded_channel();",
            "let a = flume::unbounded();",
            "use std::sync::mpsc::channel; fn f() { channel() }",
        ] {
            assert_eq!(count(unbounded_channels, text), 1, "{text}");
        }
        for text in [
            "let a = mpsc::channel(16);",
            "let a = oneshot::channel();",
            "let a = connection.channel();",
            "fn channel() {}",
            "let a = range.unbounded();",
        ] {
            assert_eq!(count(unbounded_channels, text), 0, "{text}");
        }
    }

    #[test]
    fn unsafe_code_has_one_place_and_an_argument() {
        assert_eq!(count(unsafe_code, "// SAFETY: no.\nunsafe { a() }"), 1);
        let argued = "// SAFETY: yes,\n// as follows.\n\n\n\n\nunsafe { a() }";
        assert!(lines(unsafe_code, UNSAFE_FILE, argued).is_empty());
        let too_far = "// SAFETY: yes.\n\n\n\n\n\nunsafe { a() }";
        assert_eq!(lines(unsafe_code, UNSAFE_FILE, too_far), [7]);
        assert_eq!(lines(unsafe_code, UNSAFE_FILE, "unsafe { a() } // SAFETY: late\n"), [1]);
        assert_eq!(count(unsafe_code, "#[allow(unsafe_code)] // unsafe"), 0);
    }

    #[test]
    fn ignored_tests_give_their_reason() {
        assert_eq!(count(ignored_tests, "#[ignore]\nfn a() {}"), 1);
        assert_eq!(count(ignored_tests, "#[cfg_attr(miri, ignore)]\nfn a() {}"), 1);
        assert_eq!(count(ignored_tests, "#[ignore = \"needs a disk\"]\nfn a() {}"), 0);
    }

    #[test]
    fn files_begin_with_their_doc() {
        assert_eq!(count(module_docs, "//! Owns a.\nuse b;"), 0);
        assert_eq!(count(module_docs, "use b;"), 1);
        assert_eq!(count(module_docs, "//!\nuse b;"), 1);
        assert_eq!(count(module_docs, ""), 1);
    }
}
