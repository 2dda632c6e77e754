//! The bodies of the fuzz targets, one function from bytes each. A body panics on a finding.
//!
//! `tests/fuzz` feeds them from libFuzzer, `tests/corpus.rs` replays what it found. A new target is
//! a file here, a line in [`TARGETS`], a file in `tests/fuzz/bin` and a `[[bin]]` in
//! `tests/fuzz/Cargo.toml`.

pub(crate) mod batch_skim;

/// A target: the name of its folder in `tests/fuzz/corpus`, and its body.
type Target = (&'static str, fn(&[u8]));

#[allow(dead_code, reason = "the fuzzers name their targets themselves")]
pub(crate) const TARGETS: &[Target] = &[("batch_skim", batch_skim::run)];
