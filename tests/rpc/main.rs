//! The log service over real connections: nodes in one process, with real files.

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
mod floods;
mod forward;
mod records;
mod streams;
mod subscribe;
mod support;
