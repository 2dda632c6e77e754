//! Tests of the log engine through its public interface, over a model of a bad disk and over the
//! real one.

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod basics;
mod doubles;
mod exhaustive;
mod faults;
mod hardship;
mod links;
mod misplaced;
mod model;
mod promises;
mod real_input;
mod recovery;
mod repair;
mod support;
mod threads;
