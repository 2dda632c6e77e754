//! The bodies of the fuzz targets, one function from bytes each. A body panics on a finding.
//!
//! `tests/fuzz` feeds them from libFuzzer, `tests/corpus.rs` replays what it found. A new target is
//! a file here, a line in [`TARGETS`], a file in `tests/fuzz/bin` and a `[[bin]]` in
//! `tests/fuzz/Cargo.toml`.

pub(crate) mod batch_skim;
mod edits;
pub(crate) mod entry_decode;
pub(crate) mod index_parse;
pub(crate) mod journal_open;
pub(crate) mod log_open;
mod sample;
pub(crate) mod segment_open;

/// A target: the name of its folder in `tests/fuzz/corpus`, and its body.
type Target = (&'static str, fn(&[u8]));

#[allow(dead_code, reason = "the fuzzers name their targets themselves")]
pub(crate) const TARGETS: &[Target] = &[
    ("batch_skim", batch_skim::run),
    ("entry_decode", entry_decode::run),
    ("index_parse", index_parse::run),
    ("journal_open", journal_open::run),
    ("log_open", log_open::run),
    ("segment_open", segment_open::run),
];
