//! One source file as the rules see it: its module, its test code, its functions, its paths.

use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::scan::{Comment, Token, scan};

/// Items that end with a semicolon, whatever braces they hold.
const VALUE_ITEMS: [&str; 4] = ["use", "let", "const", "static"];

/// Items that end with their braces or a semicolon; what is neither ends with a comma, too.
const ITEMS: [&str; 11] =
    ["fn", "impl", "struct", "enum", "union", "trait", "mod", "type", "unsafe", "async", "extern"];

/// A place where a rule is broken.
#[derive(Debug)]
pub(crate) struct Breach {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A function with a body.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    /// From the line of its `fn` to its closing brace, both included.
    pub(crate) lines: usize,
}

/// A scanned file.
pub(crate) struct Source {
    /// From the root of the project, with `/` between its parts.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) comments: Vec<Comment>,
    /// Lines of the items under `#[cfg(test)]`.
    test_lines: Vec<RangeInclusive<usize>>,
}

impl Source {
    /// Scans a file's text.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let (tokens, comments) = scan(text);
        let test_lines = find_test_lines(&tokens);
        Source { path: path.to_owned(), text: text.to_owned(), tokens, comments, test_lines }
    }

    /// Whether the file belongs to the crate itself.
    pub(crate) fn in_crate(&self) -> bool {
        self.path.starts_with("src/")
    }

    /// Whether the whole file is test code: by its place or by its name.
    pub(crate) fn is_test_file(&self) -> bool {
        let outside = self.path.starts_with("tests/") || self.path.starts_with("benches/");
        outside || self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// Whether the line is test code.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file() || self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// The lines of the file that are not test code.
    pub(crate) fn production_lines(&self) -> usize {
        (1..=self.text.lines().count()).filter(|line| !self.is_test_line(*line)).count()
    }

    /// The module path inside the crate: `storage`, `fs` for `src/storage/fs/mod.rs`. The crate's
    /// root has none, the program's root is `main`.
    pub(crate) fn module(&self) -> Vec<String> {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
            parts.pop();
        }
        parts
    }

    /// Whether the file's module is the given one (`storage::fs`) or lies inside it.
    pub(crate) fn is_within(&self, module: &str) -> bool {
        let own = self.module().join("::");
        own == module || own.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"))
    }

    /// The functions with a body, nested ones included.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let starts = (0..self.tokens.len()).filter(|at| self.tokens[*at].is("fn"));
        starts.filter_map(|at| self.function_at(at)).collect()
    }

    fn function_at(&self, at: usize) -> Option<Function> {
        let name = self.tokens.get(at + 1).filter(|token| token.is_word())?;
        let end = item_end(&self.tokens, at);
        let has_body = self.tokens[end].is("}");
        let line = self.tokens[at].line;
        let lines = self.tokens[end].line - line + 1;
        has_body.then(|| Function { name: name.text.clone(), line, lines })
    }

    /// Whether the tokens from `at` on read as the given words and marks.
    pub(crate) fn reads(&self, at: usize, texts: &[&str]) -> bool {
        reads(&self.tokens, at, texts)
    }

    /// A breach of a rule in this file.
    pub(crate) fn breach(&self, line: usize, message: impl Into<String>) -> Breach {
        Breach { path: self.path.clone(), line, message: message.into() }
    }

    /// The breaches at all tokens for which `find` has a message.
    pub(crate) fn breaches_at_tokens(
        &self,
        find: impl Fn(usize, &Token) -> Option<String>,
    ) -> Vec<Breach> {
        let found = self.tokens.iter().enumerate();
        found.filter_map(|(at, token)| Some(self.breach(token.line, find(at, token)?))).collect()
    }
}

/// Reads all Rust files of the project: the crate, its tests, its benches, its build script.
pub(crate) fn read_project() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for top in ["src", "tests", "benches"] {
        collect_rust_files(root, top, &mut paths);
    }
    if root.join("build.rs").is_file() {
        paths.push("build.rs".to_owned());
    }
    paths.sort();
    let read = |path: &String| fs::read_to_string(root.join(path)).expect("a readable source file");
    paths.iter().map(|path| Source::new(path, &read(path))).collect()
}

fn collect_rust_files(root: &Path, folder: &str, paths: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root.join(folder)) else {
        return;
    };
    for entry in entries {
        let entry = entry.expect("a readable folder");
        let name = entry.file_name().into_string().expect("a file name in UTF-8");
        let path = format!("{folder}/{name}");
        let is_folder = entry.file_type().expect("a file type").is_dir();
        if is_folder && name != "target" {
            collect_rust_files(root, &path, paths);
        } else if name.ends_with(".rs") {
            paths.push(path);
        }
    }
}

fn reads(tokens: &[Token], at: usize, texts: &[&str]) -> bool {
    let found = tokens.get(at..at + texts.len());
    found.is_some_and(|found| found.iter().zip(texts).all(|(token, text)| token.is(text)))
}

