//! A light Rust scanner: tokens and comments, each with its line.
//!
//! It knows just enough of the grammar to never take the inside of a string, a character or a
//! comment for code. It accepts every text: an unclosed literal runs to the end of the file.

/// What a [`Token`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name or a keyword; raw identifiers lose their `r#`.
    Word,
    /// A lifetime or a loop label.
    Lifetime,
    /// A string, character or number. Its text is not kept.
    Literal,
    /// One character of punctuation.
    Mark,
}

/// One token of code.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Counted from 1.
    pub(crate) line: usize,
}

impl Token {
    /// Whether this is the given word or punctuation mark.
    pub(crate) fn is(&self, text: &str) -> bool {
        matches!(self.kind, Kind::Word | Kind::Mark) && self.text == text
    }

    /// Whether this is a name or a keyword.
    pub(crate) fn is_word(&self) -> bool {
        self.kind == Kind::Word
    }
}

/// One comment, docs included. Line comments on adjacent lines are separate comments.
#[derive(Clone, Debug)]
pub(crate) struct Comment {
    pub(crate) text: String,
    /// Line of its first character, counted from 1.
    pub(crate) line: usize,
    /// Line of its last character.
    pub(crate) last_line: usize,
}

/// Splits a text into its tokens and its comments, both in order.
pub(crate) fn scan(text: &str) -> (Vec<Token>, Vec<Comment>) {
    let mut scanner = Scanner {
        chars: text.chars().collect(),
        at: 0,
        line: 1,
        tokens: Vec::new(),
        comments: Vec::new(),
    };
    while let Some(first) = scanner.peek(0) {
        scanner.step(first);
    }
    (scanner.tokens, scanner.comments)
}

struct Scanner {
    chars: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    comments: Vec<Comment>,
}

impl Scanner {
    fn step(&mut self, first: char) {
        match (first, self.peek(1)) {
            ('/', Some('/')) => self.line_comment(),
            ('/', Some('*')) => self.block_comment(),
            ('"', _) => self.quoted(),
            ('\'', _) => self.character_or_lifetime(),
            (c, _) if c.is_whitespace() => self.skip(1),
            (c, _) if c.is_ascii_digit() => self.number(),
            (c, _) if starts_word(c) => self.word(),
            (c, _) => {
                self.push(Kind::Mark, c.to_string(), self.line);
                self.skip(1);
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// Moves on and counts the lines passed; stops at the end of the text.
    fn skip(&mut self, count: usize) {
        let end = (self.at + count).min(self.chars.len());
        self.line += self.chars[self.at..end].iter().filter(|c| **c == '\n').count();
        self.at = end;
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let length = self.chars[self.at..].iter().take_while(|c| wanted(**c)).count();
        let taken = self.chars[self.at..self.at + length].iter().collect();
        self.skip(length);
        taken
    }

    fn push(&mut self, kind: Kind, text: String, line: usize) {
        self.tokens.push(Token { kind, text, line });
    }

    fn push_comment(&mut self, start: usize, line: usize) {
        let text = self.chars[start..self.at].iter().collect();
        self.comments.push(Comment { text, line, last_line: self.line });
    }

    fn line_comment(&mut self) {
        let start = self.at;
        self.take_while(|c| c != '\n');
        self.push_comment(start, self.line);
    }

    fn block_comment(&mut self) {
        let (start, line) = (self.at, self.line);
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => depth += 1,
                (Some('*'), Some('/')) => depth -= 1,
                _ => {
                    self.skip(1);
                    continue;
                }
            }
            self.skip(2);
            if depth == 0 {
                break;
            }
        }
        self.push_comment(start, line);
    }

    /// A string with escapes, from its opening quote.
    fn quoted(&mut self) {
        let line = self.line;
        let quote = self.peek(0);
        self.skip(1);
        while self.at < self.chars.len() && self.peek(0) != quote {
            self.skip(if self.peek(0) == Some('\\') { 2 } else { 1 });
        }
        self.skip(1);
        self.push(Kind::Literal, String::new(), line);
    }

    /// A raw string, from its hashes or its opening quote.
    fn raw_quoted(&mut self) {
        let line = self.line;
        let hashes = self.take_while(|c| c == '#').len();
        self.skip(1);
        while self.at < self.chars.len() && !self.closes_raw(hashes) {
            self.skip(1);
        }
        self.skip(1 + hashes);
        self.push(Kind::Literal, String::new(), line);
    }

    fn closes_raw(&self, hashes: usize) -> bool {
        self.peek(0) == Some('"') && (1..=hashes).all(|n| self.peek(n) == Some('#'))
    }

    fn character_or_lifetime(&mut self) {
        let is_character = self.peek(1) == Some('\\') || self.peek(2) == Some('\'');
        if is_character {
            return self.quoted();
        }
        let line = self.line;
        self.skip(1);
        let name = self.take_while(continues_word);
        self.push(Kind::Lifetime, name, line);
    }

    /// A number; its fraction only where a digit follows the dot, so that ranges stay ranges.
    fn number(&mut self) {
        let line = self.line;
        self.take_while(continues_word);
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.skip(1);
            self.take_while(continues_word);
        }
        self.push(Kind::Literal, String::new(), line);
    }

