//! Groups under hardship, step by step: each test builds one situation that chance seldom does.

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod disks;
mod groups;
mod messages;
mod quiescence;
mod refusals;
mod repair;
mod support;
