//! Names that every layer shares.
//!
//! Offsets, indices, terms and positions are plain `u64`: a name says which one it is
//! (`base_offset`,
//! `last_index`, `position`), and one word never stands for two of them.

use std::fmt;

use uuid::Uuid;

/// Identity of one partition log, unique for ever: a deleted log's id is never given to another.
///
/// Files and directories are named by it, never by text that a user chose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub Uuid);

impl LogId {
    /// The id no log has. Journal facts about the whole data directory stand under it.
    pub const NIL: Self = Self(Uuid::nil());

    /// Reads an id from its hyphenated text form, as it appears in directory names.
    ///
    /// Returns `None` when the text is not exactly the form that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self(Uuid::try_parse(text).ok()?);
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for LogId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
