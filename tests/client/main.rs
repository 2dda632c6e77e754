//! Tests of the client and of the commands that use it, against a server in this process whose
//! faults are scripted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod command;
mod consume;
mod consume_group;
mod fake;
mod group_command;
mod groups;
mod produce;
mod services;
mod subscribe;
mod transform;
