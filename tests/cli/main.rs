//! Tests of the `quipu` command on real directories, made through the library.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod offline;
mod support;