    /// A word, or the literal that the word is a prefix of.
    fn word(&mut self) {
        let line = self.line;
        let word = self.take_while(continues_word);
        match (word.as_str(), self.peek(0)) {
            ("r" | "br" | "cr", Some('"')) => self.raw_quoted(),
            ("r" | "br" | "cr", Some('#')) if self.opens_raw() => self.raw_quoted(),
            ("b" | "c", Some('"')) | ("b", Some('\'')) => self.quoted(),
            ("r", Some('#')) if self.peek(1).is_some_and(starts_word) => {
                self.skip(1);
                let raw = self.take_while(continues_word);
                self.push(Kind::Word, raw, line);
            }
            _ => self.push(Kind::Word, word, line),
        }
    }

    fn opens_raw(&self) -> bool {
        self.chars[self.at..].iter().find(|c| **c != '#') == Some(&'"')
    }
}

fn starts_word(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn continues_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let (tokens, _) = scan(text);
        tokens.into_iter().filter(Token::is_word).map(|token| token.text).collect()
    }

    #[test]
    fn strings_and_characters_hide_their_inside() {
        let text =
            r###"a("x // no", 'y', b'z', '\'', "\" b", r"c\", r#"d " e"#, br##"f"# g"##) h"###;
        assert_eq!(words(text), ["a", "h"]);
    }

    #[test]
    fn lifetimes_are_not_characters() {
        assert_eq!(words("fn f<'a>(x: &'a str) -> &'static str { 'l: loop {} }").len(), 6);
    }

    #[test]
    fn block_comments_nest() {
        let (tokens, comments) = scan("a /* b /* c */\n d */ e // f");
        assert_eq!(tokens.len(), 2);
        assert_eq!((comments[0].line, comments[0].last_line), (1, 2));
        assert_eq!(comments[1].text, "// f");
    }

    #[test]
    fn lines_are_counted_through_literals() {
        let (tokens, _) = scan("a\n\"\n\n\" b\nr#\"\n\"# c");
        let lines: Vec<usize> = tokens.iter().filter(|t| t.is_word()).map(|t| t.line).collect();
        assert_eq!(lines, [1, 4, 6]);
    }

    #[test]
    fn ranges_and_raw_identifiers_are_understood() {
        assert_eq!(words("r#type = 0..end; 1.5e3.max(2)"), ["type", "end", "max"]);
    }

    #[test]
    fn unclosed_literals_end_with_the_text() {
        for text in ["\"a", "r#\"a\"", "/* a", "'\\", "b'", "r#"] {
            scan(text);
        }
    }
}