fn find_test_lines(tokens: &[Token]) -> Vec<RangeInclusive<usize>> {
    if (0..tokens.len()).any(|at| reads(tokens, at, &["#", "!", "[", "cfg", "(", "test", ")"])) {
        return vec![1..=usize::MAX];
    }
    let starts = (0..tokens.len()).filter(|at| {
        reads(tokens, *at, &["#", "[", "cfg", "(", "test", ")"])
            || reads(tokens, *at, &["#", "[", "cfg", "(", "all", "(", "test"])
    });
    starts.map(|at| tokens[at].line..=tokens[attributed_item_end(tokens, at)].line).collect()
}

/// The last token of the item whose first attribute begins at `at`.
fn attributed_item_end(tokens: &[Token], mut at: usize) -> usize {
    while reads(tokens, at, &["#", "["]) {
        at = group_end(tokens, at + 1) + 1;
    }
    item_end(tokens, at)
}

/// The last token of the item, statement, field, variant or arm that begins at `at`.
fn item_end(tokens: &[Token], at: usize) -> usize {
    let first = first_keyword(tokens, at);
    let has_value = VALUE_ITEMS.iter().any(|word| reads(tokens, first, &[word]));
    let braces_end = !has_value || reads(tokens, first, &["const", "fn"]);
    let comma_ends = !has_value && !ITEMS.iter().any(|word| reads(tokens, first, &[word]));
    let mut at = first;
    while at < tokens.len() {
        let is = |marks: &[&str]| marks.iter().any(|mark| tokens[at].is(mark));
        if is(&[";"]) || (comma_ends && is(&[","])) {
            return at;
        }
        if is(&[")", "]", "}"]) {
            return at.saturating_sub(1);
        }
        if is(&["(", "[", "{"]) {
            let end = group_end(tokens, at);
            if braces_end && is(&["{"]) {
                return end;
            }
            at = end;
        }
        at += 1;
    }
    tokens.len().saturating_sub(1)
}

/// Passes a visibility: the first token that says what the item is.
fn first_keyword(tokens: &[Token], at: usize) -> usize {
    match (reads(tokens, at, &["pub", "("]), reads(tokens, at, &["pub"])) {
        (true, _) => group_end(tokens, at + 1) + 1,
        (false, true) => at + 1,
        (false, false) => at,
    }
}

/// The token that closes the group opened at `at`, or the last one.
pub(crate) fn group_end(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0usize;
    for (offset, token) in tokens[at..].iter().enumerate() {
        if ["(", "[", "{"].iter().any(|open| token.is(open)) {
            depth += 1;
        } else if [")", "]", "}"].iter().any(|close| token.is(close)) {
            depth = depth.saturating_sub(1);
        }
        if depth == 0 {
            return at + offset;
        }
    }
    tokens.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_lines(text: &str) -> Vec<usize> {
        let source = Source::new("src/a.rs", text);
        (1..=text.lines().count()).filter(|line| source.is_test_line(*line)).collect()
    }

    #[test]
    fn test_code_is_the_item_under_the_attribute() {
        let text = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n fn b() {}\n}\nfn c() {}";
        assert_eq!(test_lines(text), [2, 3, 4, 5, 6]);
        assert_eq!(test_lines("#[cfg(test)]\nmod tests;\nfn a() {}"), [1, 2]);
        assert_eq!(test_lines("#[cfg(test)]\nuse a::{b,\n c};\nfn d() {}"), [1, 2, 3]);
        assert_eq!(test_lines("struct S {\n#[cfg(test)]\na: u8,\nb: u8,\n}"), [2, 3]);
        assert_eq!(test_lines("enum E {\n#[cfg(test)]\nA,\nB,\n}"), [2, 3]);
        assert_eq!(test_lines("#[cfg(test)]\npub(crate) fn a<B, C>() {\n}\nfn d() {}"), [1, 2, 3]);
        assert_eq!(test_lines("#![cfg(test)]\nfn a() {}"), [1, 2]);
        assert!(test_lines("#[cfg(not(test))]\nfn a() {}").is_empty());
    }

    #[test]
    fn test_files_are_known_by_name_and_place() {
        for path in ["src/a/tests.rs", "src/a/tests/b.rs", "tests/c.rs", "benches/d.rs"] {
            assert!(Source::new(path, "").is_test_file(), "{path}");
        }
        for path in ["src/contests.rs", "src/lib.rs", "build.rs"] {
            assert!(!Source::new(path, "").is_test_file(), "{path}");
        }
    }

    #[test]
    fn modules_follow_the_path() {
        let module = |path| Source::new(path, "").module().join("::");
        assert_eq!(module("src/lib.rs"), "");
        assert_eq!(module("src/main.rs"), "main");
        assert_eq!(module("src/storage/fs/mod.rs"), "storage::fs");
        assert!(Source::new("src/storage/fs/map.rs", "").is_within("storage::fs"));
        assert!(!Source::new("src/storage/fsync.rs", "").is_within("storage::fs"));
    }

    #[test]
    fn functions_are_measured_to_their_brace() {
        let text =
            "trait T { fn a(); }\nconst fn b(x: [u8; 2]) {\n let y = {1};\n}\ntype F = fn();";
        let source = Source::new("src/a.rs", text);
        let functions = source.functions();
        assert_eq!(functions.len(), 1);
        assert_eq!((functions[0].line, functions[0].lines), (2, 3));
    }
}
